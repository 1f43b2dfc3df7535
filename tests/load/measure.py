"""Numbers and how they are shown: wrk and its output, medians over interleaved rounds, tables."""

from __future__ import annotations

import math
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stack import Failure

_LATENCY = r"^\s+{}%\s+([\d.]+)(us|ms|s|m)$"
_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
_SOCKET = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")


class Unavailable(Failure):
    """Something that a measurement needs is not there; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk saw. `failed`: answers but 2xx and 3xx, and connections that broke."""

    rps: float
    p50_ms: float
    p99_ms: float
    failed: int


@dataclass(slots=True)
class Report:
    """What a scenario found: rows of a table, remarks, and what must not have happened."""

    name: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"rows": rows, "notes": self.notes, "failures": self.failures}

    def show(self) -> str:
        cells = [self.columns, *(tuple(_shown(cell) for cell in row) for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.columns))]
        lines = [f"\n== {self.name}"]
        for row in cells:
            padded = (f"{row[0]:<{widths[0]}}", *(f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True)))
            lines.append("  ".join(padded))
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  FAILED: {failure}" for failure in self.failures]
        return "\n".join(lines)


def _shown(cell: Any) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if cell >= 1000 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def wrk(url: str, connections: int, seconds: float) -> Load:
    """Load `url` from one thread over `connections` connections."""
    if shutil.which("wrk") is None:
        raise Unavailable("wrk is not installed: install it, for example with `apt-get install wrk`.")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{math.ceil(seconds)}s", "--timeout", "10s", "--latency", url]
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
    subjects: dict[str, str], rounds: int, connections: int, seconds: float, say: Callable[[str], None]
) -> dict[str, list[Load]]:
    """Load each subject (name -> URL) in turn, `rounds` times over, so that a noisy minute hits them all."""
    for url in subjects.values():
        wrk(url, connections, 1)
    found: dict[str, list[Load]] = {name: [] for name in subjects}
    for turn in range(1, rounds + 1):
        for name, url in subjects.items():
            found[name].append(wrk(url, connections, seconds))
        say(
            f"round {turn} of {rounds}: " + ", ".join(f"{name} {loads[-1].rps:,.0f}/s" for name, loads in found.items())
        )
    return found


def ratio(loads: Sequence[Load], reference: Sequence[Load]) -> float:
    """Requests per second against a reference, each compared with its own round."""
    return statistics.median(a.rps / b.rps for a, b in zip(loads, reference, strict=True))


def compare(name: str, found: dict[str, list[Load]], reference: str) -> Report:
    """A table of medians with the ratio to `reference`."""
    report = Report(name, ("subject", "req/s", "p50 ms", "p99 ms", f"of {reference}", "failed"))
    for subject, loads in found.items():
        medians = [statistics.median(getattr(load, key) for load in loads) for key in ("rps", "p50_ms", "p99_ms")]
        failed = sum(load.failed for load in loads)
        report.rows.append((subject, *medians, ratio(loads, found[reference]), failed))
        if failed and subject == "headrace":
            report.failures.append(f"{failed} requests to Headrace failed.")
    return report


def quantile(values: Sequence[float], q: float) -> float:
    """The nearest-rank quantile; NaN of nothing."""
    return sorted(values)[max(math.ceil(q * len(values)), 1) - 1] if values else math.nan
