"""Durations as log buckets, and what a stretch of time looked like, from the slots that nodes wrote.

The buckets are those of HdrHistogram (G. Tene): every power of two is cut into the same number of equal parts, so a
value's bucket is its exponent and the head of its mantissa, read off with `math.frexp`. As in DDSketch (Masson, Rim,
Lee, VLDB 2019) what a bucket answers with lies between its ends so that the relative error is the same at both:
with 16 parts at most 1/33, about 3 %. Buckets merge by adding counts, so slots of any nodes and times combine
exactly. Bucket numbers are stored in the database: changing them needs a migration.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import Invalid
from headrace.model import SLOT_S, MetricSlot

PARTS = 16  # buckets of one power of two
LOWEST_MS = 2.0**-10  # shorter durations, about 1 us, share bucket 0
HIGHEST_MS = 2.0**21  # this, about 35 minutes, and longer share the last bucket
_LOWEST_EXPONENT = -9  # of LOWEST_MS, as frexp counts: LOWEST_MS == 0.5 * 2**-9
# exponent * PARTS + int(mantissa * 2 * PARTS), minus this, is 1 for LOWEST_MS
OFFSET = _LOWEST_EXPONENT * PARTS + PARTS - 1
BUCKETS = 31 * PARTS + 2  # 31 octaves from LOWEST_MS to HIGHEST_MS, and what lies outside
MOST_POINTS = 1_440  # of one series
RELATIVE_ERROR = 1 / (2 * PARTS + 1)


def bucket(ms: float) -> int:
    """The bucket, 0 to `BUCKETS - 1`, of a duration in milliseconds."""
    if LOWEST_MS <= ms < HIGHEST_MS:
        mantissa, exponent = math.frexp(ms)
        return exponent * PARTS + int(mantissa * (2 * PARTS)) - OFFSET
    return 0 if ms < LOWEST_MS else BUCKETS - 1


def bounds(number: int) -> tuple[float, float]:
    """The durations of bucket `number`: from (included) and to (excluded), milliseconds."""
    if number <= 0:
        return 0.0, LOWEST_MS
    if number >= BUCKETS - 1:
        return HIGHEST_MS, math.inf
    octave, part = divmod(number - 1, PARTS)
    low = math.ldexp(LOWEST_MS, octave)
    return low * (1 + part / PARTS), low * (1 + (part + 1) / PARTS)


class Histogram:
    """Counts of durations by bucket."""

    __slots__ = ("counts",)

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: Counter[int] = Counter(counts or {})

    def __repr__(self) -> str:
        return f"Histogram({dict(sorted(self.counts.items()))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.counts == other.counts

    __hash__ = None  # type: ignore[assignment]

    def record(self, ms: float) -> None:
        self.counts[bucket(ms)] += 1

    def merge(self, counts: Mapping[int, int]) -> None:
        """Add the counts of another histogram."""
        self.counts.update(counts)

    @property
    def total(self) -> int:
        return self.counts.total()

    def percentile(self, q: float) -> float | None:
        """The duration, milliseconds, that a share `q` (0 to 1) of the recorded ones did not exceed; None when empty.

        The nearest-rank percentile, off by at most `RELATIVE_ERROR` between `LOWEST_MS` and `HIGHEST_MS`.
        """
        rank = max(math.ceil(q * self.total), 1)
        for number in sorted(self.counts):
            rank -= self.counts[number]
            if rank <= 0:
                return _middle(number)
        return None

    def below(self, edges: Sequence[float]) -> list[int]:
        """How many were shorter than each of `edges`, which ascend and are ends of buckets, such as powers of two."""
        numbers = sorted(self.counts, reverse=True)
        seen, answer = 0, []
        for edge in map(bucket, edges):
            while numbers and numbers[-1] < edge:
                seen += self.counts[numbers.pop()]
            answer.append(seen)
        return answer


def _middle(number: int) -> float:
    low, high = bounds(number)
    return low if math.isinf(high) else 2 * low * high / (low + high)


# -- what a stretch of time looked like


class _Sum:
    """Slots added up. Concurrency and instances add across nodes and versions, and peak across time."""

    __slots__ = ("cold_starts", "concurrency", "histogram", "instances", "max_ms", "outcomes", "throttled")

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.cold_starts = 0
        self.throttled = 0
        self.histogram = Histogram()
        self.max_ms = 0.0
        self.concurrency: Counter[float] = Counter()  # by the slot's start
        self.instances: Counter[float] = Counter()

    def add(self, slot: MetricSlot) -> None:
        self.outcomes.update(slot.outcomes)
        self.cold_starts += slot.cold_starts
        self.throttled += slot.throttled
        self.histogram.merge(slot.histogram)
        self.max_ms = max(self.max_ms, slot.max_ms)
        self.concurrency[slot.at] += slot.concurrency
        self.instances[slot.at] += slot.instances

    def summary(self) -> dict[str, Any]:
        """As in `summarise`: `max_ms` is exact and bounds the percentiles, which are None without a finished run."""
        return {
            "invocations": self.outcomes.total(),
            "errors": {kind: count for kind, count in sorted(self.outcomes.items()) if kind != "ok" and count},
            "cold_starts": self.cold_starts,
            "throttled": self.throttled,
            "p50_ms": self._percentile(0.50),
            "p95_ms": self._percentile(0.95),
            "p99_ms": self._percentile(0.99),
            "max_ms": round(self.max_ms, 3) if self.histogram.total else None,
            "concurrency": max(self.concurrency.values(), default=0),
            "instances": max(self.instances.values(), default=0),
        }

    def _percentile(self, q: float) -> float | None:
        value = self.histogram.percentile(q)
        return None if value is None else round(min(value, self.max_ms), 3)


def summarise(
    slots: Sequence[MetricSlot], since: float, until: float, step_s: float, by_version: bool
) -> dict[str, Any]:
    """What happened from `since` to `until` (seconds since the epoch), in steps of `step_s` seconds.

    `{"totals": {...}, "series": [{"at": start of the step, ...}, ...]}`, and with `by_version` also `"versions":
    {number: {"totals", "series"}}`. Each summary holds `invocations`, `errors` (outcome -> count), `cold_starts`,
    `throttled`, `p50_ms`, `p95_ms`, `p99_ms`, `max_ms` (None when nothing ran), and the peaks `concurrency` and
    `instances`. A series has one point per step, empty ones too, aligned to multiples of the step.

    Raises `Invalid` for a step that slots can't fill or a series that would be too long.
    """
    _check_steps(since, until, step_s)
    first = math.floor(since / SLOT_S) * SLOT_S
    within = [slot for slot in slots if first <= slot.at < until]
    answer = _totals_and_series(within, since, until, step_s)
    if by_version:
        numbers = sorted({slot.version for slot in within})
        answer["versions"] = {
            number: _totals_and_series([slot for slot in within if slot.version == number], since, until, step_s)
            for number in numbers
        }
    return answer


def _check_steps(since: float, until: float, step_s: float) -> None:
    if not (step_s >= SLOT_S and step_s % SLOT_S == 0):
        raise Invalid(f"step_s {step_s:g} is not possible: use a multiple of {SLOT_S:g} seconds.")
    if not since < until:
        raise Invalid("the window is empty: let it end after it begins.")
    if (until - since) / step_s > MOST_POINTS:
        least = math.ceil((until - since) / MOST_POINTS / SLOT_S) * SLOT_S
        raise Invalid(f"this window has over {MOST_POINTS} steps: use step_s {least:g} or more, or a shorter window.")


def _totals_and_series(slots: Iterable[MetricSlot], since: float, until: float, step_s: float) -> dict[str, Any]:
    first = math.floor(since / step_s)
    steps = [_Sum() for _ in range(first, math.ceil(until / step_s))]
    totals = _Sum()
    for slot in slots:
        totals.add(slot)
        steps[math.floor(slot.at / step_s) - first].add(slot)
    series = [{"at": (first + index) * step_s, **step.summary()} for index, step in enumerate(steps)]
    return {"totals": totals.summary(), "series": series}


# -- Prometheus text


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: a value under labels; `suffix` (`_bucket`, `_sum`, `_count`) follows the family's name."""

    labels: Mapping[str, str]
    value: float
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. `kind` is `counter`, `gauge` or `histogram`; names are `[a-zA-Z_:][a-zA-Z0-9_:]*`."""

    name: str
    kind: str
    help: str
    samples: list[Sample] = field(default_factory=list)

    def add(self, value: float, **labels: str | int) -> None:
        self.samples.append(Sample({name: str(label) for name, label in labels.items()}, value))

    def add_histogram(self, histogram: Histogram, sum_ms: float, **labels: str | int) -> None:
        """In seconds, with a bucket per power of two from a quarter of a millisecond to about a minute."""
        texts = {name: str(label) for name, label in labels.items()}
        for edge, count in zip(_EDGES_MS, histogram.below(_EDGES_MS), strict=True):
            self.samples.append(Sample({**texts, "le": _number(edge / 1000)}, count, "_bucket"))
        self.samples.append(Sample({**texts, "le": "+Inf"}, histogram.total, "_bucket"))
        self.samples.append(Sample(texts, sum_ms / 1000, "_sum"))
        self.samples.append(Sample(texts, histogram.total, "_count"))


_EDGES_MS = tuple(2.0**exponent for exponent in range(-2, 17))


def render(families: Iterable[Family]) -> str:
    """The Prometheus text format, version 0.0.4. Serve it as `text/plain; version=0.0.4; charset=utf-8`."""
    lines: list[str] = []
    for family in families:
        lines.append(f"# HELP {family.name} {_escape(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for sample in family.samples:
            labels = ",".join(f'{name}="{_escape_label(text)}"' for name, text in sample.labels.items())
            shown = f"{{{labels}}}" if labels else ""
            lines.append(f"{family.name}{sample.suffix}{shown} {_number(sample.value)}")
    return "".join(line + "\n" for line in lines)


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _escape_label(text: str) -> str:
    return _escape(text).replace('"', r"\"")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))
