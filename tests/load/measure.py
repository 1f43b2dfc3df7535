"""Numbers and how they are shown: wrk and its output, medians over interleaved rounds, tables."""

from __future__ import annotations

import math
import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from stack import Failure

K = TypeVar("K", bound=Hashable)  # what names a subject

_LATENCY = r"^\s+{}%\s+([\d.]+)(us|ms|s|m)$"
_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
_SOCKET = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")


_IN_TURN = """local paths, requests, turn = {{ {} }}, {{}}, 0
init = function() for n, path in ipairs(paths) do requests[n] = wrk.format("GET", path) end end
request = function() turn = turn % #requests + 1 return requests[turn] end
"""


class Unavailable(Failure):
    """Something that a measurement needs is not there; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk saw. `failed`: answers but 2xx and 3xx, and connections that broke."""

    rps: float
    p50_ms: float
    p99_ms: float
    failed: int


@dataclass(frozen=True, slots=True)
class Options:
    """Of a run. `seconds`: of one slice of load; `say`: progress, one line at a time."""

    seconds: float
    say: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure and what it should be: `target` at most, or at least."""

    figure: str
    value: float
    rule: Literal["<=", ">="]
    target: float

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.rule == "<=" else self.value >= self.target

    @property
    def row(self) -> tuple[Any, ...]:
        return self.figure, float(self.value), f"{self.rule} {shown(self.target)}", "met" if self.met else "missed"


@dataclass(slots=True)
class Report:
    """What a scenario found: rows of a table, figures beside their targets, remarks, and what must not have happened.

    A missed target is shown and kept, and is no failure: it may be the machine's.
    """

    name: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def at_most(self, figure: str, value: float, target: float) -> None:
        self.goals.append(Goal(figure, value, "<=", target))

    def at_least(self, figure: str, value: float, target: float) -> None:
        self.goals.append(Goal(figure, value, ">=", target))

    def as_json(self) -> dict[str, Any]:
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        goals = [{**asdict(goal), "met": goal.met} for goal in self.goals]
        return {"rows": rows, "goals": goals, "notes": self.notes, "failures": self.failures}

    def show(self) -> str:
        lines = [f"\n== {self.name}", *_table(self.columns, self.rows)]
        if self.goals:
            lines += ["", *_table(("figure", "value", "target", ""), [goal.row for goal in self.goals])]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  FAILED: {failure}" for failure in self.failures]
        return "\n".join(lines)


def _table(columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> list[str]:
    cells = [columns, *(tuple(shown(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    lines = []
    for row in cells:
        padded = (f"{row[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True)))
        lines.append("  ".join(padded).rstrip())
    return lines


def shown(cell: Any) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if cell >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def wrk(urls: str | list[str], connections: int, seconds: float) -> Load:
    """Load `urls`, in turn when there are several (of one server), from one thread over `connections` connections."""
    if shutil.which("wrk") is None:
        raise Unavailable("wrk is not installed: install it, for example with `apt-get install wrk`.")
    first, *more = [urls] if isinstance(urls, str) else urls
    command = ["wrk", "-t1", f"-c{connections}", f"-d{math.ceil(seconds)}s", "--timeout", "10s", "--latency", first]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if more:
            script.write(_IN_TURN.format(", ".join(f'"{urlsplit(url).path}"' for url in (first, *more))))
            script.flush()
            command[1:1] = ["-s", script.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    if done.returncode:
        raise Unavailable(f"wrk failed: {(done.stderr or done.stdout).strip()}")
    return parse_wrk(done.stdout)


def parse_wrk(output: str) -> Load:
    rps = re.search(r"^Requests/sec:\s+([\d.]+)$", output, re.MULTILINE)
    if rps is None:
        raise Unavailable(f"wrk said something unexpected: {output.strip()[:500]}")
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    broken = _SOCKET.search(output)
    failed = int(refused[1]) if refused else 0
    failed += sum(map(int, broken.groups())) if broken else 0
    return Load(float(rps[1]), _latency(output, 50), _latency(output, 99), failed)


def _latency(output: str, percent: int) -> float:
    found = re.search(_LATENCY.format(percent), output, re.MULTILINE)
    return float(found[1]) * _MS[found[2]] if found else math.nan


def interleaved(
    subjects: Mapping[K, str | list[str]], rounds: int, connections: int, seconds: float, say: Callable[[str], None]
) -> dict[K, list[Load]]:
    """Load each subject (key -> URLs) in turn, `rounds` times over, so that a noisy minute hits them all."""
    for urls in subjects.values():
        wrk(urls, connections, 1)
    found: dict[K, list[Load]] = {subject: [] for subject in subjects}
    for turn in range(1, rounds + 1):
        for subject, urls in subjects.items():
            found[subject].append(wrk(urls, connections, seconds))
        rates = (f"{subject} {loads[-1].rps:,.0f}/s" for subject, loads in found.items())
        say(f"round {turn} of {rounds}: {', '.join(rates)}")
    return found


def ratio(loads: Sequence[Load], reference: Sequence[Load]) -> float:
    """Requests per second against a reference, each compared with its own round."""
    return statistics.median(a.rps / b.rps for a, b in zip(loads, reference, strict=True))


def middle(loads: Sequence[Load], key: str) -> float:
    """The median of one field."""
    return statistics.median(float(getattr(load, key)) for load in loads)


def tail(loads: Sequence[Load]) -> float:
    """How far the slow are from the middle: p99 / p50, each run by itself."""
    return statistics.median(load.p99_ms / load.p50_ms for load in loads)


def compare(name: str, found: dict[str, list[Load]], reference: str) -> Report:
    """A table of medians with the tail and the ratio to `reference`."""
    report = Report(name, ("subject", "req/s", "p50 ms", "p99 ms", "p99/p50", f"of {reference}", "failed"))
    for subject, loads in found.items():
        medians = [middle(loads, key) for key in ("rps", "p50_ms", "p99_ms")]
        failed = sum(load.failed for load in loads)
        report.rows.append((subject, *medians, tail(loads), ratio(loads, found[reference]), failed))
        if failed and subject == "headrace":
            report.failures.append(f"{failed} requests to Headrace failed.")
    return report


def quantile(values: Sequence[float], q: float) -> float:
    """The nearest-rank quantile; NaN of nothing."""
    return sorted(values)[max(math.ceil(q * len(values)), 1) - 1] if values else math.nan
