"""`headrace invocations`: the calls of a function, or one call with everything that is known about it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from headrace.cli import logs, times
from headrace.cli.client import Control
from headrace.cli.output import Output, bytes_text, ms_text
from headrace.cli.session import Session
from headrace.errors import Invalid, NotFound
from headrace.model import NAME_PATTERN

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def invocations(
    session: Session, name_or_id: str, namespace: str, limit: int, filters: dict[str, Any], *, json: bool
) -> None:
    """List the calls of the function of this name; when there is none, show the call of this id."""
    if not _ID.fullmatch(name_or_id):
        raise Invalid(f"{name_or_id[:80]!r} is neither the name of a function nor the id of an invocation.")
    now = datetime.now(UTC)
    for key in ("since", "until"):
        if filters[key] is not None:
            filters[key] = times.moment(filters[key], now)
    if re.fullmatch(NAME_PATTERN, name_or_id):
        try:
            path = f"/functions/{name_or_id}/invocations"
            found = session.control.items(path, limit, namespace=namespace, **filters)
        except NotFound as missing:
            _show(session.out, _one_or_neither(session.control, name_or_id, namespace, missing), json)
        else:
            _list(session.out, found, now, json)
    else:
        _show(session.out, session.control.get(f"/invocations/{name_or_id}"), json)


def _one_or_neither(control: Control, id: str, namespace: str, missing: NotFound) -> Any:
    try:
        return control.get(f"/invocations/{id}")
    except NotFound:
        raise NotFound(
            f"{id!r} is neither a function in namespace {namespace!r} nor the id of a kept invocation: "
            "see `headrace functions`. Records are kept for a limited time."
        ) from missing


def _list(out: Output, found: dict[str, Any], now: datetime, json: bool) -> None:
    if json:
        out.document(found)
        return
    if not found["items"]:
        out.note("No invocations.")
        return
    rows = [
        [
            item["id"],
            times.ago(item["started_at"], now),
            str(item["version"]),
            str(item["status"]),
            item["outcome"],
            ms_text(item["duration_ms"]),
            ms_text(item["start_ms"]) if item["start_ms"] else "-",
            f"{item['method']} {item['path']}"[:60],
            item["error"]["type"] if item["error"] else "-",
        ]
        for item in found["items"]
    ]
    columns = ["id", "started", "version", "status", "outcome", "took", "cold start", "request", "error"]
    out.table(columns, rows, right=["version", "status", "took", "cold start"])
    if found["next"]:
        out.note("There are more: see --limit and the filters.")


def _show(out: Output, item: dict[str, Any], json: bool) -> None:
    if json:
        out.document(item)
        return
    took = f"queue {ms_text(item['queue_ms'])}, start {ms_text(item['start_ms'])}, run {ms_text(item['run_ms'])}"
    rows = [
        ["invocation", item["id"]],
        ["function", f"{item['function']}@{item['version']} in {item['namespace']}"],
        ["request", f"{item['method']} {item['path']}"],
        ["started", item["started_at"]],
        ["took", f"{ms_text(item['duration_ms'])} ({took})"],
        ["outcome", f"{item['outcome']}, status {item['status']}"],
        ["bytes", f"{bytes_text(item['bytes_in'])} in, {bytes_text(item['bytes_out'])} out"],
        ["instance", f"{item['instance'] or '-'} on {item['node']}"],
    ]
    out.table(["field", "value"], rows)
    if item["lines"]:
        out.line("")
        for line in item["lines"]:
            logs.show_line(out, line)
    error = item["error"]
    if error is not None:
        out.line("")
        out.line(f"{error['type']}: {error['message']}", "bold red")
        for text in error["stack"].splitlines():
            out.line(f"  {text}")
