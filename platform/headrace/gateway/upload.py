"""Request bodies on their way to an instance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from headrace import errors, wire
from headrace.gateway.call import Call, Receive, Scope
from headrace.gateway.link import Stream

_BODY_S = 30.0  # a small request body is read before a slot is taken; this long at most
_BODILESS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))  # HTTP/2 requests of these carry no body here


class Upload:
    """A request body: whole when it is small, else in pieces that are read as the instance takes them.

    `announced`: its Content-Length; None when there is none, and `empty` when there is no body either.
    """

    __slots__ = ("_limit", "_pending", "_size", "announced", "empty", "more", "receive")

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        self.receive = receive
        self._limit = limit
        self._size = 0
        self._pending: list[bytes] = []
        self.more = False
        self.announced: int | None = None
        chunked = scope["http_version"] != "1.1"
        for name, value in scope["headers"]:
            if name == b"content-length":
                self.announced = int(value)
            elif name == b"transfer-encoding":
                chunked = True
        self.empty = self.announced is None and not (chunked and scope["method"] not in _BODILESS)

    async def start(self) -> bytes:
        """The whole body, or nothing with `more` set. Raises `TooLarge`, `ClientGone`."""
        if self.announced is not None and self.announced > self._limit:
            raise self._too_large(self.announced)
        try:
            async with asyncio.timeout(_BODY_S):
                while await self._read() and self._size <= wire.INLINE:
                    pass
        except TimeoutError:
            raise errors.ClientGone(f"the request body did not arrive within {_BODY_S:g} s.") from None
        if self._size <= wire.INLINE:
            return b"".join(self._pending)
        self.more = True
        return b""

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body of an upload with `more`, piece by piece. Raises `TooLarge`, `ClientGone`."""
        going = self.more
        while going or self._pending:
            while self._pending:
                yield self._pending.pop(0)
            going = going and await self._read()

    async def _read(self) -> bool:
        """Read a piece into `_pending`; False after the last one."""
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise errors.ClientGone(f"the request body stopped after {self._size} bytes.")
        body = message.get("body", b"")
        self._size += len(body)
        if self._size > self._limit:
            raise self._too_large(self._size)
        self._pending.append(body)
        return bool(message.get("more_body"))

    def _too_large(self, size: int) -> errors.TooLarge:
        return errors.TooLarge(
            f"the body has {size} bytes or more and the limit is {self._limit}; "
            "send less, or raise HEADRACE_MAX_BODY_MB."
        )


async def feed(call: Call, stream: Stream, upload: Upload) -> None:
    try:
        stream.caller_slow = True
        async for piece in upload.pieces():
            stream.caller_slow = False
            call.bytes_in += len(piece)
            if piece:
                await stream.send(wire.BODY, b"", piece)
            stream.caller_slow = True
        stream.caller_slow = False
        stream.end()
        stream.receive = upload.receive
    except errors.HeadraceError as error:
        stream.close("client", error)
