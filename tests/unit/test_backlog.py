"""Whatever order of writes, failures and cancellations: an item is waiting, written or dropped, and only one of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.telemetry.backlog import BATCH, BATCH_BYTES, Backlog, Ring


def row(id: int) -> tuple[Any, ...]:
    return (id, *[None] * 12, "/", 0, 0, None)


def line(id: int) -> tuple[Any, ...]:
    return (*[id] * 8, "text")


Step = tuple[str, int]
steps = st.lists(st.tuples(st.sampled_from(["row", "line", "accept", "refuse", "cancel"]), st.integers(1, 50)))


@given(steps)
def test_nothing_is_lost_or_doubled(script: list[Step]) -> None:
    backlog, put, written = Backlog(40), 0, 0
    for what, times in script:
        for _ in range(times if what in ("row", "line") else 1):
            if what == "row":
                backlog.invocations.put(row(put))
                put += 1
                continue
            if what == "line":
                backlog.lines.put(line(put))
                put += 1
                continue
            batch = backlog.take()
            if batch.size == 0:
                assert backlog.waiting == 0
            elif what == "accept":
                written += batch.size
                backlog.accepted()
            elif what == "refuse":
                backlog.refused(batch)
            else:
                backlog.give_back(batch)
        assert put == written + backlog.dropped + backlog.waiting
        assert len(backlog.invocations) <= 40 >= len(backlog.lines)
    assert backlog.invocations.bytes == 0


@given(st.integers(1, 3_000), st.data())
def test_exactly_the_items_that_the_store_refuses_are_dropped(count: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, count - 1), max_size=4))
    backlog = Backlog(10_000)
    for number in range(count):
        backlog.invocations.put(row(number))
    written: Counter[int] = Counter()
    rounds = 0
    while backlog.dropped < len(bad) or sum(written.values()) < count - len(bad):
        rounds += 1
        assert rounds < 300, backlog
        if not rounds % 10:
            backlog.lines.put(line(rounds))  # something good always comes
        batch = backlog.take()
        if any(item[0] in bad for item in batch.invocations):
            backlog.refused(batch)
        else:
            written.update(item[0] for item in batch.invocations)
            backlog.accepted()
    assert written == Counter(number for number in range(count) if number not in bad)
    assert backlog.invocations.dropped == len(bad)


def test_an_outage_drops_nothing() -> None:
    backlog = Backlog(1_000)
    for number in range(300):
        backlog.invocations.put(row(number))
    for _ in range(1_000):
        backlog.refused(backlog.take())
    written: list[int] = []
    while (batch := backlog.take()).size:
        written += [item[0] for item in batch.invocations]
        backlog.accepted()
    assert sorted(written) == list(range(300))
    assert backlog.dropped == 0


def test_a_batch_is_bounded_by_count_and_bytes() -> None:
    ring: Ring[str] = Ring(10_000, 1 << 30, len)
    text = "x" * (1 << 20)
    for _ in range(100):
        ring.put(text)
    assert len(ring.take(BATCH)) == BATCH_BYTES >> 20
    assert ring.bytes == 92 << 20
    assert len(ring.take(3)) == 3
