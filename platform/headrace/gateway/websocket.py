"""WebSocket calls: the upgrade asks the function, which holds the socket itself or leaves it to the gateway.

An application (ASGI) holds it: a socket of the server on one side, a stream of an instance on the other. It keeps a
slot of its instance for as long as it is open and has no deadline; messages flow under the stream's windows in both
directions, so neither a slow browser nor a slow function makes the node buffer. A plain handler answers the upgrade
like any call and is done with it; `events` has the rest. (The server sends no headers of ours with an accepted upgrade,
so the invocation and version are in the record only.)
"""

from __future__ import annotations

import asyncio
import re

from headrace import errors, wire
from headrace.gateway import events, sockets
from headrace.gateway import link as links
from headrace.gateway.answer import own_headers, problem_of, read_head
from headrace.gateway.call import Call, Receive, Scope, Send
from headrace.gateway.invoke import Invoker, affinity
from headrace.gateway.routes import Route
from headrace.gateway.sockets import Socket
from headrace.model import LIVE

_GOING_AWAY = 1001
_INTERNAL = 1011
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # of a subprotocol
_MAX_MESSAGE = 16 << 20  # bytes of one message from an application, held while its pieces arrive


async def serve(
    invoker: Invoker, call: Call, scope: Scope, receive: Receive, send: Send, *, spelling: str, by_host: bool
) -> None:
    """Carry one WebSocket between its client and the function `spelling`. `by_host`: the host named the function."""
    socket = await _open(invoker, call, scope, receive, send, spelling=spelling, by_host=by_host)
    if socket is not None:
        await events.serve(invoker, socket, receive, send)


async def _open(
    invoker: Invoker, call: Call, scope: Scope, receive: Receive, send: Send, *, spelling: str, by_host: bool
) -> Socket | None:
    """The upgrade, as a call: the socket that a plain handler has accepted. An application's has ended on return."""
    socket, accepted = None, False
    invoker.calls.add(call)
    try:
        await receive()  # websocket.connect
        route = await invoker.route(spelling)
        call.prefix = "" if by_host else route.prefix
        invoker.gatekeeper.check(route, scope["headers"])
        call.runnable = route.choose(affinity(scope) if route.chooses else None)
        socket = invoker.sockets.open(route.function.id, call.runnable, _alias(spelling))  # in the step that chose
        _introduce(socket, call, scope, route.hashes)
        try:
            accepted = await _ask(invoker, call, socket, route=route, scope=scope, receive=receive, send=send)
        except errors.NotSent:
            invoker.give_back(call)
            accepted = await _ask(invoker, call, socket, route=route, scope=scope, receive=receive, send=send)
    except errors.HeadraceError as error:
        call.failed(error)
        await refuse(send, error, call)
    except (asyncio.CancelledError, Exception) as error:  # cancelled, or a fault of our own: the server cuts the socket
        call.broke_off(error, "the socket was cut.")
        raise
    finally:
        invoker.settle(call)
        if socket is not None and not accepted:
            await socket.leave()
    return socket if accepted else None


async def refuse(send: Send, error: errors.HeadraceError, call: Call | None = None) -> None:
    """Answer the upgrade with a problem; close an accepted socket with the code that fits."""
    if call is not None and call.status == 101:
        code = sockets.RESTART if isinstance(error, errors.NodeUnavailable) else _INTERNAL
        await sockets.close(send, code, error.title)
        return
    status, headers, body = problem_of(error, call)
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


def _alias(spelling: str) -> str | None:
    """The alias whose traffic a call of `spelling` gets; None when it names a version."""
    which = spelling.partition("@")[2] or LIVE
    return None if which.isdecimal() else which


def _introduce(socket: Socket, call: Call, scope: Scope, hashed: bool) -> None:
    socket.peer = call.peer
    socket.address = scope["client"][0] if scope["client"] else ""
    socket.host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    socket.subprotocols = tuple(scope["subprotocols"])
    socket.key = affinity(scope) if hashed else None


async def _ask(
    invoker: Invoker, call: Call, socket: Socket, *, route: Route, scope: Scope, receive: Receive, send: Send
) -> bool:
    """One instance's turn; True when a plain handler has accepted. Raises `NotSent` when it was told nothing."""
    member = invoker.slot(call, route, scope) or await invoker.wait(call, None)
    place = {"ws": True, "c": socket.id, "at": int(socket.opened_at * 1000)}
    stream = invoker.open(call, route, member, scope, b"", **place)
    try:
        frame = await stream.answer
        scope.clear()  # of an idle socket, the request's headers are most of what would be kept
        return await _converse(call, socket, stream, frame, receive=receive, send=send)
    except wire.ProtocolError as error:
        raise errors.FunctionError(f"the instance sent an answer that can't be read: {error}.") from None
    finally:
        stream.close("client")


async def _converse(
    call: Call, socket: Socket, stream: links.Stream, frame: wire.Frame, *, receive: Receive, send: Send
) -> bool:
    """Do what the function answers to the upgrade; True when a plain handler has accepted it."""
    if frame.type != wire.WS_ACCEPT:
        await _denied(call, frame, send)
        return False
    header = links.parse(frame.header)
    handler, chosen = "ev" in header, header.get("sp")
    if chosen is not None and not (isinstance(chosen, str) and _NAME.fullmatch(chosen)):
        raise errors.FunctionError("the answer names a subprotocol that HTTP cannot carry.")
    if handler and chosen is not None and chosen not in socket.subprotocols:
        raise errors.FunctionError("the handler chose a subprotocol that the client does not offer.")
    socket.subprotocols = ()
    call.status, call.answering = 101, True
    try:
        await send({"type": "websocket.accept", "subprotocol": chosen, "headers": []})
    except RuntimeError:  # the server's word for a client that has left
        call.failed(errors.ClientGone("the client went away while the function accepted its socket."))
        return handler  # which has accepted, and is told the end
    if not handler:
        await _application(call, socket, stream, receive, send)
    return handler


async def _application(call: Call, socket: Socket, stream: links.Stream, receive: Receive, send: Send) -> None:
    loop = asyncio.get_running_loop()
    up = loop.create_task(_from_client(call, stream, receive, send), name=f"socket {call.id} up")
    down = loop.create_task(_from_function(call, stream, send), name=f"socket {call.id} down")
    socket.stream, socket.reader = stream, up
    try:
        if socket.ending is not None:  # while it was opened
            stream.hang_up(*socket.ending)
        else:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        if socket.ending is not None:
            await asyncio.wait((down,), timeout=sockets.CLOSE_S)
    finally:
        for task in (up, down):
            task.cancel()  # the server takes no close while somebody still waits to receive
        await asyncio.gather(up, down, return_exceptions=True)
    if socket.ending is not None:
        await sockets.close(send, *socket.ending)
    elif not up.cancelled():  # the client has left
        up.result()
    else:
        await sockets.close(send, *down.result())


async def _denied(call: Call, frame: wire.Frame, send: Send) -> None:
    head = read_head(frame.header)
    if head.failure is not None:
        raise links.function_error(head.failure)
    if frame.type != wire.REPLY:
        raise errors.FunctionError("the instance answered an upgrade with a stream.")
    headers = [*head.headers, *head.length, *own_headers(call)]
    await send({"type": "websocket.http.response.start", "status": head.status, "headers": headers})
    call.status, call.answering = head.status, True
    await send({"type": "websocket.http.response.body", "body": frame.body})


async def _from_client(call: Call, stream: links.Stream, receive: Receive, send: Send) -> None:
    while (message := await events.receive_from(receive))["type"] == "websocket.receive":
        text = message.get("text")
        body = text.encode() if text is not None else message["bytes"]
        call.bytes_in += len(body)
        await stream.send(wire.WS_MESSAGE, b'{"t":1}' if text is not None else b'{"t":0}', body)
    code = message.get("code") or events.LOST
    stream.hang_up(code, message.get("reason") or "")
    await events.after_leaving(send, code)


async def _from_function(call: Call, stream: links.Stream, send: Send) -> tuple[int, str]:
    """Relay messages until the function hangs up; the code and reason to close with. Raises what broke it off."""
    parts: list[bytes] = []
    size = 0
    async for frame in stream.frames():
        header = links.parse(frame.header)
        if frame.type == wire.WS_CLOSE:
            return sockets.sendable(header.get("c")), sockets.clipped(header.get("r"))
        parts.append(frame.body)
        size += len(frame.body)
        if size > _MAX_MESSAGE:
            return sockets.TOO_BIG, "the function sent a message that is too big"
        if header.get("more"):
            continue
        message, parts, size = b"".join(parts), [], 0
        call.bytes_out += len(message)
        try:
            async with asyncio.timeout(sockets.STALLED_S):
                await send(sockets.outgoing(bool(header.get("t")), message))
        except TimeoutError:
            return sockets.POLICY, sockets.TOO_SLOW
        except RuntimeError:
            raise errors.ClientGone("the client went away while a message was sent to it.") from None
    return _GOING_AWAY, ""
