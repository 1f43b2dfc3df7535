"""Answers on their way to the caller: whole, streamed, or a problem.

An instance is not trusted: what HTTP can't carry becomes a function error. An answer that breaks off after it has
begun raises `Broken`, which the server answers by cutting the connection, so that it never looks complete.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from headrace import errors
from headrace.gateway.call import Call, Headers, Send
from headrace.gateway.link import Stream

HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")


async def reply(call: Call, send: Send, header: dict[str, Any], body: bytes) -> None:
    status, headers = head(call, header)
    if call.method != "HEAD":
        headers = [pair for pair in headers if pair[0] != b"content-length"]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    call.status, call.answering = status, True
    call.bytes_out = len(body)
    await send({"type": "http.response.body", "body": b"" if call.method == "HEAD" else body})


async def relay(call: Call, stream: Stream, send: Send, header: dict[str, Any]) -> None:
    status, headers = head(call, header)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    call.status, call.answering = status, True
    async for frame in stream.frames():
        if call.method != "HEAD":
            call.bytes_out += len(frame.body)
            stream.caller_slow = True
            await send({"type": "http.response.body", "body": frame.body, "more_body": True})
            stream.caller_slow = False
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    if stream.failure is not None:
        call.failed(stream.failure)


def head(call: Call, header: dict[str, Any]) -> tuple[int, Headers]:
    """Status and headers for the caller. The instance is not trusted: what HTTP can't carry is a function error."""
    status = header.get("s", 200)
    if type(status) is not int or not 200 <= status <= 599:
        raise errors.FunctionError(f"the answer's status {status!r} is not a number from 200 to 599.")
    headers: Headers = []
    try:
        for name, value in header.get("h", ()):
            raw = name.lower().encode("ascii")
            if raw in HOP or raw.startswith(b"headrace-"):
                continue
            text = value.encode("latin-1")
            if not _TOKEN.fullmatch(raw) or not _VALUE.fullmatch(text):
                raise ValueError(name)
            headers.append((raw, text))
    except (ValueError, TypeError, AttributeError):
        raise errors.FunctionError("the answer has a header that HTTP cannot carry.") from None
    headers += own_headers(call)
    return status, headers


def own_headers(call: Call) -> Headers:
    """What Headrace adds to every answer."""
    headers = [(b"headrace-invocation", call.id.encode()), (b"server-timing", call.timing().encode())]
    if call.runnable is not None:
        headers.append((b"headrace-version", b"%d" % call.runnable.version.number))
    return headers


async def problem(send: Send, error: errors.HeadraceError, call: Call | None = None) -> None:
    """Answer with problem JSON, or raise `Broken` when the answer had begun, so that the caller sees it break."""
    if call is not None and call.answering:
        raise Broken(error.detail) from None
    status, headers, body = problem_of(error, call)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def problem_of(error: errors.HeadraceError, call: Call | None) -> tuple[int, Headers, bytes]:
    """Status, headers and problem JSON of `error`. What a function's exception says stays in its record."""
    content = error.problem()
    content.pop("error", None)
    headers = [(b"content-type", b"application/problem+json"), (b"headrace-error", error.fault.encode())]
    if call is not None:
        content["invocation"] = call.id
        headers += own_headers(call)
        if "error" in error.ids:
            content["detail"] = f"{error.ids['error']['type']}: see `headrace invocations {call.id}` for its message."
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.retryable:
        headers.append((b"retry-after", b"%d" % error.ids.get("retry_after_s", 1)))
    return error.status, headers, orjson.dumps(content, default=str)


class Broken(Exception):
    """The answer broke off after it had begun. Left to the server, which cuts the connection."""
