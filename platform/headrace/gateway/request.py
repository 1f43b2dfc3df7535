"""One HTTP call, from its head to its record.

A warm call takes no task and awaits nothing: a function for the request's arrival, one for the instance's answer, both
on the event loop. Only what has to wait (a body that is still coming, a place in the queue, a streamed answer) goes on
in a task. Whatever happens (an error, a timeout, a caller who leaves, a fault of our own), the call ends in `_over`:
the slot is released and the record is noted, exactly once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from headrace import errors, wire
from headrace.gateway import answer
from headrace.gateway import link as links
from headrace.gateway.invoke import Invoker, affinity
from headrace.gateway.pool import Member
from headrace.gateway.routes import Route
from headrace.gateway.upload import Upload, feed
from headrace.web.exchange import Exchange
from headrace.web.problem import answer_of

logger = logging.getLogger(__name__)

_LATE_S = 0.25  # a late instance is ended by the gateway's ticker; here, a little later, a caller who does not read
_MORE: dict[str, Any] = {"more": True}
_WHOLE: dict[str, Any] = {}


class Request:
    """Serves one exchange with the function `spelling`; `path` is what is behind it, as sent.

    `by_host`: the function was named by the host, so its root is the host's.
    """

    __slots__ = (
        "_again",
        "_by_host",
        "_call",
        "_done",
        "_early",
        "_exchange",
        "_feeding",
        "_invoker",
        "_left",
        "_opening",
        "_route",
        "_spelling",
        "_stream",
        "_task",
        "_upload",
    )

    def __init__(self, invoker: Invoker, exchange: Exchange, spelling: str, path: str, by_host: bool) -> None:
        self._invoker = invoker
        self._exchange = exchange
        self._spelling = spelling
        self._by_host = by_host
        self._call = invoker.begin(exchange.method, path)
        self._route: Route | None = None
        self._upload: Upload | None = None
        self._stream: links.Stream | None = None
        self._opening = False  # the stream may be settled before it is known here
        self._early: wire.Frame | errors.HeadraceError | None = None
        self._again = False  # it goes to a second instance
        self._left = False  # the caller went away while nobody was asked yet
        self._done = False
        self._task: asyncio.Task[None] | None = None
        self._feeding: asyncio.Task[None] | None = None

    def serve(self) -> None:
        self._invoker.calls.add(self._call)
        self._exchange.on_gone = self._gone
        self._step(self._find)

    # -- the steps

    def _find(self) -> None:
        try:
            route = self._invoker.routes.lookup(self._spelling)
        except errors.NotFound:
            self._later(self._look_again())
        else:
            self._admit(route)

    async def _look_again(self) -> None:
        self._admit(await self._invoker.route(self._spelling))

    def _admit(self, route: Route) -> None:
        call, exchange, invoker = self._call, self._exchange, self._invoker
        self._route = route
        call.prefix = "" if self._by_host else route.prefix
        invoker.gatekeeper.check(route, exchange.headers)
        call.runnable = route.choose(affinity(exchange) if route.chooses else None)
        if exchange.empty:
            self._place()
            return
        self._upload = upload = Upload(exchange, invoker.max_body, invoker.body_timeout_s)
        if upload.here():
            call.bytes_in = len(upload.body)
            self._place()
        else:
            self._later(self._collect(upload, call.runnable.timeout_s))

    async def _collect(self, upload: Upload, within_s: float) -> None:
        await upload.start(within_s)
        self._call.bytes_in = len(upload.body)
        self._place()

    def _place(self) -> None:
        assert self._route is not None
        member = self._invoker.slot(self._call, self._route, self._exchange)
        if member is None:
            self._later(self._queue())
        else:
            self._ask(member)

    async def _queue(self) -> None:
        self._ask(await self._invoker.wait(self._call))

    def _ask(self, member: Member) -> None:
        """Write the call to its instance."""
        upload, route = self._upload, self._route
        assert route is not None
        body, more = (b"", _WHOLE) if upload is None else (upload.body, _MORE if upload.more else _WHOLE)
        self._opening = True
        try:
            stream = self._stream = self._invoker.open(
                self._call, route, member, self._exchange, body, settle=self._settle, **more
            )
        finally:
            self._opening = False
        if self._early is not None:
            early, self._early = self._early, None
            self._answered(early)
        elif upload is not None and upload.more:
            feeding = feed(self._call, stream, upload)
            self._feeding = asyncio.get_running_loop().create_task(feeding, name=f"upload {self._call.id}")

    def _settle(self, outcome: wire.Frame | errors.HeadraceError) -> None:
        """The instance has answered, or will not (the stream calls this, once)."""
        if self._opening:
            self._early = outcome
        elif not self._done:
            self._step(self._answered, outcome)

    def _answered(self, outcome: wire.Frame | errors.HeadraceError) -> None:
        if isinstance(outcome, errors.NotSent) and not self._again and self._feeding is None:
            self._again = True
            self._invoker.give_back(self._call)
            self._place()
            return
        if isinstance(outcome, errors.HeadraceError):
            raise outcome
        try:
            head = answer.read_head(outcome.header)
        except wire.ProtocolError as error:
            raise errors.FunctionError(f"the instance sent an answer that can't be read: {error}.") from None
        if head.failure is not None and (outcome.type != wire.REPLY or not head.answers):
            raise links.function_error(head.failure)
        if outcome.type == wire.REPLY:
            answer.reply(self._call, self._exchange, head, outcome.body)
            if head.failure is not None:  # after an answer of its own, which stands
                self._call.failed(links.function_error(head.failure))
            self._over()
        elif outcome.type == wire.HEAD:
            self._later(self._relay(head))
        else:
            raise errors.FunctionError("the instance answered an HTTP call as if it were a WebSocket.")

    async def _relay(self, head: answer.Head) -> None:
        stream = self._stream
        assert stream is not None
        try:
            async with asyncio.timeout_at(stream.deadline + _LATE_S):
                await answer.relay(self._call, stream, self._exchange, head)
        except TimeoutError:
            if stream.caller_slow:
                raise errors.ClientGone("the caller did not read the answer to its end within timeout_s.") from None
            raise errors.TimedOut("the answer was not complete within the version's timeout_s.") from None
        self._over()

    # -- what ends it

    def _gone(self) -> None:
        """The caller has left (the exchange calls this)."""
        gone = errors.ClientGone("the caller went away before the answer was complete.")
        if self._stream is not None:
            self._stream.close("client", gone)
        if self._task is not None and not self._done:
            self._left = True
            self._task.cancel()
        elif not self._done:
            self._fail(gone)

    def _step(self, work: Callable[..., None], *args: Any) -> None:
        """Do a part of the call at once; what it raises ends the call."""
        try:
            work(*args)
        except errors.HeadraceError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - a fault of our own, which is logged there
            self._fault(error)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do a part of the call that has to wait."""
        self._task = asyncio.get_running_loop().create_task(self._run(work), name=f"call {self._call.id}")

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.current_task()
        try:
            await work
        except errors.HeadraceError as error:
            self._fail(error)
        except asyncio.CancelledError:
            self._fail(errors.ClientGone("the caller went away." if self._left else "the call was cancelled."))
            if not self._left:
                raise
        except Exception as error:  # noqa: BLE001 - a fault of our own, which is logged there
            self._fault(error)
        finally:
            if self._task is task:
                self._task = None

    def _fail(self, error: errors.HeadraceError) -> None:
        if self._done:
            return
        self._call.failed(error)
        try:
            answer.problem(self._call, self._exchange, error)
        except Exception as fault:  # noqa: BLE001 - the same
            self._fault(fault)
        else:
            self._over()

    def _fault(self, error: Exception) -> None:
        """A fault of our own: said plainly, and nothing of the call is relied on for it."""
        if self._done:
            return
        logger.error("call %s failed in the gateway", self._call.id, exc_info=error)
        failure = errors.HeadraceError(f"the gateway failed: {type(error).__name__}.")
        self._call.failed(failure)
        if self._call.answering or self._exchange.started:
            self._exchange.cut()
        else:
            self._exchange.respond(*answer_of(failure))
        self._over()

    def _over(self) -> None:
        """Nothing of the call goes on, and its record is noted."""
        if self._done:
            return
        self._done = True
        self._exchange.on_gone = None
        if self._stream is not None:
            self._stream.close("client")
        if self._feeding is not None:
            self._feeding.cancel()
        self._invoker.settle(self._call)
