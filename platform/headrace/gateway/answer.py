"""Answers on their way to the caller: whole, streamed, or a problem.

An instance is not trusted: what HTTP can't carry becomes a function error. An answer that breaks off after it has
begun raises `Broken`, which the server answers by cutting the connection, so that it never looks complete.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from headrace import errors
from headrace.gateway.call import Call, Headers, Send
from headrace.gateway.link import Stream, parse

HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_COMMON = 256  # bytes: functions answer with the same few short heads again and again


class Head(NamedTuple):
    """Status and headers of an answer, fit for HTTP; `headers` without a length, which the server knows of a whole one.

    `length` is the function's own Content-Length. `failure` is the `e` of a REPLY: the function failed after making
    this answer, or, when `answers` is False, instead of it.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    length: tuple[tuple[bytes, bytes], ...]
    failure: Any
    answers: bool


async def reply(call: Call, send: Send, head: Head, body: bytes) -> None:
    """Send a whole answer."""
    call.bytes_out = len(body)
    headers = [*head.headers, *own_headers(call)]
    if call.method == "HEAD":
        headers += head.length
        body = b""
    await send({"type": "http.response.start", "status": head.status, "headers": headers})
    call.status, call.answering = head.status, True
    await send({"type": "http.response.body", "body": body})


async def relay(call: Call, stream: Stream, send: Send, head: Head) -> None:
    """Send a streamed answer as its pieces come."""
    headers = [*head.headers, *head.length, *own_headers(call)]
    await send({"type": "http.response.start", "status": head.status, "headers": headers})
    call.status, call.answering = head.status, True
    if call.method != "HEAD":  # the server sends the headers with the first bytes, which may be long in coming
        await _pass_on(stream, send, b"")
    async for frame in stream.frames():
        if call.method != "HEAD":
            call.bytes_out += len(frame.body)
            await _pass_on(stream, send, frame.body)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    if stream.failure is not None:
        call.failed(stream.failure)


async def _pass_on(stream: Stream, send: Send, body: bytes) -> None:
    stream.caller_slow = True
    await send({"type": "http.response.body", "body": body, "more_body": True})
    stream.caller_slow = False


def read_head(header: bytes) -> Head:
    """The header of a REPLY or HEAD. Raises `wire.ProtocolError`, `FunctionError` for what HTTP can't carry."""
    return _common_head(header) if len(header) <= _COMMON else _head(header)


def _head(header: bytes) -> Head:
    fields = parse(header)
    failure, answers = fields.get("e"), "s" in fields or "e" not in fields
    status = fields.get("s", 200)
    if type(status) is not int or not 200 <= status <= 599:
        raise errors.FunctionError(f"the answer's status {status!r} is not a number from 200 to 599.")
    headers: Headers = []
    length: Headers = []
    try:
        for name, value in fields.get("h", ()):
            raw = name.lower().encode("ascii")
            if raw in HOP or raw.startswith(b"headrace-"):
                continue
            text = value.encode("latin-1")
            if not _TOKEN.fullmatch(raw) or not _VALUE.fullmatch(text):
                raise ValueError(name)
            (length if raw == b"content-length" else headers).append((raw, text))
    except (ValueError, TypeError, AttributeError):
        raise errors.FunctionError("the answer has a header that HTTP cannot carry.") from None
    if len(length) > 1 or (length and not length[0][1].isdigit()):
        raise errors.FunctionError("the answer has more than one content-length, or one that is no number.")
    return Head(status, tuple(headers), tuple(length), failure, answers)


_common_head = lru_cache(maxsize=1024)(_head)


def own_headers(call: Call) -> Headers:
    """What Headrace adds to every answer."""
    headers = [(b"headrace-invocation", call.id.encode()), (b"server-timing", call.timing())]
    if call.runnable is not None:
        headers.append(call.runnable.version_header)
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
