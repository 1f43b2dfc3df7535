"""Request bodies on their way to an instance."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

from headrace import errors, wire
from headrace.gateway.call import Call, Receive, Scope
from headrace.gateway.link import Stream

_BODILESS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))  # HTTP/2 requests of these carry no body here
_RESET_S = 0.01  # after the end of an HTTP/2 body without a length, for the news that it was none


class Upload:
    """A request body: whole when it is small, else in pieces that are read as the instance takes them.

    Up to `limit` bytes. A caller may take its time, but not pause for longer than `pause_s` between two pieces.
    `announced`: its Content-Length; None when there is none, and `empty` when there is no body either. `body`: the
    whole of it, when there is no `more`.
    """

    __slots__ = (
        "_coming",
        "_going",
        "_limit",
        "_pause_s",
        "_pending",
        "_resettable",
        "_size",
        "announced",
        "body",
        "empty",
        "more",
        "receive",
    )

    def __init__(self, scope: Scope, receive: Receive, limit: int, pause_s: float) -> None:
        """Raises `CallerError` for a transfer coding that is not undone here."""
        self.receive = receive
        self._limit = limit
        self._pause_s = pause_s
        self._size = 0
        self._pending: list[bytes] = []
        self._going = True  # the caller has more to send
        self._coming: asyncio.Future[MutableMapping[str, Any]] | None = None
        self._resettable = scope["http_version"] == "2"
        self.body = b""
        self.more = False
        self.announced: int | None = None
        chunked = scope["http_version"] != "1.1"
        for name, value in scope["headers"]:
            if name == b"content-length":
                self.announced = int(value)
            elif name == b"transfer-encoding":
                chunked = True
                if value.strip().lower() != b"chunked":
                    raise errors.CallerError("of the transfer codings only chunked is taken: use Content-Encoding.")
        self.empty = self.announced is None and not (chunked and scope["method"] not in _BODILESS)

    async def start(self, within_s: float) -> None:
        """Read the whole body, which has to arrive in `within_s` seconds, or set `more` for one that is not small.

        Raises `TooLarge`, `ClientGone`, `RequestTimeout`.
        """
        if self.announced is not None and self.announced > self._limit:
            raise self._too_large(self.announced)
        loop = asyncio.get_running_loop()
        latest = loop.time() + within_s
        try:
            async with asyncio.timeout_at(min(loop.time() + self._pause_s, latest)) as patience:
                while self._going and self._size <= wire.INLINE:
                    self._take(await self.receive())
                    patience.reschedule(min(loop.time() + self._pause_s, latest))
        except TimeoutError:
            raise self._late() from None
        body = b"".join(self._pending)  # who sends byte after byte makes one piece of many all the same
        if self._size <= wire.INLINE:
            await self._check_end()
            self.body = body
        else:
            self._pending, self.more = [body], True

    async def next(self) -> bytes | None:
        """The next piece of an upload with `more`, None after the last; the one after it is on its way already.

        Raises `TooLarge`, `ClientGone`, `RequestTimeout`.
        """
        if not self._pending:
            if not self._going:
                await self._check_end()
                return None
            coming, self._coming = self._coming or self.receive(), None
            try:
                async with asyncio.timeout(self._pause_s):
                    self._take(await coming)
            except TimeoutError:
                raise self._late() from None
        if self._going and self._coming is None:
            self._coming = asyncio.ensure_future(self.receive())
        return self._pending.pop(0)

    def close(self) -> None:
        """Wait for nothing more."""
        if self._coming is not None:
            self._coming.cancel()

    async def _check_end(self) -> None:
        """Is this the end of the body, or did the caller take it back? Raises `ClientGone`.

        The server (hyper) reads a reset of an HTTP/2 stream as the end of its body. A length tells the two apart;
        without one, whether the caller is heard to have left right away.
        """
        gone = self.announced is not None and self._size < self.announced
        if self._resettable and self.announced is None:
            leaving = asyncio.ensure_future(self.receive())
            try:
                await asyncio.wait((leaving,), timeout=_RESET_S)
                gone = leaving.done()
            finally:
                leaving.cancel()
        if gone:
            raise errors.ClientGone(f"the request body stopped after {self._size} bytes.")

    def _take(self, message: MutableMapping[str, Any]) -> None:
        """Put the piece in `message` to the others."""
        if message["type"] == "http.disconnect":
            raise errors.ClientGone(f"the request body stopped after {self._size} bytes.")
        body = message.get("body", b"")
        self._size += len(body)
        if self._size > self._limit:
            raise self._too_large(self._size)
        self._pending.append(body)
        self._going = bool(message.get("more_body"))

    def _too_large(self, size: int) -> errors.TooLarge:
        return errors.TooLarge(
            f"the body has {size} bytes or more and the limit is {self._limit}; "
            "send less, or raise HEADRACE_MAX_BODY_MB."
        )

    def _late(self) -> errors.RequestTimeout:
        return errors.RequestTimeout(
            f"of the request body {self._size} bytes came, and then nothing for too long: send it without long pauses, "
            "or raise HEADRACE_BODY_TIMEOUT_S."
        )


async def feed(call: Call, stream: Stream, upload: Upload) -> None:
    try:
        stream.caller_slow = True
        while (piece := await upload.next()) is not None:
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
    finally:
        upload.close()
