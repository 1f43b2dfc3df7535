"""A WebSocket of a plain handler: the gateway holds it, and each thing that happens is a call of its own.

An open socket costs no instance and no slot. Its events are handled one at a time and in order: while one waits or
runs, what the client sends next is received (so that pings are answered and its leaving is noticed) and then no more
is read, which slows down a client that sends faster than the function works. An event that finds the queue full waits
its turn; a function that is too busy for it during a whole minute loses the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
from itertools import chain, repeat
from typing import Any

import orjson

from headrace import errors, wire
from headrace.gateway import link as links
from headrace.gateway.answer import read_head
from headrace.gateway.call import Call
from headrace.gateway.invoke import Invoker
from headrace.gateway.pool import Member
from headrace.gateway.sockets import Socket
from headrace.web.websocket import LOST, Message

BUSY = 1013

_PATIENCE_S = 60.0  # an event waits this long for a place in the queue
_RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0)


async def serve(invoker: Invoker, socket: Socket) -> None:
    """Live through an accepted socket, from its first message to its `disconnect` event."""
    web = socket.web
    code, reason = LOST, ""
    try:
        socket.attend()
        while web is not None and (message := await web.receive()) is not None:
            await _message(invoker, socket, message)
        if socket.ending is not None:
            code, reason = socket.ending
            await socket.close(code, reason)
        elif web is not None:
            code, reason = web.code, web.reason
    finally:
        socket.end(code, reason)
        await socket.leave()
    await _event(invoker, socket, "disconnect", b"", code=code, r=reason)


async def _message(invoker: Invoker, socket: Socket, message: Message) -> None:
    error, call = await _event(invoker, socket, "message", message.data, t=int(message.text))
    if isinstance(error, errors.QueueFull | errors.NoCapacity):
        socket.end(BUSY, "the function is too busy")
    elif error is not None:  # as API Gateway says it; what was raised stays in the record
        problem = {"message": "Internal server error", "connectionId": socket.id, "requestId": call.id}
        socket.say(True, orjson.dumps(problem))


async def _event(
    invoker: Invoker, socket: Socket, kind: str, body: bytes, **fields: Any
) -> tuple[errors.HeadraceError | None, Call]:
    """One event as a call of the socket's version; what went wrong with it, and the call."""
    call = invoker.begin("WS", "$default" if kind == "message" else f"${kind}")
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
    except (asyncio.CancelledError, Exception) as error:  # cancelled, or a fault of our own
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
                return await invoker.wait(call)
        await asyncio.sleep(next(pauses))
    raise errors.QueueFull(f"the queue of this version was full for {_PATIENCE_S:g} s.", retry_after_s=1)


async def _converse(invoker: Invoker, call: Call, member: Member, header: dict[str, Any], body: bytes) -> None:
    if len(body) > wire.INLINE:
        header["more"] = True
    answered: asyncio.Future[wire.Frame] = asyncio.get_running_loop().create_future()
    stream = invoker.write(call, member, header, body[: wire.INLINE], links.resolve(answered))
    try:
        if len(body) > wire.INLINE:
            await stream.send(wire.BODY, b"", body[wire.INLINE :])
            stream.end()
        frame = await answered
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
