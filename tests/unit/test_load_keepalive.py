"""The simulation of keep-alive: its books balance, and keep-alive by worth beats a fixed idle time."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from load.keepalive import Kind, Trace, by_worth, fixed_idle, fixed_idle_of, fixed_idle_within, make_trace

SMALL = Kind(memory_mb=100, start_ms=1000, run_s=1)
DEAR = Kind(memory_mb=100, start_ms=10_000, run_s=1)


def test_a_trace_is_the_same_for_a_seed_and_has_the_calls_asked_for() -> None:
    trace = make_trace(3000, 40, seed=1)
    assert trace == make_trace(3000, 40, seed=1)
    assert trace != make_trace(3000, 40, seed=2)
    assert len(trace.calls) == 3000
    assert list(trace.calls) == sorted(trace.calls)
    assert all(0 <= at <= trace.seconds for at, _ in trace.calls)


def test_a_trace_is_heavy_tailed() -> None:
    calls = make_trace(20_000, 100, seed=1).calls
    each = sorted((sum(1 for _, f in calls if f == function) for function in range(100)), reverse=True)
    assert sum(each[:10]) > 0.5 * 20_000, "a tenth of the functions gets most of the calls"
    busiest = max(range(100), key=lambda function: sum(1 for _, f in calls if f == function))
    times = [at for at, function in calls if function == busiest]
    gaps = sorted(b - a for a, b in pairwise(times))
    assert sum(gaps) / len(gaps) > 2 * gaps[len(gaps) // 2], "the mean gap is far above the median"


def test_an_instance_stops_when_its_idle_time_is_over() -> None:
    trace = Trace((SMALL,), ((0.0, 0), (11.0, 0), (30.0, 0)), 100.0)
    result = fixed_idle(trace, 10)
    # Started at 0, ready at 1, busy until 2, warm at 11, busy until 12, stopped at 22; again from 30 to 42.
    assert (result.cold, result.start_s, result.peak_mb) == (2, 2.0, 100)
    assert result.memory_mb == pytest.approx(100 * (22 + 12) / 100, abs=0.01)


def test_calls_that_wait_for_the_same_start_are_cold_and_share_it() -> None:
    result = fixed_idle(Trace((SMALL,), ((0.0, 0), (0.5, 0), (1.5, 0)), 10.0), 60)
    assert (result.cold, result.start_s) == (2, 1.0)


def test_full_slots_start_another_instance() -> None:
    result = fixed_idle(Trace((SMALL,), tuple((0.0, 0) for _ in range(11)), 10.0), 60)
    assert (result.start_s, result.peak_mb) == (2.0, 200)


def test_the_memory_goes_to_what_is_dearest_to_start_again() -> None:
    calls = ((0.0, 0), (20.0, 1), (40.0, 2), (60.0, 0), (80.0, 1))
    result = by_worth(Trace((DEAR, SMALL, SMALL), calls, 100.0), budget_mb=200)
    # Of 0 and 1, the cheap 1 makes room for 2; 0 is still there at 60, and 1 has to start again.
    assert (result.cold, result.start_s, result.peak_mb) == (4, 13.0, 200)


def test_memory_full_of_busy_instances_refuses() -> None:
    result = by_worth(Trace((SMALL, SMALL), ((0.0, 0), (0.5, 1), (5.0, 1)), 10.0), budget_mb=100)
    assert (result.refused, result.cold) == (1, 2)


@pytest.mark.parametrize("seed", range(1, 7))
def test_worth_makes_far_fewer_calls_cold_than_an_idle_time_within_the_same_memory(seed: int) -> None:
    trace = make_trace(6000, 60, seed)
    budget = 0.3 * sum(kind.memory_mb for kind in trace.kinds)
    kept = by_worth(trace, budget)
    _, fixed = fixed_idle_within(trace, budget)
    assert max(kept.peak_mb, fixed.peak_mb) <= budget
    assert kept.refused == 0
    assert kept.cold < 0.6 * fixed.cold
    assert kept.start_s < 0.6 * fixed.start_s


@pytest.mark.parametrize("share", [0.15, 0.4])
def test_worth_is_better_at_the_same_average_over_many_traces(share: float) -> None:
    """An idle time may then hold several times the memory at its peak, and still has more cold calls and starts."""
    kept_s = fixed_s = 0.0
    kept_cold = fixed_cold = 0
    for seed in range(1, 5):
        trace = make_trace(6000, 60, seed)
        kept = by_worth(trace, share * sum(kind.memory_mb for kind in trace.kinds))
        _, fixed = fixed_idle_of(trace, kept.memory_mb)
        assert math.isclose(kept.memory_mb, fixed.memory_mb, rel_tol=0.05)
        kept_s, fixed_s = kept_s + kept.start_s, fixed_s + fixed.start_s
        kept_cold, fixed_cold = kept_cold + kept.cold, fixed_cold + fixed.cold
    assert kept_s < 0.97 * fixed_s
    assert kept_cold < 0.97 * fixed_cold
