"""A WebSocket of a plain handler: the gateway holds it, and each thing that happens is a call of its own.

An open socket costs no instance and no slot. Its events are handled one at a time and in order: while one waits or
runs, one further message is received (so that pings are answered and a client's leaving is noticed) and no more is
read, which slows down a client that sends faster than the function works. An event that finds the queue full waits its
turn; a function that is too busy for it during a whole minute loses the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
from itertools import chain, repeat
from typing import Any

import orjson

from headrace import errors, wire
from headrace.gateway import link as links
from headrace.gateway import sockets
from headrace.gateway.answer import read_head
from headrace.gateway.call import Call, Receive, Send
from headrace.gateway.invoke import Invoker
from headrace.gateway.pool import Member
from headrace.gateway.sockets import Socket

LOST = 1006
BUSY = 1013

_NO_CODE = 1005
_PROTOCOL_ERROR = 1002
_PATIENCE_S = 60.0  # an event waits this long for a place in the queue
_RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0)


async def serve(invoker: Invoker, socket: Socket, receive: Receive, send: Send) -> None:
    """Live through an accepted socket, from its first message to its `disconnect` event."""
    code, reason = LOST, ""
    reading = _spawn(receive)
    try:
        socket.attend(send)
        while (message := await socket.read(reading)) is not None and message["type"] == "websocket.receive":
            reading = _spawn(receive)
            await _message(invoker, socket, message)
        if message is not None:
            code, reason = message.get("code") or LOST, message.get("reason") or ""
            await after_leaving(send, code)
        elif socket.ending is not None:
            code, reason = socket.ending
            await stop(reading)  # the server takes no close while somebody still waits to receive
            await socket.close(send, code, reason)
    finally:
        await stop(reading)
        socket.end(code, reason)
        await socket.leave()
    await disconnected(invoker, socket, code, reason)


async def disconnected(invoker: Invoker, socket: Socket, code: int, reason: str) -> None:
    """Tell the function that a socket which it accepted is closed."""
    await _event(invoker, socket, "disconnect", b"", code=code, r=reason)


async def after_leaving(send: Send, code: int) -> None:
    """The client has closed the socket or broken its rules, which the server tells by 1005, too.

    A close frame is then due; after a client's own close frame, or its end, the server passes this one over.
    """
    if code == _NO_CODE:
        await sockets.close(send, _PROTOCOL_ERROR, "protocol error")


async def receive_from(receive: Receive) -> Any:
    """What the client sends next. One whose connection breaks has left without a word."""
    try:
        return await receive()
    except RuntimeError:
        return {"type": "websocket.disconnect", "code": LOST}


def _spawn(receive: Receive) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(receive_from(receive))


async def stop(task: asyncio.Task[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))


async def _message(invoker: Invoker, socket: Socket, message: Any) -> None:
    text = message.get("text")
    body = text.encode("utf-8", "surrogatepass") if text is not None else message["bytes"]
    if len(body) > sockets.MESSAGE_LIMIT:
        socket.end(sockets.TOO_BIG, f"messages are limited to {sockets.MESSAGE_LIMIT} bytes")
        return
    error, call = await _event(invoker, socket, "message", body, t=int(text is not None))
    if isinstance(error, errors.QueueFull | errors.NoCapacity):
        socket.end(BUSY, "the function is too busy")
    elif error is not None:  # as API Gateway says it; what was raised stays in the record
        problem = {"message": "Internal server error", "connectionId": socket.id, "requestId": call.id}
        socket.say(True, orjson.dumps(problem))


async def _event(
    invoker: Invoker, socket: Socket, kind: str, body: bytes, **fields: Any
) -> tuple[errors.HeadraceError | None, Call]:
    """One event as a call of the socket's version; what went wrong with it, and the call."""
    call = invoker.begin("WS", "$default" if kind == "message" else f"${kind}", socket.peer)
    call.runnable = socket.runnable
    call.bytes_in = len(body)
    invoker.calls.add(call)
    try:
        header = {
            "id": call.id,
            "d": socket.runnable.timeout_ms,
            "ev": kind,
            "c": socket.id,
            "at": int(socket.opened_at * 1000),
            "ip": socket.address,
            "host": socket.host,
            **fields,
        }
        try:
            await _converse(invoker, call, await _slot(invoker, socket, call), header, body)
        except errors.NotSent:
            invoker.give_back(call)
            await _converse(invoker, call, await _slot(invoker, socket, call), header, body)
        return None, call
    except errors.HeadraceError as error:
        call.failed(error)
        return error, call
    except (asyncio.CancelledError, Exception) as error:  # cancelled, or a fault of our own: the server cuts the socket
        call.broke_off(error, "the socket was cut.")
        raise
    finally:
        invoker.settle(call)


async def _slot(invoker: Invoker, socket: Socket, call: Call) -> Member:
    """A slot, or a place in the queue as soon as there is one: who waits here is not counted as refused."""
    pool = socket.runnable.pool
    began = invoker.monotonic()
    pauses = chain(_RETRY_S, repeat(_RETRY_S[-1]))
    while invoker.monotonic() - began <= _PATIENCE_S:
        member = call.member = pool.take(socket.key)
        if member is not None:
            return member
        if pool.waiting < max(pool.queue, 1):
            with contextlib.suppress(errors.QueueFull):
                return await invoker.wait(call, None)
        await asyncio.sleep(next(pauses))
    raise errors.QueueFull(f"the queue of this version was full for {_PATIENCE_S:g} s.", retry_after_s=1)


async def _converse(invoker: Invoker, call: Call, member: Member, header: dict[str, Any], body: bytes) -> None:
    if len(body) > wire.INLINE:
        header["more"] = True
    stream = invoker.write(call, member, header, body[: wire.INLINE])
    try:
        if len(body) > wire.INLINE:
            await stream.send(wire.BODY, b"", body[wire.INLINE :])
            stream.end()
        frame = await stream.answer
        head = read_head(frame.header)
        if head.failure is not None:
            raise links.function_error(head.failure)
        if frame.type != wire.REPLY:
            raise errors.FunctionError("the instance answered an event of a socket with something else.")
        call.status = head.status
    except wire.ProtocolError as error:
        raise errors.FunctionError(f"the instance sent an answer that can't be read: {error}.") from None
    finally:
        stream.close("client")
