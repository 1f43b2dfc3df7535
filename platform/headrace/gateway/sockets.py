"""The open WebSockets of this node by function: who is connected, who is in which group, what waits to be sent.

A connection and its groups belong to one function and can't be reached from another: what an instance asks for
(`Room.command`) is looked up in the room of the function that it runs, and nowhere else. Asking costs the instance
nothing but bytes: each message is bounded, each connection holds a bounded number of unsent ones, and who does not
read them is closed. A message to one connection is granted back to its sender when it has left, so a handler slows
down to the speed of its client; a message to a group is granted at once, so one slow member holds up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from headrace import wire
from headrace.gateway.link import Stream
from headrace.gateway.routes import Runnable
from headrace.model import Target
from headrace.web.websocket import Closed, WebSocket

RESTART = 1012  # the version of the socket is not served any more, or the node stops: connect again
POLICY = 1008
TOO_SLOW = "the client reads too slowly"
TOO_BIG = 1009
NORMAL = 1000
MESSAGE_LIMIT = 1 << 20  # bytes of one message of a plain handler's socket, either way
GROUPS_LIMIT = 50  # of one connection
GROUP_NAME_LIMIT = 128  # characters

_MOST_UNSENT = 1 << 20  # bytes that wait for a client; one message more than this when nothing else waits
_MOST_MESSAGES = 1_000
CLOSE_S = 5.0  # a client that takes no close frame for so long is cut off
STALLED_S = 60.0  # a client that takes nothing of a message for so long is closed


class Socket:
    """One WebSocket that is open, or being opened. `ending` is how it is to be closed, once somebody wants that.

    `stream` is set while an application holds it. A plain handler's has none: its events are calls of their own.
    """

    __slots__ = (
        "_room",
        "_sender",
        "_unsent",
        "_unsent_bytes",
        "address",
        "alias",
        "ending",
        "groups",
        "host",
        "id",
        "key",
        "leave_at",
        "opened_at",
        "runnable",
        "stream",
        "subprotocols",
        "web",
    )

    def __init__(self, room: Room, runnable: Runnable, alias: str | None) -> None:
        self.id = secrets.token_hex(10)
        self.opened_at = time.time()
        self.runnable = runnable
        self.alias = alias  # whose traffic it came by; None: the URL named the version
        self.address = ""  # of the client
        self.host = ""  # as the client named it
        self.key: str | None = None  # keeps its events with one instance
        self.subprotocols: tuple[str, ...] = ()  # that the client offers, until it is accepted
        self.stream: Stream | None = None
        self.web: WebSocket | None = None  # once it is accepted
        self.ending: tuple[int, str] | None = None
        self.leave_at = float("inf")  # loop time
        self.groups: set[str] = set()
        self._room = room
        self._sender: asyncio.Task[None] | None = None
        self._unsent: deque[tuple[bool, bytes, Callable[[], None] | None]] = deque()
        self._unsent_bytes = 0

    def __repr__(self) -> str:
        unsent = f" unsent={self._unsent_bytes}" if self._unsent else ""
        return f"<Socket {self.id} {self.runnable.version} {sorted(self.groups)}{unsent} ending={self.ending}>"

    def end(self, code: int, reason: str) -> None:
        """Close it with this code, after what is already on its way. The first who says so decides."""
        if self.ending is None:
            self.ending = (code, reason)
            if self.stream is not None:
                self.stream.hang_up(code, reason)
            if self.web is not None:
                self.web.interrupt()

    def attend(self) -> None:
        """It is accepted by a plain handler: what waits may leave."""
        self._wake_sender()

    def say(self, text: bool, data: bytes, left: Callable[[], None] | None = None) -> None:
        """Send a message. `left` is called when it has left or never will. Who is too far behind is closed."""
        if self.ending is not None:
            self._tell(left)
            return
        full = self._unsent and self._unsent_bytes + len(data) > _MOST_UNSENT
        if full or len(self._unsent) >= _MOST_MESSAGES:
            self.end(POLICY, TOO_SLOW)
            self._drop()
            self._tell(left)
            return
        if self.web is not None and not self._unsent and self._sender is None and self.web.writable:
            self._write(self.web, text, data)
            self._tell(left)
            return
        self._unsent.append((text, data, left))
        self._unsent_bytes += len(data)
        self._wake_sender()

    async def close(self, code: int, reason: str) -> None:
        """Send what waits and then the close frame, as far as the client takes them."""
        if self._sender is not None:
            await asyncio.wait((self._sender,), timeout=CLOSE_S)
        await self._silence()
        if self.web is not None:
            self.web.close(code, reason)

    async def leave(self) -> None:
        """It is over: nothing is kept, and then it is out of the room."""
        await self._silence()
        self._room.remove(self)

    async def _silence(self) -> None:
        self._drop()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait((self._sender,))

    def _wake_sender(self) -> None:
        if self._unsent and self.web is not None and self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._send_all(self.web), name=f"socket {self.id}")

    async def _send_all(self, web: WebSocket) -> None:
        try:
            while self._unsent:
                async with asyncio.timeout(STALLED_S):
                    await web.drain()
                if self._unsent:
                    text, data, left = self._unsent.popleft()
                    self._unsent_bytes -= len(data)
                    self._write(web, text, data)
                    self._tell(left)
        except TimeoutError:
            self._drop()
            self.end(POLICY, TOO_SLOW)
        except Closed:  # whoever reads learns it too
            self._drop()
        finally:
            self._sender = None

    @staticmethod
    def _write(web: WebSocket, text: bool, data: bytes) -> None:
        with contextlib.suppress(Closed):  # whoever reads learns it too
            web.write(text, data)

    def _drop(self) -> None:
        while self._unsent:
            _, data, left = self._unsent.popleft()
            self._unsent_bytes -= len(data)
            self._tell(left)

    @staticmethod
    def _tell(left: Callable[[], None] | None) -> None:
        if left is not None:
            left()


class Room:
    """The sockets of one function, and what its instances may do with them."""

    def __init__(self, function_id: int, sockets: Sockets) -> None:
        self.sockets: dict[str, Socket] = {}
        self._groups: dict[str, set[Socket]] = {}
        self._function_id = function_id
        self._all = sockets

    def __repr__(self) -> str:
        return f"<Room {self._function_id} {list(self.sockets.values())}>"

    def remove(self, socket: Socket) -> None:
        """Does nothing when it is gone already."""
        if self.sockets.pop(socket.id, None) is not None:
            for name in list(socket.groups):
                self._part(socket, name)
            if not self.sockets:
                self._all.forget(self._function_id)

    def command(self, stream: Stream, frame: wire.Frame) -> None:
        """Do what a frame of an instance asks. Raises `ProtocolError` for what no shim would send."""
        header = wire.loads(frame.header)
        if frame.type == wire.WS_MESSAGE:
            self._message(stream, header, frame.body)
            return
        socket = self.sockets.get(_text(header, "to", 64))
        if frame.type == wire.WS_CLOSE:
            code, reason = sendable(header.get("c")), header.get("r")
            if socket is not None:
                socket.end(code, clipped(reason))
        else:
            name = _text(header, "g", GROUP_NAME_LIMIT)
            if socket is not None and header.get("in"):
                self._join(socket, name)
            elif socket is not None:
                self._part(socket, name)

    def _message(self, stream: Stream, header: dict[str, Any], body: bytes) -> None:
        if stream.parts is not None or header.get("more"):
            stream.parts = stream.parts or bytearray()
            stream.parts += body
            if len(stream.parts) > MESSAGE_LIMIT:
                raise wire.ProtocolError("a message over the limit")
            if header.get("more"):
                stream.grant(len(body))
                return
        data, text = body if stream.parts is None else bytes(stream.parts), bool(header.get("t"))
        stream.parts = None
        if "g" in header:
            for member in tuple(self._groups.get(_text(header, "g", GROUP_NAME_LIMIT), ())):
                member.say(text, data)
        elif (socket := self.sockets.get(_text(header, "to", 64))) is not None:
            socket.say(text, data, lambda: stream.grant(len(body)))
            return
        stream.grant(len(body))

    def _join(self, socket: Socket, name: str) -> None:
        if name in socket.groups:
            return
        if len(socket.groups) < GROUPS_LIMIT:
            socket.groups.add(name)
            self._groups.setdefault(name, set()).add(socket)
        else:
            socket.end(POLICY, f"a connection may be in {GROUPS_LIMIT} groups")

    def _part(self, socket: Socket, name: str) -> None:
        socket.groups.discard(name)
        members = self._groups.get(name)
        if members is not None:
            members.discard(socket)
            if not members:
                del self._groups[name]


class Sockets:
    """All rooms. `drain_s`: how long a socket stays with a version that has lost its traffic."""

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._rooms: dict[int, Room] = {}

    def __len__(self) -> int:
        return sum(len(room.sockets) for room in self._rooms.values())

    def open(self, function_id: int, runnable: Runnable, alias: str | None) -> Socket:
        """A socket that is being opened, in the room of its function."""
        room = self._rooms.get(function_id)
        if room is None:
            room = self._rooms[function_id] = Room(function_id, self)
        socket = Socket(room, runnable, alias)
        room.sockets[socket.id] = socket
        return socket

    def forget(self, function_id: int) -> None:
        """The last socket of the function is gone."""
        self._rooms.pop(function_id, None)

    def commands(self, function_id: int) -> Callable[[Stream, wire.Frame], None]:
        """What does the commands of the instances of a function."""
        nobody = Room(function_id, self)

        def command(stream: Stream, frame: wire.Frame) -> None:
            self._rooms.get(function_id, nobody).command(stream, frame)

        return command

    def moved(self, function_id: int, target: Target | None) -> None:
        """The function's aliases or versions have changed, or (None) it is gone. Whose version lost its traffic stays
        until `drain_s` from now; whose version is gone is closed."""
        room = self._rooms.get(function_id)
        if room is None:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._drain_s
        leaving = False
        for socket in tuple(room.sockets.values()):
            number = socket.runnable.version.number
            if target is None or number not in target.versions:
                socket.end(RESTART, "the version was deleted")
            elif socket.alias is None or number in target.aliases.get(socket.alias, ()):
                socket.leave_at = float("inf")
            elif socket.leave_at > deadline:
                socket.leave_at, leaving = deadline, True
        if leaving:
            loop.call_at(deadline, self._expire, function_id, deadline)

    def end_all(self, reason: str) -> None:
        """Close every socket: the node stops."""
        for room in tuple(self._rooms.values()):
            for socket in tuple(room.sockets.values()):
                socket.end(RESTART, reason)

    def _expire(self, function_id: int, deadline: float) -> None:
        room = self._rooms.get(function_id)
        for socket in tuple(room.sockets.values()) if room is not None else ():
            if socket.leave_at <= deadline:
                socket.end(RESTART, "another version is live")


def sendable(code: object) -> int:
    """`code` when a close frame may carry it (RFC 6455, 7.4); 1000 for none, 1011 for any other."""
    if code is None:
        return NORMAL
    if type(code) is not int:
        return 1011
    fits = (1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code <= 4999
    return code if fits else 1011


def clipped(reason: object) -> str:
    """A close reason as a frame can carry it: 123 bytes of UTF-8."""
    return reason.encode("utf-8", "replace")[:123].decode("utf-8", "ignore") if isinstance(reason, str) else ""


def _text(header: dict[str, Any], name: str, longest: int) -> str:
    value = header.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise wire.ProtocolError(f"a WebSocket command with a bad {name!r}")
    return value
