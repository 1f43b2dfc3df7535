"""What happened per version: in the slot that is open, and since the process started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import get_args

from headrace.clock import Clock
from headrace.model import MetricSlot, Outcome
from headrace.telemetry.metrics import BUCKETS, Family, Histogram

Key = tuple[str, str, int]  # namespace, function, version

FORGET_S = 3_600.0  # a version that nobody called and that had no instance for this long is forgotten
MOST_TOTALS = 1_000  # versions; those seen last stay
_OUTCOMES: tuple[str, ...] = get_args(Outcome)


class Counts:
    """Counters of one version in the open slot. The recorder adds to the fields directly."""

    __slots__ = ("buckets", "cold_starts", "concurrency", "instances", "max_ms", "outcomes", "sum_ms", "throttled")

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(_OUTCOMES, 0)
        self.buckets = [0] * BUCKETS
        self.cold_starts = 0
        self.throttled = 0
        self.sum_ms = 0.0
        self.max_ms = 0.0
        self.concurrency = 0
        self.instances = 0

    def __bool__(self) -> bool:
        return bool(self.concurrency or self.instances or any(self.outcomes.values()))

    @property
    def histogram(self) -> dict[int, int]:
        return {number: count for number, count in enumerate(self.buckets) if count}

    def slot(self, at: float, node: str, key: Key) -> MetricSlot:
        namespace, function, version = key
        return MetricSlot(
            at=at,
            node=node,
            namespace=namespace,
            function=function,
            version=version,
            outcomes={outcome: count for outcome, count in self.outcomes.items() if count},
            cold_starts=self.cold_starts,
            throttled=self.throttled,
            histogram=self.histogram,
            max_ms=self.max_ms,
            concurrency=self.concurrency,
            instances=self.instances,
        )


class _Total:
    """Counters of one version since the process started."""

    __slots__ = ("cold_starts", "histogram", "outcomes", "seen_at", "sum_ms")

    def __init__(self, seen_at: float) -> None:
        self.outcomes: Counter[str] = Counter()
        self.cold_starts = 0
        self.histogram = Histogram()
        self.sum_ms = 0.0
        self.seen_at = seen_at

    def copy(self) -> _Total:
        twin = _Total(self.seen_at)
        twin.outcomes.update(self.outcomes)
        twin.cold_starts = self.cold_starts
        twin.histogram.merge(self.histogram.counts)
        twin.sum_ms = self.sum_ms
        return twin

    def add(self, counts: Counts) -> None:
        self.outcomes.update(counts.outcomes)
        self.cold_starts += counts.cold_starts
        self.histogram.merge(counts.histogram)
        self.sum_ms += counts.sum_ms


class Totals:
    """The versions seen last: within `FORGET_S`, `MOST_TOTALS` at most. One that comes back starts at zero again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_version: dict[Key, _Total] = {}

    def add(self, key: Key, counts: Counts) -> None:
        now = self._clock.monotonic()
        total = self._by_version.setdefault(key, _Total(now))
        total.add(counts)
        total.seen_at = now

    def forget_old(self) -> None:
        oldest = self._clock.monotonic() - FORGET_S
        recent = sorted(self._by_version.items(), key=lambda item: item[1].seen_at, reverse=True)[:MOST_TOTALS]
        self._by_version = {key: total for key, total in recent if total.seen_at >= oldest}

    def families(self, active: Mapping[Key, Counts], node: str) -> list[Family]:
        """The totals with the open slot `active` added."""
        calls = Family("headrace_invocations_total", "counter", "Finished calls, by how they ended.")
        cold = Family("headrace_cold_starts_total", "counter", "Calls that waited for an instance to start.")
        seconds = Family("headrace_invocation_duration_seconds", "histogram", "Queue, start and run of calls that ran.")
        for key in sorted(self._by_version.keys() | active.keys()):
            known = self._by_version.get(key)
            total = _Total(0.0) if known is None else known.copy()
            if key in active:
                total.add(active[key])
            labels = {"node": node, "namespace": key[0], "function": key[1], "version": str(key[2])}
            for outcome in _OUTCOMES:
                calls.add(total.outcomes[outcome], **labels, outcome=outcome)
            cold.add(total.cold_starts, **labels)
            seconds.add_histogram(total.histogram, total.sum_ms, **labels)
        return [calls, cold, seconds]
