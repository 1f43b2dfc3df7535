"""One HTTP call of an ASGI application.

The request body reaches the application as it arrives, and the node may send more only when `receive` took it. An
answer that is complete in the tick in which it starts is one REPLY frame; otherwise HEAD goes out at the end of that
tick and the body follows under its window.

The last frame of an answer, REPLY or END, waits for the application to return or to raise, but no longer than to the
end of its tick: frameworks send their error page and then raise, and that failure travels with the page. What still
runs after that tick (a background task) delays nothing, and when it fails, only the log tells. The wait costs a
whole answer nothing: the callback that would have sent its HEAD is the one that ends the wait.
"""

from __future__ import annotations

import asyncio
from typing import Any

from . import wire
from .call import Call, Gone, Outflow, Signal
from .logs import Log
from .response import CLOSED_STATUSES, PLATFORM_HEADERS, encode_head, header_name, header_value


class ResponseStart:
    """The start of an answer, checked: status, headers without content-length, and that length on its own."""

    def __init__(self, message: dict[str, Any]) -> None:
        status = message["status"]
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise ValueError(f"the application sent status {status!r}: use one from 200 to 599")
        self.status = int(status)
        self.trailers = bool(message.get("trailers"))  # fields follow the body
        self.length: int | None = None
        self.headers: list[tuple[str, str]] = []
        for raw_name, raw_value in message.get("headers") or ():
            name = header_name(bytes(raw_name).decode("latin-1"))
            value = header_value(name, bytes(raw_value).decode("latin-1"))
            if name == "content-length" and value.isdecimal():
                self.length = int(value)
            if name not in PLATFORM_HEADERS:
                self.headers.append((name, value))

    def head(self, with_length: bool) -> bytes:
        """As the header of REPLY or HEAD. A REPLY with a body has its length anyway."""
        if with_length and self.length is not None:
            return encode_head(self.status, [*self.headers, ("content-length", str(self.length))])
        return encode_head(self.status, self.headers)


def _fields(pairs: Any) -> list[tuple[str, str]]:
    """Trailers, checked as headers are."""
    fields = []
    for raw_name, raw_value in pairs:
        name = header_name(bytes(raw_name).decode("latin-1"))
        fields.append((name, header_value(name, bytes(raw_value).decode("latin-1"))))
    return fields


class Http:
    """The scope and the two callables of one exchange."""

    def __init__(self, call: Call, scope: dict[str, Any], log: Log, body: bytes) -> None:
        scope.update(type="http", method=call.head["m"], extensions={"http.response.trailers": {}})
        self.scope = scope
        self._call = call
        self._log = log
        self._request = [body]  # pieces the application has not taken
        self._inline = len(body)  # bytes that came inside CALL, outside the window
        self._arrived = not call.head.get("more")  # all of the request
        self._taken = False  # by the application
        self._news = Signal()
        self._start: ResponseStart | None = None
        self._bodyless = call.head["m"] == "HEAD"
        self._sent = 0
        self._flow: Outflow | None = None  # once HEAD was sent
        self._due: asyncio.Handle | None = None  # at the end of this tick: HEAD, or the last frame
        self._last: tuple[int, bytes, bytes] | None = None  # that last frame: type, header, body
        self._bodies_over = False  # and trailers are to come
        self._trailers: list[tuple[str, str]] = []
        self._complete = False

    def body(self, data: bytes) -> None:
        """A piece of the request."""
        self._request.append(data)
        self._news.fire()

    def end(self) -> None:
        """The request is complete."""
        self._arrived = True
        self._news.fire()

    def disconnect(self) -> None:
        """The call is gone."""
        self._news.fire()

    async def receive(self) -> dict[str, Any]:
        """What has arrived of the request; after its end, or when the caller has left, the disconnect."""
        while not (self._call.gone or self._complete):
            if self._request or (self._arrived and not self._taken):
                body = b"".join(self._request)
                self._request.clear()
                self._call.grant(len(body) - self._inline)
                self._inline = 0
                self._taken = self._arrived
                return {"type": "http.request", "body": body, "more_body": not self._arrived}
            await self._news.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        """A part of the answer. Raises `Gone`, an `OSError`, when the caller has left."""
        if self._call.gone:
            raise Gone("the caller is gone")
        expected = "http.response.start" if self._start is None else "http.response.body"
        if self._bodies_over:
            expected = "http.response.trailers"
        if self._complete or message["type"] != expected:
            state = "the response is complete" if self._complete else f"expected {expected!r}"
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}: {state}")
        if self._start is None:
            self._start = ResponseStart(message)
            self._bodyless = self._bodyless or self._start.status in CLOSED_STATUSES
            self._due = asyncio.get_running_loop().call_soon(self._tick_over)
        elif self._bodies_over:
            self._trailers += _fields(message.get("headers") or ())
            if not message.get("more_trailers"):
                self._complete_with(wire.END, wire.dumps({"tr": self._trailers}) if self._trailers else b"")
        else:
            await self._continue(self._start, bytes(message.get("body") or b""), bool(message.get("more_body")))

    def returned(self) -> None:
        """The application has returned; raises `RuntimeError` when it did not answer."""
        if self._last is not None:
            self._finish()
        elif not (self._complete or self._call.gone):
            raise RuntimeError("the application returned without a complete response")

    def failed(self, failure: dict[str, str]) -> None:
        """The application raised. A complete answer of its own, an error page, stands."""
        if self._last is not None:
            self._finish(failure)
        elif not self._complete:
            if self._due is not None:
                self._due.cancel()
            self._call.fail(failure)

    async def _continue(self, start: ResponseStart, body: bytes, more: bool) -> None:
        if self._bodyless:
            body = b""
        else:
            self._count(start, len(body), more)
        if self._flow is None and not more and not start.trailers and len(body) <= wire.INLINE:
            self._complete_with(wire.REPLY, start.head(self._bodyless), body)
            return
        if self._flow is None:
            self._open()
        if body:
            await self._flow.send(body)
        if not more and start.trailers:
            self._bodies_over = True
        elif not more:
            self._complete_with(wire.END)

    def _count(self, start: ResponseStart, size: int, more: bool) -> None:
        self._sent += size
        if start.length is not None and (self._sent > start.length or (self._sent < start.length and not more)):
            raise RuntimeError(f"the application announced {start.length} bytes of body and sent {self._sent}")

    def _tick_over(self) -> None:
        self._due = None
        if self._last is not None:
            self._finish()
        elif not self._call.gone:
            self._open()

    def _open(self) -> None:
        """Send HEAD: the answer is a streamed one."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self._flow = Outflow(self._call)
        self._call.open(self._start.head(True))

    def _complete_with(self, kind: int, head: bytes = b"", body: bytes = b"") -> None:
        """The application has said all; the frame that says so waits for what it does next in this tick."""
        self._complete = True
        self._last = kind, head, body
        if self._due is None:
            self._due = asyncio.get_running_loop().call_soon(self._tick_over)
        self._news.fire()

    def _finish(self, failure: dict[str, str] | None = None) -> None:
        """Send the last frame; with `failure` when the application raised after it."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        kind, head, body = self._last
        self._last = None
        if failure is not None:
            head = _with_failure(kind, head, failure)
        self._log.finish(self._call)
        self._call.finish(kind, head, body)


def _with_failure(kind: int, head: bytes, failure: dict[str, str]) -> bytes:
    """The header of REPLY or END when the answer is complete and the application failed after it."""
    name = "e" if kind == wire.REPLY else "x"
    told = wire.dumps({name: failure})
    return head[:-1] + b"," + told[1:] if head else told
