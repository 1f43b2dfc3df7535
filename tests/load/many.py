"""10,000 functions on one node: what they cost the warm path, and what an idle one costs in memory.

The warm path is measured with one function, with a hundred that are all called, and with all of them, each time on a
node that has just started. A hundred called ones are a hundred processes that take turns on the cores, whatever is
registered beside them, so both comparisons are shown.

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
from measure import Options, Report, Unavailable, interleaved, middle, quantile, ratio
from references import Answer, running

from stack import Headrace, example, headrace

FUNCTIONS = 10_000
REGISTERED = 500  # of them through the API
CALLED = 100
WARM_SHARE = 0.95  # of the rate with one function
IDLE_KB = 2.0

_ROUNDS = 3
_CONNECTIONS = 32
_AT_ONCE = 8
_LIMIT_S = 120.0
_CONFIG = {"memory_mb": 48, "idle_s": 3600}  # the called ones fit into a small machine
_REST_S = 3.0  # a node that has just started comes to rest


def run(options: Options) -> Report:
    report = Report("many", ("functions", "called", "req/s", "p50 ms", "p99 ms", "of bare", "failed"))
    with headrace() as platform:
        files, config = example("hello")
        platform.deploy("hello", files, {**config, **_CONFIG})
        answer = httpx.get(platform.url("hello"))
        with running(Answer(answer.text, answer.headers["content-type"]), False, options.say) as references:
            bare = references["bare"]
            before = _restarted_mb(platform, 0)
            one = _warm(platform, bare, (1, 1), report, options)
            _restarted_mb(platform, CALLED)
            few = _warm(platform, bare, (CALLED, CALLED), report, options)
            rate = uvloop.run(_register(platform))
            report.notes.append(f"registered {rate:,.0f} functions a second through the API")
            after = _restarted_mb(platform, FUNCTIONS)
            page = uvloop.run(_page_ms(platform))
            report.notes.append(f"a page of 100 functions takes {page:.1f} ms")
            among = _warm(platform, bare, (FUNCTIONS, 1), report, options)
            called = _warm(platform, bare, (FUNCTIONS, CALLED), report, options)
    report.at_least(f"rate of {CALLED} called among {FUNCTIONS:,}, of one function's", called / one, WARM_SHARE)
    report.at_least(f"rate of 1 called among {FUNCTIONS:,}, of one function's", among / one, WARM_SHARE)
    report.at_least(f"rate of {CALLED} called among {FUNCTIONS:,}, of among {CALLED}", called / few, WARM_SHARE)
    report.at_most("node memory of an idle function, KB", (after - before) * 1024 / FUNCTIONS, IDLE_KB)
    return report


def _warm(platform: Headrace, bare: str, count: tuple[int, int], report: Report, options: Options) -> float:
    """Load as many functions as `count` says are called; the rate as a part of bare Granian's in the same minute."""
    registered, called = count
    urls = [platform.url("hello"), *(platform.url(_name(number)) for number in range(called - 1))]
    for url in urls:  # each has an instance before it is measured
        httpx.get(url, timeout=60).raise_for_status()
    subjects: dict[str, str | list[str]] = {"headrace": urls, "bare": bare}
    loads = interleaved(subjects, _ROUNDS, _CONNECTIONS, options.seconds, options.say)
    ours = loads["headrace"]
    share, failed = ratio(ours, loads["bare"]), sum(load.failed for load in ours)
    report.rows.append((registered, called, *(middle(ours, key) for key in ("rps", "p50_ms", "p99_ms")), share, failed))
    if failed:
        report.failures.append(f"{failed} requests failed with {called} called among {registered:,} functions.")
    return share


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
