"""What connections of either version have in common, and what they share: their port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import cast

from headrace.web.exchange import Handler
from headrace.web.head import Dates
from headrace.web.limits import FLOOD, WRITE_BUFFER
from headrace.web.websocket import WebSocket

_KEEPALIVE = tuple(  # where the system has them
    (getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 4))
    if hasattr(socket, name)
)


@dataclass
class Port:
    """`handler` gets each request. Times in seconds: `header_s` for a request's head, `idle_s` between requests."""

    handler: Handler
    header_s: float
    idle_s: float
    scheme: str = "http"
    dates: Dates = field(default_factory=Dates)
    connections: set[Connection] = field(default_factory=set)
    sockets: set[WebSocket] = field(default_factory=set)
    stopping: bool = False


class Connection(asyncio.Protocol, ABC):
    """One connection. `since` is the loop's time of its last news; `late` judges how long it may be silent."""

    __slots__ = ("_loop", "_paused", "_reading", "_room", "client", "closing", "port", "since", "transport")

    def __init__(self, port: Port, client: str) -> None:
        self.port = port
        self.client = client
        self.closing = False  # nothing more is read; what was written may still leave
        self.transport: asyncio.Transport
        self._loop = asyncio.get_running_loop()
        self.since = self._loop.time()
        self._paused = False  # the peer reads too slowly
        self._reading = True
        self._room: list[asyncio.Future[None]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(WRITE_BUFFER)
        self.port.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self.port.connections.discard(self)
        self.resume_writing()
        self.left()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        waiting, self._room = self._room, []
        for room in waiting:
            if not room.done():
                room.set_result(None)

    async def room(self) -> None:
        """Wait until the peer has read."""
        while self._paused:
            room = self._loop.create_future()
            self._room.append(room)
            await room

    def _pause(self) -> None:
        """Read no more for now."""
        if self._reading and not self.closing:
            self._reading = False
            self.transport.pause_reading()

    def _resume(self) -> None:
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    @property
    def flooded(self) -> bool:
        """The peer asks and asks and reads no answer."""
        return self._paused and self.transport.get_write_buffer_size() > FLOOD

    def close(self) -> None:
        """Close once everything that was written has left; `late` sees to it that this ends."""
        self.closing = True
        self.since = self._loop.time()
        self.transport.close()

    def late(self, now: float) -> bool:
        """It has been silent for too long at the time `now`."""
        return now - self.since > self.allowance()

    @abstractmethod
    def left(self) -> None:
        """The peer has gone: whoever still answers it is told."""

    @abstractmethod
    def allowance(self) -> float:
        """For how many seconds it may be silent now."""

    @abstractmethod
    def wind_up(self) -> None:
        """The port closes: what is being answered is answered, and nothing further is taken."""


def watch(transport: asyncio.BaseTransport) -> None:
    """Let the kernel ask whether the other end is still there: a machine that vanished says no goodbye."""
    connection = transport.get_extra_info("socket")
    if connection is None:
        return
    with contextlib.suppress(OSError):  # closed meanwhile
        for option, value in _KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
