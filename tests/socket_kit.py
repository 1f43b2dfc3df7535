"""WebSockets for the kit of a node: an instance that takes them, and a client as the server would show it."""

from __future__ import annotations

import asyncio
from typing import Any

from fleet_kit import House, Program
from headrace import wire
from headrace.gateway.call import Scope


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


class Client:
    """One client. `got`: messages; `closed`: code and reason of the close frame; `status`: of a refused upgrade."""

    def __init__(
        self, rig: House, path: str = "/", spelling: str = "f", *, reads: bool = True, stays: bool = True
    ) -> None:
        self._stays = stays  # else it is gone before it is accepted
        self.got: list[str | bytes] = []
        self.accepted: str | None = None
        self.closed: tuple[int, str] | None = None
        self.status = 0
        self.unread: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._reads = reads
        self._receiving = 0
        self._asked = 0
        self._changed = asyncio.Event()
        scope: Scope = {
            "type": "websocket",
            "http_version": "1.1",
            "scheme": "ws",
            "path": f"/fn/{spelling}{path}",
            "raw_path": f"/fn/{spelling}{path}".encode(),
            "query_string": b"",
            "headers": [(b"host", b"x.example:1")],
            "subprotocols": ["talk"],
            "client": ("127.0.0.1", 1),
        }
        self.task = asyncio.ensure_future(rig.gateway(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        self._asked += 1
        if self._asked == 1 or not self._stays:
            return {"type": "websocket.connect"}
        self._receiving += 1
        try:
            return await self.unread.get()
        finally:
            self._receiving -= 1

    async def _send(self, message: Any) -> None:
        if not self._stays and message["type"] != "websocket.http.response.start":
            raise RuntimeError("the server's word for a client that has left")
        if message["type"] == "websocket.send":
            if not self._reads:
                await asyncio.Event().wait()
            self.got.append(message["text"] if message.get("text") is not None else message["bytes"])
        elif message["type"] == "websocket.accept":
            self.accepted = message["subprotocol"] or ""
        elif message["type"] == "websocket.http.response.start":
            self.status = message["status"]
        elif message["type"] == "websocket.close":
            assert not self._receiving, "the server takes no close while somebody receives"
            if self.closed is None:
                self.closed = (message["code"], message["reason"])
        self._changed.set()

    def say(self, *texts: str) -> None:
        for text in texts:
            self.unread.put_nowait({"type": "websocket.receive", "text": text})

    def leave(self, code: int = 1001) -> None:
        self.unread.put_nowait({"type": "websocket.disconnect", "code": code})

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
