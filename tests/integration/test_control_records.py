"""Invocations, logs and metrics over the control API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import astuple, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from control_kit import World, world
from headrace.model import SLOT_S, Invocation, LogLine, MetricSlot
from headrace.telemetry.metrics import bucket

BASE = "/v1/functions/hello"
ERROR = {"type": "KeyError", "message": "'name'", "stack": "Traceback (most recent call last):\n  ..."}
CALL = Invocation("c1", "default", "hello", 1, "i1", "n1", 0.0, 0.5, 0.0, 2.0, 200, "ok", "GET", "/a?b=c", 3, 5)
LINE = LogLine(0.0, "default", "hello", 1, "c1", "i1", "stdout", "INFO", "hello")


@pytest.fixture
async def w(tmp_path: Path, database_url: str) -> AsyncIterator[World]:
    async with world(tmp_path, url=database_url) as made:
        await made.live()
        yield made


async def record(w: World, *calls: Invocation, lines: tuple[LogLine, ...] = ()) -> None:
    await w.services.records.append(
        [tuple(getattr(call, name) for name in Invocation.__slots__) for call in calls],
        [astuple(line)[:-1] for line in lines],
        [],
    )


async def test_invocations_newest_first_in_pages(w: World) -> None:
    now = w.clock.now()
    await record(w, *(replace(CALL, id=f"c{number}", started_at=now + number) for number in range(5)))
    page = (await w.http.get(f"{BASE}/invocations", params={"limit": 3})).json()
    assert [item["id"] for item in page["items"]] == ["c4", "c3", "c2"]
    rest = (await w.http.get(f"{BASE}/invocations", params={"limit": 3, "cursor": page["next"]})).json()
    assert ([item["id"] for item in rest["items"]], rest["next"]) == (["c1", "c0"], None)
    first = page["items"][0]
    assert (first["queue_ms"], first["run_ms"], first["duration_ms"]) == (0.5, 2.0, 2.5)
    assert first["started_at"].endswith("Z")


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"status": 500}, ["bad"]),
        ({"version": 2}, ["new"]),
        ({"min_duration_ms": 1000}, ["slow"]),
        ({"error": "KeyError"}, ["bad"]),
        ({"error": "timeout"}, ["slow"]),
        ({"outcome": "function_error"}, ["bad"]),
        ({"since": "2026-01-31T12:00:20Z"}, ["slow", "bad"]),
        ({"until": "2026-01-31T13:00:20+01:00"}, ["new", "ok"]),
        ({"since": "2026-01-31T12:00:10.000Z", "until": "2026-01-31T12:00:30Z"}, ["bad", "new"]),
        ({"version": 1, "status": 504}, ["slow"]),
        ({"error": "TypeError"}, []),
    ],
)
async def test_filters(w: World, params: dict[str, Any], found: list[str]) -> None:
    base = 1_769_860_800.0  # 2026-01-31T12:00:00Z
    await record(
        w,
        replace(CALL, id="ok", started_at=base),
        replace(CALL, id="new", started_at=base + 10, version=2),
        replace(CALL, id="bad", started_at=base + 20, status=500, outcome="function_error", error=ERROR),
        replace(CALL, id="slow", started_at=base + 30, status=504, outcome="timeout", run_ms=5000.0),
    )
    page = (await w.http.get(f"{BASE}/invocations", params=params)).json()
    assert [item["id"] for item in page["items"]] == found


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", "99"),
        ("status", "ok"),
        ("version", "0"),
        ("since", "yesterday"),
        ("since", "1769860800"),
        ("until", "2026-01-31T12:00:00"),
        ("until", "2026-02-31T12:00:00Z"),
        ("since", "2026-01-31T12:00:00+99:00"),
        ("min_duration_ms", "-1"),
        ("min_duration_ms", "nan"),
        ("min_duration_ms", "inf"),
        ("error", ""),
        ("error", "a\0b"),
        ("outcome", "bad"),
        ("limit", "0"),
        ("limit", "201"),
        ("cursor", "x" * 201),
        ("step", "1"),
    ],
)
async def test_bad_filters_are_refused(w: World, name: str, value: str) -> None:
    answer = await w.http.get(f"{BASE}/invocations", params={name: value})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert answer.json()["detail"].startswith(f"query.{name}: ")


async def test_an_invocation_with_its_lines_and_its_stack(w: World) -> None:
    now = w.clock.now()
    call = replace(CALL, id="bad", started_at=now, status=500, outcome="function_error", error=ERROR)
    lines = tuple(replace(LINE, at=now, invocation="bad", text=text) for text in ("one", "two"))
    await record(w, call, lines=(*lines, replace(LINE, at=now, invocation="other")))
    shown = (await w.http.get("/v1/invocations/bad")).json()
    assert shown["error"] == ERROR
    assert [line["text"] for line in shown["lines"]] == ["one", "two"]
    listed = (await w.http.get(f"{BASE}/invocations")).json()["items"][0]
    assert listed["error"] == {"type": "KeyError", "message": "'name'"}, "the list has no stacks"
    assert (await w.http.get("/v1/invocations/nix")).status_code == 404


async def test_logs_last_lines_then_what_came_after(w: World) -> None:
    now = w.clock.now()
    await record(w, lines=tuple(replace(LINE, at=now, text=str(number)) for number in range(10)))
    last = (await w.http.get(f"{BASE}/logs", params={"limit": 3})).json()
    assert [line["text"] for line in last["items"]] == ["7", "8", "9"]
    assert last["items"][0]["stream"] == "stdout"
    again = (await w.http.get(f"{BASE}/logs", params={"cursor": last["next"]})).json()
    assert (again["items"], again["next"]) == ([], last["next"]), "the place is kept, more may come"
    await record(w, lines=(replace(LINE, at=now, text="new"),))
    later = (await w.http.get(f"{BASE}/logs", params={"cursor": last["next"]})).json()
    assert [line["text"] for line in later["items"]] == ["new"]


async def test_logs_by_level_version_and_time(w: World) -> None:
    base = 1_769_860_800.0
    await record(
        w,
        lines=(
            replace(LINE, at=base, level="DEBUG", text="a"),
            replace(LINE, at=base + 1, level="WARNING", text="b", version=2),
            replace(LINE, at=base + 2, level="ERROR", text="c"),
        ),
    )

    async def texts(**params: Any) -> list[str]:
        return [line["text"] for line in (await w.http.get(f"{BASE}/logs", params=params)).json()["items"]]

    for level in ("WARNING", "warning", "Warning"):
        assert await texts(level=level) == ["b", "c"]
    assert await texts(version=2) == ["b"]
    assert await texts(since="2026-01-31T12:00:01Z", limit=1) == ["b"]
    assert await texts() == ["a", "b", "c"]
    assert (await w.http.get(f"{BASE}/logs", params={"level": "LOUD"})).status_code == 422
    assert (await w.http.get(f"{BASE}/logs", params={"follow": "yes"})).status_code == 422


def slot(at: float, version: int, ms: float, count: int, **changes: Any) -> MetricSlot:
    made = MetricSlot(at, "n1", "default", "hello", version, {"ok": count}, 1, 2, {bucket(ms): count}, ms, 3, 1)
    return replace(made, **changes)


async def test_metrics_in_total_as_series_and_by_version(w: World) -> None:
    now = w.clock.now() // 60 * 60 - 60
    slots = [
        slot(now, 1, 10.0, 5),
        slot(now, 2, 20.0, 5, outcomes={"ok": 4, "timeout": 1}),
        slot(now - 600, 1, 10.0, 90),
        slot(now - 7200, 1, 999.0, 1000),
    ]
    await w.services.records.append([], [], slots)
    shown = (await w.http.get(f"{BASE}/metrics", params={"window": "1h", "step_s": 60, "by": "version"})).json()
    totals = shown["totals"]
    assert (totals["invocations"], totals["errors"]) == (100, {"timeout": 1})
    assert (totals["cold_starts"], totals["throttled"], totals["max_ms"]) == (3, 6, 20.0)
    assert totals["p50_ms"] == pytest.approx(10.0, rel=0.05)
    assert totals["p99_ms"] == pytest.approx(20.0, rel=0.05)
    assert 60 <= len(shown["series"]) <= 62
    busy = {point["at"]: point["invocations"] for point in shown["series"] if point["invocations"]}
    assert sorted(busy.values()) == [10, 90]
    assert {number: part["totals"]["invocations"] for number, part in shown["versions"].items()} == {"1": 95, "2": 5}
    assert (await w.http.get(f"{BASE}/metrics")).json()["versions"] is None


async def test_any_window_has_an_answer_of_bounded_length(w: World) -> None:
    for window, step_s in product(["1s", "10s", "5m", "1h", "24h", "7d", "99999d"], [10, 60, 86_400]):
        answer = await w.http.get(f"{BASE}/metrics", params={"window": window, "step_s": step_s})
        assert answer.status_code == 200, answer.text
        shown = answer.json()
        assert 1 <= len(shown["series"]) <= 1441
        assert shown["step_s"] >= step_s
        assert shown["step_s"] % SLOT_S == 0


@pytest.mark.parametrize(
    "params", [{"window": "1w"}, {"window": "0h"}, {"window": "-1h"}, {"window": ""}, {"step_s": 15}, {"by": "node"}]
)
async def test_bad_windows_are_refused(w: World, params: dict[str, Any]) -> None:
    assert (await w.http.get(f"{BASE}/metrics", params=params)).status_code == 422


async def test_a_bad_window_is_told_how_to_write_one(w: World) -> None:
    answer = await w.http.get(f"{BASE}/metrics", params={"window": "1 hour"})
    assert answer.json()["detail"].startswith("query.window: write a number and s, m, h or d")
