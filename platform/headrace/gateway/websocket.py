"""WebSocket calls: an ASGI socket of the server on one side, a stream of an instance on the other.

A socket holds a slot of its instance for as long as it is open and has no deadline. (The server sends no headers of
ours with an accepted upgrade, so its invocation and version are in the record only.) Messages flow under the
stream's windows in both directions, so neither a slow browser nor a slow function makes the node buffer.
"""

from __future__ import annotations

import asyncio

from headrace import errors, wire
from headrace.gateway import link as links
from headrace.gateway.answer import own_headers, problem_of, read_head
from headrace.gateway.call import Call, Receive, Scope, Send
from headrace.gateway.invoke import Invoker, affinity

_NORMAL = 1000
_ABNORMAL = 1006
_GOING_AWAY = 1001
_RESTART = 1012
_INTERNAL = 1011
_TOO_BIG = 1009
_MAX_MESSAGE = 16 << 20  # bytes of one message from the function, held while its pieces arrive


async def serve(
    invoker: Invoker, call: Call, scope: Scope, receive: Receive, send: Send, *, spelling: str, by_host: bool
) -> None:
    """Carry one WebSocket between its client and the function `spelling`. `by_host`: the host named the function."""
    invoker.calls.add(call)
    try:
        await receive()  # websocket.connect
        route = await invoker.route(spelling)
        call.prefix = "" if by_host else route.prefix
        invoker.gatekeeper.check(route, scope["headers"])
        call.runnable = route.choose(affinity(scope) if route.chooses else None)
        member = invoker.slot(call, route, scope) or await invoker.wait(call, None)
        stream = invoker.open(call, route, member, scope, b"", ws=True)
        invoker.sockets.add(stream)
        try:
            await _converse(call, stream, call.runnable.timeout_s, receive, send)
        except wire.ProtocolError as error:
            raise errors.FunctionError(f"the instance sent an answer that can't be read: {error}.") from None
        finally:
            invoker.sockets.discard(stream)
            stream.close("client")
    except errors.HeadraceError as error:
        call.failed(error)
        await refuse(send, error, call)
    except asyncio.CancelledError:
        call.failed(errors.ClientGone("the socket was cut."))
        raise
    except Exception as error:  # a fault of our own: recorded as one, and the server cuts the socket
        call.failed(errors.HeadraceError(f"the gateway failed: {type(error).__name__}."))
        raise
    finally:
        invoker.settle(call)


async def refuse(send: Send, error: errors.HeadraceError, call: Call | None = None) -> None:
    """Answer the upgrade with a problem; close an accepted socket with the code that fits."""
    if call is not None and call.status == 101:
        code = _RESTART if isinstance(error, errors.NodeUnavailable) else _INTERNAL
        await send({"type": "websocket.close", "code": code, "reason": error.title})
        return
    status, headers, body = problem_of(error, call)
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def _converse(call: Call, stream: links.Stream, timeout_s: float, receive: Receive, send: Send) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            frame = await stream.answer
    except TimeoutError:
        stream.close("timeout")
        raise errors.TimedOut("the function did not accept the socket within timeout_s.") from None
    if frame.type != wire.WS_ACCEPT:
        await _denied(call, frame, send)
        return
    chosen = links.parse(frame.header).get("sp")
    await send({"type": "websocket.accept", "subprotocol": chosen if isinstance(chosen, str) else None, "headers": []})
    call.status, call.answering = 101, True
    loop = asyncio.get_running_loop()
    up = loop.create_task(_from_client(call, stream, receive), name=f"socket {call.id} up")
    down = loop.create_task(_from_function(call, stream, send), name=f"socket {call.id} down")
    try:
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (up, down):
            task.cancel()  # the server takes no close while somebody still waits to receive
        await asyncio.gather(up, down, return_exceptions=True)
    if not down.cancelled():
        code, reason = down.result()
        await send({"type": "websocket.close", "code": code, "reason": reason})
    elif not up.cancelled():
        up.result()


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


async def _from_client(call: Call, stream: links.Stream, receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            code = message.get("code") or _ABNORMAL
            stream.hang_up(code, message.get("reason") or "")
            return
        text = message.get("text")
        body = text.encode() if text is not None else message["bytes"]
        call.bytes_in += len(body)
        await stream.send(wire.WS_MESSAGE, b'{"t":1}' if text is not None else b'{"t":0}', body)


async def _from_function(call: Call, stream: links.Stream, send: Send) -> tuple[int, str]:
    """Relay messages until the function hangs up; the code and reason to close with. Raises what broke it off."""
    parts: list[bytes] = []
    size = 0
    async for frame in stream.frames():
        header = links.parse(frame.header)
        if frame.type == wire.WS_CLOSE:
            reason = header.get("r")
            return _sendable(header.get("c")), reason if isinstance(reason, str) else ""
        parts.append(frame.body)
        size += len(frame.body)
        if size > _MAX_MESSAGE:
            return _TOO_BIG, "the function sent a message that is too big"
        if header.get("more"):
            continue
        message, parts, size = b"".join(parts), [], 0
        call.bytes_out += len(message)
        if header.get("t"):
            await send({"type": "websocket.send", "text": message.decode("utf-8", "replace")})
        else:
            await send({"type": "websocket.send", "bytes": message})
    return _GOING_AWAY, ""


def _sendable(code: object) -> int:
    """`code` when a close frame may carry it (RFC 6455, 7.4), else 1000."""
    if type(code) is not int:
        return _NORMAL
    fits = (1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code <= 4999
    return code if fits else _NORMAL
