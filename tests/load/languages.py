"""Every runtime with the same small function: its first calls, its calls when warm, and its memory at rest."""

from __future__ import annotations

import re
import statistics
import subprocess
import time
from collections.abc import Callable

from cold import first_call
from measure import Load, Options, Report, Unavailable, interleaved, middle
from resting import wait_until_stopped

from headrace import runtimes
from stack import Headrace, headrace

COLD_CALLS = 8
ROUNDS = 2
CONNECTIONS = 16
MOST_COLD_MS = 40
MOST_MIB = 13  # of an instance at rest

# What answers "hello" in each; a runtime without a line is left out of the table, which says so.
HELLO = {
    "node": ("handler.js", "exports.handler = async () => 'hello';\n"),
    "python": ("handler.py", "def handler(event, context):\n    return 'hello'\n"),
    "shell": ("handler.sh", "echo hello\n"),
}
_MEMORY = re.compile(r"^([\d.]+)(KiB|MiB|GiB)")
_MIB = {"KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0}


def run(options: Options) -> Report:
    columns = ("runtime", "cold p50 ms", "warm p50 ms", "req/s", f"req/s, {CONNECTIONS} connections", "MiB at rest")
    report = Report("runtimes", columns)
    with headrace(prewarm=str(COLD_CALLS)) as platform:
        cold = {name: statistics.median(times) for name, times in _cold(platform, options.say).items()}
        memory = {name: _at_rest(name, platform) for name in HELLO}
        alone, together = _warm(platform, options)
    for name in HELLO:
        one, many = alone[name], together[name]
        warm = middle(one, "p50_ms")
        report.rows.append((name, cold[name], warm, middle(one, "rps"), middle(many, "rps"), memory[name]))
        report.at_most(f"{name}: first call, p50 ms", cold[name], MOST_COLD_MS)
        report.at_most(f"{name}: MiB at rest", memory[name], MOST_MIB)
        if failed := sum(load.failed for load in [*one, *many]):
            report.failures.append(f"{failed} requests to {name} failed.")
    report.notes += [f"there is no figure for the runtime {name}" for name in runtimes.names() if name not in HELLO]
    return report


def _cold(platform: Headrace, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Milliseconds of first calls, by runtime; a generic instance waits for each."""
    names = {runtime: [f"{runtime}-{number}" for number in range(COLD_CALLS)] for runtime in HELLO}
    for runtime, (file, source) in HELLO.items():
        for name in names[runtime]:
            platform.deploy(name, {file: source}, {"runtime": runtime, "idle_s": 1})
    say(f"{sum(map(len, names.values()))} functions are deployed; their instances stop in a minute or two")
    wait_until_stopped(platform, [name for some in names.values() for name in some])
    found: dict[str, list[float]] = {}
    for runtime, some in names.items():
        found[runtime] = []
        for name in some:
            took, timing = first_call(platform.url(name))
            if "start;" not in timing:
                raise Unavailable(f"this was no cold call: {timing!r}")
            found[runtime].append(took)
            say(f"{name}: {took:.1f} ms ({timing})")
            time.sleep(1.0)
    return found


def _warm(platform: Headrace, options: Options) -> tuple[dict[str, list[Load]], dict[str, list[Load]]]:
    """Loads over one connection and over many, by runtime."""
    urls: dict[str, str | list[str]] = {}
    for runtime, (file, source) in HELLO.items():
        platform.deploy(f"warm-{runtime}", {file: source}, {"runtime": runtime, "max_instances": 1, "concurrency": 32})
        urls[runtime] = platform.url(f"warm-{runtime}")
    return tuple(interleaved(urls, ROUNDS, count, options.seconds, options.say) for count in (1, CONNECTIONS))  # type: ignore[return-value]


def _at_rest(runtime: str, platform: Headrace) -> float:
    """The least that the engine counts for a container of `runtime`, MiB: one that waits."""
    names = [name for name, image in platform.images().items() if image.startswith(f"headrace-{runtime}:")]
    command = ["docker", "stats", "--no-stream", "--format", "{{.MemUsage}}", *names]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines() if names else []
    found = [float(match[1]) * _MIB[match[2]] for line in shown if (match := _MEMORY.match(line))]
    if not found:
        raise Unavailable(f"no container of the runtime {runtime} waits.")
    return min(found)
