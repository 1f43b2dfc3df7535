"""One WebSocket of an ASGI application.

Messages travel in pieces under the window of the stream. A message that is still arriving has to be granted as it
comes, or one longer than the window would never end; so it is bounded here (`MESSAGE_LIMIT`, close code 1009). A
complete one is granted when the application receives it: a slow application slows its peer down.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from . import wire
from .asgi_http import ResponseStart
from .call import Call, Gone, Outflow, Signal
from .logs import Log
from .response import header_name, header_value

MESSAGE_LIMIT = 16 << 20  # bytes of one received message
INBOX_LIMIT = 10_000  # messages the application has not received; the window bounds their bytes, not their number
DENIAL_LIMIT = 256 << 10  # bytes of the body of a refusal
REASON_LIMIT = 123  # bytes of a close reason

_CONNECTING, _ACCEPTED, _REFUSING, _CLOSED = range(4)


class _Messages(Outflow):
    """Sends messages, one at a time, as WS_MESSAGE frames."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._text = False
        self._turn = asyncio.Lock()  # any task may send, and the pieces of two messages must not mix

    async def send_message(self, data: bytes, text: bool) -> None:
        async with self._turn:
            self._text = text
            if data:
                await self.send(data)
            else:
                self._call.link.send(self._frame(b"", False))

    def _put(self, piece: memoryview, more: bool) -> None:
        self._call.link.send(self._frame(bytes(piece), more))

    def _frame(self, piece: bytes, more: bool) -> bytes:
        head = b'{"t":%d,"more":true}' if more else b'{"t":%d}'
        return wire.encode(wire.WS_MESSAGE, self._call.stream, head % self._text, piece)


class WebSocket:
    """The scope and the two callables of one connection."""

    def __init__(self, call: Call, scope: dict[str, Any], log: Log) -> None:
        wanted = [value.decode("latin-1") for name, value in scope["headers"] if name == b"sec-websocket-protocol"]
        scope["type"] = "websocket"
        scope["scheme"] = "wss" if scope["scheme"] == "https" else "ws"
        scope["subprotocols"] = [item.strip() for item in ",".join(wanted).split(",") if item.strip()]
        scope["extensions"] = {"websocket.http.response": {}}
        self.scope = scope
        self._call = call
        self._log = log
        self._state = _CONNECTING
        self._greeted = False
        self._parts: list[bytes] = []  # of the message that is arriving
        self._size = 0
        self._inbox: deque[tuple[dict[str, Any], int]] = deque()  # complete messages and their ungranted bytes
        self._news = Signal()
        self._leave: dict[str, Any] = {"type": "websocket.disconnect", "code": 1006, "reason": ""}
        self._out = _Messages(call)
        self._refusal: ResponseStart | None = None
        self._refusal_body = b""

    def body(self, data: bytes) -> None:
        """BODY frames have no meaning here."""

    def end(self) -> None:
        """Nor has END."""

    def frame(self, frame: wire.Frame) -> None:
        """A WS_MESSAGE or WS_CLOSE frame."""
        head = wire.loads(frame.header)
        if frame.type == wire.WS_MESSAGE:
            self._arrive(head, frame.body)
            return
        self._leave = {
            "type": "websocket.disconnect",
            "code": int(head.get("c", 1005)),
            "reason": str(head.get("r", "")),
        }
        self._state = _CLOSED
        self._call.leave()
        self.disconnect()

    def disconnect(self) -> None:
        """The peer has left, or the call is gone."""
        self._state = _CLOSED
        self._news.fire()

    async def receive(self) -> dict[str, Any]:
        """The connect, then messages in order, then the disconnect, again and again."""
        if not self._greeted:
            self._greeted = True
            return {"type": "websocket.connect"}
        while not self._inbox:
            if self._state == _CLOSED:
                return self._leave
            await self._news.wait()
        message, size = self._inbox.popleft()
        if not self._call.gone:
            self._call.grant(size)
        return message

    async def send(self, message: dict[str, Any]) -> None:
        """Accept, send, close or refuse. Raises `Gone`, an `OSError`, when the peer has left."""
        if self._call.gone:
            raise Gone("the peer is gone")
        step = self._STEPS.get((self._state, message["type"]))
        if step is None:
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}")
        await step(self, message)

    def returned(self) -> None:
        """The application has returned: that closes what it left open."""
        if self._state == _CONNECTING:
            raise RuntimeError("the application returned without accepting or closing the WebSocket")
        if self._state == _ACCEPTED:
            self._close(1000, "")
        elif self._state == _REFUSING:
            raise RuntimeError("the application returned without a complete refusal")

    def failed(self, failure: dict[str, str]) -> None:
        """The application raised."""
        if self._state == _ACCEPTED:
            self._close(1011, "")
        else:
            self._state = _CLOSED
            self._call.fail(failure)

    def _arrive(self, head: dict[str, Any], data: bytes) -> None:
        if self._state != _ACCEPTED:
            return
        self._parts.append(data)
        self._size += len(data)
        if self._size > MESSAGE_LIMIT:
            self._abort(1009, f"messages are limited to {MESSAGE_LIMIT} bytes")
            return
        if head.get("more"):
            self._call.grant(len(data))
            return
        body = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        message: dict[str, Any] = {"type": "websocket.receive"}
        if head["t"] == 1:
            try:
                message["text"] = body.decode()
            except UnicodeDecodeError:
                self._abort(1007, "a text message is not UTF-8")
                return
        else:
            message["bytes"] = body
        if len(self._inbox) >= INBOX_LIMIT:
            self._abort(1008, f"more than {INBOX_LIMIT} messages wait for the application")
            return
        self._inbox.append((message, len(data)))
        self._news.fire()

    def _abort(self, code: int, reason: str) -> None:
        """End the connection for the peer's fault."""
        self._leave = {"type": "websocket.disconnect", "code": code, "reason": reason}
        self._close(code, reason)
        self._call.leave()
        self._news.fire()

    async def _accept(self, message: dict[str, Any]) -> None:
        head: dict[str, Any] = {"h": [_pair(name, value) for name, value in message.get("headers") or ()]}
        if message.get("subprotocol") is not None:
            head["sp"] = header_value("sec-websocket-protocol", message["subprotocol"])
        self._state = _ACCEPTED
        self._call.opened = True
        self._call.link.send(wire.encode(wire.WS_ACCEPT, self._call.stream, wire.dumps(head)))

    async def _send(self, message: dict[str, Any]) -> None:
        text = message.get("text")
        data = message.get("bytes") if text is None else text.encode("utf-8", "replace")
        if data is None:
            raise RuntimeError("a websocket.send message needs 'text' or 'bytes'")
        await self._out.send_message(data, text is not None)

    async def _end(self, message: dict[str, Any]) -> None:
        code = message.get("code")
        self._close(1000 if code is None else int(code), str(message.get("reason") or ""))

    async def _deny(self, message: dict[str, Any]) -> None:
        self._state = _CLOSED
        self._finish(wire.REPLY, wire.dumps({"s": 403, "h": []}))

    async def _begin_refusal(self, message: dict[str, Any]) -> None:
        self._refusal = ResponseStart(message)
        self._state = _REFUSING

    async def _refuse(self, message: dict[str, Any]) -> None:
        self._refusal_body += message.get("body") or b""
        if len(self._refusal_body) > DENIAL_LIMIT:
            raise RuntimeError(f"the body of a refused WebSocket is limited to {DENIAL_LIMIT} bytes")
        if not message.get("more_body"):
            self._state = _CLOSED
            self._finish(wire.REPLY, self._refusal.head(False), self._refusal_body)

    def _close(self, code: int, reason: str) -> None:
        self._state = _CLOSED
        text = reason.encode("utf-8", "replace")[:REASON_LIMIT].decode("utf-8", "ignore")
        self._finish(wire.WS_CLOSE, wire.dumps({"c": code, "r": text}))

    def _finish(self, kind: int, head: bytes, body: bytes = b"") -> None:
        self._log.finish(self._call)
        self._call.finish(kind, head, body)

    _STEPS = {  # noqa: RUF012 - what may be sent in which state
        (_CONNECTING, "websocket.accept"): _accept,
        (_CONNECTING, "websocket.close"): _deny,
        (_CONNECTING, "websocket.http.response.start"): _begin_refusal,
        (_REFUSING, "websocket.http.response.body"): _refuse,
        (_ACCEPTED, "websocket.send"): _send,
        (_ACCEPTED, "websocket.close"): _end,
    }


def _pair(name: bytes, value: bytes) -> tuple[str, str]:
    return header_name(bytes(name).decode("latin-1")), header_value("", bytes(value).decode("latin-1"))
