"""Records as nodes hand them over: tuples in field order."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

from headrace.model import Invocation, LogLine
from store_kit import NAME, NS, START


def invocation(id: str, **fields: Any) -> tuple[Any, ...]:
    """The tuple of an invocation of version 1 of `hello` that went well at START, but for `fields`."""
    values: dict[str, Any] = {
        "namespace": NS,
        "function": NAME,
        "version": 1,
        "instance": "i1",
        "node": "n1",
        "started_at": START,
        "queue_ms": 0.25,
        "start_ms": 0.0,
        "run_ms": 1.5,
        "status": 200,
        "outcome": "ok",
        "method": "GET",
        "path": "/",
        "bytes_in": 0,
        "bytes_out": 5,
        "error": None,
    }
    return tuple((values | {"id": id} | fields)[name] for name in Invocation.__slots__)


def line(text: str, **fields: Any) -> tuple[Any, ...]:
    """The tuple of a line that version 1 of `hello` printed at START, but for `fields`."""
    values: dict[str, Any] = {
        "at": START,
        "namespace": NS,
        "function": NAME,
        "version": 1,
        "invocation": "",
        "instance": "i1",
        "stream": "stdout",
        "level": "INFO",
    }
    return astuple(LogLine(**{**values, "text": text, **fields}))[:-1]
