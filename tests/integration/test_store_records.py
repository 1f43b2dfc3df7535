"""Records: what nodes hand over in bulk comes back as it was, filtered, paged and in order."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from headrace.errors import Invalid, NotFound
from headrace.model import Invocation, LogLine, MetricSlot
from headrace.store import tables
from headrace.store.records import InvocationFilter
from records_kit import invocation, line
from store_kit import NAME, NS, START, Store

ANY = InvocationFilter()
ERROR = {"type": "ValueError", "message": "no such thing", "stack": "Traceback ...\nValueError: no such thing"}


def slot(at: float, **fields: Any) -> MetricSlot:
    values: dict[str, Any] = {
        "at": at,
        "node": "n1",
        "namespace": NS,
        "function": NAME,
        "version": 1,
        "outcomes": {"ok": 3, "timeout": 1},
        "cold_starts": 1,
        "throttled": 2,
        "histogram": {-3: 1, 40: 3},
        "max_ms": 12.5,
        "concurrency": 4,
        "instances": 2,
    }
    return MetricSlot(**values | fields)


async def ids(store: Store, wanted: InvocationFilter = ANY, name: str = NAME) -> list[str]:
    page = await store.records.invocations(NS, name, wanted, 100, None)
    return [found.id for found in page.items]


async def test_an_invocation_comes_back_as_it_was(store: Store) -> None:
    row = invocation(
        "0001",
        version=7,
        started_at=START + 0.125,
        start_ms=3,
        status=500,
        outcome="function_error",
        path="/a?b=grün",
        bytes_in=5_000_000_000,
        error=ERROR,
    )
    await store.records.append([row], [], [])
    found = await store.records.invocation("0001")
    assert found == Invocation(*row)
    assert found.duration_ms == 4.75


async def test_five_thousand_rows_in_one_append(store: Store) -> None:
    rows = [invocation(f"{n:05d}", started_at=START + n) for n in range(5_000)]
    lines = [line(f"line {n}", invocation=f"{n:05d}", at=START + n) for n in range(5_000)]
    await store.records.append(rows, lines, [slot(START)])
    assert await store.count(tables.invocations) == await store.count(tables.logs) == 5_000
    assert await store.records.invocation("04999") == Invocation(*rows[4_999])
    assert [found.text for found in await store.records.lines_of("00500")] == ["line 500"]
    newest = await store.records.invocations(NS, NAME, ANY, 3, None)
    assert [found.id for found in newest.items] == ["04999", "04998", "04997"]


async def test_an_append_is_all_or_nothing(store: Store) -> None:
    good = [invocation(f"{n:05d}") for n in range(1_200)]
    broken = line("text", at=None)
    with pytest.raises(DBAPIError):
        await store.records.append(good, [line("one"), broken], [slot(START)])
    for table in (tables.invocations, tables.logs, tables.slots):
        assert await store.count(table) == 0, table.name


async def test_an_append_of_nothing_is_nothing(store: Store) -> None:
    await store.records.append([], [], [])
    assert await ids(store) == []


async def test_an_invocation_that_arrives_twice_is_kept_once(store: Store) -> None:
    await store.records.append([invocation("a"), invocation("b")], [], [])
    await store.records.append([invocation("b", status=500), invocation("c"), invocation("c")], [], [])
    assert sorted(await ids(store)) == ["a", "b", "c"]
    assert (await store.records.invocation("b")).status == 200


async def test_text_that_no_database_can_hold_is_replaced_not_refused(store: Store) -> None:
    error = {"type": "Bad\0Error", "message": "half \ud800", "stack": "\0"}
    await store.records.append(
        [invocation("a", path="/\0\udfff", outcome="function_error", error=error)],
        [line("nul \0 here", invocation="a"), line("half \ud83d", invocation="a")],
        [],
    )
    found = await store.records.invocation("a")
    assert found.path == "/�?"
    assert found.error == {"type": "Bad\0Error", "message": "half ?", "stack": "\0"}
    assert [found.text for found in await store.records.lines_of("a")] == ["nul � here", "half ?"]


async def test_invocations_are_newest_first_by_start(store: Store) -> None:
    await store.records.append([invocation("late", started_at=START + 9), invocation("early")], [], [])
    await store.records.append([invocation("middle", started_at=START + 5), invocation("early2")], [], [])
    await store.records.append([invocation("other", function="other")], [], [])
    await store.records.append([invocation("elsewhere", namespace="elsewhere")], [], [])
    assert await ids(store) == ["late", "middle", "early2", "early"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (InvocationFilter(status=500), "cb"),
        (InvocationFilter(version=2), "dc"),
        (InvocationFilter(since=START + 2), "dc"),
        (InvocationFilter(until=START + 2), "ba"),
        (InvocationFilter(since=START + 1, until=START + 3), "cb"),
        (InvocationFilter(min_duration_ms=101), "d"),
        (InvocationFilter(min_duration_ms=100.5), "db"),
        (InvocationFilter(outcome="ok"), "a"),
        (InvocationFilter(outcome="timeout"), "d"),
        (InvocationFilter(outcome="rejected"), ""),
        (InvocationFilter(error="function_error"), "cb"),
        (InvocationFilter(error="ValueError"), "b"),
        (InvocationFilter(error="KeyError"), "c"),
        (InvocationFilter(error="grün"), ""),
        (InvocationFilter(error="ValueError", version=2), ""),
        (InvocationFilter(status=500, version=2, error="function_error"), "c"),
        (ANY, "dcba"),
    ],
)
async def test_filters(store: Store, wanted: InvocationFilter, expected: str) -> None:
    failed = {"status": 500, "outcome": "function_error"}
    rows = [
        invocation("a"),
        invocation("b", started_at=START + 1, start_ms=50.0, run_ms=50.25, error=ERROR, **failed),
        invocation("c", started_at=START + 2, version=2, error={"type": "KeyError"}, **failed),
        invocation("d", started_at=START + 3, version=2, run_ms=500.0, status=504, outcome="timeout"),
    ]
    await store.records.append(rows, [], [])
    assert "".join(await ids(store, wanted)) == expected


@pytest.mark.parametrize(
    "wanted",
    [
        InvocationFilter(status=2**31),
        InvocationFilter(status=-1),
        InvocationFilter(version=2**70),
        InvocationFilter(error="a\0b"),
        InvocationFilter(error="\ud800"),
    ],
)
async def test_filters_that_no_row_can_match_are_invalid(store: Store, wanted: InvocationFilter) -> None:
    with pytest.raises(Invalid):
        await ids(store, wanted)


async def test_pages_are_stable_while_invocations_arrive(store: Store) -> None:
    """Equal starts too: the order of arrival decides."""
    await store.records.append([invocation(f"{n}", started_at=START + n // 3) for n in range(9)], [], [])
    seen, cursor = [], None
    for arriving in range(5):
        page = await store.records.invocations(NS, NAME, ANY, 2, cursor)
        seen += [found.id for found in page.items]
        cursor = page.next
        await store.records.append([invocation(f"late {arriving}", started_at=START + 100)], [], [])
    assert seen == ["8", "7", "6", "5", "4", "3", "2", "1", "0"]
    assert cursor is None
    with pytest.raises(Invalid, match="cursor"):
        await store.records.invocations(NS, NAME, ANY, 2, "WzFd")


@pytest.mark.parametrize("id", ["nobody", "", "\0", "\ud800", "x" * 10_000])
async def test_an_unknown_invocation_is_not_found(store: Store, id: str) -> None:
    with pytest.raises(NotFound, match="no record"):
        await store.records.invocation(id)
    assert await store.records.lines_of(id) == []


async def test_the_last_error_is_the_functions_or_the_platforms(store: Store) -> None:
    assert await store.records.last_error(NS, NAME) is None
    kinds = ["function_error", "timeout", "instance_died", "out_of_memory", "platform_error"]
    for n, outcome in enumerate(kinds):
        await store.records.append([invocation(outcome, outcome=outcome, started_at=START + n, error=ERROR)], [], [])
        found = await store.records.last_error(NS, NAME)
        assert found is not None
        assert (found.id, found.error) == (outcome, ERROR)
    blameless = [
        invocation(outcome, outcome=outcome, started_at=START + 10) for outcome in ("ok", "client_gone", "rejected")
    ]
    await store.records.append([*blameless, invocation("x", function="other", outcome="timeout")], [], [])
    found = await store.records.last_error(NS, NAME)
    assert found is not None
    assert found.id == "platform_error"


async def test_the_last_errors_of_several_functions_are_those_of_each(store: Store) -> None:
    one, two, well = [(await store.functions.put(NS, name, {}))[0].id for name in ("one", "two", "well")]
    elsewhere = (await store.functions.put("elsewhere", "one", {}))[0].id
    rows = [
        invocation("1", function="one", outcome="timeout"),
        invocation("2", function="one", outcome="timeout", started_at=START + 1),
        invocation("3", function="one", outcome="rejected", started_at=START + 2),
        invocation("4", function="two", outcome="function_error", error=ERROR),
        invocation("5", function="well"),
        invocation("6", function="one", namespace="elsewhere", outcome="timeout", started_at=START + 9),
    ]
    await store.records.append(rows, [], [])
    found = await store.records.last_errors([one, two, well, 77])
    assert {function_id: error.id for function_id, error in found.items()} == {one: "2", two: "4"}
    assert found[two] == await store.records.last_error(NS, "two")
    assert list(await store.records.last_errors([elsewhere])) == [elsewhere]
    assert await store.records.last_errors([]) == {}


async def test_a_line_comes_back_as_it_was_with_its_position(store: Store) -> None:
    row = line("hëllo", invocation="a", version=3, stream="log", level="ERROR", at=START + 0.25)
    await store.records.append([], [row, line("second", invocation="a")], [])
    first, second = await store.records.lines_of("a")
    assert first == LogLine(*row, seq=first.seq)
    assert second.seq > first.seq > 0
    assert [found.text for found in await store.records.lines_of("a", 1)] == ["hëllo"]


async def test_lines_outside_calls_belong_to_no_invocation(store: Store) -> None:
    await store.records.append([], [line("while loading")], [])
    assert await store.records.lines_of("") == []
    assert len(await logs(store)) == 1


async def logs(store: Store, **wanted: Any) -> list[LogLine]:
    values: dict[str, Any] = {"since": None, "after_seq": 0, "level": None, "version": None, "limit": 100}
    return await store.records.logs(NS, NAME, **values | wanted)


async def test_without_a_position_the_last_lines_oldest_first(store: Store) -> None:
    await store.records.append([], [line(f"{n}") for n in range(5)] + [line("theirs", function="other")], [])
    assert [found.text for found in await logs(store, limit=3)] == ["2", "3", "4"]


async def test_following_from_a_position_misses_and_repeats_nothing(store: Store) -> None:
    """Also lines that arrive late, with an earlier time than those before them."""
    await store.records.append([], [line(f"{n}", at=START + n) for n in range(3)], [])
    seen = await logs(store)
    await store.records.append([], [line("late", at=START - 100), line("3", at=START + 3)], [])
    await store.records.append([], [line("theirs", function="other"), line("4", at=START + 4)], [])
    while more := await logs(store, after_seq=seen[-1].seq, limit=2):
        seen += more
    assert [found.text for found in seen] == ["0", "1", "2", "late", "3", "4"]


async def test_positions_go_on_growing_after_everything_was_removed(store: Store) -> None:
    await store.records.append([], [line("one"), line("two")], [])
    last = (await logs(store))[-1].seq
    assert await store.records.prune(START + 1, 1 << 40) == 2
    await store.records.append([], [line("three")], [])
    assert [found.text for found in await logs(store, after_seq=last)] == ["three"]


async def test_since_starts_at_the_first_line_of_that_time(store: Store) -> None:
    await store.records.append([], [line(f"{n}", at=START + n) for n in range(6)], [])
    page = await logs(store, since=START + 2, limit=2)
    assert [found.text for found in page] == ["2", "3"]
    rest = await logs(store, since=START + 2, after_seq=page[-1].seq)
    assert [found.text for found in rest] == ["4", "5"]
    assert await logs(store, since=START + 7) == []


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("DEBUG", "DIWEC"),
        ("INFO", "IWEC"),
        ("WARNING", "WEC"),
        ("ERROR", "EC"),
        ("CRITICAL", "C"),
        ("warning", "WEC"),
        (None, "DIWEC"),
    ],
)
async def test_a_level_means_that_level_and_above(store: Store, level: str | None, expected: str) -> None:
    levels = ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
    await store.records.append([], [line(level[0], level=level) for level in levels], [])
    assert "".join(found.text for found in await logs(store, level=level)) == expected


async def test_lines_of_one_version(store: Store) -> None:
    await store.records.append([], [line("one"), line("two", version=2)], [])
    assert [found.text for found in await logs(store, version=2)] == ["two"]


@pytest.mark.parametrize("wanted", [{"level": "LOUD"}, {"level": ""}, {"version": 2**31}, {"limit": 0}])
async def test_bad_questions_about_logs_are_invalid(store: Store, wanted: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        await logs(store, **wanted)


async def test_slots_come_back_as_they_were_oldest_first(store: Store) -> None:
    later, first, same = slot(START + 10), slot(START), slot(START, node="n2", histogram={}, outcomes={})
    await store.records.append([], [], [later, first])
    await store.records.append([], [], [same, slot(START, function="other"), slot(START + 20)])
    assert await store.records.slots(NS, NAME, START, START + 20) == [first, same, later]
    assert await store.records.slots(NS, NAME, START + 1, START + 10) == []
