"""The scenarios by name. Each takes the options of the run and returns a report."""

from __future__ import annotations

import http.client
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import moves
import uvloop
from many import register_many
from measure import Report, Unavailable, compare, interleaved, quantile
from references import Answer, running

from stack import Headrace, example, headrace

ROUNDS = 5
COLD_CALLS = 10
TARGET_WARM = 0.20  # of bare Granian, at 32 connections
TARGET_COLD = 2.0  # times `docker run`, on the plain path

_STOPPED_S = 240.0  # within this, instances that nobody calls have stopped
_REFILL_S = 2.0  # the engine comes to rest, and the shelf is full again


@dataclass(frozen=True, slots=True)
class Options:
    """`seconds`: of one slice of load; `say`: progress, one line at a time."""

    seconds: float
    say: Callable[[str], None]


def warm(connections: int, options: Options) -> Report:
    """hello at full speed, beside servers that answer the same bytes."""
    with headrace() as platform:
        files, config = example("hello")
        platform.deploy("hello", files, config)
        found = httpx.get(platform.url("hello"))
        if found.status_code != 200:
            raise Unavailable(f"hello answers {found.status_code}: {found.text}")
        answer = Answer(found.text, found.headers["content-type"])
        with running(answer, True, options.say) as references:
            subjects = {"headrace": platform.url("hello"), **references}
            loads = interleaved(subjects, ROUNDS, connections, options.seconds, options.say)
        report = compare(f"warm-{connections}", loads, "bare")
    if connections == 32:
        report.notes.append(f"target: {TARGET_WARM} of bare Granian")
    return report


def cold(options: Options) -> Report:
    """The first call of a function whose instances have all stopped, beside `docker run` of the same image."""
    report = Report("cold", ("subject", "calls", "p50 ms", "max ms", "of docker run"))
    times: dict[str, list[float]] = {"generic instance waiting": [], "plain path": [], "docker run": []}
    with headrace() as platform:
        _cold_calls(platform, times["generic instance waiting"], options.say, None)
    with headrace(prewarm="0") as platform:
        _cold_calls(platform, times["plain path"], options.say, times["docker run"])
    reference = statistics.median(times["docker run"])
    for subject, values in times.items():
        middle = statistics.median(values)
        report.rows.append((subject, len(values), middle, max(values), middle / reference))
    report.notes.append(f"target: plain path under {TARGET_COLD:g} times docker run")
    return report


def _cold_calls(
    platform: Headrace, times: list[float], say: Callable[[str], None], engine_times: list[float] | None
) -> None:
    """One cold call of each of `COLD_CALLS` functions, so that their instances have to stop only once."""
    files, config = example("hello")
    names = [f"cold-{number}" for number in range(1, COLD_CALLS + 1)]
    for name in names:
        platform.deploy(name, files, {**config, "idle_s": 1, "min_instances": 0})
    image, network = platform.sandbox()
    say(f"{COLD_CALLS} functions are deployed; their instances stop in a minute or two")
    _wait_until_stopped(platform, names)
    for name in names:
        took, timing = _call(platform.url(name))
        times.append(took)
        if engine_times is not None:
            engine_times.append(_docker_run(image, network))
        say(f"{name}: {took:.1f} ms ({timing})")
        time.sleep(_REFILL_S)


def _call(url: str) -> tuple[float, str]:
    """Milliseconds of a cold call over a new connection, and its Server-Timing."""
    address = urlsplit(url)
    began = time.perf_counter()
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    try:
        connection.request("GET", address.path)
        answer = connection.getresponse()
        body = answer.read()
        took = (time.perf_counter() - began) * 1000
    finally:
        connection.close()
    timing = answer.headers.get("server-timing", "")
    if answer.status != 200 or "start;" not in timing:
        raise Unavailable(f"this was no cold call: {answer.status} {timing!r} {body[:200]!r}")
    return took, timing


def _wait_until_stopped(platform: Headrace, names: Sequence[str]) -> None:
    deadline = time.monotonic() + _STOPPED_S
    for name in names:
        while any(platform.ask("GET", f"/functions/{name}")["instances"].values()):
            if time.monotonic() > deadline:
                raise Unavailable(f"instances of {name} still run {_STOPPED_S:g} s after the last call.")
            time.sleep(0.5)
    time.sleep(_REFILL_S)


def _docker_run(image: str, network: str) -> float:
    """Milliseconds of a container that says hello and is removed, on the network that instances use."""
    began = time.perf_counter()
    command = ["docker", "run", "--rm", "--network", network, image, "python3", "-c", "print('hello')"]
    subprocess.run(command, check=True, capture_output=True)
    return (time.perf_counter() - began) * 1000


def under_moves(options: Options) -> Report:
    """200 publishes and rollbacks under constant load."""
    with headrace() as platform:
        return uvloop.run(moves.run(platform, options.seconds, options.say))


def many(options: Options) -> Report:
    """10,000 functions registered: what they cost the node and the warm path."""
    report = Report("many", ("functions", "of bare", "req/s", "p50 ms", "p99 ms", "node MiB", "list page ms"))
    with headrace() as platform:
        files, config = example("hello")
        platform.deploy("hello", files, config)
        answer = httpx.get(platform.url("hello"))
        with running(Answer(answer.text, answer.headers["content-type"]), False, options.say) as references:
            subjects = {"headrace": platform.url("hello"), **references}
            for count in (0, 10_000):
                if count:
                    rate = uvloop.run(register_many(platform, count, options.say))
                    report.notes.append(f"registered {rate:,.0f} functions a second")
                loads = interleaved(subjects, 3, 32, options.seconds, options.say)
                _, rps, p50, p99, ratio, failed = compare("many", loads, "bare").rows[0]
                page = [_page_ms(platform) for _ in range(5)]
                node = platform.memory_mb("node")
                report.rows.append((count + 1, ratio, rps, p50, p99, node, quantile(page, 0.5)))
                if failed:
                    report.failures.append(f"{failed} requests failed with {count + 1} functions.")
    grown = (report.rows[1][5] - report.rows[0][5]) * 1024 / 10_000
    report.notes.append(f"{max(grown, 0.0):.2f} KiB of node memory per function")
    return report


def _page_ms(platform: Headrace) -> float:
    began = time.perf_counter()
    platform.ask("GET", "/functions?limit=50")
    return (time.perf_counter() - began) * 1000


SCENARIOS: dict[str, Callable[[Options], Report]] = {
    "warm-32": lambda options: warm(32, options),
    "warm-1": lambda options: warm(1, options),
    "cold": cold,
    "moves": under_moves,
    "many": many,
}
