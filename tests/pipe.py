"""A connection in memory: a protocol of the server on one side, a test on the other, no socket between them."""

from __future__ import annotations

import asyncio
from typing import Any


class Pipe(asyncio.Transport):
    """The server's transport. What it writes is `sent`, and goes to `heard`, one turn of the loop later.

    `reads`: the peer takes what is written; else it stays here, and the protocol is told beyond the high water mark.
    `lost`: the connection is closed. `ended`: the server sends no more.
    """

    def __init__(self, protocol: asyncio.Protocol, *, reads: bool = True) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._protocol: asyncio.Protocol = protocol
        self._high = 64 << 10
        self._unread = bytearray()
        self._untold: list[bytes] = []  # that the server has not let in
        self._closing = False
        self.reads = reads
        self.sent = bytearray()
        self.paused = False
        self.ended = False
        self.lost = asyncio.Event()
        protocol.connection_made(self)

    # -- the peer's side

    def say(self, data: bytes) -> None:
        """Send to the server: at once, unless it does not listen."""
        if self.paused:
            self._untold.append(data)
        elif not self._closing:
            self._protocol.data_received(data)

    def hang_up(self) -> None:
        """Send no more."""
        if not self._closing and not self._protocol.eof_received():
            self.close()

    def vanish(self) -> None:
        """The connection breaks."""
        self.abort()

    def read(self) -> None:
        """Take what has been written, and read from now on."""
        self.reads = True
        data, self._unread = bytes(self._unread), bytearray()
        if data:
            self._deliver(data)
            self._protocol.resume_writing()
        if self._closing:
            self.abort()

    @property
    def untold(self) -> int:
        return len(self._untold)

    def heard(self, data: bytes) -> None:
        """What the server sent has arrived."""

    def _deliver(self, data: bytes) -> None:
        self.sent += data
        self._loop.call_soon(self.heard, data)

    # -- the server's side

    def write(self, data: Any) -> None:
        assert not self.ended, "the server had said that it sends no more"
        if self._closing:
            return
        if self.reads:
            self._deliver(bytes(data))
            return
        full = len(self._unread) > self._high
        self._unread += data
        if not full and len(self._unread) > self._high:
            self._protocol.pause_writing()

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self._closing = True
        if not self._unread:
            self.abort()

    def abort(self) -> None:
        self._closing = True
        self._unread.clear()
        if not self.lost.is_set():
            self.lost.set()
            self._loop.call_soon(self._lose)

    def _lose(self) -> None:
        protocol, self._protocol = self._protocol, asyncio.Protocol()
        protocol.connection_lost(None)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
        while self._untold and not self.paused and not self._closing:
            self._protocol.data_received(self._untold.pop(0))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or 0

    def get_write_buffer_size(self) -> int:
        return len(self._unread)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default
