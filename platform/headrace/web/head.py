"""The heads of requests and answers: their limits, and the lines of HTTP/1 that are the same every time."""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus

from headrace.web.limits import HEAD_BYTES, HEAD_FIELDS

Headers = list[tuple[bytes, bytes]]

TOO_LONG = f"the request's line and headers may have {HEAD_BYTES >> 10} KiB and {HEAD_FIELDS} fields: send less."

CHUNKED = b"transfer-encoding: chunked\r\n"
CLOSE = b"connection: close\r\n"
KEEP = b"connection: keep-alive\r\n"  # HTTP/1.0 is told; it is the rule of HTTP/1.1

_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Dates:
    """The value of `date`, made once a second."""

    __slots__ = ("_made_at", "_value")

    def __init__(self) -> None:
        self._made_at = 0
        self._value = b""

    def now(self) -> bytes:
        second = int(time.time())
        if second != self._made_at:
            self._made_at = second
            self._value = formatdate(second, usegmt=True).encode()
        return self._value


def status_line(status: int) -> bytes:
    """The first line of an answer. A status that nobody named has no phrase."""
    return _LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def has_no_body(method: str, status: int) -> bool:
    """RFC 9110, 6.4.1: answers that end with their head."""
    return method == "HEAD" or status in (204, 304) or status < 200


def split(target: str) -> tuple[str, str]:
    """Path and query of a request's target, each as sent. The absolute form names a host that nobody asks for here."""
    if not target.startswith("/") and "://" in target:
        rest = target.partition("://")[2]
        at = min((place for place in (rest.find("/"), rest.find("?")) if place >= 0), default=len(rest))
        target = rest[at:]
        if not target.startswith("/"):
            target = "/" + target
    path, _, query = target.partition("?")
    return path, query.partition("#")[0]
