"""The scaler: pure, so every case is a line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.fleet.scaler import PANIC_S, STABLE_S, Demand, History, scale, surplus
from headrace.model import VersionConfig


@pytest.mark.parametrize(
    ("calls", "stable", "panic", "traffic", "have", "wanted", "most"),
    [
        (0, 0, 0, False, 0, 0, 1),
        (1, 0, 0, False, 0, 1, 1),
        (10, 0, 0, False, 1, 1, 1),
        (11, 0, 0, False, 1, 2, 2),
        (500, 0, 0, False, 1, 6, 6),
        (0, 0, 0, True, 0, 2, 2),
        (5, 10, 10, False, 2, 2, 2),
        (5, 5, 28, False, 2, 4, 4),
        (5, 5, 20, False, 2, 1, 3),
        (0, 21, 0, False, 5, 3, 3),
        (0, 21, 0, False, 2, 2, 3),
    ],
    ids=[
        "nothing",
        "first call",
        "one is enough",
        "one call waits",
        "never beyond max_instances",
        "min_instances with traffic",
        "steady",
        "panic: twice what is there",
        "busy but no panic",
        "a lull keeps what the stable window used",
        "the stable window alone does not grow it",
    ],
)
def test_what_the_windows_and_the_calls_of_this_moment_ask_for(
    calls: int, stable: float, panic: float, traffic: bool, have: int, wanted: int, most: int
) -> None:
    config = VersionConfig(concurrency=10, min_instances=2, max_instances=6)
    decided = scale(Demand(calls, stable, panic, traffic), config, have)
    assert (decided.wanted, decided.most) == (wanted, most)


@given(
    calls=st.integers(0, 10_000),
    stable=st.floats(0, 10_000),
    panic=st.floats(0, 10_000),
    have=st.integers(0, 100),
    least=st.integers(0, 5),
    more=st.integers(1, 50),
    concurrency=st.integers(1, 100),
)
def test_bounds_hold_whatever_is_asked(
    calls: int, stable: float, panic: float, have: int, least: int, more: int, concurrency: int
) -> None:
    config = VersionConfig(concurrency=concurrency, min_instances=least, max_instances=least + more)
    decided = scale(Demand(calls, stable, panic, True), config, have)
    assert least <= decided.wanted <= least + more
    assert decided.most >= 1
    if calls > have * concurrency and have < least + more:
        assert decided.wanted > have, "a call waits and nothing is started for it"


def test_history_averages_over_a_window_and_forgets() -> None:
    history = History()
    for second in range(100):
        history.add(float(second), second + 1.0, 4.0 if second < 90 else 0.0)
    assert history.average(100.0, PANIC_S) == 0
    assert history.average(100.0, 20.0) == pytest.approx(2.0)
    assert history.average(100.0, STABLE_S) == pytest.approx(4.0 * 50 / 60)
    assert len(history._stretches) <= STABLE_S + 1


def test_history_of_a_burst_of_looks_stays_small_and_exact() -> None:
    history = History()
    for look in range(5000):
        history.add(look / 1000, (look + 1) / 1000, 0.002)
    assert len(history._stretches) < 10
    assert history.average(5.0, 5.0) == pytest.approx(2.0)


def test_the_longest_idle_stop_first_and_the_floor_stays() -> None:
    idle = {"a": 400.0, "b": 10.0, "c": 500.0, "d": 300.0}
    assert surplus(idle, have=4, floor=2, idle_s=300) == ["c", "a"]
    assert surplus(idle, have=4, floor=0, idle_s=300) == ["c", "a", "d"]
    assert surplus(idle, have=2, floor=2, idle_s=300) == []
