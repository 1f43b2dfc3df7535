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
from headrace.fleet import scaler
from headrace.fleet.instance import Instance
from headrace.fleet.ports import Pool
from headrace.fleet.scaler import Demand, History, Scale
from headrace.fleet.worth import worth
from headrace.fleet.yard import Yard
from headrace.model import Version
from headrace.tasks import Tasks

logger = logging.getLogger(__name__)

_BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # after the first, second, ... start in a row that failed
_RETRY_S = 0.5  # waiting calls but no memory for an instance: look again
_LATE_S = 1.0  # for the shutdown of an instance whose code may still be stuck in a call
_EVICTED_S = 1.0  # for one that has to make room
_PAUSE_S = 0.01
_LOOK_S = 1.0  # a version with instances that are not at rest is looked at this often
_FREEZE_S = 10.0  # an instance without a call for so long is paused: it keeps its memory and gets no CPU

Obtain = Callable[[Version], Awaitable[Instance]]


class Keeper:
    def __init__(self, version: Version, pool: Pool, yard: Yard, obtain: Obtain) -> None:
        self.version = version
        self.pool = pool
        pool.on_demand = self.wake
        self.in_traffic = False  # an alias points here, so min_instances counts
        self._yard = yard
        self._obtain = obtain  # a loaded instance of the version, from the shelf or newly launched
        self._instances: dict[str, Instance] = {}
        self._starting = 0
        self._stopping: set[str] = set()
        self._thawing: set[str] = set()
        self._wanted_ready: list[asyncio.Future[str]] = []
        self._history = History()
        self._seen_at = self._grown_at = asyncio.get_running_loop().time()
        self._thawed_at = float("-inf")
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
        for instance in self._serving:
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
        instance.member.steps = instance.steps
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
        if instance is not None:
            self._drain(instance)

    @property
    def worth(self) -> float | None:
        """What keeping the idlest instance is worth; None when none is idle or may be stopped."""
        idle = self._idlest()
        if idle is None or idle.member is None or len(self._serving) <= self._floor:
            return None
        calls = sum(i.member.served for i in self._instances.values() if i.member is not None)
        idle_s = asyncio.get_running_loop().time() - idle.member.idle_since
        return worth(idle_s, calls, idle.start_ms, idle.memory_mb)

    def evict(self) -> None:
        """Stop the instance that has been idle longest, to make room."""
        idle = self._idlest()
        if idle is not None:
            self._stop(idle, _EVICTED_S)

    def _idlest(self) -> Instance | None:
        idle = [i for i in self._instances.values() if self._idle(i)]
        return min(idle, key=lambda i: i.member.idle_since if i.member is not None else 0.0, default=None)

    def retire(self) -> None:
        """The version is not to be called any more: drain all its instances, fail who waits."""
        self._end(errors.NotFound(f"version {self.version.number} of {self.version.function!r} was deleted."))
        self.wake()

    def _end(self, why: errors.HeadraceError) -> None:
        """No call is taken any more: who waits and who comes gets `why`, what runs may end."""
        self._retired = True
        self.pool.shut(why, float("inf"))
        self._fail(why)
        for instance in self._serving:
            self._drain(instance)

    async def finished(self) -> None:
        """Wait until a retired version has no instance any more."""
        await asyncio.wait((self._task,))

    async def close(self, shutdown_s: float) -> None:
        """Stop every instance. Calls that wait are told, those that run get `shutdown_s` seconds to end."""
        if not self._retired:
            self._end(errors.NodeUnavailable("the node is stopping; try again.", retry_after_s=1))
        await self._tasks.aclose()
        await asyncio.gather(*(self._yard.stop(instance, shutdown_s) for instance in self.instances))

    # -- the loop

    async def _run(self) -> None:
        while not (self._retired and not self.have):
            try:
                timeout = self._look()
            except Exception:  # the next turn looks again; without its keeper a version would never start
                logger.exception("looking after %s failed", self.version)
                timeout = _LOOK_S
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
        for instance in self.instances:
            member = instance.member
            if member is not None and member.draining and not member.in_flight:
                self._stop(instance)
        if self._retired:
            return None
        serving = self._serving
        have = len(serving) + self._starting
        scale = scaler.scale(self._observe(now), self.version.config, have)
        wanted = max(scale.wanted, 1 if self._wanted_ready else 0)
        frozen = [i for i in serving if i.member is not None and i.member.frozen]
        needed = max(wanted - have + len(frozen), 1 if self.pool.waiting else 0)
        for instance in frozen[:needed]:
            if instance.id not in self._thawing:
                self._thawing.add(instance.id)
                self._tasks.spawn(self._thaw(instance), f"thaw {instance.id}")
        missing = min(wanted - have, self.version.config.max_instances - self.have)
        if missing > 0:
            self._grown_at = now
            if now < self._retry_at:
                return self._retry_at - now
            self._starting += missing
            for _ in range(missing):
                self._tasks.spawn(self._start(), f"start {self.version}")
            return None
        return self._scale_in(now, scale, serving) if serving else None

    def _observe(self, now: float) -> Demand:
        call_seconds = self.pool.observe()
        self._history.add(self._seen_at, now, call_seconds)
        self._seen_at = now
        average = self._history.average
        calls = self.pool.in_flight + self.pool.waiting
        return Demand(calls, average(now, scaler.STABLE_S), average(now, scaler.PANIC_S), self.in_traffic)

    def _scale_in(self, now: float, scale: Scale, serving: list[Instance]) -> float | None:
        """Stop what is idle or surplus, freeze what rests; the seconds until there may be more of it to do, or None."""
        config = self.version.config
        floor = max(self._floor, 1 if self.version.layer and self.in_traffic else 0)
        idle = {i.id: now - i.member.idle_since for i in serving if i.member is not None and not i.member.in_flight}
        for name in scaler.surplus(idle, len(serving), max(scale.wanted, floor), config.idle_s):
            self._stop(self._instances[name])
            del idle[name]
        left = self._serving
        if now - self._grown_at >= max(scaler.STABLE_S, config.idle_s):
            left.sort(key=lambda i: i.member.in_flight if i.member is not None else 0)
            for instance in left[: max(0, len(left) - scale.most)]:
                self._drain(instance)
        for name, seconds in idle.items():
            if seconds >= _FREEZE_S and now - self._thawed_at >= _FREEZE_S:  # or it would be thawed again at once
                self._rest(self._instances[name])
        if len(idle) < len(left) or any(seconds < _FREEZE_S for seconds in idle.values()):
            return _LOOK_S
        if len(left) <= floor and all(i.member is not None and i.member.frozen for i in left):
            return None  # nothing is to be done before a call waits
        return max(config.idle_s - max(idle.values(), default=0.0), _LOOK_S)

    # -- rest

    def _rest(self, instance: Instance) -> None:
        if instance.member is not None and not instance.member.frozen and self.pool.freeze(instance.member):
            self._tasks.spawn(self._freeze(instance), f"freeze {instance.id}")

    async def _freeze(self, instance: Instance) -> None:
        """Pause an instance that the pool gave up. A thaw that comes meanwhile waits for its turn and undoes it."""
        async with instance.pausing:
            try:
                await self._yard.freeze(instance)
            except errors.HeadraceError as error:
                logger.warning("instance %s may be paused or not and is replaced: %s", instance.id, error.detail)
                self._drain(instance)

    async def _thaw(self, instance: Instance) -> None:
        try:
            async with instance.pausing:
                if instance.member is None or not instance.member.frozen or instance.member.draining:
                    return
                began = asyncio.get_running_loop().time()
                await self._yard.thaw(instance)
                instance.member.steps = {"thaw": (asyncio.get_running_loop().time() - began) * 1000}
                self.pool.thaw(instance.member)
                self._thawed_at = asyncio.get_running_loop().time()
        except errors.HeadraceError as error:
            logger.warning("instance %s could not be thawed and is replaced: %s", instance.id, error.detail)
            self._drain(instance)
        finally:
            self._thawing.discard(instance.id)
            self.wake()  # it rests no more, so it is to be looked at again before idle_s is over

    @property
    def _serving(self) -> list[Instance]:
        """Instances that calls may go to, frozen ones too."""
        return [i for i in self._instances.values() if i.member is not None and not i.member.draining]

    def _drain(self, instance: Instance) -> None:
        if instance.member is not None and not instance.member.draining:
            self.pool.drain(instance.member)

    def _idle(self, instance: Instance) -> bool:
        member = instance.member
        return member is not None and not member.in_flight and not member.draining

    @property
    def _floor(self) -> int:
        return self.version.config.min_instances if self.in_traffic else 0

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
            self.pool.lacking = error
            self._fail(error)
        except errors.HeadraceError as error:
            self._failed(error)
        except Exception as error:  # a full disk, a bundle that is gone: as loud, and with the same backoff
            logger.exception("starting an instance of %s failed", self.version)
            self._failed(errors.HeadraceError(f"starting an instance failed on the node: {type(error).__name__}."))
        finally:
            self._starting -= 1
            self.wake()

    def _failed(self, error: errors.HeadraceError) -> None:
        """Fail fast: who waits gets the reason at once, and so does who comes before the next try."""
        if self._retired:  # the gate is shut for good
            return
        now = asyncio.get_running_loop().time()
        self._fail(error)
        if now < self._retry_at:  # another of the same batch has said it already
            return
        backoff = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
        self._failures += 1
        self._retry_at = now + backoff
        if not self._serving:
            self.pool.shut(error, self._retry_at)
        logger.warning("%s cannot start, next try in %g s: %s", self.version, backoff, error.detail)

    def _stop(self, instance: Instance, shutdown_s: float | None = None) -> None:
        if instance.id in self._stopping:
            return
        if shutdown_s is None and instance.member is not None and instance.member.draining:
            shutdown_s = _LATE_S
        self._stopping.add(instance.id)
        if instance.member is not None:
            self.pool.remove(instance.member)
        self._tasks.spawn(self._stopped(instance, shutdown_s), f"stop {instance.id}")

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
