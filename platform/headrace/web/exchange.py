"""One request and its answer, whatever version of HTTP carries them.

What has arrived of the body waits here until it is taken, and taking it lets the peer send more: a body that nobody
reads holds a bounded number of bytes. The answer is either whole (`respond`), or `start`, `write`s with a `drain`
between them, and `end`; an answer that can't be completed is `cut`, so that it never looks complete. Everything but
`more` and `drain` happens at once.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from headrace.errors import ClientGone, FunctionError, HeadraceError
from headrace.web.head import Headers, has_no_body
from headrace.web.limits import HELD_BYTES
from headrace.web.websocket import WebSocket

_MANY_PIECES = 1_000
_LONG = 16 << 10  # bytes of a piece that is not copied to join it with others


class Exchange(ABC):
    """A request, and the way to answer it.

    `path` and `query` are as sent; header names are lower case, values as they came. `announced` is the Content-Length;
    None when there is none. `empty`: it has no body. `complete`: the whole body has arrived. `upgrade`: it asks for a
    WebSocket, and `accept` may answer it. `on_gone` is called, once, when the peer leaves before it has its answer.
    """

    __slots__ = (
        "_arrival",
        "_broken",
        "_held",
        "_left",
        "_pieces",
        "announced",
        "client",
        "complete",
        "empty",
        "ended",
        "headers",
        "method",
        "on_gone",
        "path",
        "query",
        "scheme",
        "started",
        "subprotocols",
        "upgrade",
        "version",
    )

    def __init__(
        self, method: str, path: str, query: str, headers: Headers, *, version: str, scheme: str, client: str
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.version = version
        self.scheme = scheme
        self.client = client
        self.announced: int | None = None
        self.empty = False
        self.complete = False
        self.upgrade = False
        self.subprotocols: tuple[str, ...] = ()
        self.started = False  # the head of the answer is out
        self.ended = False  # the answer is complete, or cut
        self.on_gone: Callable[[], None] | None = None
        self._pieces: list[bytes] = []
        self._held = 0
        self._arrival: asyncio.Future[None] | None = None
        self._broken: HeadraceError | None = None
        self._left: int | None = None  # bytes of the answer that its Content-Length still promises

    # -- the request's body

    def take(self) -> bytes:
        """What has arrived: a long piece as it came, short ones together. The peer may send as much again."""
        pieces = self._pieces
        if not pieces:
            return b""
        if len(pieces) == 1 or len(pieces[0]) >= _LONG:
            body = pieces.pop(0)
        else:
            body, self._pieces = b"".join(pieces), []
        self._held -= len(body)
        self._taken(len(body))
        return body

    @property
    def full(self) -> bool:
        """More of the body waits to be taken than the peer may send ahead."""
        return self._held > HELD_BYTES

    async def more(self) -> None:
        """Wait until something has arrived or the body is complete. Raises what broke it off, such as `ClientGone`."""
        while not self._pieces and not self.complete:
            if self._broken is not None:
                raise self._broken
            self._arrival = asyncio.get_running_loop().create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None

    def arrive(self, data: bytes) -> None:
        """A piece of the body has come (the connection calls this)."""
        self._pieces.append(data)
        self._held += len(data)
        if len(self._pieces) >= _MANY_PIECES:
            self._pieces = [b"".join(self._pieces)]
        self._wake()

    def finish_body(self) -> None:
        """The body has come to its end (the connection calls this)."""
        self.complete = True
        self._wake()

    def break_off(self, error: HeadraceError) -> None:
        """The body will never be complete (the connection calls this)."""
        if not self.complete and self._broken is None:
            self._broken = error
            self._wake()

    def leave(self) -> None:
        """The peer has gone (the connection calls this)."""
        self.break_off(ClientGone("the request body stopped before its end."))
        gone, self.on_gone = self.on_gone, None
        if gone is not None and not self.ended:
            gone()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    @abstractmethod
    def _taken(self, size: int) -> None:
        """So many bytes were taken."""

    # -- the answer

    @abstractmethod
    def respond(self, status: int, headers: Headers, body: bytes, length: bytes | None = None) -> None:
        """A whole answer. `length` is the Content-Length of one to HEAD whose body is not here."""

    @abstractmethod
    def start(self, status: int, headers: Headers) -> None:
        """The head of an answer whose body comes in pieces; it leaves at once."""

    @abstractmethod
    def write(self, pieces: Sequence[bytes]) -> None:
        """Pieces of the body. Raises `FunctionError` for more than the answer's Content-Length."""

    @abstractmethod
    async def drain(self) -> None:
        """Wait until the peer has read enough to write more. Raises `ClientGone`."""

    @abstractmethod
    def end(self, trailers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """The answer is complete. Raises `FunctionError` for less than its Content-Length."""

    @abstractmethod
    def cut(self) -> None:
        """Break the answer off, visibly. Also for one that has not begun."""

    @abstractmethod
    def accept(self, headers: Headers, subprotocol: str | None, limit: int) -> WebSocket:
        """Answer an upgrade; messages from the peer may have `limit` bytes. Raises `ClientGone`."""

    def _whole(self, status: int, body: bytes, length: bytes | None) -> tuple[bytes | None, bytes]:
        """Content-Length and body of a whole answer, as far as method and status allow them."""
        if not has_no_body(self.method, status):
            return b"%d" % len(body), body
        if status == 204:
            return None, b""
        if length is None and body and status != 304:
            length = b"%d" % len(body)
        return length, b""

    def _promise(self, status: int, headers: Headers) -> bool:
        """Note the Content-Length among `headers`; False when only the answer itself can show where it ends."""
        if has_no_body(self.method, status):
            return True
        for name, value in headers:
            if name == b"content-length":
                self._left = int(value)
                return True
        return False

    def _count(self, size: int) -> None:
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                raise FunctionError("the answer has more bytes than its content-length says.")

    def _check_complete(self) -> None:
        if self._left:
            raise FunctionError(f"the answer ended {self._left} bytes before the end that its content-length promised.")


Handler = Callable[[Exchange], None]
