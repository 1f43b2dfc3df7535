"""What every call does, whoever makes it: route, slot, frame out, slot returned, record noted.

HTTP requests (`request`), upgrades (`websocket`) and events of sockets (`events`) are calls. Each step is arithmetic
on one event loop; only the wait for a free slot is awaited.
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
from headrace.gateway.call import Call
from headrace.gateway.pool import Member, Waiter
from headrace.gateway.routes import Route, Routes
from headrace.gateway.sockets import Sockets
from headrace.web.exchange import Exchange

_LONGEST_WAIT = 60.0  # seconds in the queue; a version's own timeout_s may make it shorter
_SHORTEST_WAIT = 10.0  # ... but a cold start is given at least this
_LONGEST_PATH = 512  # characters of the path kept in a record
_PRIVATE = answer.HOP | {b"authorization"}


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

    def begin(self, method: str, path: str) -> Call:
        """A call that begins now. Its id is 24 hex digits that sort by time: milliseconds, the process, a counter."""
        now = time.time()
        id = f"{int(now * 1000):011x}{self._salt}{next(self._ids) & 0xFFFFFFF:07x}"
        return Call(id, now, method, path, self.monotonic)

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

    def slot(self, call: Call, route: Route, exchange: Exchange) -> Member | None:
        """A slot that is free now, reserved and noted in `call`; None: `wait` for one."""
        assert call.runnable is not None
        key = affinity(exchange) if route.hashes else None
        member = call.member = call.runnable.pool.take(key)
        return member

    async def wait(self, call: Call) -> Member:
        """A reserved slot, noted in `call`, after a wait in the queue.

        Raises `QueueFull`, `NoCapacity` or why no instance can start.
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
            await granted
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

    def open(
        self,
        call: Call,
        route: Route,
        member: Member,
        exchange: Exchange,
        body: bytes,
        *,
        settle: links.Settle,
        **more: Any,
    ) -> links.Stream:
        """Write the CALL frame; `more` are further fields of its header. Raises `TooLarge` when it would not fit.

        The token that opened a private function is the platform's and stays here.
        """
        runnable = call.runnable
        assert runnable is not None
        kept_here = _PRIVATE if route.private else answer.HOP
        header = {
            "id": call.id,
            "d": runnable.timeout_ms,
            "m": call.method,
            "r": call.prefix,
            "p": call.path,
            "q": exchange.query,
            "h": [(n.decode("latin-1"), v.decode("latin-1")) for n, v in exchange.headers if n not in kept_here],
            "ip": exchange.client,
            "s": exchange.scheme,
            "v": exchange.version,
            **more,
        }
        return self.write(call, member, header, body, settle)

    def write(
        self, call: Call, member: Member, header: dict[str, Any], body: bytes, settle: links.Settle
    ) -> links.Stream:
        """Write a CALL frame; `settle` hears of its answer. Raises `TooLarge` when it would not fit."""
        assert call.runnable is not None
        encoded = orjson.dumps(header)
        if len(encoded) + len(body) > wire.MAX_PAYLOAD:
            raise errors.TooLarge(f"the request's headers and URL take {len(encoded)} bytes: send less.")
        call.sent_at = self.monotonic()
        return member.link.call(call.id, encoded, body, call.sent_at + call.runnable.timeout_s, settle)


def affinity(exchange: Exchange) -> str | None:
    """What keeps a caller with its version or instance: its `Headrace-Affinity` header, else its address."""
    for name, value in exchange.headers:
        if name == b"headrace-affinity":
            return value.decode("latin-1")
    return exchange.client or None
