"""The keeper of one version: sees what is asked of it, decides how many instances it should have, acts.

One keeper per version and one task per keeper, so decisions never race. It sleeps until its pool has news (calls
wait, an instance fell idle, one was lost) or until an idle instance is due to stop; a version without instances
and without calls costs nothing. Starting and stopping run beside it and report back by waking it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from headrace import errors
from headrace.fleet.instance import Instance
from headrace.fleet.ports import Pool
from headrace.fleet.scaler import Demand, desired, surplus
from headrace.fleet.yard import Yard
from headrace.model import Version
from headrace.tasks import Tasks

logger = logging.getLogger(__name__)

_BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # after the first, second, ... start in a row that failed
_RETRY_S = 0.5  # waiting calls but no memory for an instance: look again
_PAUSE_S = 0.01

Obtain = Callable[[Version], Awaitable[Instance]]


class Keeper:
    def __init__(self, version: Version, pool: Pool, yard: Yard, obtain: Obtain) -> None:
        self.version = version
        self.pool = pool
        self.in_traffic = False  # an alias points here, so min_instances counts
        self._yard = yard
        self._obtain = obtain  # a loaded instance of the version, from the shelf or newly launched
        self._instances: dict[str, Instance] = {}
        self._starting = 0
        self._stopping: set[str] = set()
        self._wanted_ready: list[asyncio.Future[str]] = []
        self._failures = 0
        self._retry_at = 0.0
        self._retired = False
        self._news = asyncio.Event()
        self._tasks = Tasks()
        self._task = self._tasks.spawn(self._run(), f"keeper {version}")

    def __repr__(self) -> str:
        return f"<Keeper {self.version} {list(self._instances.values())} starting={self._starting} {self.pool!r}>"

    @property
    def have(self) -> int:
        """Instances that exist or are being started; `max_instances` bounds this."""
        return len(self._instances) + self._starting

    @property
    def instances(self) -> list[Instance]:
        return list(self._instances.values())

    def wake(self) -> None:
        self._news.set()

    async def ready(self) -> str:
        """Wait until an instance is ready; the kind of its handler. Raises why none can start."""
        for instance in self._instances.values():
            if instance.member is not None and not instance.member.draining:
                return instance.handler_kind
        waiting: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._wanted_ready.append(waiting)
        self._retry_at = 0.0  # somebody asks: try at once, whatever failed before
        self.wake()
        try:
            return await waiting
        finally:
            if waiting in self._wanted_ready:
                self._wanted_ready.remove(waiting)

    def enlist(self, instance: Instance) -> None:
        """A loaded instance joins the pool."""
        assert instance.link is not None
        config = self.version.config
        self._instances[instance.id] = instance
        instance.member = self.pool.join(
            instance.link, config.concurrency, config.cpus, instance.start_ms, asyncio.get_running_loop().time()
        )
        self._failures = 0
        self.pool.reopen()
        self._answer(instance.handler_kind)

    def lost(self, instance: Instance) -> None:
        """The connection of a ready instance ended: it is out of the pool before anything else happens."""
        if instance.id in self._stopping:
            return
        self._stopping.add(instance.id)
        if instance.member is not None:
            self.pool.remove(instance.member)
        self._tasks.spawn(self._bury(instance), f"bury {instance.id}")

    def late(self, name: str) -> None:
        """A call of this instance ran out of time: nobody knows what its code still does, so it is replaced."""
        instance = self._instances.get(name)
        if instance is not None and instance.member is not None and not instance.member.draining:
            self.pool.drain(instance.member)

    @property
    def evictable(self) -> float | None:
        """Since when (monotonic) the idlest instance has had no call; None when none is idle or may be stopped."""
        idle = [i.member.idle_since for i in self._instances.values() if i.member is not None and self._idle(i)]
        floor = self.version.config.min_instances if self.in_traffic else 0
        return min(idle) if idle and len(self._instances) > floor else None

    def evict(self) -> None:
        """Stop the instance that has been idle longest, to make room."""
        idle = [i for i in self._instances.values() if self._idle(i)]
        if idle:
            self._stop(min(idle, key=lambda i: i.member.idle_since if i.member else 0.0))

    def retire(self) -> None:
        """The version is not to be called any more: drain all its instances, fail who waits."""
        self._retired = True
        gone = errors.NotFound(f"version {self.version.number} of {self.version.function!r} was deleted.")
        self.pool.shut(gone, float("inf"))
        self._fail(gone)
        for instance in self.instances:
            if instance.member is not None and not instance.member.draining:
                self.pool.drain(instance.member)
        self.wake()

    async def finished(self) -> None:
        """Wait until a retired version has no instance any more."""
        await asyncio.wait((self._task,))

    async def close(self, shutdown_s: float) -> None:
        """Stop every instance."""
        await self._tasks.aclose()
        await asyncio.gather(*(self._yard.stop(instance, shutdown_s) for instance in self.instances))

    # -- the loop

    async def _run(self) -> None:
        while not (self._retired and not self.have):
            timeout = self._look()
            if self.pool.waiting:  # every waiting call is news; one look in a while serves them all
                await asyncio.sleep(_PAUSE_S)
            try:
                async with asyncio.timeout(timeout):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()

    def _look(self) -> float | None:
        """Observe, decide, act; the seconds until the next look without news, None: no need."""
        now = asyncio.get_running_loop().time()
        config = self.version.config
        for instance in self.instances:
            member = instance.member
            if member is not None and member.draining and not member.in_flight:
                self._stop(instance)
        if self._retired:
            return None
        demand = Demand(self.pool.in_flight, self.pool.waiting, self.pool.observe(), self.in_traffic)
        serving = len(self._instances) - len(self._stopping) - self._draining() + self._starting
        wanted = max(desired(demand, config), 1 if self._wanted_ready else 0)
        missing = min(wanted - serving, config.max_instances - self.have)
        if missing > 0:
            if now < self._retry_at:
                return self._retry_at - now
            self._starting += missing
            for _ in range(missing):
                self._tasks.spawn(self._start(), f"start {self.version}")
            return None
        return self._scale_in(now, wanted, serving)

    def _scale_in(self, now: float, wanted: int, serving: int) -> float | None:
        config = self.version.config
        floor = config.min_instances if self.in_traffic else 0
        idle = {i.id: now - i.member.idle_since for i in self.instances if i.member is not None and self._idle(i)}
        for name in surplus(idle, serving, max(wanted, floor), config.idle_s):
            self._stop(self._instances[name])
            del idle[name]
            serving -= 1
        if serving <= floor:
            return None
        return max(config.idle_s - max(idle.values(), default=0.0), 1.0)

    def _idle(self, instance: Instance) -> bool:
        member = instance.member
        return member is not None and not member.in_flight and not member.draining

    def _draining(self) -> int:
        return sum(1 for i in self._instances.values() if i.member and i.member.draining and i.id not in self._stopping)

    # -- what runs beside it

    async def _start(self) -> None:
        try:
            instance = await self._obtain(self.version)
            if self._retired:
                await self._yard.stop(instance, 0)
                return
            self.enlist(instance)
            if instance.link is not None and instance.link.lost:
                self.lost(instance)
        except errors.NoCapacity as error:  # the node is full: not this version's fault, look again soon
            self._retry_at = asyncio.get_running_loop().time() + _RETRY_S
            self._fail(error)
        except errors.HeadraceError as error:
            self._failed(error)
        finally:
            self._starting -= 1
            self.wake()

    def _failed(self, error: errors.HeadraceError) -> None:
        """Fail fast: who waits gets the reason at once, and so does who comes before the next try."""
        backoff = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
        self._failures += 1
        self._retry_at = asyncio.get_running_loop().time() + backoff
        self._fail(error)
        if not any(i.member and not i.member.draining for i in self._instances.values()):
            self.pool.shut(error, self._retry_at)
        logger.warning("%s cannot start, next try in %g s: %s", self.version, backoff, error.detail)

    def _stop(self, instance: Instance) -> None:
        if instance.id in self._stopping:
            return
        late = instance.member is not None and instance.member.draining
        self._stopping.add(instance.id)
        if instance.member is not None:
            self.pool.remove(instance.member)
        self._tasks.spawn(self._stopped(instance, 1.0 if late else None), f"stop {instance.id}")

    async def _stopped(self, instance: Instance, shutdown_s: float | None) -> None:
        try:
            if shutdown_s is None:
                await self._yard.stop(instance)
            else:
                await self._yard.stop(instance, shutdown_s)
        finally:
            self._gone(instance)

    async def _bury(self, instance: Instance) -> None:
        try:
            error = await self._yard.bury(instance)
            logger.info("%s lost instance %s: %s", self.version, instance.id, error.detail)
        finally:
            self._gone(instance)

    def _gone(self, instance: Instance) -> None:
        self._instances.pop(instance.id, None)
        self._stopping.discard(instance.id)
        self.wake()

    def _answer(self, kind: str) -> None:
        waiting, self._wanted_ready = self._wanted_ready, []
        for future in waiting:
            if not future.done():
                future.set_result(kind)

    def _fail(self, error: errors.HeadraceError) -> None:
        waiting, self._wanted_ready = self._wanted_ready, []
        for future in waiting:
            if not future.done():
                future.set_exception(error)
