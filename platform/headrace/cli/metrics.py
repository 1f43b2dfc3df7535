"""`headrace metrics`: how a function did over a window."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from headrace.cli import times
from headrace.cli.output import ms_text, sparkline
from headrace.cli.session import Session
from headrace.model import SLOT_S, check_name

_POINTS = 60


def metrics(session: Session, name: str, namespace: str, window: str, *, by_version: bool, json: bool) -> None:
    """Totals and a line of bars over `window`, for each version too when asked."""
    step_s = max(math.ceil(times.seconds(window) / _POINTS / SLOT_S) * int(SLOT_S), int(SLOT_S))
    path = f"/functions/{check_name(name)}/metrics"
    by = "version" if by_version else None
    found = session.control.get(path, namespace=namespace, window=window, step_s=step_s, by=by)
    out = session.out
    if json:
        out.document(found)
        return
    columns = {"all": found} | {f"version {number}": part for number, part in (found["versions"] or {}).items()}
    rows = [[what, *(value(part["totals"]) for part in columns.values())] for what, value in _ROWS.items()]
    out.table(["last " + window, *columns], rows, right=list(columns))
    counts = [float(point["invocations"]) for point in found["series"]]
    out.line(f"invocations  {sparkline(counts)}  up to {max(counts, default=0):.0f} in {found['step_s']} s")
    slowest = [point["p99_ms"] or 0.0 for point in found["series"]]
    out.line(f"p99          {sparkline(slowest)}  up to {ms_text(max(slowest, default=0.0))}")


def _errors(totals: dict[str, Any]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in totals["errors"].items()) or "0"


_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "invocations": lambda totals: f"{totals['invocations']:,}",
    "errors": _errors,
    "throttled": lambda totals: f"{totals['throttled']:,}",
    "cold starts": lambda totals: f"{totals['cold_starts']:,}",
    "p50": lambda totals: ms_text(totals["p50_ms"]),
    "p95": lambda totals: ms_text(totals["p95_ms"]),
    "p99": lambda totals: ms_text(totals["p99_ms"]),
    "max": lambda totals: ms_text(totals["max_ms"]),
    "most at once": lambda totals: str(totals["concurrency"]),
    "most instances": lambda totals: str(totals["instances"]),
}
