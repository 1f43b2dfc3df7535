"""A client that sends at a constant rate, whatever the answers take, and knows every single one of them.

wrk sends as fast as it can; to see what a change does under load that the machine can carry, requests must be sent
when they are due. A latency counts from the moment a request was due, so that a stall shows in all requests that
it held up (no coordinated omission; Tene's wrk2 does the same). One event loop, plain sockets, HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

_TICK_S = 0.001
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_VERSION = re.compile(rb"\r\nheadrace-version: *(\d+)", re.IGNORECASE)
_SAID = re.compile(rb'"version": *"?(\d+)')
_RECONNECT_S = 10.0


@dataclass(slots=True)
class Sample:
    """One request. Times are of the loop; `status` 0: the connection broke. `version` is that of the answer's header,
    `said` the one in its body. `mark` is what `Client.mark` was when it was sent, `seen` what `Client.seen` was when
    the answer came.
    """

    due: float
    sent: float
    mark: int
    ended: float = 0.0
    status: int = 0
    version: int = 0
    said: int = 0
    seen: int = 0

    @property
    def latency_ms(self) -> float:
        return (self.ended - self.due) * 1000


class Client:
    """Sends GET requests for `path` over `connections` connections; `samples` holds every answered one."""

    def __init__(self, host: str, port: int, path: str, connections: int) -> None:
        self.mark = 0
        self.seen = 0
        self.samples: list[Sample] = []
        self._address = (host, port)
        self._request = f"GET {path} HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n".encode()
        self._count = connections
        self._free: deque[_Connection] = deque()
        self._due: deque[float] = deque()
        self._endless = False
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[None]] = set()
        self._all: set[_Connection] = set()

    async def open(self) -> None:
        for _ in range(self._count):
            await self._connect()

    async def _connect(self) -> None:
        async with asyncio.timeout(_RECONNECT_S):
            while True:
                try:
                    _, connection = await self._loop.create_connection(
                        lambda: _Connection(self._answered, self._lost), *self._address
                    )
                    break
                except OSError:
                    await asyncio.sleep(0.05)
        self._all.add(connection)
        self._freed(connection)

    async def close(self) -> None:
        for connection in self._all:
            connection.close()
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)

    async def saturate(self, seconds: float) -> float:
        """As fast as answers come, on all connections; answers per second."""
        before, began = len(self.samples), self._loop.time()
        self._endless = True
        while self._free:
            self._send(self._free.popleft(), self._loop.time())
        await asyncio.sleep(seconds)
        self._endless = False
        await self.settled()
        return (len(self.samples) - before) / (self._loop.time() - began)

    async def steady(self, rate: float, until: Callable[[], bool]) -> None:
        """`rate` requests per second until `until()`; returns when all are answered."""
        began, sent = self._loop.time(), 0
        while not until():
            now = self._loop.time()
            while sent < (now - began) * rate:
                self._due.append(began + sent / rate)
                sent += 1
            while self._free and self._due:
                self._send(self._free.popleft(), self._due.popleft())
            await asyncio.sleep(_TICK_S)
        await self.settled()

    async def settled(self) -> None:
        """Wait until every request that is due has been sent and answered."""
        async with asyncio.timeout(60):
            while self._due or len(self._free) < self._count:
                await asyncio.sleep(_TICK_S)

    def _send(self, connection: _Connection, due: float) -> None:
        connection.send(self._request, Sample(due, self._loop.time(), self.mark))

    def _answered(self, connection: _Connection, sample: Sample) -> None:
        sample.ended, sample.seen = self._loop.time(), self.seen
        self.samples.append(sample)
        if connection.open:
            self._freed(connection)

    def _lost(self, connection: _Connection) -> None:
        """Replace a connection; one that ended between two requests cost none of them."""
        if connection in self._free:
            self._free.remove(connection)
        self._all.discard(connection)
        task = self._loop.create_task(self._connect())
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def _freed(self, connection: _Connection) -> None:
        if self._endless:
            self._send(connection, self._loop.time())
        elif self._due:
            self._send(connection, self._due.popleft())
        else:
            self._free.append(connection)


class _Connection(asyncio.Protocol):
    """One request at a time. Answers have a content-length or are chunked."""

    def __init__(self, answered: Callable[[_Connection, Sample], None], lost: Callable[[_Connection], None]) -> None:
        self._answered = answered
        self._lost = lost
        self._sample: Sample | None = None
        self._data = b""
        self._transport: asyncio.Transport | None = None
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.open = cast(asyncio.Transport, transport), True

    def close(self) -> None:
        self._lost = _nobody
        if self._transport is not None:
            self._transport.close()

    def send(self, request: bytes, sample: Sample) -> None:
        assert self._sample is None and self._transport is not None
        self._sample = sample
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0 or self._sample is None:
            return
        head, body = self._data[: end + 2], self._data[end + 4 :]
        length = _LENGTH.search(head)
        if len(body) < int(length[1]) if length else not body.endswith(b"0\r\n\r\n"):
            return
        version, said = _VERSION.search(head), _SAID.search(body)
        self._sample.status = int(head[9:12])
        self._sample.version = int(version[1]) if version else 0
        self._sample.said = int(said[1]) if said else 0
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._sample is not None:
            self._end()
        self._lost(self)

    def _end(self) -> None:
        sample, self._sample, self._data = self._sample, None, b""
        assert sample is not None
        self._answered(self, sample)


def _nobody(_: _Connection) -> None:
    """The connection was closed on purpose."""
