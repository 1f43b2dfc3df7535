"""One WebSocket, carried to the image's program. `websockets` speaks the protocol, without its own input and output."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Callable, cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import WebSocketURI

from .http1 import HOSTS, BadAnswer, Unreachable

MESSAGE_LIMIT = 16 << 20  # bytes of one message
PIECE = 64 << 10
CLOSE_S = 5.0  # for the program to answer a close
_ABNORMAL, _NO_CODE, _RESTART = 1006, 1005, 1012

Receive = Callable[[], Coroutine[Any, Any, Any]]
Send = Callable[[Any], Coroutine[Any, Any, None]]


async def carry(opening: Coroutine[Any, Any, Socket], receive: Receive, send: Send) -> None:
    """Pass messages between the caller and the socket that `opening` gives, until either side closes."""
    await receive()  # websocket.connect
    socket = await opening
    try:
        refusal = await socket.shake_hands()
        if refusal is not None:
            await _refuse(refusal, send)
            return
        await send({"type": "websocket.accept", "subprotocol": socket.subprotocol})
        up = asyncio.get_running_loop().create_task(_from_caller(socket, receive))
        try:
            await _from_program(socket, send)
        finally:
            up.cancel()
            await asyncio.wait({up})
    finally:
        socket.cut()


async def _refuse(response: Response, send: Any) -> None:
    headers = [
        (name.lower().encode(), value.encode("latin-1", "replace")) for name, value in response.headers.raw_items()
    ]
    own = (b"connection", b"transfer-encoding", b"content-length", b"upgrade")
    kept = [pair for pair in headers if pair[0] not in own]
    status = response.status_code if 200 <= response.status_code <= 599 else 502
    await send({"type": "websocket.http.response.start", "status": status, "headers": kept})
    await send({"type": "websocket.http.response.body", "body": bytes(response.body or b"")})


async def _from_caller(socket: Socket, receive: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            await socket.close(message.get("code") or _NO_CODE, message.get("reason") or "")
            await asyncio.sleep(CLOSE_S)  # ended by the program's own close, as a rule
            socket.cut()
            return
        text = message.get("text")
        await socket.send(message["bytes"] if text is None else text.encode("utf-8", "replace"), text is not None)


async def _from_program(socket: Socket, send: Any) -> None:
    async for data, text in socket.messages():
        if text:
            await send({"type": "websocket.send", "text": data.decode("utf-8", "replace")})
        else:
            await send({"type": "websocket.send", "bytes": data})
    code, reason = socket.closed_with
    await send({"type": "websocket.close", "code": code, "reason": reason})


class Socket:
    """The connection to the program."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: ClientProtocol) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = protocol

    @staticmethod
    async def open(port: int, headers: list[tuple[bytes, bytes]], target: bytes, subprotocols: list[str]) -> Socket:
        path, _, query = target.decode("latin-1").partition("?")
        uri = WebSocketURI(False, "localhost", port, path, query)
        protocol = ClientProtocol(uri, subprotocols=cast(Any, subprotocols) or None, max_size=MESSAGE_LIMIT)
        for host in HOSTS:
            try:
                reader, writer = await asyncio.open_connection(host, port, limit=PIECE)
            except OSError:
                continue
            request = protocol.connect()
            for name, value in headers:
                text = value.decode("latin-1")
                if name == b"host":
                    del request.headers["host"]
                if not name.startswith(b"sec-websocket-"):
                    request.headers[name.decode("latin-1")] = text
            protocol.send_request(request)
            return Socket(reader, writer, protocol)
        raise Unreachable(f"the program takes no connection on port {port}")

    @property
    def subprotocol(self) -> str | None:
        return self._protocol.subprotocol

    @property
    def closed_with(self) -> tuple[int, str]:
        said = self._protocol.close_rcvd
        if said is None:
            return _RESTART, "the program broke the connection off"
        return (1000 if said.code == _NO_CODE else int(said.code)), said.reason

    async def shake_hands(self) -> Response | None:
        """None when the program accepts; else its refusal."""
        await self._flush()
        while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
            await self._read()
        error = self._protocol.handshake_exc
        if isinstance(error, InvalidStatus):
            return error.response
        if error is not None:
            raise BadAnswer(f"the program does not speak WebSocket: {error}")
        self._protocol.events_received()  # the answer to the handshake
        return None

    async def messages(self) -> Any:
        """Whole messages until the connection is closed."""
        parts: list[bytes] = []
        text = False
        while True:
            for frame in self._protocol.events_received():
                if not isinstance(frame, Frame) or frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                    continue
                if frame.opcode is not Opcode.CONT:
                    text = frame.opcode is Opcode.TEXT
                parts.append(bytes(frame.data))
                if frame.fin:
                    yield b"".join(parts), text
                    parts = []
            if self._protocol.close_expected() or self._protocol.state is State.CLOSED:
                return
            await self._read()

    async def send(self, data: bytes, text: bool) -> None:
        if self._protocol.state is State.OPEN:
            (self._protocol.send_text if text else self._protocol.send_binary)(data)
            await self._flush()

    async def close(self, code: int, reason: str) -> None:
        if self._protocol.state is State.OPEN:
            if code in (_NO_CODE, _ABNORMAL):
                self._protocol.send_close()
            else:
                self._protocol.send_close(code, reason)
            await self._flush()

    def cut(self) -> None:
        self._writer.close()

    async def _read(self) -> None:
        data = await self._reader.read(PIECE)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        await self._flush()

    async def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if data:
                self._writer.write(data)
        try:
            await self._writer.drain()
        except OSError:
            pass  # reading says so, too
