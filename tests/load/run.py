"""Load scenarios: each starts Headrace on a home of its own, measures it beside a reference, prints a table.

    python tests/load/run.py [scenario ...] [--seconds N] [--json FILE]

Machines are noisy, so nothing here passes or fails by a time: subjects take turns, medians are shown, and ratios
compare runs of the same minute. The exit code is 1 when something failed that must not fail under load.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the kit that all tests share

from measure import Options
from scenarios import SCENARIOS

from stack import KEPT, Failure


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Measure Headrace under load.")
    parser.add_argument("scenario", nargs="*", metavar="scenario", help=f"any of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one slice of load; default: 3")
    parser.add_argument("--json", type=Path, help="where to keep the results; default: .headrace/load/<time>.json")
    options = parser.parse_args(arguments)
    if unknown := set(options.scenario) - SCENARIOS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    if not 1 <= options.seconds <= 60:
        parser.error("--seconds must be from 1 to 60")
    names = options.scenario or list(SCENARIOS)
    results: dict[str, Any] = {"machine": machine(), "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    failed = False
    for name in names:
        print(f"-- {name}", flush=True)
        before = load()
        try:
            report = SCENARIOS[name](Options(options.seconds, say))
        except (Failure, httpx.HTTPError, OSError, subprocess.CalledProcessError) as reason:
            print(f"  FAILED: {type(reason).__name__}: {reason}", flush=True)
            results[name] = {"failures": [str(reason)]}
            failed = True
            continue
        report.notes.append(f"load average of the machine: {before} before, {load()} after")
        print(report.show(), flush=True)
        results[name] = report.as_json()
        failed = failed or bool(report.failures)
    keep(results, options.json)
    return 1 if failed else 0


def say(line: str) -> None:
    print(f"  {line}", flush=True)


def load() -> float:
    """What the machine has been doing during the last minute, others' work included."""
    return round(os.getloadavg()[0], 2)


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "load": load(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def keep(results: dict[str, Any], path: Path | None) -> None:
    path = path or KEPT / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nkept in {path}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
