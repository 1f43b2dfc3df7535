"""Errors as answers: RFC 9457 problem JSON with whose fault it is."""

from __future__ import annotations

from typing import Any

import orjson

from headrace.errors import HeadraceError
from headrace.web.head import Headers


def answer_of(error: HeadraceError, **more: Any) -> tuple[int, Headers, bytes]:
    """Status, headers and body. `more` are further fields. What a function's own exception says is left out."""
    content = {**error.problem(), **more}
    content.pop("error", None)
    headers = [(b"content-type", b"application/problem+json"), (b"headrace-error", error.fault.encode())]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    elif error.status == 426:
        headers.append((b"sec-websocket-version", b"13"))
    if error.retryable:
        headers.append((b"retry-after", b"%d" % error.ids.get("retry_after_s", 1)))
    return error.status, headers, orjson.dumps(content, default=str)
