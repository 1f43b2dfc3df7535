"""Request bodies on their way to an instance."""

from __future__ import annotations

import asyncio

from headrace import errors, wire
from headrace.gateway.call import Call
from headrace.gateway.link import Stream
from headrace.web.exchange import Exchange


class Upload:
    """A request body: whole when it is small, else in pieces that are read as the instance takes them.

    Up to `limit` bytes. A caller may take its time, but not pause for longer than `pause_s` between two pieces.
    `body`: the whole of it, when there is no `more`.
    """

    __slots__ = ("_exchange", "_first", "_limit", "_pause_s", "_size", "body", "more")

    def __init__(self, exchange: Exchange, limit: int, pause_s: float) -> None:
        self._exchange = exchange
        self._limit = limit
        self._pause_s = pause_s
        self._size = 0
        self._first: list[bytes] = []
        self.body = b""
        self.more = False

    def here(self) -> bool:
        """Take the whole of a small body that has arrived; False: it takes `start`. Raises `TooLarge`."""
        exchange = self._exchange
        if exchange.announced is not None and exchange.announced > self._limit:
            raise self._too_large(exchange.announced)
        self._take()
        if not exchange.complete or self._size > wire.INLINE:
            return False
        self._end()
        return True

    async def start(self, within_s: float) -> None:
        """Read the whole body, which has to arrive in `within_s` seconds, or set `more` for one that is not small.

        Raises `TooLarge`, `ClientGone`, `RequestTimeout`.
        """
        exchange = self._exchange
        loop = asyncio.get_running_loop()
        latest = loop.time() + within_s
        try:
            async with asyncio.timeout_at(min(loop.time() + self._pause_s, latest)) as patience:
                while self._size <= wire.INLINE:
                    if not self._take():
                        if exchange.complete:
                            break
                        await exchange.more()
                        patience.reschedule(min(loop.time() + self._pause_s, latest))
        except TimeoutError:
            raise self._late() from None
        self._end()

    async def next(self) -> bytes | None:
        """The next piece of an upload with `more`, None after the last.

        Raises `TooLarge`, `ClientGone`, `RequestTimeout`.
        """
        if self._first:
            return self._first.pop()
        exchange = self._exchange
        while not (piece := exchange.take()):
            if exchange.complete:
                return None
            try:
                async with asyncio.timeout(self._pause_s):
                    await exchange.more()
            except TimeoutError:
                raise self._late() from None
        self._count(piece)
        return piece

    def _take(self) -> bool:
        """Put what has arrived to the others; False when there is nothing."""
        took = False
        while self._size <= wire.INLINE and (piece := self._exchange.take()):
            self._count(piece)
            self._first.append(piece)
            took = True
        return took

    def _end(self) -> None:
        """The small body is whole, or what there is of a large one is its first piece."""
        body = b"".join(self._first)  # who sends byte after byte makes one piece of many all the same
        self.more = self._size > wire.INLINE
        self._first = [body] if self.more else []
        self.body = b"" if self.more else body

    def _count(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            raise self._too_large(self._size)

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
    """Send an upload with `more` to the instance; what is wrong with it ends the call."""
    try:
        stream.caller_slow = True
        while (piece := await upload.next()) is not None:
            stream.caller_slow = False
            call.bytes_in += len(piece)
            await stream.send(wire.BODY, b"", piece)
            stream.caller_slow = True
        stream.caller_slow = False
        stream.end()
    except errors.HeadraceError as error:
        stream.close("client", error)
