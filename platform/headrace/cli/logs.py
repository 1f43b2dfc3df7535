"""`headrace logs`: what a function wrote, the last lines or as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from headrace.cli import times
from headrace.cli.client import Control, Unreachable
from headrace.cli.output import Output
from headrace.cli.session import Session
from headrace.model import check_name

_PAGE = 1000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
_STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red", "DEBUG": "dim"}


def logs(
    session: Session, name: str, *, since: str | None, last: int, follows: bool, json: bool, **filters: Any
) -> None:
    """Print the `last` lines, or all `since` a time; with `follows` go on until interrupted."""
    if since is None:
        filters["limit"] = last
    else:
        filters["since"] = times.moment(since, datetime.now(UTC))
    out, control = session.out, session.control
    path = f"/functions/{check_name(name)}/logs"
    if follows:
        lines = follow(out, control, path, filters)
    else:
        lines = _pages(control, path, filters) if since is not None else iter(control.get(path, **filters)["items"])
    if json and not follows:
        out.document({"items": list(lines)})
        return
    for line in lines:
        if json:
            out.record(line)
        else:
            show_line(out, line)


def _pages(control: Control, path: str, filters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cursor = None
    while True:
        page = control.get(path, limit=_PAGE, cursor=cursor, **filters)
        yield from page["items"]
        if len(page["items"]) < _PAGE:
            return
        cursor = page["next"]


def follow(out: Output, control: Control, path: str, filters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Lines as they come. A stream that breaks is taken up again where it was, as often as it takes."""
    after = ""
    pause_s = 0.0
    control.get(path, **{**filters, "limit": 1})  # what cannot be read at all is said at once
    while True:
        try:
            for event in control.events(path, after, **filters):
                after, pause_s = event.id, 0.0
                yield event.json()
        except Unreachable:
            pause_s = min(max(pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            out.note(f"The connection to Headrace is lost; trying again in {pause_s:g} s.", "yellow")
            time.sleep(pause_s)


def show_line(out: Output, line: dict[str, Any]) -> None:
    mark = "" if line["stream"] in ("stdout", "log") else f"[{line['stream']}] "
    who = f"v{line['version']} {line['invocation'] or '-'}"
    out.line(f"{times.clock_time(line['at'])} {who} {mark}{line['text']}", _STYLES.get(line["level"], ""))
