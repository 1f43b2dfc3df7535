"""HTTP/2 on one connection: h2 keeps the protocol's state, this moves bodies under its windows.

A stream's window is opened again as its body is taken, the connection's as bytes arrive: one slow upload never holds
up the others. Answers wait per stream until the peer's windows let them go. A peer that opens and resets streams,
sends empty frames or asks without reading beyond what anybody would is told to calm down and cut off.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from headrace.errors import CallerError, ClientGone, HeadersTooLarge, HeadraceError
from headrace.web import head
from headrace.web.connection import Connection, Port
from headrace.web.exchange import Exchange
from headrace.web.head import Headers
from headrace.web.limits import GRACE_S, HEAD_BYTES, HEAD_FIELDS, WRITE_BUFFER
from headrace.web.problem import answer_of
from headrace.web.websocket import WebSocket

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_STREAMS = 100  # at once
_STREAM_WINDOW = 256 << 10  # bytes of a body that nobody has taken
_CONNECTION_WINDOW = 4 << 20
_AFTER_LENGTH = 6  # bytes of a frame's head behind its length
_MOST_RESETS = 200  # streams that the peer gave up, more than it let be answered
_MOST_EMPTY = 1_000  # frames without data, in a row
_HOP = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))


class Http2(Connection):
    """The server's side of one connection."""

    __slots__ = (
        "_empty",
        "_exchanges",
        "_frame_length",
        "_h2",
        "_resets",
        "_unacknowledged",
        "_until_frame",
    )

    def __init__(self, port: Port, client: str) -> None:
        super().__init__(port, client)
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: _STREAMS,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: HEAD_BYTES,
            },
        )
        self._exchanges: dict[int, Exchange2] = {}
        self._unacknowledged = 0  # bytes that arrived since the connection's window was opened
        self._resets = 0
        self._empty = 0
        self._until_frame = len(PREFACE)  # bytes until the next frame begins
        self._frame_length = b""  # what has come of its first field

    # -- what the connection brings

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW - 65_535)
        self.flush()

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        self.since = self._loop.time()
        if self._announces_too_much(data):
            self._h2.close_connection(h2.errors.ErrorCodes.FRAME_SIZE_ERROR)
            self._end()
            return
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError:
            self._end()
            return
        for event in events:
            handle = _HANDLERS.get(type(event))
            if handle is not None and not self.closing:
                handle(self, event)
        self._open_window()
        self.flush()
        if self.flooded:
            self._pause()

    def _announces_too_much(self, data: bytes) -> bool:
        """A frame is longer than was agreed, as its head says: h2 would keep it until all of it has come."""
        at = self._until_frame
        while at < len(data):
            part = data[at : at + 3 - len(self._frame_length)]
            self._frame_length += part
            at += len(part)
            if len(self._frame_length) == 3:
                length = int.from_bytes(self._frame_length, "big")
                if length > self._h2.max_inbound_frame_size:
                    return True
                at += _AFTER_LENGTH + length
                self._frame_length = b""
        self._until_frame = at - len(data)
        return False

    def resume_writing(self) -> None:
        super().resume_writing()
        self._resume()

    def eof_received(self) -> bool:
        return False

    def left(self) -> None:
        exchanges, self._exchanges = self._exchanges, {}
        for exchange in exchanges.values():
            exchange.lost()

    def _open_window(self) -> None:
        if self._unacknowledged >= _CONNECTION_WINDOW // 2 and not self.closing:
            self._h2.increment_flow_control_window(self._unacknowledged)
            self._unacknowledged = 0

    # -- events

    def _requested(self, event: Any) -> None:
        if self.port.stopping:
            self._h2.reset_stream(event.stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        exchange = Exchange2(self, event.stream_id, event.headers)
        self._exchanges[exchange.stream] = exchange
        if event.stream_ended is not None:
            exchange.empty = True
            exchange.finish_body()
        if exchange.refused is not None:
            exchange.respond(*answer_of(exchange.refused))
        else:
            self.port.handler(exchange)

    def _arrived(self, event: Any) -> None:
        exchange = self._exchanges.get(event.stream_id)
        self._unacknowledged += event.flow_controlled_length
        self._empty = 0 if event.data else self._empty + 1
        if self._empty > _MOST_EMPTY:
            self._calm()
        elif exchange is not None and not exchange.ended:
            padding = event.flow_controlled_length - len(event.data)
            if padding and event.stream_ended is None:
                exchange.acknowledge(padding)
            if event.data:
                exchange.arrive(bytes(event.data))

    def _body_ended(self, event: Any) -> None:
        exchange = self._exchanges.get(event.stream_id)
        if exchange is not None:
            exchange.finish_body()

    def _reset(self, event: Any) -> None:
        exchange = self._exchanges.pop(event.stream_id, None)
        if exchange is not None:
            self._resets += 1
            exchange.lost()
        if self._resets > _MOST_RESETS:
            self._calm()

    def _window(self, event: Any) -> None:
        if event.stream_id:
            exchange = self._exchanges.get(event.stream_id)
            if exchange is not None:
                exchange.pump()
        else:
            self.pump_all()

    def _settings(self, event: Any) -> None:
        self.pump_all()  # the streams' windows may have grown

    def _goodbye(self, event: Any) -> None:
        if not self._exchanges:
            self.close()

    def _calm(self) -> None:
        self._h2.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
        self._end()

    def _end(self) -> None:
        """The connection is of no use any more: say why, and go."""
        self.flush()
        self.close()
        self.left()

    # -- answers

    def pump_all(self) -> None:
        for exchange in list(self._exchanges.values()):
            exchange.pump()

    def flush(self) -> None:
        data = self._h2.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def answered(self, exchange: Exchange2) -> None:
        """The last byte of an answer is written, or the stream is reset."""
        if self._exchanges.pop(exchange.stream, None) is None:
            return
        self._resets = max(0, self._resets - 1)
        self.since = self._loop.time()
        if self.port.stopping:
            self.wind_up()

    def allowance(self) -> float:
        if self.closing:
            return GRACE_S
        if any(not exchange.ended for exchange in self._exchanges.values()):
            return float("inf")
        return self.port.idle_s

    def wind_up(self) -> None:
        if not self._exchanges and not self.closing:
            self._h2.close_connection()
            self.flush()
            self.close()


_HANDLERS: dict[type[Any], Any] = {
    h2.events.RequestReceived: Http2._requested,
    h2.events.DataReceived: Http2._arrived,
    h2.events.StreamEnded: Http2._body_ended,
    h2.events.StreamReset: Http2._reset,
    h2.events.WindowUpdated: Http2._window,
    h2.events.RemoteSettingsChanged: Http2._settings,
    h2.events.ConnectionTerminated: Http2._goodbye,
}


class Exchange2(Exchange):
    """A request on a stream of an HTTP/2 connection. `refused`: why it is not served."""

    __slots__ = ("_connection", "_out", "_out_bytes", "_room", "_trailers", "_untold", "refused", "stream")

    def __init__(self, connection: Http2, stream: int, fields: list[tuple[bytes, bytes]]) -> None:
        pseudo, headers = _sorted(fields)
        target = pseudo.get(b":path", b"").decode("latin-1")
        super().__init__(
            pseudo[b":method"].decode("latin-1"),
            *head.split(target),
            headers,
            version="2",
            scheme=connection.port.scheme,
            client=connection.client,
        )
        self.stream = stream
        self.refused = _fault_of(target, headers)
        for name, value in headers:
            if name == b"content-length":
                self.announced = int(value)
        self._connection = connection
        self._out: deque[bytes | memoryview] = deque()
        self._out_bytes = 0
        self._trailers: Headers | None = None  # once the answer is complete
        self._room: asyncio.Future[None] | None = None
        self._untold = 0  # bytes that were taken and the peer does not know of

    def _taken(self, size: int) -> None:
        self.acknowledge(size)
        self._connection.flush()

    def acknowledge(self, size: int) -> None:
        """Let the peer send as much again on this stream."""
        self._untold += size
        connection = self._connection
        if self._untold >= _STREAM_WINDOW // 4 and not self.complete and not self.ended and not connection.closing:
            try:
                connection._h2.increment_flow_control_window(self._untold, self.stream)
            except h2.exceptions.ProtocolError:  # it is closed
                return
            self._untold = 0

    def respond(self, status: int, headers: Headers, body: bytes, length: bytes | None = None) -> None:
        length, body = self._whole(status, body, length)
        if length is not None:
            headers = [*headers, (b"content-length", length)]
        self._head(status, headers, bool(body))
        if body:
            self._queue(body)
            self._trailers = []
            self.pump()
        self._done()

    def start(self, status: int, headers: Headers) -> None:
        self._promise(status, headers)
        self._head(status, headers, True)

    def _head(self, status: int, headers: Headers, goes_on: bool) -> None:
        self.started = True
        connection = self._connection
        fields = [(b":status", b"%d" % status), (b"date", connection.port.dates.now())]
        fields += (pair for pair in headers if pair[0] not in _HOP)
        self._say(lambda: connection._h2.send_headers(self.stream, fields, end_stream=not goes_on))
        if not goes_on:
            self._sent()

    def _say(self, words: Any) -> bool:
        """Frame something on this stream, unless it is closed meanwhile."""
        if self._connection.closing or self.stream not in self._connection._exchanges:
            return False
        try:
            words()
        except h2.exceptions.ProtocolError:
            self._connection.answered(self)
            return False
        self._connection.flush()
        return True

    def write(self, pieces: Sequence[bytes]) -> None:
        if self.ended:
            return
        self._count(sum(map(len, pieces)))
        for piece in pieces:
            if piece:
                self._queue(piece)
        self.pump()

    def _queue(self, data: bytes) -> None:
        self._out.append(data)
        self._out_bytes += len(data)

    def pump(self) -> None:
        """Send as much as the windows allow."""
        connection = self._connection
        protocol = connection._h2
        if self.stream not in connection._exchanges or connection.closing:
            return
        try:
            while self._out:
                window = min(protocol.local_flow_control_window(self.stream), protocol.max_outbound_frame_size)
                if window <= 0:
                    break
                piece = self._out[0]
                if len(piece) <= window:
                    self._out.popleft()
                else:
                    view = memoryview(piece)
                    piece, self._out[0] = view[:window], view[window:]
                self._out_bytes -= len(piece)
                last = not self._out and self._trailers == []
                protocol.send_data(self.stream, piece, end_stream=last)
                if last:
                    self._sent()
            if not self._out and self._trailers:
                protocol.send_headers(self.stream, self._trailers, end_stream=True)
                self._sent()
        except h2.exceptions.ProtocolError:
            connection.answered(self)
        connection.flush()
        if self._room is not None and not self._room.done() and self._out_bytes <= WRITE_BUFFER // 2:
            self._room.set_result(None)

    async def drain(self) -> None:
        await self._connection.room()
        while self._out_bytes > WRITE_BUFFER // 2 and not self._gone:
            self._room = self._connection._loop.create_future()
            try:
                await self._room
            finally:
                self._room = None
        if self._gone:
            raise ClientGone("the caller went away before the answer was complete.")

    @property
    def _gone(self) -> bool:
        return self.stream not in self._connection._exchanges

    def end(self, trailers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._check_complete()
        self._trailers = list(trailers)
        if self._out or self._trailers:
            self.pump()
        else:
            connection = self._connection
            if self._say(lambda: connection._h2.send_data(self.stream, b"", end_stream=True)):
                self._sent()
        self._done()

    def _done(self) -> None:
        self.ended = True
        self.on_gone = None

    def _sent(self) -> None:
        """All of it is framed. A body that still comes is not wanted (RFC 9113, 8.1)."""
        connection = self._connection
        if not self.complete:
            try:
                connection._h2.reset_stream(self.stream, h2.errors.ErrorCodes.NO_ERROR)
            except h2.exceptions.ProtocolError:
                pass
        connection.flush()
        connection.answered(self)

    def cut(self) -> None:
        if not self.ended:
            self._done()
            connection = self._connection
            self._say(lambda: connection._h2.reset_stream(self.stream, h2.errors.ErrorCodes.INTERNAL_ERROR))
            connection.answered(self)

    def lost(self) -> None:
        """The stream or the connection is gone."""
        self._out.clear()
        self._out_bytes = 0
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self.leave()

    def accept(self, headers: Headers, subprotocol: str | None, limit: int) -> WebSocket:
        raise NotImplementedError("WebSockets are opened over HTTP/1.1")


def _sorted(fields: list[tuple[bytes, bytes]]) -> tuple[dict[bytes, bytes], Headers]:
    """Pseudo headers, and the others as HTTP/1 would have them: a host in front, one cookie (RFC 9113, 8.2.3)."""
    pseudo: dict[bytes, bytes] = {}
    headers: Headers = []
    cookies: list[bytes] = []
    for name, value in fields:
        if name.startswith(b":"):
            pseudo[name] = value
        elif name == b"cookie":
            cookies.append(value)
        else:
            headers.append((name, value))
    if cookies:
        headers.append((b"cookie", b"; ".join(cookies)))
    authority = pseudo.get(b":authority")
    if authority is not None:
        headers = [(b"host", authority), *(pair for pair in headers if pair != (b"host", authority))]
    return pseudo, headers


def _fault_of(target: str, headers: Headers) -> HeadraceError | None:
    """What is wrong with a head that h2 takes."""
    if not target.startswith("/") and target != "*":
        return CallerError("the request's target is no path: send one that begins with a slash.")
    size = len(target) + sum(len(name) + len(value) for name, value in headers)
    if size > HEAD_BYTES or len(headers) > HEAD_FIELDS:
        return HeadersTooLarge(head.TOO_LONG)
    return None
