"""The life of a call: route, slot, frame out, frame back, slot returned, record noted.

The path of a warm call awaits once, for the instance's answer. Around it everything is arithmetic on one event
loop. Whatever happens (an error, a timeout, a caller who leaves), the slot is released and the record is noted in
the same `finally`, exactly once.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from itertools import count
from typing import Any

import orjson

from headrace import errors, wire
from headrace.gateway import link as links
from headrace.gateway.access import Gatekeeper
from headrace.gateway.pool import Member, Waiter
from headrace.gateway.routes import Route, Routes, Runnable
from headrace.model import Outcome

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_LONGEST_WAIT = 60.0  # seconds in the queue; a version's own timeout_s may make it shorter
_SHORTEST_WAIT = 10.0  # ... but a cold start is given at least this
_BODY_S = 30.0  # a small request body is read before a slot is taken; this long at most
_LONGEST_PATH = 512  # characters of the path kept in a record
HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_BODILESS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))  # HTTP/2 requests of these carry no body here
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_MORE: dict[str, Any] = {"more": True}
_WHOLE: dict[str, Any] = {}
_OUTCOMES: dict[str, Outcome] = {
    "function_error": "function_error",
    "load_failed": "function_error",
    "timeout": "timeout",
    "instance_died": "instance_died",
    "out_of_memory": "out_of_memory",
    "client_gone": "client_gone",
    "queue_full": "rejected",
    "no_capacity": "rejected",
    "too_large": "rejected",
}


class Call:
    """One call on its way: what it will be recorded as, and the slot it holds."""

    __slots__ = (
        "answering",
        "bytes_in",
        "bytes_out",
        "error",
        "id",
        "member",
        "method",
        "outcome",
        "path",
        "prefix",
        "queue_ms",
        "runnable",
        "sent_at",
        "start_ms",
        "started",
        "started_at",
        "status",
    )

    def __init__(self, id: str, method: str, path: str) -> None:
        self.id = id
        self.method = method
        self.path = path
        self.prefix = ""
        self.started_at = time.time()
        self.started = time.monotonic()
        self.sent_at = 0.0  # monotonic; 0 until the frame is written
        self.queue_ms = 0.0
        self.start_ms = 0.0
        self.status = 0
        self.answering = False  # the status line is out
        self.outcome: Outcome = "ok"
        self.error: dict[str, Any] | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.runnable: Runnable | None = None
        self.member: Member | None = None

    def failed(self, error: errors.HeadraceError) -> None:
        if not self.answering:
            self.status = error.status
        self.outcome = _OUTCOMES.get(error.code, "platform_error" if error.fault == "platform" else "rejected")
        self.error = error.ids.get("error") or {"type": error.code, "message": error.detail, "stack": ""}

    def timing(self) -> str:
        """The Server-Timing value so far: milliseconds queued, starting (when cold) and running."""
        run = (time.monotonic() - self.sent_at) * 1000 if self.sent_at else 0.0
        start = f", start;dur={self.start_ms:.2f}" if self.start_ms else ""
        return f"queue;dur={self.queue_ms:.2f}{start}, run;dur={run:.2f}"


class Invoker:
    """Serves calls. `record` gets one tuple per call, in the field order of `model.Invocation`."""

    def __init__(
        self,
        routes: Routes,
        gatekeeper: Gatekeeper,
        record: Callable[[tuple[Any, ...]], None],
        node: str,
        max_body: int,
    ) -> None:
        self.routes = routes
        self.gatekeeper = gatekeeper
        self.max_body = max_body
        self.in_flight = 0
        self._record = record
        self._node = node
        self._salt = os.urandom(3).hex()
        self._ids = count()

    def new_id(self) -> str:
        """A new invocation id: 24 hex digits that sort by time (milliseconds, the process, a counter)."""
        return f"{int(time.time() * 1000):011x}{self._salt}{next(self._ids) & 0xFFFFFFF:07x}"

    async def http(self, scope: Scope, receive: Receive, send: Send, *, spelling: str, rest: str) -> None:
        """Answer one HTTP request to the function `spelling`; `rest` is the path behind it, as sent."""
        call = Call(self.new_id(), scope["method"], rest)
        self.in_flight += 1
        try:
            route = self.routes.lookup(spelling)
            call.prefix = route.prefix
            self.gatekeeper.check(route, scope["headers"])
            runnable = call.runnable = route.choose(affinity(scope) if route.chooses else None)
            upload = Upload(scope, receive, self.max_body)
            body = await upload.start()
            call.bytes_in = len(body)
            member = await self.slot(call, route, runnable, scope)
            stream = self.open(call, runnable, member, scope, body, **_MORE if upload.more else _WHOLE)
            await self._converse(call, stream, upload, receive, send)
        except errors.HeadraceError as error:
            call.failed(error)
            await problem(send, error, call)
        except asyncio.CancelledError:
            call.failed(errors.ClientGone("the call was cancelled."))
            raise
        finally:
            self.in_flight -= 1
            self.settle(call)

    # -- slots

    async def slot(self, call: Call, route: Route, runnable: Runnable, scope: Scope) -> Member:
        """A reserved slot, noted in `call`: at once, or after a wait.

        Raises `QueueFull`, `NoCapacity` or why no instance can start.
        """
        pool = runnable.pool
        key = affinity(scope) if route.function.balancing == "hash" else None
        member = pool.take(key)
        if member is None:
            member = await self._wait(call, runnable)
        call.member = member
        return member

    async def _wait(self, call: Call, runnable: Runnable) -> Member:
        began = time.monotonic()
        granted: asyncio.Future[Member] = asyncio.get_running_loop().create_future()

        def settle(outcome: Member | errors.HeadraceError) -> None:
            if granted.done():  # the caller left in this very tick
                if isinstance(outcome, Member):
                    runnable.pool.release(outcome, time.monotonic())
            elif isinstance(outcome, Member):
                granted.set_result(outcome)
            else:
                granted.set_exception(outcome)

        patience = min(max(runnable.timeout_s, _SHORTEST_WAIT), _LONGEST_WAIT)
        waiter = Waiter(began + patience, settle)
        runnable.pool.wait(waiter, began)
        try:
            member = await granted
        except asyncio.CancelledError:
            runnable.pool.forget(waiter)
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                runnable.pool.release(granted.result(), time.monotonic())
            raise
        waited = (time.monotonic() - began) * 1000
        if member.served == 1:
            call.start_ms = min(waited, member.start_ms)
        call.queue_ms = waited - call.start_ms
        return member

    def settle(self, call: Call) -> None:
        """Give the slot back and note the record. A call that no version was found for leaves no record."""
        runnable, member = call.runnable, call.member
        now = time.monotonic()
        if runnable is None:
            return
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

    # -- the conversation with the instance

    def open(
        self, call: Call, runnable: Runnable, member: Member, scope: Scope, body: bytes, **more: Any
    ) -> links.Stream:
        """Write the CALL frame; `more` are further fields of its header."""
        client = scope["client"]
        header = {
            "id": call.id,
            "d": int(runnable.timeout_s * 1000),
            "m": call.method,
            "r": call.prefix,
            "p": call.path,
            "q": scope["query_string"].decode("latin-1"),
            "h": [(n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"] if n not in HOP],
            "ip": client[0] if client else "",
            "s": scope["scheme"],
            "v": scope["http_version"],
            **more,
        }
        call.sent_at = time.monotonic()
        return member.link.call(call.id, orjson.dumps(header), body, call.sent_at, call.sent_at + runnable.timeout_s)

    async def _converse(self, call: Call, stream: links.Stream, upload: Upload, receive: Receive, send: Send) -> None:
        feeding = None
        if upload.more:
            feeding = asyncio.get_running_loop().create_task(_feed(call, stream, upload), name=f"upload {call.id}")
        else:
            stream.receive = receive
        try:
            frame = await stream.answer
            header = links.parse(frame.header)
            if "e" in header:
                raise links.function_error(header["e"])
            if frame.type == wire.REPLY:
                await _reply(call, send, header, frame.body)
            elif frame.type == wire.HEAD:
                async with asyncio.timeout_at(stream.deadline):
                    await _stream(call, stream, send, header)
            else:
                raise errors.FunctionError("the instance answered an HTTP call as if it were a WebSocket.")
        except wire.ProtocolError as error:
            raise errors.FunctionError(f"the instance sent an answer that can't be read: {error}.") from None
        except TimeoutError:
            raise errors.TimedOut("the answer was not read to its end within the version's timeout_s.") from None
        finally:
            stream.close("client")
            if feeding is not None:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)


class Upload:
    """A request body: whole when it is small, else in pieces that are read as the instance takes them."""

    __slots__ = ("_limit", "_pending", "_scope", "_size", "more", "receive")

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        self._scope = scope
        self.receive = receive
        self._limit = limit
        self._size = 0
        self._pending: list[bytes] = []
        self.more = False

    async def start(self) -> bytes:
        """The whole body, or nothing with `more` set. Raises `TooLarge`, `ClientGone`."""
        announced = None
        chunked = self._scope["http_version"] != "1.1"
        for name, value in self._scope["headers"]:
            if name == b"content-length":
                announced = int(value)
            elif name == b"transfer-encoding":
                chunked = True
        if announced is None and not (chunked and self._scope["method"] not in _BODILESS):
            return b""
        if announced is not None and announced > self._limit:
            raise self._too_large(announced)
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


async def _feed(call: Call, stream: links.Stream, upload: Upload) -> None:
    try:
        async for piece in upload.pieces():
            call.bytes_in += len(piece)
            if piece:
                await stream.send(wire.BODY, b"", piece)
        stream.end()
        stream.receive = upload.receive
    except errors.HeadraceError as error:
        stream.close("client", error)


async def _reply(call: Call, send: Send, header: dict[str, Any], body: bytes) -> None:
    status, headers = _head(call, header)
    if call.method != "HEAD":
        headers = [pair for pair in headers if pair[0] != b"content-length"]
    call.status, call.answering = status, True
    call.bytes_out = len(body)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if call.method == "HEAD" else body})


async def _stream(call: Call, stream: links.Stream, send: Send, header: dict[str, Any]) -> None:
    status, headers = _head(call, header)
    call.status, call.answering = status, True
    await send({"type": "http.response.start", "status": status, "headers": headers})
    async for frame in stream.frames():
        if call.method != "HEAD":
            call.bytes_out += len(frame.body)
            await send({"type": "http.response.body", "body": frame.body, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _head(call: Call, header: dict[str, Any]) -> tuple[int, Headers]:
    """Status and headers for the caller. The instance is not trusted: what HTTP can't carry is a function error."""
    status = header.get("s", 200)
    if type(status) is not int or not 200 <= status <= 599:
        raise errors.FunctionError(f"the answer's status {status!r} is not a number from 200 to 599.")
    headers: Headers = []
    try:
        for name, value in header.get("h", ()):
            raw = name.lower().encode("ascii")
            if raw in HOP or raw.startswith(b"headrace-"):
                continue
            if not _TOKEN.fullmatch(raw) or "\n" in value or "\r" in value or "\0" in value:
                raise ValueError(name)
            headers.append((raw, value.encode("latin-1")))
    except (ValueError, TypeError, AttributeError):
        raise errors.FunctionError("the answer has a header that HTTP cannot carry.") from None
    headers += own_headers(call)
    return status, headers


def own_headers(call: Call) -> Headers:
    """What Headrace adds to every answer."""
    headers = [(b"headrace-invocation", call.id.encode()), (b"server-timing", call.timing().encode())]
    if call.runnable is not None:
        headers.append((b"headrace-version", b"%d" % call.runnable.version.number))
    return headers


async def problem(send: Send, error: errors.HeadraceError, call: Call | None = None) -> None:
    """Answer with problem JSON, or raise `Broken` when the answer had begun, so that the caller sees it break."""
    if call is not None and call.answering:
        raise Broken(error.detail) from None
    status, headers, body = problem_of(error, call)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def problem_of(error: errors.HeadraceError, call: Call | None) -> tuple[int, Headers, bytes]:
    """Status, headers and problem JSON of `error`. What a function's exception says stays in its record."""
    content = error.problem()
    content.pop("error", None)
    headers = [(b"content-type", b"application/problem+json"), (b"headrace-error", error.fault.encode())]
    if call is not None:
        content["invocation"] = call.id
        headers += own_headers(call)
        if "error" in error.ids:
            content["detail"] = f"{error.ids['error']['type']}: see `headrace invocations {call.id}` for its message."
    if error.retryable:
        headers.append((b"retry-after", b"%d" % error.ids.get("retry_after_s", 1)))
    return error.status, headers, orjson.dumps(content, default=str)


class Broken(Exception):
    """The answer broke off after it had begun. Left to the server, which cuts the connection."""


def affinity(scope: Scope) -> str | None:
    """What keeps a caller with its version or instance: its `Headrace-Affinity` header, else its address."""
    for name, value in scope["headers"]:
        if name == b"headrace-affinity":
            return str(value.decode("latin-1"))
    client = scope["client"]
    return client[0] if client else None
