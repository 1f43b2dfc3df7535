"""A node's keep-alive in virtual time: a heavy-tailed trace of calls, and what a policy makes of it.

The trace has the shape of what providers publish (Shahrad et al., USENIX ATC 2020): a few functions get most of the
calls (Zipf), most are called a few times a day, and calls come in clumps with long silences between them (gaps are
lognormal for one half of the functions, Pareto for the other). It is made from a seed, the same every time.

Policies decide with the platform's own functions: `fleet.scaler.surplus` says which idle instances stop, and
`fleet.worth` which one is given up when the memory is full. Nothing is started but by a call.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, count

from headrace.fleet.scaler import surplus
from headrace.fleet.worth import worth

DAY_S = 86_400.0
LONGEST_S = 86_400.0  # the longest `idle_s` that a version may have

_ZIPF = 1.1
_SIGMA = 2.5  # of the lognormal gaps: their mean is 23 times their median
_PARETO = 1.2
_MEMORY_MB = (128, 128, 128, 256, 256, 512, 1024)
_CONCURRENCY = 10
_SANDBOX_MS = 300.0  # of a start; the rest is the function's own loading
_GRAIN_S = 0.001  # an idle time is over so much later: sums of floats fall short of what they should be
_SHORTEST_S = 1.0
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Kind:
    """One function of the trace: what an instance holds, what starting one takes, how long a call runs."""

    memory_mb: int
    start_ms: float
    run_s: float


@dataclass(frozen=True, slots=True)
class Trace:
    """`calls`: (second, index of the function in `kinds`), by time."""

    kinds: tuple[Kind, ...]
    calls: tuple[tuple[float, int], ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """What a policy cost. `memory_mb` is the average over the whole trace, `cold` counts the calls that had to wait
    for a start, `start_s` is what all starts took; `refused` calls found the memory full of busy instances.
    """

    calls: int
    cold: int
    refused: int
    start_s: float
    memory_mb: float
    peak_mb: int

    @property
    def cold_ratio(self) -> float:
        return self.cold / self.calls


# -- the trace


def make_trace(calls: int, functions: int, seed: int, seconds: float = DAY_S) -> Trace:
    """`calls` calls of `functions` functions within `seconds`."""
    rng = random.Random(seed)
    shares = [1 / (rank + 1) ** _ZIPF for rank in range(functions)]
    rng.shuffle(shares)
    ends = [0, *(round(calls * share / sum(shares)) for share in accumulate(shares))]
    arrivals = [
        (at, function)
        for function in range(functions)
        for at in _times(rng, ends[function + 1] - ends[function], seconds, function % 2 == 0)
    ]
    return Trace(tuple(_kind(rng) for _ in range(functions)), tuple(sorted(arrivals)), seconds)


def _times(rng: random.Random, calls: int, seconds: float, lognormal: bool) -> Iterator[float]:
    """`calls` moments with heavy-tailed gaps, over the whole time."""
    gaps = [rng.lognormvariate(0, _SIGMA) if lognormal else rng.paretovariate(_PARETO) for _ in range(calls + 1)]
    scale = seconds / sum(gaps)
    return (at * scale for at in accumulate(gaps[:calls]))


def _kind(rng: random.Random) -> Kind:
    load_ms = min(rng.lognormvariate(math.log(80), 1.5), 20_000.0)
    run_s = min(rng.lognormvariate(math.log(0.1), 1.0), 30.0)
    return Kind(rng.choice(_MEMORY_MB), _SANDBOX_MS + load_ms, run_s)


# -- policies


def fixed_idle(trace: Trace, idle_s: float) -> Result:
    """Every instance stops when it has been idle for `idle_s`; memory has no bound."""
    return _Node(trace, idle_s, math.inf).run()


def by_worth(trace: Trace, budget_mb: float) -> Result:
    """Instances stay until another needs their memory; the one that is worth least goes first."""
    return _Node(trace, LONGEST_S, budget_mb).run()


def fixed_idle_of(trace: Trace, memory_mb: float) -> tuple[float, Result]:
    """The longest fixed idle time that holds no more memory than this on average, and what it does."""
    return _longest(trace, lambda result: result.memory_mb <= memory_mb)


def fixed_idle_within(trace: Trace, budget_mb: float) -> tuple[float, Result]:
    """The longest fixed idle time that never holds more memory than this, and what it does."""
    return _longest(trace, lambda result: result.peak_mb <= budget_mb)


def _longest(trace: Trace, fits: Callable[[Result], bool]) -> tuple[float, Result]:
    """By bisection. The shortest idle time that is tried, when not even that fits."""
    idle_s, beyond = _SHORTEST_S, LONGEST_S
    found = fixed_idle(trace, idle_s)
    for _ in range(_TRIES):
        middle = math.sqrt(idle_s * beyond)
        result = fixed_idle(trace, middle)
        if fits(result):
            idle_s, found = middle, result
        else:
            beyond = middle
    return idle_s, found


# -- the node


@dataclass(slots=True, eq=False)
class _Instance:
    name: str
    ready_at: float
    in_flight: int = 0
    served: int = 0
    idle_since: float = 0.0


@dataclass(slots=True, eq=False)
class _Version:
    """The instances of one function."""

    kind: Kind
    instances: dict[str, _Instance] = field(default_factory=dict)

    def free(self) -> _Instance | None:
        """The busiest instance with a free slot, so that the others may fall idle."""
        free = [i for i in self.instances.values() if i.in_flight < _CONCURRENCY]
        return max(free, key=lambda i: i.in_flight, default=None)

    def idlest(self) -> _Instance | None:
        """The instance that has been idle longest."""
        idle = [i for i in self.instances.values() if not i.in_flight]
        return min(idle, key=lambda i: i.idle_since, default=None)

    def worth(self, idle_s: float) -> float:
        """Of an instance that has been idle for so long."""
        calls = sum(i.served for i in self.instances.values())
        return worth(idle_s, calls, self.kind.start_ms, self.kind.memory_mb)


_Then = Callable[[_Version, _Instance], None]


class _Node:
    """One run over a trace: `budget_mb` bounds all instances together, an idle one stops after `idle_s`."""

    def __init__(self, trace: Trace, idle_s: float, budget_mb: float) -> None:
        self._trace = trace
        self._versions = [_Version(kind) for kind in trace.kinds]
        self._idle_s = idle_s
        self._budget_mb = budget_mb
        self._numbers = count()
        self._events: list[tuple[float, int, _Then, _Version, _Instance]] = []
        self._now = self._mb_seconds = self._start_s = 0.0
        self._used_mb = self._peak_mb = self._cold = self._refused = 0

    def run(self) -> Result:
        for at, function in self._trace.calls:
            self._advance(at)
            self._call(self._versions[function])
        self._advance(self._trace.seconds)
        average = self._mb_seconds / self._trace.seconds
        return Result(len(self._trace.calls), self._cold, self._refused, self._start_s, average, self._peak_mb)

    # -- time

    def _advance(self, to: float) -> None:
        while self._events and self._events[0][0] <= to:
            at, _, then, version, instance = heapq.heappop(self._events)
            self._pass(at)
            then(version, instance)
        self._pass(to)

    def _pass(self, to: float) -> None:
        self._mb_seconds += self._used_mb * (to - self._now)
        self._now = to

    def _later(self, at: float, then: _Then, version: _Version, instance: _Instance) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), then, version, instance))

    # -- what happens

    def _call(self, version: _Version) -> None:
        instance = version.free() or self._start(version)
        if instance is None:
            self._refused += 1
            return
        self._cold += instance.ready_at > self._now
        instance.in_flight += 1
        instance.served += 1
        self._later(max(self._now, instance.ready_at) + version.kind.run_s, self._end, version, instance)

    def _end(self, version: _Version, instance: _Instance) -> None:
        instance.in_flight -= 1
        if not instance.in_flight:
            instance.idle_since = self._now
            self._later(self._now + self._idle_s + _GRAIN_S, self._look, version, instance)

    def _look(self, version: _Version, _: _Instance) -> None:
        idle = {i.name: self._now - i.idle_since for i in version.instances.values() if not i.in_flight}
        for name in surplus(idle, len(version.instances), 0, self._idle_s):
            self._stop(version, name)

    # -- instances

    def _start(self, version: _Version) -> _Instance | None:
        kind = version.kind
        if not self._make_room(kind.memory_mb):
            return None
        instance = _Instance(str(next(self._numbers)), self._now + kind.start_ms / 1000)
        version.instances[instance.name] = instance
        self._used_mb += kind.memory_mb
        self._peak_mb = max(self._peak_mb, self._used_mb)
        self._start_s += kind.start_ms / 1000
        return instance

    def _stop(self, version: _Version, name: str) -> None:
        del version.instances[name]
        self._used_mb -= version.kind.memory_mb

    def _make_room(self, memory_mb: int) -> bool:
        """Give up idle instances, least worth first, until so much more fits; False: the rest is busy."""
        while self._used_mb + memory_mb > self._budget_mb:
            full = (version for version in self._versions if version.instances)
            idle = [(v.worth(self._now - i.idle_since), v, i.name) for v in full if (i := v.idlest())]
            if not idle:
                return False
            _, version, name = min(idle, key=lambda found: found[0])
            self._stop(version, name)
        return True
