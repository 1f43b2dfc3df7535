"""The life of a call: route, slot, frame out, frame back, slot returned, record noted.

The path of a warm call awaits once, for the instance's answer. Around it everything is arithmetic on one event
loop. Whatever happens (an error, a timeout, a caller who leaves), the slot is released and the record is noted in
the same `finally`, exactly once.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import orjson

from headrace import errors, wire
from headrace.gateway import answer
from headrace.gateway import link as links
from headrace.gateway.access import Gatekeeper
from headrace.gateway.call import PATIENCE_S, Call, Peer, Receive, Scope, Send, gone
from headrace.gateway.pool import Member, Waiter
from headrace.gateway.routes import Route, Routes
from headrace.gateway.sockets import Sockets
from headrace.gateway.upload import Upload, feed

_LONGEST_WAIT = 60.0  # seconds in the queue; a version's own timeout_s may make it shorter
_SHORTEST_WAIT = 10.0  # ... but a cold start is given at least this
_LONGEST_PATH = 512  # characters of the path kept in a record
_MORE: dict[str, Any] = {"more": True}
_PRIVATE = answer.HOP | {b"authorization"}
_WHOLE: dict[str, Any] = {}


class Invoker:
    """Serves calls. `record` gets one tuple per call, in the field order of `model.Invocation`.

    `max_body` is in bytes; `body_timeout_s` is the longest pause between two pieces of one. `look_again` reads a
    function from its source and tells whether it had changed. `monotonic` is the event loop's time, read more finely
    than the loop itself tells it. `calls` are those in progress, WebSockets among them.
    """

    def __init__(
        self,
        routes: Routes,
        gatekeeper: Gatekeeper,
        record: Callable[[tuple[Any, ...]], None],
        node: str,
        *,
        max_body: int,
        body_timeout_s: float = 30.0,
        look_again: Callable[[int], Awaitable[bool]],
        sockets: Sockets,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.routes = routes
        self.gatekeeper = gatekeeper
        self.max_body = max_body
        self.body_timeout_s = body_timeout_s
        self.monotonic = monotonic
        self._look_again = look_again
        self.calls: set[Call] = set()
        self.sockets = sockets
        self._record = record
        self._node = node
        self._salt = os.urandom(3).hex()
        self._ids = count()

    @property
    def in_flight(self) -> int:
        return len(self.calls)

    def begin(self, method: str, path: str, peer: Peer) -> Call:
        """A call that begins now. Its id is 24 hex digits that sort by time: milliseconds, the process, a counter."""
        now = time.time()
        id = f"{int(now * 1000):011x}{self._salt}{next(self._ids) & 0xFFFFFFF:07x}"
        return Call(id, now, method, path, peer=peer, monotonic=self.monotonic)

    async def http(
        self, scope: Scope, receive: Receive, send: Send, *, spelling: str, rest: str, by_host: bool, peer: Peer
    ) -> None:
        """Answer one HTTP request to the function `spelling`; `rest` is the path behind it, as sent.

        `by_host`: the function was named by the host, so its root is the host's. `peer` is who holds the connection.
        """
        call = self.begin(scope["method"], rest, peer)
        self.calls.add(call)
        try:
            route = await self.route(spelling)
            call.prefix = "" if by_host else route.prefix
            self.gatekeeper.check(route, scope["headers"])
            call.runnable = route.choose(affinity(scope) if route.chooses else None)
            upload = Upload(scope, receive, self.max_body, self.body_timeout_s)
            if not upload.empty:
                await upload.start(call.runnable.timeout_s)
                call.bytes_in = len(upload.body)
            try:
                await self._run(call, route, upload, scope, send)
            except errors.NotSent:
                if upload.more:  # some of it was read already
                    raise
                self.give_back(call)
                await self._run(call, route, upload, scope, send)
        except errors.HeadraceError as error:
            call.failed(error)
            await answer.problem(send, error, call)
        except (asyncio.CancelledError, Exception) as error:  # cancelled, or a fault of our own: the server answers 500
            call.broke_off(error, "the call was cancelled.")
            raise
        finally:
            self.settle(call)

    async def _run(self, call: Call, route: Route, upload: Upload, scope: Scope, send: Send) -> None:
        """One instance's turn. Raises `NotSent` when it was lost before it was told anything."""
        member = self.slot(call, route, scope) or await self.wait(call, None if upload.more else upload.receive)
        stream = self.open(call, route, member, scope, upload.body, **_MORE if upload.more else _WHOLE)
        await self._converse(call, stream, upload, send)

    async def route(self, spelling: str) -> Route:
        """The route of `spelling`. A version or alias that is not known (yet) is looked for once more at its source."""
        try:
            return self.routes.lookup(spelling)
        except errors.NotFound:
            function_id = self.routes.function_id(spelling)
            if function_id is None or not await self._look_again(function_id):
                raise
        return self.routes.lookup(spelling)

    # -- slots

    def slot(self, call: Call, route: Route, scope: Scope) -> Member | None:
        """A slot that is free now, reserved and noted in `call`; None: `wait` for one."""
        assert call.runnable is not None
        key = affinity(scope) if route.hashes else None
        member = call.member = call.runnable.pool.take(key)
        return member

    async def wait(self, call: Call, receive: Receive | None) -> Member:
        """A reserved slot, noted in `call`, after a wait in the queue. `receive` tells when the caller leaves.

        Raises `QueueFull`, `NoCapacity`, `ClientGone` or why no instance can start.
        """
        runnable = call.runnable
        assert runnable is not None
        began = self.monotonic()
        pool = runnable.pool
        granted: asyncio.Future[Member] = asyncio.get_running_loop().create_future()

        def settle(outcome: Member | errors.HeadraceError) -> None:
            if granted.done():  # the caller left in this very tick
                if isinstance(outcome, Member):
                    pool.release(outcome, self.monotonic())
            elif isinstance(outcome, Member):
                granted.set_result(outcome)
            else:
                granted.set_exception(outcome)

        patience = min(max(runnable.timeout_s, _SHORTEST_WAIT), _LONGEST_WAIT)
        waiter = Waiter(began + patience, settle)
        pool.wait(waiter, began)
        try:
            await _granted_or_gone(granted, receive)
        except BaseException:
            pool.forget(waiter)
            if not granted.done():
                granted.cancel()
            elif granted.exception() is None:
                pool.release(granted.result(), self.monotonic())
            raise
        member = call.member = granted.result()  # the call holds the slot from here on
        waited = (self.monotonic() - began) * 1000
        if member.cold:
            call.start_ms = min(waited, member.start_ms)
            call.steps = member.steps
            member.cold = False
        call.queue_ms = waited - call.start_ms
        return member

    def settle(self, call: Call) -> None:
        """Give the slot back and note the record. A call that no version was found for leaves no record."""
        self.calls.discard(call)
        runnable, member = call.runnable, call.member
        if runnable is None:
            return
        now = self.monotonic()
        if member is not None:
            runnable.pool.release(member, now, call.outcome == "function_error")
        version = runnable.version
        self._record(
            (
                call.id,
                version.namespace,
                version.function,
                version.number,
                member.name if member is not None else "",
                self._node,
                call.started_at,
                call.queue_ms,
                call.start_ms,
                (now - call.sent_at) * 1000 if call.sent_at else 0.0,
                call.status,
                call.outcome,
                call.method,
                call.path[:_LONGEST_PATH],
                call.bytes_in,
                call.bytes_out,
                call.error,
            )
        )

    def give_back(self, call: Call) -> None:
        """Release the slot of a call that goes on without it."""
        if call.runnable is not None and call.member is not None:
            call.runnable.pool.release(call.member, self.monotonic())
            call.member, call.sent_at = None, 0.0

    # -- the conversation with the instance

    def open(self, call: Call, route: Route, member: Member, scope: Scope, body: bytes, **more: Any) -> links.Stream:
        """Write the CALL frame; `more` are further fields of its header. Raises `TooLarge` when it would not fit.

        The token that opened a private function is the platform's and stays here.
        """
        client, runnable = scope["client"], call.runnable
        assert runnable is not None
        kept_here = _PRIVATE if route.private else answer.HOP
        header = {
            "id": call.id,
            "d": runnable.timeout_ms,
            "m": call.method,
            "r": call.prefix,
            "p": call.path,
            "q": scope["query_string"].decode("latin-1"),
            "h": [(n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"] if n not in kept_here],
            "ip": client[0] if client else "",
            "s": scope["scheme"],
            "v": scope["http_version"],
            **more,
        }
        return self.write(call, member, header, body)

    def write(self, call: Call, member: Member, header: dict[str, Any], body: bytes) -> links.Stream:
        """Write a CALL frame. Raises `TooLarge` when it would not fit."""
        assert call.runnable is not None
        encoded = orjson.dumps(header)
        if len(encoded) + len(body) > wire.MAX_PAYLOAD:
            raise errors.TooLarge(f"the request's headers and URL take {len(encoded)} bytes: send less.")
        call.sent_at = self.monotonic()
        return member.link.call(call.id, encoded, body, call.sent_at, call.sent_at + call.runnable.timeout_s)

    async def _converse(self, call: Call, stream: links.Stream, upload: Upload, send: Send) -> None:
        feeding = None
        if upload.more:
            feeding = asyncio.get_running_loop().create_task(feed(call, stream, upload), name=f"upload {call.id}")
        else:
            stream.receive = upload.receive
        try:
            frame = await stream.answer
            head = answer.read_head(frame.header)
            if head.failure is not None and (frame.type != wire.REPLY or not head.answers):
                raise links.function_error(head.failure)
            if frame.type == wire.REPLY:
                await answer.reply(call, send, head, frame.body)
                if head.failure is not None:  # after an answer of its own, which stands
                    call.failed(links.function_error(head.failure))
            elif frame.type == wire.HEAD:
                # A late instance is ended by the gateway's ticker; here, a little later, a caller who does not read.
                async with asyncio.timeout_at(stream.deadline + PATIENCE_S):
                    await answer.relay(call, stream, send, head)
            else:
                raise errors.FunctionError("the instance answered an HTTP call as if it were a WebSocket.")
        except wire.ProtocolError as error:
            raise errors.FunctionError(f"the instance sent an answer that can't be read: {error}.") from None
        except TimeoutError:
            if stream.caller_slow:
                raise errors.ClientGone("the caller did not read the answer to its end within timeout_s.") from None
            raise errors.TimedOut("the answer was not complete within the version's timeout_s.") from None
        finally:
            stream.close("client")
            if feeding is not None:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)


async def _granted_or_gone(granted: asyncio.Future[Member], receive: Receive | None) -> None:
    """Return when the wait is over. Raises `ClientGone` when the caller leaves before."""
    await asyncio.wait((granted,), timeout=None if receive is None else PATIENCE_S)
    if granted.done() or receive is None:
        return
    leaving = asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait((granted, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
    if not granted.done():
        raise errors.ClientGone("the caller went away while the call waited for an instance.")


def affinity(scope: Scope) -> str | None:
    """What keeps a caller with its version or instance: its `Headrace-Affinity` header, else its address."""
    for name, value in scope["headers"]:
        if name == b"headrace-affinity":
            return str(value.decode("latin-1"))
    client = scope["client"]
    return client[0] if client else None
