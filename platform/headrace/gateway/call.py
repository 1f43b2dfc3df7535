"""One call on its way: what it will be recorded as."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from headrace import errors
from headrace.gateway.pool import Member
from headrace.gateway.routes import Runnable
from headrace.model import Outcome

_OUTCOMES: dict[str, Outcome] = {
    "function_error": "function_error",
    "load_failed": "function_error",
    "timeout": "timeout",
    "instance_died": "instance_died",
    "out_of_memory": "out_of_memory",
    "client_gone": "client_gone",
    "request_timeout": "client_gone",
    "queue_full": "rejected",
    "no_capacity": "rejected",
    "too_large": "rejected",
}


class Call:
    """One call on its way: what it will be recorded as, and the slot it holds."""

    __slots__ = (
        "answering",
        "bytes_in",
        "bytes_out",
        "error",
        "id",
        "member",
        "method",
        "monotonic",
        "outcome",
        "path",
        "prefix",
        "queue_ms",
        "runnable",
        "sent_at",
        "start_ms",
        "started_at",
        "status",
        "steps",
    )

    def __init__(self, id: str, started_at: float, method: str, path: str, monotonic: Callable[[], float]) -> None:
        self.id = id
        self.method = method
        self.path = path
        self.prefix = ""
        self.monotonic = monotonic
        self.started_at = started_at
        self.sent_at = 0.0  # monotonic; 0 until the frame is written
        self.queue_ms = 0.0
        self.start_ms = 0.0
        self.steps: Mapping[str, float] | None = None  # of its start, milliseconds
        self.status = 0
        self.answering = False  # the status line is out
        self.outcome: Outcome = "ok"
        self.error: dict[str, Any] | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.runnable: Runnable | None = None
        self.member: Member | None = None

    def failed(self, error: errors.HeadraceError) -> None:
        if not self.answering:
            self.status = error.status
        self.outcome = _OUTCOMES.get(error.code, "platform_error" if error.fault == "platform" else "rejected")
        self.error = error.ids.get("error") or {"type": error.code, "message": error.detail, "stack": ""}

    def broke_off(self, error: BaseException, cancelled: str) -> None:
        """It ended by what is no answer: cancelled, for the reason `cancelled`, or by a fault of our own."""
        if isinstance(error, asyncio.CancelledError):
            self.failed(errors.ClientGone(cancelled))
        else:
            self.failed(errors.HeadraceError(f"the gateway failed: {type(error).__name__}."))

    def timing(self) -> bytes:
        """The Server-Timing value so far: milliseconds queued, starting (when cold, and each step) and running."""
        run = (self.monotonic() - self.sent_at) * 1000 if self.sent_at else 0.0
        if self.start_ms:
            steps = b"".join(b", %s;dur=%.2f" % (name.encode(), ms) for name, ms in (self.steps or {}).items())
            return b"queue;dur=%.2f, start;dur=%.2f%s, run;dur=%.2f" % (self.queue_ms, self.start_ms, steps, run)
        return b"queue;dur=%.2f, run;dur=%.2f" % (self.queue_ms, run)
