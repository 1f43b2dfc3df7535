"""First calls: from a waiting generic instance, from nothing, and from a frozen one of a version with dependencies.

The reference is `docker run` of the same image. Each call is made over a connection of its own, and is checked to
have been what it is measured as.
"""

from __future__ import annotations

import http.client
import statistics
import subprocess
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from measure import Options, Report, Unavailable, quantile
from resting import deploy_cold, instances, wait_until_frozen, wait_until_stopped

from stack import Headrace, headrace

POOL_CALLS = 20
PLAIN_CALLS = 10
POOL_P50_MS = 10
POOL_P99_MS = 40
POOL_OF_RUN = 0.05  # of `docker run`
PLAIN_OF_RUN = 2
LAYERED = 8  # functions with dependencies
LAYER_ROUNDS = 3
LAYER_P50_MS = 25

_REFILL_S = 2.0  # the engine comes to rest, and the shelf is full again
_LAYERED_FILES = {
    "handler.py": "import idna\n\n\ndef handler(event, context):\n    return {'version': idna.__version__}\n",
    "requirements.txt": "idna==3.10\n",
}
_LAYERED_CONFIG = {"idle_s": 600}


def run(options: Options) -> Report:
    """The first call of a function whose instances have all stopped."""
    report = Report("cold", ("subject", "calls", "p50 ms", "p99 ms", "of docker run"))
    with headrace() as platform:
        pool, _ = _cold_calls(platform, POOL_CALLS, False, options.say)
    with headrace(prewarm="0") as platform:
        plain, docker = _cold_calls(platform, PLAIN_CALLS, True, options.say)
    reference = statistics.median(docker)
    for subject, times in (("generic instance waiting", pool), ("plain path", plain), ("docker run", docker)):
        middle = statistics.median(times)
        report.rows.append((subject, len(times), middle, quantile(times, 0.99), middle / reference))
    report.at_most("generic instance waiting: p50 ms", statistics.median(pool), POOL_P50_MS)
    report.at_most("generic instance waiting: p99 ms", quantile(pool, 0.99), POOL_P99_MS)
    report.at_most("generic instance waiting: of docker run", statistics.median(pool) / reference, POOL_OF_RUN)
    report.at_most("plain path: of docker run", statistics.median(plain) / reference, PLAIN_OF_RUN)
    return report


def _cold_calls(
    platform: Headrace, count: int, beside: bool, say: Callable[[str], None]
) -> tuple[list[float], list[float]]:
    """Milliseconds of one cold call of each of `count` functions; and of as many `docker run`, when `beside`."""
    names = deploy_cold(platform, count, say)
    image, network = platform.sandbox()
    wait_until_stopped(platform, names)
    times, engine_times = [], []
    for name in names:
        took, timing = first_call(platform.url(name))
        if "start;" not in timing:
            raise Unavailable(f"this was no cold call: {timing!r}")
        times.append(took)
        if beside:
            engine_times.append(_docker_run(image, network))
        say(f"{name}: {took:.1f} ms ({timing})")
        time.sleep(_REFILL_S)
    return times, engine_times


def run_layered(options: Options) -> Report:
    """A call after a rest of a version with dependencies, which keeps a frozen instance."""
    report = Report("cold-layer", ("round", "calls", "p50 ms", "p99 ms"))
    every: list[float] = []
    with headrace() as platform:
        names = [f"layered-{number}" for number in range(1, LAYERED + 1)]
        for name in names:
            platform.deploy(name, _LAYERED_FILES, _LAYERED_CONFIG)
        for turn in range(1, LAYER_ROUNDS + 1):
            wait_until_frozen(platform, LAYERED)
            kept = instances(platform, names)
            times = []
            for name in names:
                took, timing = first_call(platform.url(name))
                options.say(f"{name}: {took:.1f} ms ({timing})")
                times.append(took)
            if instances(platform, names) != kept:
                raise Unavailable("a frozen instance was not what answered: others were started.")
            report.rows.append((str(turn), len(times), statistics.median(times), quantile(times, 0.99)))
            every += times
    report.at_most("frozen instance: p50 ms", statistics.median(every), LAYER_P50_MS)
    return report


def first_call(url: str) -> tuple[float, str]:
    """Milliseconds of a call over a new connection, and its Server-Timing."""
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
    if answer.status != 200:
        raise Unavailable(f"{url} answers {answer.status} {body[:200]!r}")
    return took, answer.headers.get("server-timing", "")


def _docker_run(image: str, network: str) -> float:
    """Milliseconds of a container that says hello and is removed, on the network that instances use."""
    began = time.perf_counter()
    command = ["docker", "run", "--rm", "--network", network, image, "python3", "-c", "print('hello')"]
    subprocess.run(command, check=True, capture_output=True)
    return (time.perf_counter() - began) * 1000
