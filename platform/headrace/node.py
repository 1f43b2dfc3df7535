"""The node process: gateway, fleet and recorder wired together, kept in step with the database.

It reads its routes from the database itself, so it starts and serves while `control` is dead. Control and worker
poke it over its peer socket after a change, and it answers when the change is in force here; a slow look at the
database's revision is the floor below the pokes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any
from weakref import WeakValueDictionary

from headrace import errors
from headrace.clock import Clock
from headrace.drivers.base import Driver
from headrace.fleet.fleet import Fleet
from headrace.fleet.keeper import Keeper
from headrace.gateway import link as links
from headrace.gateway.access import Gatekeeper
from headrace.gateway.invoke import Invoker
from headrace.gateway.pool import Member, Pool
from headrace.gateway.routes import Routes
from headrace.gateway.server import Gateway
from headrace.gateway.sockets import Sockets
from headrace.model import Node as NodeRow
from headrace.model import Target, Version
from headrace.peer import PeerServer
from headrace.settings import Settings
from headrace.store.functions import Functions
from headrace.store.nodes import Nodes
from headrace.store.records import Records
from headrace.store.sql import Database
from headrace.store.tokens import Tokens
from headrace.store.versions import Versions
from headrace.tasks import Tasks
from headrace.telemetry.logtap import LogTap
from headrace.telemetry.metrics import Family, render
from headrace.telemetry.recorder import Recorder

logger = logging.getLogger(__name__)

_ANNOUNCE_S = 5.0
_POLL_S = 5.0
_GAUGE_S = 1.0
_WARM_S = 60.0
_LOOK_AGAIN_S = 0.2
_MOST_LOOKED = 10_000


class Switchboard:
    """Where instances dial in: the gateway's links, as the fleet asks for them."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets

    def link(self, instance: str, on_lost: Any) -> links.Link:
        return links.Link(instance, on_lost)

    def loaded(self, link: Any, version: Version) -> None:
        link.commands = self._sockets.commands(version.function_id)

    def listen(self, path: Any, link: Any) -> Any:
        return links.listen(path, link)


class Node:
    def __init__(self, settings: Settings, clock: Clock, database: Database, driver: Driver, id: str) -> None:
        self.id = id
        self._settings = settings
        self._clock = clock
        self._driver = driver
        self._functions = Functions(database, clock)
        self._tokens = Tokens(database, clock)
        self._versions = Versions(database, clock)
        self._nodes = Nodes(database, clock)
        self._recorder = Recorder(Records(database, clock).append, clock, id)
        self._tap = LogTap(self._recorder.line)
        self._sockets = Sockets(settings.socket_drain_s)
        self._fleet = Fleet(driver, Switchboard(self._sockets), settings, self._tap.of)
        self._pools: dict[int, Pool] = {}
        self._active: set[Pool] = set()
        self._routes = Routes(self._pool_of)
        self._gatekeeper = Gatekeeper()
        self._invoker = Invoker(
            self._routes,
            self._gatekeeper,
            self._recorder.invocation,
            id,
            max_body=settings.max_body_mb << 20,
            body_timeout_s=settings.body_timeout_s,
            look_again=self._look_again,
            sockets=self._sockets,
        )
        self._gateway = Gateway(self._invoker, self._active, self._late, settings)
        self._peer = PeerServer(
            settings.run_dir / "node.sock",
            {
                "refresh": self._refresh_op,
                "refresh_tokens": self._refresh_tokens_op,
                "warm": self._warm_op,
                "probe": self._probe_op,
                "status": self._status_op,
                "metrics": self._metrics_op,
            },
        )
        self._tasks = Tasks()
        self._refreshing: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._looked: dict[int, float] = {}
        self._revision = 0
        self._started_at = clock.now()
        self._serving = False

    # -- life

    async def start(self) -> None:
        """Load the routes, take back running instances, listen. Raises `OSError` when the port is taken.

        The node is known to its pokers before it reads, so no change can fall between its reading and its listening.
        """
        await self._peer.start()
        await self._announce_once()
        self._revision = await self._functions.revision()
        async for target in self._functions.targets():
            self._put(target)
        self._gatekeeper.tokens = await self._tokens.hashes()
        await self._driver.check()
        await self._fleet.recover(self._keeper_of)
        self._fleet.start(self._resting())
        await self._gateway.start()
        self._serving = True
        for name, work in (
            ("recorder", self._recorder.run()),
            ("announce", self._announce()),
            ("poll", self._poll()),
            ("gauge", self._gauge()),
        ):
            self._tasks.spawn(work, name)

    async def stop(self) -> None:
        """Take no further calls, let running ones end, stop every instance, write the last records."""
        self._serving = False
        await self._gateway.stop(self._settings.drain_s)
        await self._tasks.aclose()
        await self._peer.close()
        await self._fleet.stop(min(self._settings.drain_s, 10.0))
        await self._recorder.flush()
        await self._nodes.remove(self.id)
        await self._driver.close()

    # -- routes

    def _put(self, target: Target) -> None:
        """Swap a target in; versions that are gone from it stop, those with traffic keep their minimum."""
        before = self._routes.target(target.function.id)
        if not self._routes.put(target):
            return
        self._sockets.moved(target.function.id, target)
        if before is not None:
            for number in before.versions.keys() - target.versions.keys():
                self._retire(before.versions[number])
        in_traffic = target.in_traffic
        self._fleet.publish(_published(before), _published(target))
        for version in target.versions.values():
            pool = self._pools.get(version.id)
            wanted = version.number in in_traffic
            if pool is not None and before is not None and before.function.balancing != target.function.balancing:
                pool.balance_by(target.function.balancing)
            if pool is not None or (wanted and version.config.min_instances):
                keeper = self._keeper(target, version)
                if keeper.in_traffic != wanted:
                    keeper.in_traffic = wanted
                    keeper.wake()

    def _drop(self, function_id: int) -> None:
        target = self._routes.drop(function_id)
        self._sockets.moved(function_id, None)
        if target is not None:
            self._fleet.publish(_published(target), ())
            for version in target.versions.values():
                self._retire(version)

    def _retire(self, version: Version) -> None:
        self._fleet.retire(version.id)
        self._pools.pop(version.id, None)

    def _pool_of(self, target: Target, version: Version) -> Pool:
        pool = self._pools.get(version.id)
        if pool is None:
            pool = Pool(version.config.queue, target.function.balancing, self._active)
            self._pools[version.id] = pool
            keeper = self._fleet.keep(version, pool)
            keeper.in_traffic = version.number in target.in_traffic
        return pool

    def _keeper(self, target: Target, version: Version) -> Keeper:
        return self._fleet.keep(version, self._pool_of(target, version))

    def _keeper_of(self, version_id: int) -> Keeper | None:
        for target in self._routes.targets():
            for version in target.versions.values():
                if version.id == version_id:
                    return self._keeper(target, version)
        return None

    def _resting(self) -> Iterator[Keeper]:
        """Keepers of the published versions with dependencies, as they are when it comes to them."""
        if self._settings.prewarm:
            for id in self._routes.ids():
                target = self._routes.target(id)
                for version in _published(target):
                    if target is not None and version.layer is not None:
                        yield self._keeper(target, version)

    def _late(self, member: Member) -> None:
        self._fleet.late(member.name)

    async def _refresh(self, function_id: int) -> Target | None:
        """Read one function again and swap it in. Reads of one function never overtake each other."""
        lock = self._refreshing.get(function_id) or asyncio.Lock()
        self._refreshing[function_id] = lock  # for as long as somebody holds it or waits for it
        async with lock:
            target = await self._functions.target(function_id)
            if target is None:
                self._drop(function_id)
            else:
                self._put(target)
        return target

    async def _look_again(self, function_id: int) -> bool:
        """A call asked for what this node does not know of a function: read it, at most a few times a second."""
        now = self._clock.monotonic()
        if now - self._looked.get(function_id, -_LOOK_AGAIN_S) < _LOOK_AGAIN_S:
            return False
        if len(self._looked) > _MOST_LOOKED:
            self._looked.clear()
        self._looked[function_id] = now
        before = self._routes.target(function_id)
        return before != await self._refresh(function_id)

    # -- what runs beside the calls

    async def _announce(self) -> None:
        while True:
            await asyncio.sleep(_ANNOUNCE_S)
            try:
                await self._announce_once()
            except Exception:
                logger.warning("the database does not take this node's sign of life", exc_info=True)

    async def _announce_once(self) -> None:
        settings, now = self._settings, self._clock.now()
        address = str(settings.run_dir / "node.sock")
        await self._nodes.announce(NodeRow(self.id, address, settings.functions, self._started_at, now))

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                await self._catch_up()
            except Exception:
                logger.warning("the database does not answer; serving goes on with what is known", exc_info=True)

    async def _catch_up(self) -> None:
        """Load what changed without a poke having reached this node."""
        revision = await self._functions.revision()
        if revision != self._revision:
            changed, count = await self._functions.changed(self._revision)
            for id, there in changed.items():
                here = self._routes.target(id)
                if here is None or here.revision != there:
                    await self._refresh(id)
            if count != len(self._routes):  # some were deleted
                for id in self._routes.ids() - await self._functions.ids():
                    await self._refresh(id)
            self._revision = revision
        self._gatekeeper.tokens = await self._tokens.hashes()

    async def _gauge(self) -> None:
        while True:
            await asyncio.sleep(_GAUGE_S)
            for version_id, pool in self._pools.items():
                if pool.members or pool.waiting:
                    keeper = self._fleet.keeper(version_id)
                    if keeper is not None:
                        v = keeper.version
                        self._recorder.gauge(v.namespace, v.function, v.number, pool.take_peak(), len(pool.members))

    # -- what control and worker ask

    async def _refresh_op(self, question: dict[str, Any]) -> dict[str, Any]:
        target = await self._refresh(question["function_id"])
        return {"revision": target.revision if target is not None else None}

    async def _refresh_tokens_op(self, question: dict[str, Any]) -> dict[str, Any]:
        self._gatekeeper.tokens = await self._tokens.hashes()
        return {}

    async def _warm_op(self, question: dict[str, Any]) -> dict[str, Any]:
        target = self._routes.target(question["function_id"])
        if target is None or question["version"] not in target.versions:
            target = await self._refresh(question["function_id"])
        if target is None or question["version"] not in target.versions:
            raise errors.NotFound(f"version {question['version']} is not ready.")
        await self._ready(self._keeper(target, target.versions[question["version"]]))
        return {"ready": True}

    async def _probe_op(self, question: dict[str, Any]) -> dict[str, Any]:
        """Start an instance of a version that is not ready yet; it is kept for the first call."""
        began = time.monotonic()
        version = await self._versions.by_id(question["version_id"])
        target = await self._refresh(version.function_id)
        if target is None:
            raise errors.NotFound(f"function {version.function!r} was deleted.")
        try:
            kind = await self._ready(self._keeper(target, version))
        except errors.NoCapacity:  # perhaps another question about it still waits; the job asks again
            raise
        except errors.HeadraceError:
            self._retire(version)
            raise
        return {"kind": kind, "ms": (time.monotonic() - began) * 1000}

    async def _ready(self, keeper: Keeper) -> str:
        try:
            async with asyncio.timeout(_WARM_S):
                return await keeper.ready()
        except TimeoutError:
            raise errors.NoCapacity(f"no instance was ready within {_WARM_S:g} s; try again.") from None

    async def _status_op(self, question: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "url": self._settings.functions,
            "started_at": self._started_at,
            "serving": self._serving,
            "functions": len(self._routes),
            "in_flight": self._invoker.in_flight,
            "sockets": len(self._sockets),
            "dropped_invocations": self._recorder.dropped_invocations,
            "dropped_lines": self._recorder.dropped_lines,
            **self._fleet.status(),
        }

    async def _metrics_op(self, question: dict[str, Any]) -> dict[str, Any]:
        in_flight = Family("headrace_calls_in_flight", "gauge", "Calls running now.")
        waiting = Family("headrace_calls_waiting", "gauge", "Calls waiting for an instance.")
        instances = Family("headrace_instances", "gauge", "Instances ready for calls.")
        throttled = Family("headrace_calls_throttled_total", "counter", "Calls refused because the queue was full.")
        for version_id, pool in self._pools.items():
            keeper = self._fleet.keeper(version_id)
            if keeper is None:
                continue
            v = keeper.version
            labels: dict[str, str | int] = {
                "node": self.id,
                "namespace": v.namespace,
                "function": v.function,
                "version": v.number,
            }
            in_flight.add(pool.in_flight, **labels)
            waiting.add(pool.waiting, **labels)
            instances.add(len(pool.members), **labels)
            throttled.add(pool.throttled, **labels)
        sockets = Family("headrace_sockets", "gauge", "Open WebSockets.")
        sockets.add(len(self._sockets), node=self.id)
        dropped = Family("headrace_records_dropped_total", "counter", "Records lost because they could not be written.")
        dropped.add(self._recorder.dropped_invocations, node=self.id, kind="invocation")
        dropped.add(self._recorder.dropped_lines, node=self.id, kind="line")
        return {
            "text": render((in_flight, waiting, instances, throttled, sockets, dropped, *self._recorder.families()))
        }


def _published(target: Target | None) -> list[Version]:
    """The versions that aliases of `target` lead to."""
    if target is None:
        return []
    return [version for number in target.in_traffic if (version := target.versions.get(number)) is not None]
