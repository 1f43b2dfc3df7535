"""The output of the processes that `up` runs: read as it comes, kept in files of bounded size."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

_LONGEST_LINE = 8 << 10


class RotatingFile:
    """Appends to `path`; when it would grow over `limit` bytes it becomes `path.1`, and so on up to `keep`.

    A disk that is full or read-only must not stop the platform: what cannot be written is counted in `lost_bytes`.
    """

    def __init__(self, path: Path, limit: int = 4 << 20, keep: int = 3) -> None:
        self.path = path
        self.lost_bytes = 0
        self._limit = limit
        self._keep = keep
        self._file = -1
        self._size = 0

    def write(self, data: bytes) -> None:
        try:
            if self._file < 0 or (self._size and self._size + len(data) > self._limit):
                self._open()
            written = os.write(self._file, data)
        except OSError:
            written = 0
        self._size += written
        self.lost_bytes += len(data) - written

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._file >= 0 or self._existing() > self._limit:
            self.close()
            for number in range(self._keep, 0, -1):
                older = self.path.with_name(f"{self.path.name}.{number}")
                newer = self.path if number == 1 else self.path.with_name(f"{self.path.name}.{number - 1}")
                if newer.exists():
                    newer.replace(older)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._file).st_size

    def _existing(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Lines(asyncio.Protocol):
    """The reading end of a process's output: what comes goes to `on_data` as it is and to `on_line` line by line.

    Lines longer than a few KiB are cut for `on_line`. `closed` is set at the end.
    """

    def __init__(self, on_line: Callable[[str], None], on_data: Callable[[bytes], None]) -> None:
        self.closed = asyncio.Event()
        self._on_data = on_data
        self._on_line = on_line
        self._rest = b""
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._on_data(data)
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        self._rest = rest[:_LONGEST_LINE]

    def connection_lost(self, exc: Exception | None) -> None:
        self._line(self._rest)
        self._rest = b""
        self._transport = None
        self.closed.set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _line(self, line: bytes) -> None:
        text = line[:_LONGEST_LINE].decode("utf-8", "replace").rstrip()
        if text:
            self._on_line(text)
