"""10,000 functions on one node: what they cost the warm path, and what an idle one costs in memory.

Two platforms run side by side, one with a hundred functions and one with all, and take turns within the same minute;
on each, one function is called, then a hundred in turn. A hundred called ones are a hundred processes that take turns
on the cores, whatever is registered beside them, so both comparisons are shown.

Some are registered through the REST API, to see how fast that is; the others are written to the database as copies of
a function that was deployed (its settings, its ready version, its alias): to build each would take hours.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import httpx
import uvloop
from measure import Options, Report, Unavailable, interleaved, middle, quantile, ratio, wrk

from stack import Headrace, example, headrace

FUNCTIONS = 10_000
REGISTERED = 500  # of them through the API
CALLED = 100
SHARE = 0.95
IDLE_KB = 2.0

_ROUNDS = 5
_SLICE_S = 2.0  # four of them pass before an instance that waits for its turn is frozen
_CONNECTIONS = 32
_AT_ONCE = 8
_LIMIT_S = 120.0
_CONFIG = {"memory_mb": 48, "idle_s": 3600}  # the called ones fit into a small machine
_REST_S = 3.0  # a node that has just started comes to rest


def run(options: Options) -> Report:
    report = Report("many", ("functions", "called", "req/s", "p50 ms", "p99 ms", "of the first", "failed"))
    with headrace() as few, headrace() as many:
        files, config = example("hello")
        for platform in (few, many):
            platform.deploy("hello", files, {**config, **_CONFIG})
        _restarted_mb(few, CALLED)
        before = _restarted_mb(many, 0)
        report.notes.append(f"registered {uvloop.run(_register(many)):,.0f} functions a second through the API")
        after = _restarted_mb(many, FUNCTIONS)
        report.notes.append(f"a page of 100 functions takes {uvloop.run(_page_ms(many)):.1f} ms")
        subjects: dict[tuple[int, int], str | list[str]] = {
            (functions, called): _warmed(platform, called)
            for platform, functions in ((few, CALLED), (many, FUNCTIONS))
            for called in (1, CALLED)
        }
        loads = interleaved(subjects, _ROUNDS, _CONNECTIONS, min(options.seconds, _SLICE_S), options.say)
        for called in (1, CALLED):
            cost = _cpu_us(many, subjects[FUNCTIONS, called])
            report.notes.append(f"a call takes {cost:.0f} us of the node's processor with {called} called")
    one = loads[CALLED, 1]
    for (functions, called), found in loads.items():
        failed = sum(load.failed for load in found)
        numbers = (middle(found, key) for key in ("rps", "p50_ms", "p99_ms"))
        report.rows.append((f"{functions:,}", called, *numbers, ratio(found, one), failed))
        if failed:
            report.failures.append(f"{failed} requests failed with {called} called among {functions:,} functions.")
    called_ones = loads[FUNCTIONS, CALLED]
    report.at_least(f"rate of {CALLED} called among {FUNCTIONS:,}, of one function's", ratio(called_ones, one), SHARE)
    report.at_least(f"rate of 1 among {FUNCTIONS:,}, of 1 among {CALLED}", ratio(loads[FUNCTIONS, 1], one), SHARE)
    same = ratio(called_ones, loads[CALLED, CALLED])
    report.at_least(f"rate of {CALLED} among {FUNCTIONS:,}, of {CALLED} among {CALLED}", same, SHARE)
    report.at_most("node memory of an idle function, KB", (after - before) * 1024 / FUNCTIONS, IDLE_KB)
    return report


def _warmed(platform: Headrace, called: int) -> list[str]:
    """URLs of so many functions, each with an instance."""
    urls = [platform.url("hello"), *(platform.url(_name(number)) for number in range(called - 1))]
    for url in urls:
        httpx.get(url, timeout=60).raise_for_status()
    return urls


def _cpu_us(platform: Headrace, urls: str | list[str]) -> float:
    """What one call costs the node, microseconds.

    With one function called, the node writes to an instance and reads from it once for several calls; with a hundred
    it does so for each, and each wakes another process: that is most of the difference, whatever is registered.
    """
    before = platform.cpu_s("node")
    load = wrk(urls, _CONNECTIONS, _SLICE_S)
    return (platform.cpu_s("node") - before) / (load.rps * _SLICE_S) * 1e6


def _restarted_mb(platform: Headrace, fill: int) -> float:
    """Memory of a node that has just started, MiB; with `fill` functions beside hello, each published."""
    platform.stop()
    _copy(platform.home / "headrace.db", fill)
    platform.start()
    time.sleep(_REST_S)
    return platform.memory_mb("node")


def _copy(path: Path, fill: int) -> None:
    """Functions up to `fill` by copying hello's row, then hello's version and alias for each."""
    with closing(sqlite3.connect(path)) as database, database:
        names = [(_name(number),) for number in range(fill)]
        database.executemany(_insert(database, "functions", {"name": "?"}, "t.name = 'hello'"), names)
        for table in ("versions", "aliases"):
            of_hello = "t.function_id = (SELECT id FROM functions WHERE name = 'hello') AND f.name <> 'hello'"
            database.execute(_insert(database, table, {"function_id": "f.id"}, of_hello, ", functions f"))


def _insert(database: sqlite3.Connection, table: str, changed: dict[str, str], where: str, beside: str = "") -> str:
    """The statement that copies rows of `table`, with the columns `changed`; what is there already stays."""
    known = [column for _, column, *_ in database.execute(f"PRAGMA table_info({table})") if column != "id"]
    values = ", ".join(changed.get(column, f"t.{column}") for column in known)
    return f"INSERT OR IGNORE INTO {table} ({', '.join(known)}) SELECT {values} FROM {table} t{beside} WHERE {where}"


def _name(number: int) -> str:
    return f"many-{number:05d}"


async def _register(platform: Headrace) -> float:
    """Create the last `REGISTERED` functions through the API, a few at a time; functions per second."""
    names = iter([_name(number) for number in range(FUNCTIONS - REGISTERED, FUNCTIONS)])

    async def work() -> None:
        for name in names:
            answer = await api.put(f"/functions/{name}", json={"description": "one of many"})
            if answer.status_code != 201:
                raise Unavailable(f"{name} was not registered: {answer.status_code} {answer.text}")

    async with _api(platform) as api, asyncio.timeout(_LIMIT_S):
        began = time.monotonic()
        await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
        return REGISTERED / (time.monotonic() - began)


async def _page_ms(platform: Headrace) -> float:
    """Go through the list of functions, which holds all of them; what a page takes, the median."""
    times: list[float] = []
    seen, cursor = 0, None
    async with _api(platform) as api:
        while not times or cursor:
            began = time.monotonic()
            answer = await api.get("/functions", params={"limit": 100, **({"cursor": cursor} if cursor else {})})
            times.append((time.monotonic() - began) * 1000)
            page = answer.raise_for_status().json()
            seen, cursor = seen + len(page["items"]), page["next"]
    if seen != FUNCTIONS + 1:
        raise Unavailable(f"there are {FUNCTIONS + 1} functions and the list holds {seen}.")
    return quantile(times, 0.5)


def _api(platform: Headrace) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {platform.token}"}
    return httpx.AsyncClient(base_url=f"{platform.control}/v1", headers=headers, timeout=60)
