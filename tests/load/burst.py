"""Many different cold functions called in the same moment: who waits, and for how long.

With the default settings a generic instance waits for each of them. With two waiting, the engine's own pace is
the bound: the others' containers have to be made and started first.
"""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

import uvloop
from measure import Options, Report, quantile
from resting import deploy_cold, wait_for_shelf, wait_until_stopped

from headrace.settings import Settings
from stack import headrace

FUNCTIONS = 50
BURSTS = 2
P99_MS = 1000
SHELVES = (int(Settings.model_fields["prewarm_most"].default), 2)  # generic instances that wait at most; the default
_LIMIT_S = 60.0
_SHOWN = 3  # failures


def run(options: Options) -> Report:
    report = Report("burst", ("generic instances", "calls", "p50 ms", "p99 ms", "max ms", "failed"))
    for size in SHELVES:
        times: list[float] = []
        failed: list[str] = []
        with headrace(prewarm_most=str(size)) as platform:
            names = deploy_cold(platform, FUNCTIONS, options.say)
            for turn in range(1, BURSTS + 1):
                wait_until_stopped(platform, names)
                wait_for_shelf(platform, min(size, FUNCTIONS))
                found = uvloop.run(_burst([platform.url(name) for name in names]))
                times += (took for took, _ in found)
                failed += (said for _, said in found if not said.startswith("HTTP/1.1 200 "))
                longest = max(took for took, _ in found)
                options.say(f"burst {turn} of {BURSTS} with {size} waiting: the last answer after {longest:.0f} ms")
        middle, high, most = (quantile(times, q) for q in (0.5, 0.99, 1.0))
        report.rows.append((str(size), len(times), middle, high, most, len(failed)))
        if size == SHELVES[0]:
            report.at_most(f"p99 ms with {size} generic instances, the default", high, P99_MS)
        if failed and size == SHELVES[0]:
            report.failures.append(f"{len(failed)} calls failed with {size} generic instances: {failed[:_SHOWN]}")
    return report


async def _burst(urls: list[str]) -> list[tuple[float, str]]:
    """Call all of them at once, each over a connection of its own: milliseconds and status line of each."""
    return await asyncio.gather(*(_call(url) for url in urls))


async def _call(url: str) -> tuple[float, str]:
    address = urlsplit(url)
    began = time.perf_counter()
    try:
        async with asyncio.timeout(_LIMIT_S):
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            request = f"GET {address.path} HTTP/1.1\r\nhost: {address.netloc}\r\nconnection: close\r\n\r\n"
            writer.write(request.encode())
            status = (await reader.readline()).decode().strip()
            await reader.read()
            writer.close()
    except (OSError, TimeoutError) as error:
        status = repr(error)
    return (time.perf_counter() - began) * 1000, status
