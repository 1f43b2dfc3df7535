"""Takes calls as the ASGI side of the shim does, and carries each to the image's program."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, Callable

import h11
from headrace_shim import wire
from headrace_shim.asgi import AsgiApp
from headrace_shim.call import Call
from headrace_shim.link import Link
from headrace_shim.logs import Log

from .guest import Guest
from .http1 import BadAnswer, Connection, Connections, Unreachable
from .websocket import Receive, Send, Socket, carry

REPEATABLE = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"))
ENDS_S = 1.0  # a program that breaks a connection off may be about to end: that is the better reason
FLUSH_S = 2.0
GATHER_S = 0.002  # a started answer waits so long for its first bytes, so that most are one frame
GATHER = 64 << 10
_DROPPED = frozenset(
    (b"connection", b"expect", b"te", b"transfer-encoding", b"content-length", b"upgrade", b"x-forwarded-prefix")
)


class ImageApp(AsgiApp):
    """Runs the calls of one image."""

    kind = "image"

    def __init__(self, guest: Guest, port: int, ready: Callable[[], Coroutine[Any, Any, None]], log: Log) -> None:
        super().__init__(self._carry, "", log)
        self._guest = guest
        self._port = port
        self._ready = ready
        self._connections = Connections(port)
        self._stopping = False

    async def start(self) -> None:
        """Start the program and wait until it is ready; raises why it is not."""
        self._loop = asyncio.get_running_loop()
        self._lifespan = _NoLifespan()
        await self._guest.start()
        try:
            await self._ready()
        except BaseException:
            self._stopping = True
            await self._guest.kill()  # the reason is due at the node
            raise
        self._guest.ended.add_done_callback(self._leave)

    async def stop(self) -> None:
        self._stopping = True
        await self._guest.stop()

    def call(self, link: Link, frame: wire.Frame) -> None:
        super().call(link, frame)
        call = link.calls.get(frame.stream)
        if call is not None and call.task is not None and not call.task.done():
            self._guest.calls.add(call)
            call.task.add_done_callback(lambda _: self._guest.calls.discard(call))

    def lost(self, call: Call) -> None:
        """Nobody waits: the program sees its connection end."""
        super().lost(call)
        if call.task is not None:
            call.task.cancel()

    def _leave(self, ended: asyncio.Future[int]) -> None:
        """The program has ended, and so does the instance; the node asks the engine why."""
        if not self._stopping:
            self._log.flush(FLUSH_S)
            os.write(2, self._guest.last_words.encode() + b"\n")
            os._exit(ended.result())

    async def _run(self, call: Call, exchange: Any) -> None:
        exchange.scope["headrace"] = call.head
        await super()._run(call, exchange)

    async def _carry(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "websocket":
                opening = Socket.open(self._port, head_of(scope), target_of(scope), scope["subprotocols"])
                await carry(opening, receive, send)
            else:
                await self._http(scope, receive, send)
        except (BadAnswer, Unreachable):
            await asyncio.wait({self._guest.ended}, timeout=ENDS_S)
            self._guest.take_output()
            raise

    async def _http(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        first = await receive()
        whole = not first.get("more_body")
        body = first.get("body", b"")
        method = scope["method"].encode()
        headers = head_of(scope)
        framing = _framing(scope, whole, body)
        request = method, target_of(scope), [*headers, *framing], body if whole else None
        used = True
        while True:
            connection = await self._connections.take(used)
            try:
                connection.request(*request)
                await self._exchange(connection, None if whole else body, receive, send)
            except BadAnswer as error:
                connection.close()
                again = connection.used and error.untouched and whole and method in REPEATABLE
                if not again:
                    raise
                used = False  # it had closed an idle connection at the moment in which we used it
                continue
            except BaseException:
                connection.close()
                raise
            self._connections.give(connection)
            return

    async def _exchange(self, connection: Connection, body: bytes | None, receive: Receive, send: Send) -> None:
        sending = None
        if body is not None:
            sending = asyncio.get_running_loop().create_task(_upload(connection, body, receive))
        try:
            await self._answer(connection, send)
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.wait({sending})

    async def _answer(self, connection: Connection, send: Send) -> None:
        """Pass the answer on. Many servers write head and body apart: a small whole answer still goes on in one."""
        head: dict[str, Any] | None = None
        held = b""
        chunked = promised = False  # only chunks can have trailers; whether some are to come is said with the head
        while True:
            event = connection.next()
            if isinstance(event, h11.Data):
                held += event.data
            elif isinstance(event, h11.EndOfMessage):
                self._guest.take_output()
                trailers = list(event.headers)
                if head is not None:
                    promised = bool(trailers)
                    await send({**head, "trailers": promised})
                await send({"type": "http.response.body", "body": held})
                if promised:
                    await send({"type": "http.response.trailers", "headers": trailers})
                return
            elif isinstance(event, h11.Response):
                headers = [(name, value) for name, value in event.headers if name not in _HOP]
                chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
                head = {"type": "http.response.start", "status": event.status_code, "headers": headers}
            elif event is None:
                if head is not None:
                    if len(held) < GATHER and await connection.wait(GATHER_S):
                        continue
                    promised = chunked
                    await send({**head, "trailers": promised})
                    head = None
                if held:
                    await send({"type": "http.response.body", "body": held, "more_body": True})
                    held = b""
                await connection.wait()


class _NoLifespan:
    """The part of a lifespan that scopes show."""

    state: dict[str, Any] = {}  # noqa: RUF012 - never changed


_HOP = frozenset((b"connection", b"keep-alive", b"transfer-encoding"))


async def _upload(connection: Connection, body: bytes, receive: Receive) -> None:
    """The rest of a long request, as the program takes it. One that can't be sent whole ends the connection."""
    more = True
    try:
        while True:
            if body:
                await connection.send_piece(body)
            if not more:
                connection.send_end()
                return
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = message.get("body", b""), bool(message.get("more_body"))
    except h11.LocalProtocolError:  # longer or shorter than announced
        connection.close()


def target_of(scope: dict[str, Any]) -> bytes:
    """Path and query as they were sent, without the function's own prefix."""
    prefix = len(scope["headrace"]["r"].encode("utf-8", "replace"))
    path = scope["raw_path"][prefix:] or b"/"
    return path + b"?" + scope["query_string"] if scope["query_string"] else path


def head_of(scope: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """The headers of the call, among them what the gateway tells of the caller, and what this proxy adds."""
    call = scope["headrace"]
    headers = [
        (name, value) for name, value in scope["headers"] if name not in _DROPPED and not name.startswith(b"headrace-")
    ]
    if not any(name == b"host" for name, _ in headers):
        headers.insert(0, (b"host", b"localhost"))
    headers += [
        (b"x-forwarded-prefix", call["r"].encode("utf-8", "replace")),
        (b"headrace-invocation", call["id"].encode()),
    ]
    return headers


def _framing(scope: dict[str, Any], whole: bool, body: bytes) -> list[tuple[bytes, bytes]]:
    """How the program learns where the request body ends."""
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), None)
    if whole:
        return [(b"content-length", b"%d" % len(body))] if body or announced is not None else []
    return [(b"transfer-encoding", b"chunked")] if announced is None else [(b"content-length", announced)]
