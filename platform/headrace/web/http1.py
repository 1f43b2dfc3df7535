"""HTTP/1.1 and 1.0 on one connection: llhttp parses, one exchange is answered at a time, in order.

A request is handed on once the bytes it came with are parsed, so that a small body is there already. Requests that
come while another is answered wait, and the connection is not read meanwhile. Whoever breaks the rules gets an answer
that says so, after those to the requests before it, and the connection ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import httptools

from headrace.errors import CallerError, ClientGone, HeadersTooLarge, HeadraceError
from headrace.web import head, upgrade
from headrace.web.connection import Connection, Port
from headrace.web.exchange import Exchange
from headrace.web.head import Headers
from headrace.web.limits import GRACE_S, HEAD_BYTES, HEAD_FIELDS, HELD_BYTES
from headrace.web.problem import answer_of
from headrace.web.websocket import WebSocket

_MOST_WAITING = 256  # requests of a connection, beside the one that is answered
_SLACK = 16 << 10  # bytes of a chunked body that are neither its data nor the usual size of chunk heads: trailers
_CHUNK_HEAD, _REQUEST_LINE, _FIELD = 24, 64, 4  # bytes around what the parser tells


class Http1(Connection):
    """The server's side of one connection."""

    __slots__ = (
        "_arrived",
        "_before",
        "_begun",
        "_beside",
        "_body",
        "_current",
        "_ended",
        "_fields",
        "_finished",
        "_headers",
        "_late_bytes",
        "_parser",
        "_raw",
        "_spoke",
        "_turning",
        "_url",
        "_used",
        "_waiting",
    )

    def __init__(self, port: Port, client: str) -> None:
        super().__init__(port, client)
        self._parser = httptools.HttpRequestParser(self)
        self._current: Exchange1 | None = None  # that is answered now
        self._waiting: deque[Exchange1] = deque()
        self._body: Exchange1 | None = None  # whose body is being read
        self._finished: list[Exchange1] = []  # whose bodies ended in this read, and are not weighed yet
        self._headers: Headers = []
        self._url = b""
        self._fields = 0  # of this head, or of these trailers
        self._used = 0  # bytes of this read that the parser has told of
        self._before = 0  # ... when the present head began
        self._raw = 0  # bytes of the present head that came with earlier reads
        self._late_bytes = 0  # of a body that were nothing of it
        self._arrived = 0  # bytes of this body
        self._beside = 0  # bytes of a long body that come without the parser
        self._begun = False  # a head is being read
        self._spoke = False  # there was a request
        self._ended = False  # the peer sends no more
        self._turning = False

    # -- what the connection brings

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        current = self._current
        if current is None:
            if not self._begun:
                self.since = self._loop.time()
        elif current.upgrade:
            current.early(data)
            return
        self._feed(data)
        self._turn()

    def _feed(self, data: bytes) -> None:
        if self._beside:
            data = self._pass(data)
        while data:
            self._used = self._before = 0
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as other:
                data = self._other_protocol(data[other.args[0] :])
                continue
            except httptools.HttpParserCallbackError as error:
                self._refuse(_reason(error))
            except httptools.HttpParserError as error:
                text = f"this is no request that can be read ({_text(error)}): correct it and send it again."
                self._refuse(CallerError(text))
            else:
                self._weigh(len(data))
            break
        finished, self._finished = self._finished, []
        for exchange in finished:
            exchange.finish_body()
        body = self._body
        if body is not None and body.announced is not None and not self._beside:
            self._beside = body.announced - self._arrived
            self._parser = httptools.HttpRequestParser(self)
        if self._waiting:
            self._pause()

    def _pass(self, data: bytes) -> bytes:
        """A piece of a body whose length is known goes on as it came; what follows the body."""
        body = self._body
        assert body is not None
        piece, rest = (data, b"") if len(data) <= self._beside else (data[: self._beside], data[self._beside :])
        self._beside -= len(piece)
        body.arrive(piece)
        if not self._beside:
            self._body = None
            body.finish_body()
        elif body.full:
            self._pause()
        return rest

    def _weigh(self, size: int) -> None:
        """Bound what of this read the parser did not tell: half a head, and what is in a body beside its data."""
        if self._begun:
            self._raw += size - self._before
            if self._raw > HEAD_BYTES:
                self._refuse(HeadersTooLarge(head.TOO_LONG))
            return
        self._late_bytes += max(0, size - self._used)
        if self._late_bytes > _SLACK:
            if self._body is None and self._finished:
                self._body = self._finished.pop()
            text = "the chunks of the body have extensions or trailers of many bytes: leave them out."
            self._refuse(CallerError(text))

    def eof_received(self) -> bool:
        """Who sends no more is taken for gone; an answer that says so may still reach it."""
        self.closing = self._ended = True
        self._waiting.clear()
        if self._current is None or self.port.scheme == "https":
            return False
        self.since = self._loop.time()
        self._current.leave()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        del self._parser  # which holds this connection: nobody should have to look for that

    def left(self) -> None:
        self._waiting.clear()
        if self._current is not None:
            self._current.leave()

    # -- what the parser tells

    def on_message_begin(self) -> None:
        self._begun = True
        self._before, self._raw = self._used, 0
        self._headers, self._url, self._fields = [], b"", 0
        self._used += _REQUEST_LINE

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._used += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        if self._begun:
            if self._fields > HEAD_FIELDS:
                raise HeadersTooLarge(head.TOO_LONG)
            self._used += len(name) + len(value) + _FIELD
            self._headers.append((name.lower(), value))
        elif self._fields > HEAD_FIELDS:  # trailers, which nobody asked for
            raise CallerError("the body has too many trailers: leave them out.")

    def on_headers_complete(self) -> None:
        self._begun, self._spoke = False, True
        self._fields = self._late_bytes = self._arrived = 0
        self._body = exchange = self._exchange()
        self._waiting.append(exchange)
        if self._raw + self._used - self._before > HEAD_BYTES:
            raise HeadersTooLarge(head.TOO_LONG)
        if len(self._waiting) > _MOST_WAITING:
            raise CallerError(f"more than {_MOST_WAITING} requests wait on this connection: read the answers first.")

    def on_body(self, data: bytes) -> None:
        assert self._body is not None
        self._used += len(data)
        self._arrived += len(data)
        self._body.arrive(data)
        if self._body.full:
            self._pause()

    def on_chunk_header(self) -> None:
        self._used += _CHUNK_HEAD

    def on_message_complete(self) -> None:
        assert self._body is not None
        self._finished.append(self._body)
        self._body = None

    def _exchange(self) -> Exchange1:
        parser = self._parser
        path, query = head.split(self._url.decode("latin-1"))
        version = parser.get_http_version()
        exchange = Exchange1(self, parser.get_method().decode("latin-1"), path, query, self._headers, version=version)
        exchange.keeps = parser.should_keep_alive()
        exchange.empty = True
        exchange.refused = _fault_of(exchange)
        for name, value in self._headers:
            if name == b"content-length":
                exchange.announced, exchange.empty = int(value), False
            elif name == b"transfer-encoding":
                exchange.empty = False
                if value.strip().lower() != b"chunked":
                    exchange.refused = CallerError(
                        "of the transfer codings only chunked is taken: use Content-Encoding."
                    )
            elif name == b"expect" and value.lower() == b"100-continue":
                exchange.expects = version == "1.1"
        return exchange

    def _other_protocol(self, rest: bytes) -> bytes:
        """The request asks for another protocol: a WebSocket, or what is not spoken here. Bytes to go on with."""
        exchange = self._waiting[-1]
        if upgrade.asks(exchange.headers):
            exchange.upgrade, exchange.keeps = True, False
            exchange.early(rest)
            return b""
        self._parser = httptools.HttpRequestParser(self)
        return rest

    # -- turns

    def _turn(self) -> None:
        """Hand on the next request, unless one is being answered."""
        if self._turning:
            return
        self._turning = True
        while self._current is None and self._waiting and not self._paused and not self.transport.is_closing():
            self._serve(self._waiting.popleft())
        self._turning = False
        if self._current is None and self._paused:
            self._pause()  # who reads no answers gets no further ones
        elif not self._waiting and (self._body is None or not self._body.full):
            self._resume()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._turn()

    def _serve(self, exchange: Exchange1) -> None:
        self._current = exchange
        if exchange.upgrade and exchange.refused is None:
            try:
                exchange.subprotocols = upgrade.check(exchange.method, exchange.version, exchange.headers)
            except CallerError as error:
                exchange.refused = error
        if exchange.refused is None:
            self.port.handler(exchange)
        else:
            exchange.keeps = False
            exchange.respond(*answer_of(exchange.refused))

    def _refuse(self, error: HeadraceError) -> None:
        """Nothing more can be read. Whose body it was learns it; else the refusal is the last answer."""
        body, self._body = self._body, None
        if body is None:
            body = Exchange1(self, "GET", "/", "", [], version="1.1")
            self._waiting.append(body)
        if body is self._current:
            body.break_off(error)
        else:
            body.refused = body.refused or error
        self._pass_over()

    def _pass_over(self) -> None:
        """What still comes is read and forgotten: a plain close would take the answer away from who still sends."""
        self.closing = True
        self.since = self._loop.time()
        self._resume()

    def keeps(self, exchange: Exchange1) -> bool:
        """Another request may follow this one, as far as is known now."""
        return exchange.complete and not self.port.stopping and (not self.closing or bool(self._waiting))

    def answered(self, exchange: Exchange1) -> None:
        """The answer to the current request is written."""
        self._current = None
        self.since = self._loop.time()
        if exchange.keeps:
            if self._waiting or self._paused:
                self._turn()
            return
        self._waiting.clear()
        if exchange.complete or self._ended or not self.transport.can_write_eof():
            self.close()
        elif not self.transport.is_closing():
            self.transport.write_eof()
            self._pass_over()

    def upgraded(self, socket: WebSocket) -> None:
        """The connection is a WebSocket from here on."""
        self._current = None
        self.port.connections.discard(self)
        self.transport.set_protocol(socket)
        self._resume()
        del self._parser

    def send(self, *parts: bytes) -> None:
        """Write, unless the peer is gone."""
        if not self.transport.is_closing():
            if len(parts) == 1:
                self.transport.write(parts[0])
            else:
                self.transport.writelines(parts)

    # -- patience

    def taken(self, exchange: Exchange1) -> None:
        if exchange is self._body and not exchange.full and not self._waiting:
            self._resume()

    def allowance(self) -> float:
        if self._current is not None and not self._current.ended:
            return float("inf") if not self.closing else self.port.idle_s
        if self.closing:
            return GRACE_S
        return self.port.header_s if self._begun or not self._spoke else self.port.idle_s

    def wind_up(self) -> None:
        if self._current is None:
            self.close()
        else:
            self._current.keeps = False


class Exchange1(Exchange):
    """A request on an HTTP/1 connection. `keeps`: the connection goes on after it. `refused`: why it is not served."""

    __slots__ = ("_chunked", "_connection", "_early", "expects", "keeps", "refused")

    def __init__(
        self, connection: Http1, method: str, path: str, query: str, headers: Headers, *, version: str
    ) -> None:
        super().__init__(
            method, path, query, headers, version=version, scheme=connection.port.scheme, client=connection.client
        )
        self._connection = connection
        self._chunked = False
        self._early = b""  # that came before the socket was open
        self.keeps = False
        self.expects = False  # the peer waits for a word before it sends its body
        self.refused: HeadraceError | None = None

    def _taken(self, size: int) -> None:
        self._connection.taken(self)

    async def more(self) -> None:
        if self.expects and not self.started:
            self.expects = False
            if not self._pieces and not self.complete:
                self._connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await super().more()

    def early(self, data: bytes) -> None:
        """What a client of a WebSocket says before it is open."""
        self._early += data
        if len(self._early) > HELD_BYTES:
            self._connection._pause()

    def respond(self, status: int, headers: Headers, body: bytes, length: bytes | None = None) -> None:
        lines = self._head(status, headers)
        length, body = self._whole(status, body, length)
        if length is not None:
            lines.append(b"content-length: %b\r\n" % length)
        lines.append(b"\r\n")
        lines.append(body)
        self._connection.send(b"".join(lines))
        self._done()

    def start(self, status: int, headers: Headers) -> None:
        bounded = self._promise(status, headers)
        self._chunked = not bounded and self.version == "1.1"
        self.keeps = self.keeps and (bounded or self._chunked)
        lines = self._head(status, headers)
        if self._chunked:
            lines.append(head.CHUNKED)
        lines.append(b"\r\n")
        self._connection.send(b"".join(lines))

    def _head(self, status: int, headers: Headers) -> list[bytes]:
        self.started = True
        self.keeps = self.keeps and self._connection.keeps(self)
        lines = [head.status_line(status), b"date: %b\r\n" % self._connection.port.dates.now()]
        lines += [b"%b: %b\r\n" % field for field in headers]
        if not self.keeps:
            lines.append(head.CLOSE)
        elif self.version == "1.0":
            lines.append(head.KEEP)
        return lines

    def write(self, pieces: Sequence[bytes]) -> None:
        size = sum(map(len, pieces))
        if not size or self.ended:
            return
        self._count(size)
        if self._chunked:
            self._connection.send(b"%x\r\n" % size, *pieces, b"\r\n")
        else:
            self._connection.send(*pieces)

    async def drain(self) -> None:
        await self._connection.room()
        if self._connection.transport.is_closing():
            raise ClientGone("the caller went away before the answer was complete.")

    def end(self, trailers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._check_complete()
        if self._chunked:
            fields = b"".join(b"%b: %b\r\n" % field for field in trailers)
            self._connection.send(b"0\r\n" + fields + b"\r\n")
        self._done()

    def _done(self) -> None:
        self.ended = True
        self.on_gone = None
        self._connection.answered(self)

    def cut(self) -> None:
        if not self.ended:
            self.ended = True
            self.on_gone = None
            self._connection.closing = True
            self._connection.transport.abort()

    def accept(self, headers: Headers, subprotocol: str | None, limit: int) -> WebSocket:
        connection = self._connection
        if connection.transport.is_closing() or connection.closing:
            raise ClientGone("the client went away while the function accepted its socket.")
        connection.transport.write(upgrade.answer(self.headers, subprotocol, headers))
        self.started = self.ended = True
        self.on_gone = None
        socket = WebSocket(connection.port.sockets, connection.transport, limit)
        connection.upgraded(socket)
        socket.data_received(self._early)
        return socket


def _fault_of(exchange: Exchange1) -> HeadraceError | None:
    """What is wrong with a head that the parser takes."""
    if exchange.version not in ("1.1", "1.0"):
        return CallerError(f"HTTP/{exchange.version} is not spoken here: use 1.1 or 2.")
    if not exchange.path.startswith("/") and not (exchange.path == "*" and exchange.method == "OPTIONS"):
        return CallerError("the request's target is no path: send one that begins with a slash.")
    return None


def _reason(error: httptools.HttpParserCallbackError) -> HeadraceError:
    """What a callback of ours raised; anything else is a fault of our own."""
    cause = error.__context__ or error.__cause__
    if isinstance(cause, HeadraceError):
        return cause
    raise error


def _text(error: Exception) -> str:
    return str(error).removeprefix("Invalid ").replace("\n", " ")[:100] or type(error).__name__
