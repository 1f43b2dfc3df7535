"""The recorder in virtual time: what is noted gets written exactly once, or is counted as dropped."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from headrace.model import MetricSlot
from headrace.telemetry.backlog import BATCH, MOST_BYTES
from headrace.telemetry.metrics import Histogram, render
from headrace.telemetry.recorder import FLUSH_S, LONGEST_PAUSE_S, TICK_S, WRITE_S, Recorder
from virtual_time import START, LoopClock, run


class Store:
    """Takes writes; `faults` scripts the next ones: an exception to raise, or an event to wait for first."""

    def __init__(self, *faults: Exception | asyncio.Event) -> None:
        self.faults = list(faults)
        self.broken: Exception | None = None  # raised by every write while set
        self.refuses: set[Any] = set()  # ids of invocations that make any write fail
        self.attempts: list[float] = []
        self.invocations: list[tuple[Any, ...]] = []
        self.lines: list[tuple[Any, ...]] = []
        self.slots: list[MetricSlot] = []

    async def write(self, invocations: list[Any], lines: list[Any], slots: list[MetricSlot]) -> None:
        self.attempts.append(asyncio.get_running_loop().time())
        fault = self.faults.pop(0) if self.faults else self.broken
        if isinstance(fault, asyncio.Event):
            await fault.wait()
        elif fault is not None:
            raise fault
        if self.refuses & {row[0] for row in invocations}:
            raise ValueError("a value is out of range")
        self.invocations += invocations
        self.lines += lines
        self.slots += slots

    @property
    def ids(self) -> list[Any]:
        return [row[0] for row in self.invocations]


def call(id: Any = "a", **fields: Any) -> tuple[Any, ...]:
    values = {
        "id": id,
        "namespace": "default",
        "function": "hello",
        "version": 1,
        "instance": "i1",
        "node": "n1",
        "started_at": START,
        "queue_ms": 0.0,
        "start_ms": 0.0,
        "run_ms": 2.0,
        "status": 200,
        "outcome": "ok",
        "method": "GET",
        "path": "/",
        "bytes_in": 0,
        "bytes_out": 5,
        "error": None,
    }
    assert fields.keys() <= values.keys()
    return tuple({**values, **fields}.values())


def line(text: str) -> tuple[Any, ...]:
    return (START, "default", "hello", 1, "a", "i1", "stdout", "INFO", text)


class Running:
    """A recorder with its flusher running; the end of the block stops it as a node does."""

    def __init__(self, store: Store, capacity: int = 100_000) -> None:
        self.recorder = Recorder(store.write, LoopClock(), "n1", capacity)

    async def __aenter__(self) -> Recorder:
        self._flusher = asyncio.get_running_loop().create_task(self.recorder.run())
        await asyncio.sleep(0)
        return self.recorder

    async def __aexit__(self, *_: object) -> None:
        self._flusher.cancel()
        await asyncio.gather(self._flusher, return_exceptions=True)
        await self.recorder.flush()


# -- writing


def test_what_is_noted_is_written_within_a_tick_as_it_was() -> None:
    async def scenario() -> None:
        store = Store()
        async with Running(store) as recorder:
            recorder.invocation(call("a"))
            recorder.line(line("hello"))
            await asyncio.sleep(TICK_S + 0.001)
            assert store.invocations == [call("a")]
            assert store.lines == [line("hello")]
            await asyncio.sleep(5)
            assert len(store.attempts) == 1

    run(scenario())


@pytest.mark.parametrize("kind", ["invocation", "line"])
def test_a_crowd_is_written_before_the_tick(kind: str) -> None:
    async def scenario() -> None:
        store = Store()
        async with Running(store) as recorder:
            await asyncio.sleep(TICK_S / 2)
            for number in range(BATCH - 1):
                recorder.invocation(call(number)) if kind == "invocation" else recorder.line(line("x"))
            await asyncio.sleep(TICK_S / 4)
            assert not store.attempts
            recorder.invocation(call("last")) if kind == "invocation" else recorder.line(line("x"))
            await asyncio.sleep(0.001)
            assert store.attempts == [TICK_S * 3 / 4]
            assert len(store.invocations) + len(store.lines) == BATCH

    run(scenario())


def test_a_burst_is_written_in_order_in_bounded_batches_without_waiting_between() -> None:
    async def scenario() -> None:
        store = Store()
        async with Running(store) as recorder:
            for number in range(3 * BATCH + 5):
                recorder.invocation(call(number))
            await asyncio.sleep(0.001)
            assert store.ids == list(range(3 * BATCH + 5))
            assert len(store.attempts) == 4

    run(scenario())


# -- metric slots


def test_a_slot_counts_what_happened_and_closes_by_the_clock() -> None:
    async def scenario() -> MetricSlot:
        store = Store()
        async with Running(store) as recorder:
            recorder.invocation(call("cold", queue_ms=1.0, start_ms=170.0, run_ms=29.0))
            recorder.invocation(call("slow", run_ms=900.0, outcome="timeout", status=504))
            recorder.invocation(call("full", run_ms=0.0, outcome="rejected", status=429))
            recorder.invocation(call("none", run_ms=0.0, outcome="rejected", status=503))
            recorder.invocation(call("large", run_ms=0.0, outcome="rejected", status=413))
            recorder.gauge("default", "hello", 1, 2, 3)
            recorder.gauge("default", "hello", 1, 7, 1)
            await asyncio.sleep(9.9)
            assert not store.slots
            await asyncio.sleep(0.1 + 2 * TICK_S)
            assert len(store.slots) == 1
            return store.slots[0]

    ran = Histogram()
    ran.record(200.0)
    ran.record(900.0)
    assert run(scenario()) == MetricSlot(
        at=START,
        node="n1",
        namespace="default",
        function="hello",
        version=1,
        outcomes={"ok": 1, "timeout": 1, "rejected": 3},
        cold_starts=1,
        throttled=2,
        histogram=dict(ran.counts),
        max_ms=900.0,
        concurrency=7,
        instances=3,
    )


def test_slots_are_per_version_and_quiet_ones_are_not_written() -> None:
    async def scenario() -> list[MetricSlot]:
        store = Store()
        async with Running(store) as recorder:
            recorder.invocation(call("a"))
            recorder.invocation(call("b", version=2))
            recorder.gauge("default", "idle", 1, 0, 0)
            await asyncio.sleep(25)
            recorder.invocation(call("c", version=2))
        return store.slots

    slots = run(scenario())
    assert [(slot.at - START, slot.version, slot.outcomes) for slot in slots] == [
        (0.0, 1, {"ok": 1}),
        (0.0, 2, {"ok": 1}),
        (20.0, 2, {"ok": 1}),
    ]


@pytest.mark.parametrize("ms", [0.0, 0.0005, 0.3, 1.0, 77.7, 1e9])
def test_the_hot_path_finds_the_same_bucket_as_the_histogram(ms: float) -> None:
    async def scenario() -> dict[int, int]:
        store = Store()
        async with Running(store) as recorder:
            recorder.invocation(call(run_ms=ms))
        return store.slots[0].histogram

    expected = Histogram()
    expected.record(ms)
    assert run(scenario()) == expected.counts


def test_slots_close_on_time_while_a_write_is_under_way() -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        store = Store(gate)
        async with Running(store) as recorder:
            recorder.invocation(call("a"))
            await asyncio.sleep(15)
            recorder.invocation(call("b"))
            gate.set()
        assert [slot.at - START for slot in store.slots] == [0.0, 10.0]
        assert store.ids == ["a", "b"]

    run(scenario())


# -- failures


def test_a_failed_write_is_kept_and_tried_again_with_growing_pauses(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        store = Store(*[OSError("disk full")] * 9)
        async with Running(store) as recorder:
            for number in range(10):
                recorder.invocation(call(number))
            recorder.line(line("kept"))
            await asyncio.sleep(90)
            assert sorted(store.ids) == list(range(10))
            assert store.lines == [line("kept")]
            assert recorder.dropped_invocations == recorder.dropped_lines == 0
        pauses = [after - before for before, after in zip(store.attempts, store.attempts[1:], strict=False)]
        failed = pauses[:9]
        assert failed == pytest.approx([0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0], abs=TICK_S)
        assert max(failed) <= LONGEST_PAUSE_S + TICK_S

    with caplog.at_level(logging.WARNING):
        run(scenario())
    assert [record.message for record in caplog.records] == [
        "invocations and logs can't be written and are kept for now: OSError('disk full')",
        "invocations and logs are written again; 0 records were dropped",
    ]


def test_calls_during_the_pause_after_a_failure_do_not_hurry_the_next_attempt() -> None:
    async def scenario() -> None:
        store = Store()
        store.broken = OSError("away")
        async with Running(store) as recorder:
            recorder.invocation(call("first"))
            await asyncio.sleep(20)
            before = len(store.attempts)
            for number in range(2 * BATCH):
                recorder.invocation(call(number))
            await asyncio.sleep(LONGEST_PAUSE_S)
            assert len(store.attempts) <= before + 1
            store.broken = None

    run(scenario())


def test_beyond_capacity_the_oldest_are_dropped_counted_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        store = Store()
        store.broken = OSError("away")
        async with Running(store, capacity=10) as recorder:
            for number in range(25):
                recorder.invocation(call(number))
                recorder.line(line(str(number)))
                await asyncio.sleep(1)
            store.broken = None
            await asyncio.sleep(20)
            assert recorder.dropped_invocations + len(store.invocations) == 25
            assert recorder.dropped_lines + len(store.lines) == 25
            assert set(store.ids) >= set(range(15, 25))
            assert {row[8] for row in store.lines} >= {str(number) for number in range(15, 25)}
            assert 0 < recorder.dropped_invocations <= 15 >= recorder.dropped_lines > 0
            assert sum(slot.outcomes["ok"] for slot in store.slots) >= 20  # metrics outlive the records

    with caplog.at_level(logging.WARNING):
        run(scenario())
    assert len(caplog.records) == 2
    assert "dropped" in caplog.records[1].message


def test_records_that_come_too_fast_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        store = Store()
        async with Running(store, capacity=100) as recorder:
            for _ in range(3):
                for number in range(150):
                    recorder.invocation(call(number))
            await asyncio.sleep(1)
            assert recorder.dropped_invocations == 350
            assert len(store.invocations) == 100

    with caplog.at_level(logging.WARNING):
        run(scenario())
    assert [record.message for record in caplog.records] == [
        "invocations and logs come faster than they can be written; the oldest are dropped",
        "invocations and logs are written again; 350 records were dropped",
    ]


def test_one_record_that_the_store_never_takes_does_not_hold_up_the_others() -> None:
    async def scenario() -> None:
        store = Store()
        store.refuses = {700}
        async with Running(store) as recorder:
            for number in range(1000):
                recorder.invocation(call(number))
            await asyncio.sleep(120)
            assert sorted(store.ids) == [number for number in range(1000) if number != 700]
            assert recorder.dropped_invocations == 1
            recorder.invocation(call("next"))
            await asyncio.sleep(1)
            assert store.ids[-1] == "next"

    run(scenario())


def test_a_long_outage_alone_makes_no_record_suspect() -> None:
    async def scenario() -> None:
        store = Store()
        store.broken = OSError("away")
        async with Running(store) as recorder:
            for number in range(5):
                recorder.invocation(call(number))
            await asyncio.sleep(3600)
            store.broken = None
            await asyncio.sleep(30)
            assert sorted(store.ids) == [0, 1, 2, 3, 4]
            assert recorder.dropped_invocations == 0

    run(scenario())


def test_a_write_that_hangs_is_given_up_and_tried_again() -> None:
    async def scenario() -> None:
        store = Store(asyncio.Event())
        async with Running(store) as recorder:
            recorder.invocation(call("a"))
            await asyncio.sleep(WRITE_S + 2)
            assert store.ids == ["a"]

    run(scenario())


# -- stopping


def test_flusher_cancelled_in_the_middle_of_a_write_loses_nothing_and_writes_nothing_twice() -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        store = Store(gate)
        recorder = Recorder(store.write, LoopClock(), "n1")
        flusher = asyncio.get_running_loop().create_task(recorder.run())
        recorder.invocation(call("a"))
        await asyncio.sleep(1)
        recorder.invocation(call("b"))
        flusher.cancel()
        await asyncio.gather(flusher, return_exceptions=True)
        asyncio.get_running_loop().call_later(1, gate.set)
        await recorder.flush()
        assert store.ids == ["a", "b"]
        assert [slot.outcomes for slot in store.slots] == [{"ok": 2}]

    run(scenario())


def test_flush_tries_again_after_a_failure() -> None:
    async def scenario() -> None:
        store = Store(OSError("busy"), OSError("busy"))
        recorder = Recorder(store.write, LoopClock(), "n1")
        recorder.invocation(call("a"))
        await recorder.flush()
        assert store.ids == ["a"]
        assert len(store.slots) == 1

    run(scenario())


@pytest.mark.parametrize("fault", ["hangs", "fails"])
def test_flush_ends_in_time_and_says_what_is_lost(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        store = Store()
        if fault == "hangs":
            store.faults = [asyncio.Event()]
        else:
            store.broken = OSError("away")
        recorder = Recorder(store.write, LoopClock(), "n1")
        flusher = asyncio.get_running_loop().create_task(recorder.run())
        recorder.invocation(call("a"))
        recorder.invocation(call("b"))
        recorder.line(line("x"))
        await asyncio.sleep(1)
        flusher.cancel()
        began = asyncio.get_running_loop().time()
        await recorder.flush()
        assert asyncio.get_running_loop().time() - began <= FLUSH_S + 0.001
        assert store.ids == []

    with caplog.at_level(logging.ERROR):
        run(scenario())
    assert [record.message for record in caplog.records] == [
        "stopping with 4 records that could not be written within 5 s"
    ]


# -- bounds


def test_a_large_error_path_and_line_are_cut_to_their_bounds() -> None:
    async def scenario() -> None:
        store = Store()
        error = {"type": "E" * 1000, "message": 7, "stack": "s" * 1_000_000, "extra": "e" * 1_000_000}
        async with Running(store) as recorder:
            recorder.invocation(call("a", outcome="function_error", status=500, error=error))
            recorder.invocation(call("b", path="/" * 100_000, method="M" * 1000))
            recorder.line(line("l" * 1_000_000))
        kept = store.invocations[0][16]
        assert kept.keys() == {"type", "message", "stack"}
        assert kept["message"] == "7"
        assert len(kept["stack"]) < 70_000
        assert kept["stack"].endswith("... [934464 more characters were cut off]")
        assert len(store.invocations[1][13]) < 3_000
        assert store.invocations[1][12] == "M" * 16
        assert len(store.lines[0][8]) < 70_000
        assert store.slots[0].outcomes == {"ok": 1, "function_error": 1}

    run(scenario())


def test_waiting_lines_and_errors_are_bounded_by_bytes_too() -> None:
    async def scenario() -> None:
        store = Store()
        store.broken = OSError("away")
        text = "x" * (64 << 10)
        error = {"type": "E", "message": "", "stack": text}
        most = MOST_BYTES // len(text)
        async with Running(store) as recorder:
            for number in range(most + 100):
                recorder.line(line(text))
                recorder.invocation(call(number, outcome="function_error", error=error))
            assert 100 <= recorder.dropped_lines <= 105
            assert 100 <= recorder.dropped_invocations <= 105
            store.broken = None

    run(scenario())


# -- totals


def test_families_count_since_the_start_across_slots() -> None:
    async def scenario() -> str:
        async with Running(Store()) as recorder:
            recorder.invocation(call("a", start_ms=100.0))
            await asyncio.sleep(30)
            recorder.invocation(call("b", outcome="timeout", run_ms=3.0))
            page = render(recorder.families())
            assert render(recorder.families()) == page
            return page

    page = run(scenario())
    labels = 'node="n1",namespace="default",function="hello",version="1"'
    assert f'headrace_invocations_total{{{labels},outcome="ok"}} 1\n' in page
    assert f'headrace_invocations_total{{{labels},outcome="timeout"}} 1\n' in page
    assert f"headrace_cold_starts_total{{{labels}}} 1\n" in page
    assert f'headrace_invocation_duration_seconds_bucket{{{labels},le="0.004"}} 1\n' in page
    assert f"headrace_invocation_duration_seconds_sum{{{labels}}} 0.105\n" in page
    assert f"headrace_invocation_duration_seconds_count{{{labels}}} 2\n" in page


def test_versions_not_seen_for_an_hour_leave_the_totals() -> None:
    async def scenario() -> None:
        async with Running(Store()) as recorder:
            recorder.invocation(call("a", version=1))
            await asyncio.sleep(3000)
            recorder.invocation(call("b", version=2))
            await asyncio.sleep(1000)
            page = render(recorder.families())
            assert 'version="2"' in page
            assert 'version="1"' not in page

    run(scenario())
