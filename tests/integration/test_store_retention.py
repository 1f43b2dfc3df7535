"""Retention: what is old goes, then the oldest of what is too much; what remains is whole."""

from __future__ import annotations

import asyncio

import pytest

from headrace.model import MetricSlot
from headrace.store import retention, tables
from headrace.store.records import InvocationFilter
from records_kit import invocation, line
from store_kit import NAME, NS, START, Store

PLENTY = 1 << 40
MIB = 1 << 20


def slot(at: float) -> MetricSlot:
    return MetricSlot(at, "n1", NS, NAME, 1, {"ok": 1}, 0, 0, {3: 1}, 1.0, 1, 1)


async def size(store: Store) -> float:
    async with store.database.connect() as connection:
        return await retention._size(connection)


async def test_what_is_older_goes_and_what_is_not_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_BATCH", 3)
    times = [START + n for n in range(10)]
    await store.records.append(
        [invocation(f"{n}", started_at=at) for n, at in enumerate(times)],
        [line(f"{n}", at=at) for n, at in enumerate(times)],
        [slot(at) for at in times],
    )
    assert await store.records.prune(START + 7, PLENTY) == 21
    invocations = await store.records.invocations(NS, NAME, InvocationFilter(), 100, None)
    assert [found.id for found in invocations.items] == ["9", "8", "7"]
    lines = await store.records.logs(NS, NAME, since=START, after_seq=0, level=None, version=None, limit=100)
    assert [found.text for found in lines] == ["7", "8", "9"]
    assert await store.records.slots(NS, NAME, 0, START + 100) == [slot(at) for at in times[7:]]
    assert await store.records.prune(START + 7, PLENTY) == 0


async def test_a_record_with_a_wrong_time_does_not_keep_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock was years ahead wrote one line among the others."""
    monkeypatch.setattr(retention, "_BATCH", 3)
    times = [START, START + 1e9, START + 1, START + 2, START + 3, START + 4, START + 100]
    await store.records.append([], [line(f"{at}", at=at) for at in times], [])
    assert await store.records.prune(START + 50, PLENTY) == 5
    assert await store.count(tables.logs) == 2


async def test_pruning_an_empty_store_is_nothing(store: Store) -> None:
    assert await store.records.prune(START, 0) == 0


async def test_the_oldest_go_until_the_rest_fits(store: Store) -> None:
    for part in range(10):
        at = START + part
        await store.records.append(
            [invocation(f"{part}-{n}", started_at=at) for n in range(500)],
            [line("x" * 400, at=at, invocation=f"{part}-{n}") for n in range(1_000)],
            [slot(at)],
        )
    full = await size(store)
    assert full > 4 * MIB
    removed = await store.records.prune(0, int(full / 2))
    assert 0.35 * 15_010 < removed < 0.65 * 15_010
    assert await size(store) < 0.6 * full
    # The oldest of each kind went, the newest are all there.
    lines = await store.records.logs(NS, NAME, since=START, after_seq=0, level=None, version=None, limit=10_000)
    assert lines[0].at >= START + 3
    assert len([found for found in lines if found.at == START + 9]) == 1_000
    newest = await store.records.invocations(NS, NAME, InvocationFilter(since=START + 9), 1_000, None)
    assert len(newest.items) == 500
    oldest = await store.records.invocations(NS, NAME, InvocationFilter(until=START + 3), 1_000, None)
    assert oldest.items == []


async def test_what_fits_stays(store: Store) -> None:
    await store.records.append([invocation("a")], [line("x")], [slot(START)])
    assert await store.records.prune(0, MIB) == 0
    assert (await store.records.invocation("a")).id == "a"


async def test_build_logs_do_not_push_records_out(store: Store) -> None:
    await store.records.append([invocation("a")], [line("x")], [])
    before = await size(store)
    version = await store.submit()
    for _ in range(4):
        await store.versions.append_log(version.id, ["y" * 1_000] * 500)
    assert await size(store) < before + MIB / 2
    assert await store.records.prune(0, MIB) == 0


async def test_writers_get_their_turn_between_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_BATCH", 10)
    await store.records.append([], [line("old", at=START + n / 1_000) for n in range(1_000)], [])
    pruning = asyncio.create_task(store.records.prune(START + 10, PLENTY))
    written = 0
    while not pruning.done():
        await store.records.append([], [line("new", at=START + 100)], [])
        written += 1
    assert await pruning == 1_000
    assert written > 10
    assert await store.count(tables.logs) == written
