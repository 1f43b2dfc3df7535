"""The scaler: pure, so every case is a line."""

from __future__ import annotations

import pytest

from headrace.fleet.scaler import Demand, desired, surplus
from headrace.model import VersionConfig


@pytest.mark.parametrize(
    ("in_flight", "waiting", "peak", "traffic", "wanted"),
    [
        (0, 0, 0, False, 0),
        (0, 1, 0, False, 1),
        (10, 0, 10, False, 1),
        (10, 1, 10, False, 2),
        (0, 0, 35, False, 4),
        (500, 0, 0, False, 6),
        (0, 0, 0, True, 2),
        (0, 1, 0, True, 2),
    ],
)
def test_instances_follow_the_calls_between_the_bounds(
    in_flight: int, waiting: int, peak: int, traffic: bool, wanted: int
) -> None:
    config = VersionConfig(concurrency=10, min_instances=2, max_instances=6)
    assert desired(Demand(in_flight, waiting, peak, traffic), config) == wanted


def test_the_longest_idle_stop_first_and_the_floor_stays() -> None:
    idle = {"a": 400.0, "b": 10.0, "c": 500.0, "d": 300.0}
    assert surplus(idle, have=4, floor=2, idle_s=300) == ["c", "a"]
    assert surplus(idle, have=4, floor=0, idle_s=300) == ["c", "a", "d"]
    assert surplus(idle, have=2, floor=2, idle_s=300) == []
