"""A multipart upload, streamed: the bundle goes to a temporary file, the config stays in memory, both bounded.

The framework's own form parser reads the whole form before anybody may say no, so the parts are parsed here as they
arrive. Everything written is gone when the upload's context ends, however it ends; what a killed process left is
swept at the next start.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from headrace.control import reading
from headrace.errors import CallerError, Invalid, TooLarge
from headrace.releases.archive import MAX_PACKED
from headrace.settings import Settings

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

CONFIG_LIMIT = reading.JSON_LIMIT
_FRAMING = 64 << 10  # bytes that boundaries and headers of the parts may take
_WRITE = 1 << 20  # bytes that are gathered before a thread writes them
_PREFIX = "upload-"


@dataclass(frozen=True, slots=True)
class Upload:
    """What arrived. `bundle` is a file that lives as long as the context that made it."""

    bundle: Path
    config: bytes | None


def folder(settings: Settings) -> Path:
    return settings.home / "tmp"


def sweep(settings: Settings) -> None:
    """Remove what uploads of an earlier process left behind."""
    for path in folder(settings).glob(f"{_PREFIX}*"):
        path.unlink(missing_ok=True)


@asynccontextmanager
async def received(request: Request, options: dict[bytes, bytes], settings: Settings) -> AsyncIterator[Upload]:
    """The parts `bundle` and `config` of `request`, whose content type has `options`.

    Raises `TooLarge` while the body arrives, `CallerError` when it is no form, `Invalid` for missing or unknown parts.
    """
    place = folder(settings)
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(prefix=_PREFIX, dir=place)
    try:
        with os.fdopen(handle, "wb") as file:  # closing waits for a write that a cancellation left in its thread
            config = await _read(request, options, file)
        yield Upload(Path(name), config)
    finally:
        Path(name).unlink(missing_ok=True)


async def _read(request: Request, options: dict[bytes, bytes], file: BinaryIO) -> bytes | None:
    form = _Form()
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise CallerError("the Content-Type names no boundary; let your HTTP client make the multipart form.")
    try:
        parser = MultipartParser(boundary, form.callbacks())
        async for piece in reading.pieces(request, MAX_PACKED + CONFIG_LIMIT + _FRAMING):
            parser.write(piece)
            if len(form.unwritten) >= _WRITE:
                await asyncio.to_thread(file.write, form.take())
        parser.finalize()
    except FormParserError as error:
        raise CallerError(f"the body is not a multipart form: {error}; let your HTTP client make it.") from None
    await asyncio.to_thread(file.write, form.take())
    return form.result()


class _Form:
    """Takes what the parser finds: which part is it, and where do its bytes go?"""

    def __init__(self) -> None:
        self.unwritten = bytearray()
        self._bundle_size = 0
        self._config = bytearray()
        self._seen: list[str] = []
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._complete = False

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_end": self._on_end,
        }

    def take(self) -> bytes:
        content = bytes(self.unwritten)
        self.unwritten.clear()
        return content

    def result(self) -> bytes | None:
        """The config, None without one; raises unless the form is whole and has a bundle."""
        if not self._complete:
            raise CallerError("the multipart form ends before its last boundary; send it again.")
        if "bundle" not in self._seen:
            raise Invalid("body.bundle: this is missing; add a part 'bundle' with a zip or tar.gz archive.")
        return bytes(self._config) if "config" in self._seen else None

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if bytes(self._header).strip().lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in ("bundle", "config"):
            raise Invalid(f"body.{name[:80]}: this part is not known here; send 'bundle' and 'config'.")
        if name in self._seen:
            raise Invalid(f"body.{name}: this part is given twice; keep one of them.")
        self._seen.append(name)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._seen[-1] == "bundle":
            self._bundle_size += end - start
            if self._bundle_size > MAX_PACKED:
                raise TooLarge(f"the bundle is over {MAX_PACKED >> 20} MiB packed; leave out what it does not need.")
            self.unwritten += data[start:end]
        else:
            if len(self._config) + end - start > CONFIG_LIMIT:
                raise TooLarge(f"the part 'config' is over {CONFIG_LIMIT:,} bytes; send less.")
            self._config += data[start:end]

    def _on_end(self) -> None:
        self._complete = True
