"""WebSocket calls: the upgrade asks the function, which holds the socket itself or leaves it to the gateway.

An application (ASGI) holds it: a socket of the server on one side, a stream of an instance on the other. It keeps a
slot of its instance for as long as it is open and has no deadline; messages flow under the stream's windows in both
directions, so neither a slow browser nor a slow function makes the node buffer. A plain handler answers the upgrade
like any call and is done with it; `events` has the rest.
"""

from __future__ import annotations

import asyncio

from headrace import errors, wire
from headrace.gateway import events, sockets
from headrace.gateway import link as links
from headrace.gateway.answer import own_headers, problem_of, read_head
from headrace.gateway.call import Call
from headrace.gateway.invoke import Invoker, affinity
from headrace.gateway.routes import Route
from headrace.gateway.sockets import Socket
from headrace.model import LIVE
from headrace.tasks import Tasks
from headrace.web.exchange import Exchange
from headrace.web.upgrade import SUBPROTOCOL
from headrace.web.websocket import Closed, WebSocket

_GOING_AWAY = 1001
_INTERNAL = 1011
_MAX_MESSAGE = 16 << 20  # bytes of one message to or from an application, held while its pieces arrive


async def serve(invoker: Invoker, tasks: Tasks, exchange: Exchange, *, spelling: str, path: str, by_host: bool) -> None:
    """Carry one WebSocket between its client and the function `spelling`. `by_host`: the host named the function.

    A plain handler's goes on in a task of its own: nothing of the upgrade is kept for it.
    """
    call = invoker.begin("GET", path)
    socket = await _open(invoker, call, exchange, spelling=spelling, by_host=by_host)
    if socket is not None:
        tasks.spawn(events.serve(invoker, socket), "socket")


async def _open(invoker: Invoker, call: Call, exchange: Exchange, *, spelling: str, by_host: bool) -> Socket | None:
    """The upgrade, as a call: the socket that a plain handler has accepted. An application's has ended on return."""
    socket, accepted = None, False
    invoker.calls.add(call)
    try:
        route = await invoker.route(spelling)
        call.prefix = "" if by_host else route.prefix
        invoker.gatekeeper.check(route, exchange.headers)
        call.runnable = route.choose(affinity(exchange) if route.chooses else None)
        socket = invoker.sockets.open(route.function.id, call.runnable, _alias(spelling))  # in the step that chose
        _introduce(socket, exchange, route.hashes)
        try:
            accepted = await _ask(invoker, call, socket, route=route, exchange=exchange)
        except errors.NotSent:
            invoker.give_back(call)
            accepted = await _ask(invoker, call, socket, route=route, exchange=exchange)
    except errors.HeadraceError as error:
        call.failed(error)
        _refuse(call, exchange, socket, error)
    except (asyncio.CancelledError, Exception) as error:  # cancelled, or a fault of our own
        call.broke_off(error, "the socket was cut.")
        _refuse(call, exchange, socket, errors.HeadraceError("the gateway failed."))
        raise
    finally:
        invoker.settle(call)
        if socket is not None and not accepted:
            await socket.leave()
    return socket if accepted else None


def _refuse(call: Call, exchange: Exchange, socket: Socket | None, error: errors.HeadraceError) -> None:
    """Answer the upgrade with a problem; close an accepted socket with the code that fits."""
    if socket is not None and socket.web is not None:
        code = sockets.RESTART if isinstance(error, errors.NodeUnavailable) else _INTERNAL
        socket.web.close(code, error.title)
    elif not exchange.started:
        exchange.respond(*problem_of(error, call))


def _alias(spelling: str) -> str | None:
    """The alias whose traffic a call of `spelling` gets; None when it names a version."""
    which = spelling.partition("@")[2] or LIVE
    return None if which.isdecimal() else which


def _introduce(socket: Socket, exchange: Exchange, hashed: bool) -> None:
    socket.address = exchange.client
    socket.host = next((value.decode("latin-1") for name, value in exchange.headers if name == b"host"), "")
    socket.subprotocols = exchange.subprotocols
    socket.key = affinity(exchange) if hashed else None


async def _ask(invoker: Invoker, call: Call, socket: Socket, *, route: Route, exchange: Exchange) -> bool:
    """One instance's turn; True when a plain handler has accepted. Raises `NotSent` when it was told nothing."""
    member = invoker.slot(call, route, exchange) or await invoker.wait(call)
    place = {"ws": True, "c": socket.id, "at": int(socket.opened_at * 1000)}
    answered: asyncio.Future[wire.Frame] = asyncio.get_running_loop().create_future()
    stream = invoker.open(call, route, member, exchange, b"", settle=links.resolve(answered), **place)
    try:
        return await _converse(call, socket, stream, await answered, exchange)
    except wire.ProtocolError as error:
        raise errors.FunctionError(f"the instance sent an answer that can't be read: {error}.") from None
    finally:
        stream.close("client")


async def _converse(call: Call, socket: Socket, stream: links.Stream, frame: wire.Frame, exchange: Exchange) -> bool:
    """Do what the function answers to the upgrade; True when a plain handler has accepted it."""
    if frame.type != wire.WS_ACCEPT:
        _denied(call, frame, exchange)
        return False
    header = links.parse(frame.header)
    handler, chosen = "ev" in header, header.get("sp")
    if chosen is not None and not (isinstance(chosen, str) and SUBPROTOCOL.fullmatch(chosen)):
        raise errors.FunctionError("the answer names a subprotocol that HTTP cannot carry.")
    if handler and chosen is not None and chosen not in socket.subprotocols:
        raise errors.FunctionError("the handler chose a subprotocol that the client does not offer.")
    socket.subprotocols = ()
    try:
        limit = sockets.MESSAGE_LIMIT if handler else _MAX_MESSAGE
        socket.web = exchange.accept(own_headers(call), chosen, limit)
    except errors.ClientGone as error:
        call.status, call.answering = 101, True
        call.failed(error)
        return handler  # which has accepted, and is told the end
    call.status, call.answering = 101, True
    if not handler:
        exchange.headers = []  # of an idle socket, they are most of what would be kept
        await _application(call, socket, socket.web, stream)
    return handler


async def _application(call: Call, socket: Socket, web: WebSocket, stream: links.Stream) -> None:
    loop = asyncio.get_running_loop()
    up = loop.create_task(_from_client(call, stream, web), name=f"socket {call.id} up")
    down = loop.create_task(_from_function(call, stream, web), name=f"socket {call.id} down")
    socket.stream = stream
    try:
        if socket.ending is not None:  # while it was opened
            stream.hang_up(*socket.ending)
        else:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        if socket.ending is not None:
            await asyncio.wait((down,), timeout=sockets.CLOSE_S)
    finally:
        ended = down.done()
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
    if socket.ending is not None:
        web.close(*socket.ending)
    elif ended:
        web.close(*down.result())
    else:  # the client has left
        stream.hang_up(web.code, web.reason)


def _denied(call: Call, frame: wire.Frame, exchange: Exchange) -> None:
    head = read_head(frame.header)
    if head.failure is not None:
        raise links.function_error(head.failure)
    if frame.type != wire.REPLY:
        raise errors.FunctionError("the instance answered an upgrade with a stream.")
    exchange.respond(head.status, [*head.headers, *own_headers(call)], frame.body)
    call.status, call.answering = head.status, True


async def _from_client(call: Call, stream: links.Stream, web: WebSocket) -> None:
    while (message := await web.receive()) is not None:
        call.bytes_in += len(message.data)
        await stream.send(wire.WS_MESSAGE, b'{"t":1}' if message.text else b'{"t":0}', message.data)


async def _from_function(call: Call, stream: links.Stream, web: WebSocket) -> tuple[int, str]:
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
            web.write(bool(header.get("t")), message)
            async with asyncio.timeout(sockets.STALLED_S):
                await web.drain()
        except TimeoutError:
            return sockets.POLICY, sockets.TOO_SLOW
        except Closed:
            raise errors.ClientGone("the client went away while a message was sent to it.") from None
    return _GOING_AWAY, ""
