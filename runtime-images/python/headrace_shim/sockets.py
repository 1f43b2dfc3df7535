"""`context.ws`, and what a handler's return value means to a WebSocket.

The node holds the sockets. What is asked for here travels as frames on the stream of the call, in order and before its
answer; nothing comes back, so a connection that has gone is no error. Messages count under the window of the call:
a thread waits for room, in the loop whoever wants to wait awaits what `send` returns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from . import wire
from .response import BadResponse, answer, checked_status, decoded, to_json

if TYPE_CHECKING:
    from .call import Call

MESSAGE_LIMIT = 1 << 20  # bytes of one message
GROUP_LIMIT = 128  # characters of a group's name
REASON_LIMIT = 123  # bytes of a close reason

_NO_CODES = (1004, 1005, 1006)


class _Sent:
    """A message that has left."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_SENT = _Sent()


class Connections:
    """The WebSockets of this function, for a handler: to answer, close, and send to others or to groups."""

    __slots__ = ("_call", "_lock", "_loop", "_pending", "_pump")

    def __init__(self, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        self._call = call
        self._loop = loop
        self._lock = Lock()  # any thread may send, and the pieces of two messages must not mix
        self._pending: deque[tuple[bytes, Callable[[bytes, bool], bytes], Future[None]]] = deque()
        self._pump: asyncio.Task[None] | None = None

    @property
    def connection_id(self) -> str | None:
        """The connection that this event is about; None in a call that is no event of a WebSocket."""
        found = self._call.head.get("c")
        return None if found is None else str(found)

    def send(self, data: Any, to: str | None = None, group: str | None = None) -> Any:
        """Send str as text, bytes as binary, any other value as JSON: to this connection, another, or a group.

        What it returns may be awaited in async code, to go at the speed of the client; other code waits by itself.
        """
        body, text = encoded(data)
        if len(body) > MESSAGE_LIMIT:
            raise ValueError(f"the message has {len(body)} bytes; the limit is {MESSAGE_LIMIT}: send it in parts")
        if group is None:
            head: dict[str, Any] = {"t": text, "to": self._named(to)}
        elif to is None:
            head = {"t": text, "g": _group(group)}
        else:
            raise ValueError("give `to` or `group`, not both")
        whole, part = wire.dumps(head), wire.dumps({**head, "more": True})
        stream = self._call.stream

        def frame(piece: bytes, more: bool) -> bytes:
            return wire.encode(wire.WS_MESSAGE, stream, part if more else whole, piece)

        return self._send(body, frame)

    def close(self, code: int = 1000, reason: str = "", to: str | None = None) -> None:
        """Close this connection, or another, after what was sent to it."""
        if type(code) is not int or not (1000 <= code <= 1014 or 3000 <= code <= 4999) or code in _NO_CODES:
            raise ValueError(f"{code!r:.40} is no code to close with: use 1000 or one from 3000 to 4999")
        if len(reason.encode("utf-8", "replace")) > REASON_LIMIT:
            raise ValueError(f"a close reason may have {REASON_LIMIT} bytes")
        self._tell(wire.WS_CLOSE, {"c": code, "r": reason, "to": self._named(to)})

    def join(self, group: str, to: str | None = None) -> None:
        """Put this connection, or another, into a group."""
        self._tell(wire.WS_GROUP, {"g": _group(group), "to": self._named(to), "in": True})

    def leave(self, group: str, to: str | None = None) -> None:
        """Take this connection, or another, out of a group."""
        self._tell(wire.WS_GROUP, {"g": _group(group), "to": self._named(to)})

    async def settled(self) -> None:
        """Wait, in the loop, until everything is sent."""
        self._start()
        if self._pump is not None:
            await asyncio.wait((self._pump,))

    def _named(self, to: str | None) -> str:
        name = self.connection_id if to is None else to
        if name is None:
            raise ValueError("this call has no connection of its own: name one with `to`, or a `group`")
        if not isinstance(name, str) or not 0 < len(name) <= 64:
            raise ValueError(f"{name!r:.80} is no connection id")
        return name

    def _tell(self, kind: int, head: dict[str, Any]) -> None:
        self._send(b"", lambda _, __: wire.encode(kind, self._call.stream, wire.dumps(head)))

    def _send(self, data: bytes, frame: Callable[[bytes, bool], bytes]) -> Any:
        if self._call.gone or self._call.answered:
            return _SENT
        with self._lock:
            if not self._pending and self._call.outflow().send_at_once(data, frame):
                return _SENT
            done: Future[None] = Future()
            self._pending.append((data, frame, done))
        if _running_loop() is self._loop:
            self._start()
            return asyncio.wrap_future(done)
        self._loop.call_soon_threadsafe(self._start)
        done.result()
        return _SENT

    def _start(self) -> None:
        if self._pending and self._pump is None:
            self._pump = self._loop.create_task(self._run())

    async def _run(self) -> None:
        while self._pending:
            data, frame, done = self._pending[0]
            try:
                if data:
                    await self._call.outflow().send(data, frame)
                elif not self._call.gone:
                    self._call.link.send(frame(b"", False))
            except OSError:
                pass  # `Gone`: nobody takes it any more
            finally:
                with self._lock:
                    self._pending.popleft()
                if not done.cancelled():
                    done.set_result(None)
        self._pump = None


class Outcome(NamedTuple):
    """What an event is answered with: the frame, and for a message what goes back to its sender before."""

    kind: int
    head: bytes
    body: bytes
    message: Any


def connect_outcome(value: Any) -> Outcome:
    """The answer to `connect`: a dict whose `statusCode` is not 2xx refuses the socket, anything else accepts it."""
    head: dict[str, Any] = {"ev": True}
    if isinstance(value, dict) and "statusCode" in value:
        encoded_head, body = answer(value, True)
        found = wire.loads(encoded_head)
        if not 200 <= found["s"] <= 299:
            if not isinstance(body, bytes) or len(body) > wire.INLINE:
                raise BadResponse(f"the body of a refused WebSocket may have {wire.INLINE} bytes.")
            return Outcome(wire.REPLY, encoded_head, body, None)
        chosen = [text for name, text in found["h"] if name == "sec-websocket-protocol"]
        if chosen:
            head["sp"] = chosen[0]
    return Outcome(wire.WS_ACCEPT, wire.dumps(head), b"", None)


def event_outcome(value: Any) -> Outcome:
    """The answer to `message` and `disconnect`: what is returned goes back as a message, None sends nothing."""
    status = 200
    if isinstance(value, dict) and "statusCode" in value:
        status, body = checked_status(value["statusCode"]), value.get("body")
        if isinstance(body, str) and value.get("isBase64Encoded"):
            body = decoded(body)
        value = None if body == "" else body
    if isinstance(value, (Iterator, AsyncIterator)):
        raise BadResponse("an event of a WebSocket is not answered with a stream: send each piece by context.ws.send.")
    return Outcome(wire.REPLY, b'{"s":%d}' % status, b"", value)


def encoded(data: Any) -> tuple[bytes, int]:
    """A message as bytes, and 1 for text or 0 for binary."""
    if isinstance(data, str):
        return data.encode("utf-8", "replace"), 1
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data), 0
    return to_json(data), 1


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # a thread
        return None


def _group(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= GROUP_LIMIT:
        raise ValueError(f"{name!r:.80} is no group: use a str of 1 to {GROUP_LIMIT} characters")
    return name
