"""A version that brings an image: warm calls beside the same container called directly, and its cold start.

The reference is the very image, with the same limits, reached on its own address without Headrace.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from measure import Options, Report, Unavailable, compare, interleaved, middle, quantile, ratio
from resting import instances, wait_for_shelf, wait_until_stopped

from headrace.settings import Settings
from stack import ROOT, Headrace, headrace

ROUNDS = 3
CONNECTIONS = 16
COLD_CALLS = 5
OF_DIRECT = 0.1  # req/s
BEYOND_DIRECT_US = 1000  # p50 at 1 connection
COLD_P50_MS = 400
_START_S = 20.0
_CONFIG: dict[str, Any] = {"runtime": "image", "concurrency": 100, "idle_s": 1}
_FILES = {
    "Dockerfile": "ARG HEADRACE_BASE_PYTHON\nFROM ${HEADRACE_BASE_PYTHON}\nCOPY server.py /srv/\n"
    'CMD ["python3", "-u", "/srv/server.py", "quiet"]\n',
    "server.py": (ROOT / "tests" / "e2e" / "image_server.py").read_text(),
}


def run(options: Options) -> Report:
    with headrace() as platform:
        platform.deploy("image", _FILES, _CONFIG)
        with _directly(platform) as address:
            subjects: dict[str, str | list[str]] = {"headrace": platform.url("image"), "direct": address}
            single = interleaved(subjects, ROUNDS, 1, options.seconds, options.say)
            loads = interleaved(subjects, ROUNDS, CONNECTIONS, options.seconds, options.say)
        cold = _cold_starts(platform, options)
    report = compare("image", loads, "direct")
    beyond = (middle(single["headrace"], "p50_ms") - middle(single["direct"], "p50_ms")) * 1000
    report.notes.append(
        f"cold start, {COLD_CALLS} calls: p50 {statistics.median(cold):.0f} ms, most {max(cold):.0f} ms"
    )
    report.at_least("req/s of direct", ratio(loads["headrace"], loads["direct"]), OF_DIRECT)
    report.at_most("p50 beyond direct at 1 connection, us", beyond, BEYOND_DIRECT_US)
    report.at_most("cold start: p50 ms", quantile(cold, 0.5), COLD_P50_MS)
    return report


@contextmanager
def _directly(platform: Headrace) -> Iterator[str]:
    """The image of the version as a container of its own; its address."""
    image = f"headrace-image-{Settings(home=platform.home).home_tag}"
    found = _docker("images", "--quiet", image).split()
    if not found:
        raise Unavailable("the engine has no image of the version.")
    limits = ["--cpus", "1", "--memory", "128m", "--network", platform.sandbox()[1], "--env", "PORT=8080"]
    container = _docker("run", "--detach", "--rm", *limits, found[0])
    try:
        where = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        address = f"http://{_docker('inspect', '--format', where, container)}:8080/"
        deadline = time.monotonic() + _START_S
        while not _answers(address):
            if time.monotonic() > deadline:
                raise Unavailable(f"nothing answers at {address}.")
            time.sleep(0.1)
        yield address
    finally:
        _docker("rm", "--force", container)


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def _cold_starts(platform: Headrace, options: Options) -> list[float]:
    """Milliseconds of first calls of a version without instances and without traffic, its program started for each."""
    number = platform.deploy("cold-image", _FILES, _CONFIG, publish=False)
    times = []
    for _ in range(COLD_CALLS):
        wait_until_stopped(platform, ["cold-image"])
        wait_for_shelf(platform, 1)
        began = time.perf_counter()
        answer = httpx.get(f"{platform.url('cold-image')}@{number}", timeout=60)
        took = (time.perf_counter() - began) * 1000
        if answer.status_code != 200 or "start;" not in answer.headers["server-timing"]:
            raise Unavailable(f"this was no cold call: {answer.status_code} {answer.headers.get('server-timing')}")
        options.say(f"cold: {took:.1f} ms ({answer.headers['server-timing']})")
        times.append(took)
        if not instances(platform, ["cold-image"]):
            raise Unavailable("nothing of the version runs after its call.")
    return times


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()
