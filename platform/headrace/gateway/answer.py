"""Answers on their way to the caller: whole, streamed, or a problem.

An instance is not trusted: what HTTP can't carry becomes a function error. An answer that breaks off after it has
begun is cut, so that it never looks complete.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

from headrace import errors
from headrace.gateway.call import Call
from headrace.gateway.link import Stream, parse
from headrace.web.exchange import Exchange
from headrace.web.head import Headers, has_no_body
from headrace.web.problem import answer_of

HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_NO_TRAILERS = HOP | frozenset(  # RFC 9110, 6.5.1: what frames, routes, authenticates or decides on the content
    (
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"host",
        b"proxy-authenticate",
        b"set-cookie",
        b"www-authenticate",
    )
)
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_MOST_TRAILERS = 50
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


def reply(call: Call, exchange: Exchange, head: Head, body: bytes) -> None:
    """Send a whole answer."""
    call.bytes_out = len(body)
    length = head.length[0][1] if head.length and not body else None
    exchange.respond(head.status, [*head.headers, *own_headers(call)], body, length)
    call.status, call.answering = head.status, True


async def relay(call: Call, stream: Stream, exchange: Exchange, head: Head) -> None:
    """Send a streamed answer as its pieces come."""
    exchange.start(head.status, [*head.headers, *head.length, *own_headers(call)])
    call.status, call.answering = head.status, True
    async for pieces in stream.pieces():
        if not has_no_body(call.method, head.status):
            call.bytes_out += sum(map(len, pieces))
            exchange.write(pieces)
            stream.caller_slow = True
            await exchange.drain()
            stream.caller_slow = False
    exchange.end(_trailers(stream))
    if stream.failure is not None:
        call.failed(stream.failure)


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


def problem(call: Call, exchange: Exchange, error: errors.HeadraceError) -> None:
    """Answer with problem JSON, or cut an answer that had begun."""
    if call.answering:
        exchange.cut()
    else:
        exchange.respond(*problem_of(error, call))


def problem_of(error: errors.HeadraceError, call: Call) -> tuple[int, Headers, bytes]:
    """Status, headers and problem JSON of `error`. What a function's exception says stays in its record."""
    more = {"invocation": call.id}
    if "error" in error.ids:
        more["detail"] = f"{error.ids['error']['type']}: see `headrace invocations {call.id}` for its message."
    status, headers, body = answer_of(error, **more)
    return status, headers + own_headers(call), body


def _trailers(stream: Stream) -> Headers:
    """The fields after a streamed answer that may be sent there."""
    trailers: Headers = []
    try:
        for name, value in stream.trailers[:_MOST_TRAILERS]:
            raw, text = name.lower().encode("ascii"), value.encode("latin-1")
            if raw not in _NO_TRAILERS and not raw.startswith(b"headrace-"):
                if not _TOKEN.fullmatch(raw) or not _VALUE.fullmatch(text):
                    raise ValueError(name)
                trailers.append((raw, text))
    except (ValueError, TypeError, AttributeError):
        raise errors.FunctionError("the answer has a trailer that HTTP cannot carry.") from None
    return trailers
