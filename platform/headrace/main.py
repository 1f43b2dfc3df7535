"""The composition root: the only place that picks implementations and hands them down.

`python -m headrace.main ROLE` is one process. `init` makes the home ready and ends; `control`, `node` and `worker`
run until SIGTERM or SIGINT, then stop in order. Settings come from the environment, once. Each role imports what it
needs when it starts: that keeps it small, and a node knows no web framework.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import secrets
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from headrace import errors, runtimes, tls
from headrace import settings as knobs
from headrace.clock import Clock, SystemClock
from headrace.model import DEFAULT_RUNTIME, check_name
from headrace.settings import Settings
from headrace.tasks import Tasks

if TYPE_CHECKING:
    from headrace.drivers.base import Driver
    from headrace.jobs.wake import Wake
    from headrace.releases.bundle import Bundles
    from headrace.store.records import Records
    from headrace.store.tokens import Tokens
    from headrace.store.versions import Versions

logger = logging.getLogger("headrace")

_HOUSEKEEPING_S = 60.0
# Of glibc, see mallopt(3). Pieces of streams come and go by the thousand a second, and without this each may be memory
# new from the system, which costs as much as two copies of it.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT, _LONGEST_KEPT = 16 << 20, 1 << 20  # bytes at the heap's end that are not given back, and of one piece there
# Objects, and younger collections, until the next one. A full collection looks at all that calls and sockets hold, some
# 100 ms with ten thousand sockets, and finds little: nearly all of what ends is freed by its count.
_COLLECT = (5_000, 50, 20)


def driver_of(settings: Settings) -> Driver:
    if settings.driver == "process":
        from headrace.drivers.process import ProcessDriver

        return ProcessDriver(settings)
    from headrace.drivers.docker_engine import DockerDriver

    return DockerDriver(settings)


def wake_of(settings: Settings) -> Wake:
    if settings.redis_url:
        from headrace.jobs.redis_wake import RedisWake

        return RedisWake(settings.redis_url, settings.home_tag)
    from headrace.jobs.wake import SocketWake

    return SocketWake(settings.run_dir / "worker.wake")


async def init(settings: Settings, clock: Clock) -> None:
    """Make the home, the database, the admin token and what instances start from. Safe to repeat, safe to cut off."""
    from headrace.store.sql import Database, migrate
    from headrace.store.tokens import Tokens

    for directory in (settings.home, settings.run_dir, settings.home / "code", settings.home / "layers"):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings.home.chmod(0o700)
    await migrate(settings.database)
    database = Database(settings.database)
    try:
        await _admin_token(Tokens(database, clock), settings.home / "admin-token")
    finally:
        await database.close()
    driver = driver_of(settings)
    try:
        info = await driver.check()
        logger.info("engine: %s %s", info.name, info.version)
        await driver.prepare(DEFAULT_RUNTIME)
    finally:
        await driver.close()


async def _admin_token(tokens: Tokens, path: Path) -> None:
    """See that `path` holds a valid admin token; a new one is printed, once."""
    if path.exists() and await tokens.find(path.read_text().strip()) is not None:
        return
    try:
        _, secret = await tokens.create("admin", ["admin"], [], None)
    except errors.Conflict:  # the file was lost or belongs to another database
        _, secret = await tokens.create(f"admin-{secrets.token_hex(4)}", ["admin"], [], None)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret + "\n")
    fresh.replace(path)
    print(f"admin token (shown once, kept in {path}): {secret}", flush=True)


async def control(settings: Settings, clock: Clock) -> None:
    import uvicorn

    from headrace.control.app import create_app
    from headrace.control.malformed import ClearH11
    from headrace.control.services import Services
    from headrace.jobs.rows import RowQueue
    from headrace.releases.bundle import Bundles
    from headrace.releases.nodes import NodeClient
    from headrace.releases.publish import Publisher
    from headrace.releases.version import Releases
    from headrace.store.aliases import Aliases
    from headrace.store.functions import Functions
    from headrace.store.nodes import Nodes
    from headrace.store.records import Records
    from headrace.store.sql import Database
    from headrace.store.tokens import Tokens
    from headrace.store.versions import Versions

    if settings.tls_cert:
        tls.check(settings.tls_cert, settings.tls_key)
    database = Database(settings.database)
    wake = wake_of(settings)
    functions, versions = Functions(database, clock), Versions(database, clock)
    aliases, bundles = Aliases(database, clock), Bundles(settings)
    nodes = NodeClient(Nodes(database, clock))
    services = Services(
        settings=settings,
        clock=clock,
        functions=functions,
        versions=versions,
        aliases=aliases,
        records=Records(database, clock),
        tokens=Tokens(database, clock),
        releases=Releases(functions, versions, nodes, wake),
        bundles=bundles,
        publisher=Publisher(functions, versions, aliases, nodes),
        nodes=nodes,
        queue=RowQueue(database, clock),
    )
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(services),
            host=settings.host,
            port=settings.control_port,
            ssl_certfile=settings.tls_cert or None,
            ssl_keyfile=settings.tls_key or None,
            proxy_headers=bool(settings.proxies),
            forwarded_allow_ips=[str(network) for network in settings.proxies],
            http=ClearH11,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
            server_header=False,
        )
    )
    try:
        await server.serve()
    finally:
        await wake.close()
        await database.close()


def _node_id(path: Path) -> str:
    """The name of this home's node, the same after every restart."""
    try:
        return check_name(path.read_text().strip(), "node id")
    except (OSError, errors.Invalid):
        path.write_text(f"n{secrets.token_hex(4)}\n")
        return path.read_text().strip()


def _settle() -> None:
    """What was made so far stays: give back the memory that making it took, and let no collection look at it again."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_M_MMAP_THRESHOLD, _LONGEST_KEPT)
    gc.freeze()
    gc.set_threshold(*_COLLECT)


async def node(settings: Settings, clock: Clock) -> None:
    from headrace.node import Node
    from headrace.store.sql import Database

    database = Database(settings.database)
    running = Node(settings, clock, database, driver_of(settings), _node_id(settings.home / "node-id"))
    try:
        await running.start()
        _settle()
        await _stop_signal()
        await running.stop()
    finally:
        await database.close()


async def worker(settings: Settings, clock: Clock) -> None:
    from headrace.jobs.rows import RowQueue
    from headrace.jobs.worker import Worker
    from headrace.releases.builder import Builder
    from headrace.releases.bundle import Bundles
    from headrace.releases.nodes import NodeClient
    from headrace.store.nodes import Nodes
    from headrace.store.records import Records
    from headrace.store.sql import Database
    from headrace.store.versions import Versions

    database, wake, driver = Database(settings.database), wake_of(settings), driver_of(settings)
    queue, versions = RowQueue(database, clock), Versions(database, clock)
    bundles = Bundles(settings)
    builder = Builder(versions, driver, NodeClient(Nodes(database, clock)), settings)
    running = Worker(queue, {"build": builder.run}, wake, clock)
    tasks = Tasks()
    try:
        records = Records(database, clock)
        tasks.spawn(_housekeeping(settings, clock, records, versions, bundles, driver=driver), "housekeeping")
        await _first(_stop_signal(), running.run())
    finally:
        await tasks.aclose()
        await wake.close()
        await driver.close()
        await database.close()


async def _housekeeping(
    settings: Settings, clock: Clock, records: Records, versions: Versions, bundles: Bundles, *, driver: Driver
) -> None:
    """Forget old records, remove code, layers and images that no version uses."""
    while True:
        try:
            removed = await records.prune(clock.now() - settings.retention_days * 86_400, settings.retention_mb << 20)
            removed += await bundles.collect(*await versions.digests())
            await driver.tidy()
            if removed:
                logger.info("housekeeping removed %d records, bundles and layers", removed)
        except Exception:
            logger.warning("housekeeping failed; it runs again in %g s", _HOUSEKEEPING_S, exc_info=True)
        await asyncio.sleep(_HOUSEKEEPING_S)


async def _first(*works: Coroutine[Any, Any, None]) -> None:
    """Return or raise as the first of `works` does; end the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _stop_signal() -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


ROLES: dict[str, Callable[[Settings, Clock], Coroutine[Any, Any, None]]] = {
    "init": init,
    "control": control,
    "node": node,
    "worker": worker,
}


def main(arguments: list[str]) -> int:
    """Run one role; the exit code: 0 done, 1 failed with the reason on standard error, 2 wrong use."""
    if len(arguments) != 1 or arguments[0] not in ROLES:
        print(f"usage: python -m headrace.main {'|'.join(ROLES)}", file=sys.stderr)
        return 2
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format=f"%(asctime)s %(levelname)s {arguments[0]} %(message)s"
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        settings = knobs.load(os.environ, runtimes.declared())
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # every open WebSocket is a file
        os.umask(0o022)  # bundles, layers and shims are read by the sandbox's user; homes have their own modes
        uvloop.run(ROLES[arguments[0]](settings, SystemClock()))
    except errors.SettingsError as error:
        print(error.detail, file=sys.stderr)
        return 2
    except errors.HeadraceError as error:
        print(f"{error.title}: {error.detail}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{arguments[0]} cannot work: {error}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
