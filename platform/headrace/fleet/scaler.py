"""How many instances a version should have: a pure function of what is asked of it.

Concurrency-based, after Knative's autoscaler: instances = calls / calls per instance. Scaling out looks at this
moment, so that a waiting call is never left without an instance that could take it; scaling in looks at when an
instance last had work, so that it keeps its state warm for `idle_s`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from headrace.model import VersionConfig


@dataclass(frozen=True, slots=True)
class Demand:
    """What a version sees: calls running and waiting, now and at the peak since the last look."""

    in_flight: int
    waiting: int
    peak: int
    pinned: bool  # callers asked for an instance to be ready (publish, probe), or traffic keeps min_instances up


def desired(demand: Demand, config: VersionConfig) -> int:
    """Instances wanted now, between `min_instances` (when the version has traffic) and `max_instances`."""
    calls = max(demand.in_flight + demand.waiting, demand.peak)
    wanted = ceil(calls / config.concurrency)
    floor = config.min_instances if demand.pinned else 0
    return max(floor, min(wanted, config.max_instances))


def surplus(idle_for: dict[str, float], have: int, floor: int, idle_s: float) -> list[str]:
    """The instances to stop: those without a call for `idle_s` seconds, longest first, down to `floor`."""
    old = sorted((name for name, idle in idle_for.items() if idle >= idle_s), key=lambda name: -idle_for[name])
    return old[: max(0, have - floor)]
