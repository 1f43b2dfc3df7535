"""Handlers: `handler(event, context)`, plain or async, with a whole or a streamed answer.

A coroutine function runs in the loop. Everything else runs in a thread, so that a blocking handler never keeps the
loop from pings, cancels and other calls, and the thread sends the answer. What a handler returns may carry the call
across: an awaitable or an async generator from a thread goes on in the loop, a plain generator from the loop goes on
in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Callable

from . import wire
from .call import Call, Gone, start_task
from .errors import describe
from .event import Context, Events, Function
from .link import Link
from .logs import Log, current
from .response import answer, piece, stream_head
from .workers import Workers

if TYPE_CHECKING:
    from .sockets import Outcome


class HandlerApp:
    """Runs the calls of one handler. `in_loop`: calling it gives a coroutine and does not block."""

    kind = "handler"

    def __init__(self, handler: Callable[..., Any], in_loop: bool, function: Function, root: str, log: Log) -> None:
        self._handler = handler
        self._in_loop = in_loop
        self._function = function
        self._events = Events(function)
        self._root = root
        self._log = log
        # A call that was cancelled may hold its thread while the node already sends the next one.
        self._workers = Workers(2 * function.concurrency)
        self._loop: asyncio.AbstractEventLoop

    async def start(self) -> None:
        """Before the first call, on the loop that will run them."""
        self._loop = self._function.loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        """Nothing to shut down."""

    def call(self, link: Link, frame: wire.Frame) -> None:
        """A CALL frame."""
        call = Call(link, frame.stream, wire.loads(frame.header))
        link.calls[frame.stream] = call
        if call.head.get("more"):
            call.pieces = [frame.body]
        else:
            self._begin(call, frame.body)

    def body(self, call: Call, data: bytes) -> None:
        """A piece of the request. Handlers get it whole, so it is taken at once."""
        if call.pieces is not None:
            call.pieces.append(data)
            call.grant(len(data))

    def end(self, call: Call, broken: bool) -> None:
        """The request is complete; or its caller stopped halfway, and there is nothing to run."""
        pieces, call.pieces = call.pieces, None
        if pieces is None:
            return
        if broken:
            call.link.done(call.stream)
        else:
            self._begin(call, b"".join(pieces))

    def cancel(self, call: Call, why: str) -> None:
        """Nobody waits any more. A thread cannot be stopped, its answer is dropped."""
        self.lost(call)
        if call.task is not None:
            call.task.cancel()

    def lost(self, call: Call) -> None:
        """The connection ended: a handler runs to its end, a stream breaks off."""
        call.leave()
        if call.pieces is not None:
            call.link.done(call.stream)

    def message(self, call: Call, frame: wire.Frame) -> None:
        """A WebSocket frame: the node holds the sockets of handlers, and sends none."""

    def _begin(self, call: Call, body: bytes) -> None:
        if self._in_loop:
            start_task(self._loop, call, self._run_in_loop(call, body))
            return
        try:
            self._workers.submit(self._run_in_thread, call, body)
        except RuntimeError as error:
            self._fail(call, error)

    async def _run_in_loop(self, call: Call, body: bytes) -> None:
        current.set(call)
        try:
            value = await self._handler(self._events.event(call.head, body), Context(call, self._function))
            if call.sockets is not None or "c" in call.head:
                await self._conclude(call, value)
                return
            head, content = answer(value, "m" in call.head)
            if type(content) is bytes and len(content) <= wire.INLINE:
                self._close(call, wire.REPLY, head, content)
            else:
                await self._deliver_in_loop(call, head, content)
        except BaseException as error:  # noqa: BLE001 - whatever user code raises is its answer
            self._fail(call, error)

    def _run_in_thread(self, call: Call, body: bytes) -> None:
        current.set(call)
        try:
            value = self._handler(self._events.event(call.head, body), Context(call, self._function))
            if isinstance(value, Awaitable):
                self._move_to_loop(call, self._await_in_loop(call, value))
                return
            if "c" in call.head:
                outcome = self._outcome(call, value)
                if outcome.message is not None:
                    Context(call, self._function).ws.send(outcome.message)
                self._close(call, outcome.kind, outcome.head, outcome.body)
                return
            head, content = answer(value, "m" in call.head)
            if type(content) is bytes and len(content) <= wire.INLINE:
                self._close(call, wire.REPLY, head, content)
            elif isinstance(content, AsyncIterator):
                self._move_to_loop(call, self._stream_in_loop(call, head, content))
            else:
                self._stream_in_thread(call, head, iter((content,)) if type(content) is bytes else content)
        except BaseException as error:  # noqa: BLE001
            self._fail(call, error)

    async def _await_in_loop(self, call: Call, value: Awaitable[Any]) -> None:
        await self._conclude(call, await value)

    async def _conclude(self, call: Call, value: Any) -> None:
        """Answer a call that is an event of a WebSocket, or that may have sent to some."""
        if "c" not in call.head:
            if call.sockets is not None:
                await call.sockets.settled()
            await self._deliver_in_loop(call, *answer(value, "m" in call.head))
            return
        outcome = self._outcome(call, value)
        connections = Context(call, self._function).ws
        if outcome.message is not None:
            await connections.send(outcome.message)
        await connections.settled()
        self._close(call, outcome.kind, outcome.head, outcome.body)

    def _outcome(self, call: Call, value: Any) -> Outcome:
        from .sockets import connect_outcome, event_outcome  # most functions need none of it

        return connect_outcome(value) if call.head.get("ws") else event_outcome(value)

    async def _deliver_in_loop(self, call: Call, head: bytes, content: Any) -> None:
        if type(content) is not bytes:
            if isinstance(content, AsyncIterator):
                await self._stream_in_loop(call, head, content)
            else:
                self._workers.submit(self._stream_from_loop, call, head, content)
        elif len(content) <= wire.INLINE:
            self._close(call, wire.REPLY, head, content)
        else:
            call.open(head)
            await call.outflow().send(content)
            self._close(call, wire.END)

    async def _stream_in_loop(self, call: Call, head: bytes, items: AsyncIterator[Any]) -> None:
        flow = call.outflow()
        try:
            if head:
                call.open(head)
            async for item in items:
                if not call.opened:
                    call.open(stream_head(item))
                await flow.send(piece(item))
        finally:
            if hasattr(items, "aclose"):
                await items.aclose()
        self._end(call)

    def _stream_in_thread(self, call: Call, head: bytes, items: Iterator[Any]) -> None:
        flow = call.outflow()
        try:
            if head:
                call.open(head)
            for item in items:
                if not call.opened:
                    call.open(stream_head(item))
                flow.send_blocking(piece(item))
        finally:
            if hasattr(items, "close"):
                items.close()
        self._end(call)

    def _stream_from_loop(self, call: Call, head: bytes, items: Iterator[Any]) -> None:
        current.set(call)
        try:
            self._stream_in_thread(call, head, items)
        except BaseException as error:  # noqa: BLE001
            self._fail(call, error)

    def _move_to_loop(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        """From a thread: go on with `call` in the loop."""

        async def run() -> None:
            current.set(call)
            try:
                await work
            except BaseException as error:  # noqa: BLE001
                self._fail(call, error)

        def begin() -> None:
            start_task(self._loop, call, run())
            if call.gone:
                call.task.cancel()

        self._loop.call_soon_threadsafe(begin)

    def _end(self, call: Call) -> None:
        """The last piece of a streamed answer was sent; an answer without any piece is an empty one."""
        if call.opened:
            self._close(call, wire.END)
        else:
            self._close(call, wire.REPLY, stream_head(""))

    def _close(self, call: Call, kind: int, head: bytes = b"", content: bytes = b"") -> None:
        if call.partial:
            self._log.finish(call)
        call.finish(kind, head, content)
        call.link.done(call.stream)

    def _fail(self, call: Call, error: BaseException) -> None:
        if not (call.gone and isinstance(error, (asyncio.CancelledError, Gone))):
            failure = describe(error, self._root)
            self._log.stack(failure["stack"])
            self._log.finish(call)
            call.fail(failure)
        call.link.done(call.stream)
