"""HTTP/1.1 to the image's program: connections over the loopback interface, kept and used again.

`h11` reads and writes the protocol. A connection reads on only as its answer is taken, so a slow caller slows the
program down and nothing piles up here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast

import h11
from headrace_shim.errors import Plain

HIGH = 256 << 10  # bytes read and not taken, beyond which the socket is left alone
KEEP_S = 2.0  # an idle connection is not used after this: servers close theirs after some seconds
KEEP = 64  # idle connections
HEAD_LIMIT = 128 << 10  # bytes of the head of an answer
HOSTS = ("127.0.0.1", "::1")
_CLOSED_EARLY = "the program closed the connection before its answer was complete"


class Unreachable(Plain):
    """Nobody takes connections on the port."""


class BadAnswer(Plain):
    """What the program sent is no HTTP answer, or not a whole one. `untouched`: nothing of one had come."""

    def __init__(self, text: str, untouched: bool = False) -> None:
        super().__init__(text)
        self.untouched = untouched


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self.closed = False
        self.used = False  # an earlier exchange went over it
        self.idle_since = 0.0
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        self._transport: asyncio.Transport
        self._news: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._full = False
        self._unread = 0
        self._touched = False
        self._arrived = False
        self._ended = False

    @staticmethod
    async def open(port: int) -> Connection:
        """Raises `Unreachable`."""
        for host in HOSTS:
            try:
                _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
            except OSError:
                continue
            return cast(Connection, connection)
        raise Unreachable(f"the program takes no connection on port {port}")

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._touched = True
        self._unread += len(data)
        if self._unread > HIGH:
            self._transport.pause_reading()
        self._feed(data)

    def eof_received(self) -> None:
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._end()
        _wake(self._room)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        _wake(self._room)

    # -- one exchange

    def request(self, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes | None) -> None:
        """Send the head, and the whole body unless it is None. Raises `BadAnswer` for what HTTP can't carry."""
        self._touched = False
        try:
            data = self._send(h11.Request(method=method, target=target, headers=headers))
            if body is not None:
                data += (self._send(h11.Data(data=body)) if body else b"") + self._send(h11.EndOfMessage())
        except h11.LocalProtocolError as error:
            raise BadAnswer(f"the request can't be passed on: {error}") from None
        self._transport.write(data)

    async def send_piece(self, body: bytes) -> None:
        """A further piece of the body, when the program takes it."""
        if not self.closed:
            self._transport.write(self._send(h11.Data(data=body)))
        while self._full and not self.closed:
            self._room = self._loop.create_future()
            await self._room

    def send_end(self) -> None:
        if not self.closed:
            self._transport.write(self._send(h11.EndOfMessage()))

    def next(self) -> Any:
        """The next event of the answer, None when it has not arrived yet. Raises `BadAnswer`."""
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            if self._ended:
                raise BadAnswer(_CLOSED_EARLY, not self._touched) from None
            raise BadAnswer(f"the program's answer is not HTTP: {error}") from None
        if event is h11.NEED_DATA or event is h11.PAUSED:
            self._unread = 0
            self._arrived = False
            if not (self.closed or self._ended):
                self._transport.resume_reading()
            return None
        if isinstance(event, h11.ConnectionClosed):
            raise BadAnswer(_CLOSED_EARLY, not self._touched)
        return event

    async def wait(self, seconds: float | None = None) -> bool:
        """Until more has arrived since `next` had nothing, or the end; False when `seconds` go by without either."""
        if not (self._ended or self._arrived):
            self._news = self._loop.create_future()
            if seconds is None:
                await self._news
            else:
                timer = self._loop.call_later(seconds, _wake, self._news)
                await self._news
                timer.cancel()
        return self._ended or self._arrived

    async def probe(self, path: str) -> int:
        """GET `path`; the status."""
        self.request(b"GET", path.encode(), [(b"host", b"localhost"), (b"connection", b"close")], b"")
        while True:
            event = self.next()
            if isinstance(event, h11.Response):
                return int(event.status_code)
            if event is None:
                await self.wait()

    def again(self) -> bool:
        """Make ready for another exchange; False when this connection can't have one."""
        if self.closed or self._ended or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        self.used = True
        self.idle_since = self._loop.time()
        return True

    @property
    def fresh(self) -> bool:
        return not (self.closed or self._ended) and self._loop.time() - self.idle_since < KEEP_S

    def close(self) -> None:
        """Cut it off, whatever goes on."""
        self._transport.abort()

    # -- inside

    def _send(self, event: Any) -> bytes:
        return cast(bytes, self._http.send(event)) or b""

    def _feed(self, data: bytes) -> None:
        if not self._ended:
            self._http.receive_data(data)
            self._arrived = True
            _wake(self._news)

    def _end(self) -> None:
        if not self._ended:
            self._feed(b"")
            self._ended = True
            _wake(self._news)


class Connections:
    """Idle connections to one port, the last used first."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: deque[Connection] = deque()

    async def take(self, used: bool = True) -> Connection:
        """A connection, perhaps a `used` one. Raises `Unreachable`."""
        while used and self._idle:
            connection = self._idle.pop()
            if connection.fresh:
                return connection
            connection.close()
        return await Connection.open(self._port)

    def give(self, connection: Connection) -> None:
        """An exchange has ended."""
        if not connection.again():
            connection.close()
            return
        self._idle.append(connection)
        if len(self._idle) > KEEP:
            self._idle.popleft().close()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
