"""WebSockets for the kit of a node: an instance that takes them, and a client on a connection in memory."""

from __future__ import annotations

import asyncio
from typing import Any

from websockets.frames import Close, Opcode
from websockets.protocol import CLIENT, CLOSED, OPEN, Protocol

from fleet_kit import House, Program
from headrace import wire
from headrace.web.connection import Port
from headrace.web.http1 import Http1
from pipe import Pipe


class SocketProgram(Program):
    """A plain handler, or (path `/app`) an application. `seen` are its events in order: version, kind, body or code.

    A message says what happens: `echo` comes back, `slow` takes a second, `hang` never ends, `die` ends the instance,
    `fail` raises, `big` sends 100 KB to the sender, `join` and `tell` are about group g, `bye` closes with 4000.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []
        self.running = 0
        self.most_running = 0
        self.left_applications: list[int] = []
        self._applications: set[int] = set()

    def arrived(self, frame: wire.Frame, writer: asyncio.StreamWriter) -> None:
        if frame.stream in self._applications and frame.type == wire.WS_MESSAGE:
            writer.write(wire.encode(wire.WS_MESSAGE, frame.stream, frame.header, frame.body))
        elif frame.stream in self._applications and frame.type == wire.WS_CLOSE:
            self.left_applications.append(wire.loads(frame.header)["c"])

    async def _call(self, frame: wire.Frame, writer: asyncio.StreamWriter) -> None:
        header = wire.loads(frame.header)
        if "c" not in header:
            await super()._call(frame, writer)
            return
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if "ws" in header:
                await self._connect(frame.stream, header, writer)
            else:
                self.seen.append((header["ev"], frame.body.decode() or str(header.get("code", ""))))
                await self._event(frame.stream, frame.body.decode(), header["c"], writer)
        finally:
            self.running -= 1

    async def _connect(self, stream: int, header: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.seen.append(("connect", header["p"]))
        if header["p"] == "/app":
            self._applications.add(stream)
            writer.write(wire.encode(wire.WS_ACCEPT, stream, b"{}"))
        elif header["p"] == "/refuse":
            writer.write(wire.encode(wire.REPLY, stream, b'{"s":403,"h":[]}', b"no"))
        elif header["p"] == "/hang":
            await asyncio.Event().wait()
        else:
            chosen = {"sp": "chat"} if header["p"] == "/chat" else {}
            writer.write(wire.encode(wire.WS_ACCEPT, stream, wire.dumps({"ev": True, **chosen})))

    async def _event(self, stream: int, text: str, me: str, writer: asyncio.StreamWriter) -> None:
        def send(kind: int, header: dict[str, Any], body: bytes = b"") -> None:
            writer.write(wire.encode(kind, stream, wire.dumps(header), body))

        if text == "slow":
            await asyncio.sleep(1)
        elif text == "hang":
            await asyncio.Event().wait()
        elif text == "die":
            writer.transport.abort()
            return
        elif text == "fail":
            send(wire.REPLY, {"e": {"type": "ValueError", "message": "secret", "stack": ""}})
            return
        elif text == "echo":
            send(wire.WS_MESSAGE, {"t": 1, "to": me}, b"echo")
        elif text == "big":
            send(wire.WS_MESSAGE, {"t": 0, "to": me, "more": True}, b"x" * 50_000)
            send(wire.WS_MESSAGE, {"t": 0, "to": me}, b"x" * 50_000)
        elif text == "join":
            send(wire.WS_GROUP, {"g": "g", "to": me, "in": True})
        elif text.startswith("joins "):
            for number in range(int(text.split()[1])):
                send(wire.WS_GROUP, {"g": f"g{number}", "to": me, "in": True})
        elif text == "tell":
            send(wire.WS_MESSAGE, {"t": 1, "g": "g"}, b"told")
        elif text == "bye":
            send(wire.WS_MESSAGE, {"t": 1, "to": me}, b"last words")
            send(wire.WS_CLOSE, {"c": 4000, "r": "bye", "to": me})
        elif text.startswith("close "):
            send(wire.WS_CLOSE, {"c": 4001, "r": "by another", "to": text.split()[1]})
        elif text == "nonsense":
            send(wire.WS_MESSAGE, {"t": 1}, b"to nobody")
        send(wire.REPLY, {"s": 200})


class Client(Pipe):
    """One client. `got`: messages; `closed`: code and reason of the close frame; `status`: of a refused upgrade."""

    def __init__(self, rig: House, path: str = "/", spelling: str = "f", *, reads: bool = True) -> None:
        self.got: list[str | bytes] = []
        self.accepted: str | None = None
        self.answer: dict[str, str] = {}
        self.closed: tuple[int, str] | None = None
        self.status = 0
        self._head = b""
        self._frames = Protocol(CLIENT, state=OPEN, max_size=None)
        self._changed = asyncio.Event()
        super().__init__(Http1(Port(rig.gateway.serve, 15.0, 75.0), "127.0.0.1"), reads=reads)
        self.say_bytes(
            f"GET /fn/{spelling}{path} HTTP/1.1\r\nHost: x.example:1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            "Sec-WebSocket-Protocol: talk\r\n\r\n".encode()
        )

    def write(self, data: Any) -> None:
        """The answer to the upgrade is read in any case."""
        reads, self.reads = self.reads, self.reads or not self._head
        super().write(data)
        self.reads = reads
        self._head = self._head or bytes(data)

    def heard(self, data: bytes) -> None:
        if self.status == 0:
            head, _, data = data.partition(b"\r\n\r\n")
            line, *fields = head.decode().split("\r\n")
            self.status = int(line.split()[1])
            self.answer = dict(field.split(": ", 1) for field in fields)
            if self.status == 101:
                self.accepted = self.answer.get("sec-websocket-protocol", "")
        if self.accepted is not None and data and self._frames.state is not CLOSED:
            self._frames.receive_data(data)
            for frame in self._frames.events_received():
                self._take(frame)
            if self.reads:
                self._flush()
        self._changed.set()

    def _take(self, frame: Any) -> None:
        if frame.opcode is Opcode.TEXT:
            self.got.append(bytes(frame.data).decode())
        elif frame.opcode is Opcode.BINARY:
            self.got.append(bytes(frame.data))
        elif frame.opcode is Opcode.CLOSE and self.closed is None:
            close = Close.parse(bytes(frame.data))
            self.closed = (close.code, close.reason)

    def _flush(self) -> None:
        for data in self._frames.data_to_send():
            if data:
                self.say_bytes(data)
            else:
                self.hang_up()

    def say_bytes(self, data: bytes) -> None:
        super().say(data)

    def tell(self, *texts: str) -> None:
        """Send messages."""
        for text in texts:
            self._frames.send_text(text.encode())
            self._flush()

    def leave(self, code: int | None = 1001) -> None:
        """Close, as a client does; without a code, too."""
        self._frames.send_close(code)
        self._flush()

    async def until(self, count: int) -> list[str | bytes]:
        """Wait for so many messages."""
        while len(self.got) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.got


async def connected(rig: House, path: str = "/", spelling: str = "f", *, reads: bool = True) -> Client:
    client = Client(rig, path, spelling, reads=reads)
    while client.accepted is None:
        await asyncio.sleep(0.001)
    return client
