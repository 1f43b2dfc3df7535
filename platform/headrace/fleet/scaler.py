"""How many instances a version should have: pure functions of what is asked of it.

Concurrency-based with a stable and a panic window, after Knative's autoscaler (Kubernetes KPA): instances = average
concurrency / (slots of an instance x target use). Three things are asked for at once and the largest wins: the calls
that are here now (a waiting call is never left without an instance to come), the panic window while it asks for twice
what is there, and the stable window. Scaling in follows the stable window alone, so a short lull costs nothing; the
last instances go when they have been idle for `idle_s`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import ceil

from headrace.model import VersionConfig

STABLE_S = 60.0
PANIC_S = 6.0
GRAIN_S = 1.0  # what is nearer in time than this is kept as one stretch
TARGET = 0.7  # part of an instance's slots that should be in use on average
PANIC_AT = 2.0  # the panic window counts when it wants this many times what is there


@dataclass(slots=True)
class History:
    """Average concurrency by stretches of time, for as long as the stable window looks back."""

    _stretches: deque[tuple[float, float, float]] = field(default_factory=deque)  # start, end, call-seconds

    def add(self, start: float, end: float, call_seconds: float) -> None:
        """Between `start` and `end` (seconds) so many call-seconds ran or waited."""
        if self._stretches and end - self._stretches[-1][0] <= GRAIN_S:
            start, _, before = self._stretches.pop()
            call_seconds += before
        if end > start:
            self._stretches.append((start, end, call_seconds))
        while self._stretches and self._stretches[0][1] <= end - STABLE_S:
            self._stretches.popleft()

    def average(self, now: float, window: float) -> float:
        """Average concurrency of the last `window` seconds; what was before the first stretch counts as none."""
        since, total = now - window, 0.0
        for start, end, call_seconds in reversed(self._stretches):
            if end <= since:
                break
            total += call_seconds * (end - max(start, since)) / (end - start)
        return total / window


@dataclass(frozen=True, slots=True)
class Demand:
    """What a version sees. `in_traffic`: an alias points at it, so its `min_instances` count."""

    calls: int  # running and waiting now
    stable: float  # average concurrency of the stable window
    panic: float  # of the panic window
    in_traffic: bool


@dataclass(frozen=True, slots=True)
class Scale:
    """Instances to have at least, and at most (more than `most` are surplus even when they have calls)."""

    wanted: int
    most: int


def scale(demand: Demand, config: VersionConfig, have: int) -> Scale:
    """How many instances `have` should become, between `min_instances` and `max_instances`."""
    floor = config.min_instances if demand.in_traffic else 0
    stable = _instances(demand.stable, config)
    panic = _instances(demand.panic, config)
    wanted = max(ceil(demand.calls / config.concurrency), floor)
    if panic >= PANIC_AT * max(have, 1):
        wanted = max(wanted, panic)
    wanted = min(max(wanted, min(stable, have)), max(config.max_instances, floor))
    return Scale(wanted, max(wanted, stable, panic, floor, 1))


def surplus(idle_for: dict[str, float], have: int, floor: int, idle_s: float) -> list[str]:
    """The instances to stop: those without a call for `idle_s` seconds, longest first, down to `floor`."""
    old = sorted((name for name, idle in idle_for.items() if idle >= idle_s), key=lambda name: -idle_for[name])
    return old[: max(0, have - floor)]


def _instances(concurrency: float, config: VersionConfig) -> int:
    return ceil(concurrency / max(config.concurrency * TARGET, 1.0))
