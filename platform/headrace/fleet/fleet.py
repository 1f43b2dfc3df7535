"""All instances of this node: keepers per version, the shelf of generic ones, the memory they share.

The engine is the truth about what runs. At start the fleet takes back the instances that an earlier node of this
home left running and removes what nobody can use; a sweep every few seconds removes strays for as long as it lives.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from headrace import errors
from headrace.drivers.base import Driver
from headrace.fleet.instance import Instance, Kind
from headrace.fleet.keeper import Keeper
from headrace.fleet.ports import Pool, Switchboard
from headrace.fleet.shelf import Shelf
from headrace.fleet.yard import WAITING_MB, LogOf, Yard
from headrace.model import InstanceState, Version
from headrace.settings import Settings
from headrace.tasks import Tasks

logger = logging.getLogger(__name__)

_SWEEP_S = 20.0
_PATIENCE_S = 10.0  # an instance of an earlier node dials in again within this
_ROOM_S = 3.0  # how long a start waits for the memory of an instance that is being stopped
_LOOK_S = 0.01
_RESTORE_S = 60.0  # for one instance


@dataclass(slots=True)
class Recovery:
    """What the node found of its predecessor."""

    adopted: int = 0
    shelved: int = 0
    removed: int = 0


class Fleet:
    def __init__(self, driver: Driver, switchboard: Switchboard, settings: Settings, log_of: LogOf) -> None:
        self._settings = settings
        self._tasks = Tasks()
        self._yard = Yard(driver, switchboard, settings, log_of)
        self._shelf = Shelf(self._yard, settings, self._shelf_may_grow, self._warm, self.lost)
        self._memory_mb = settings.instance_memory_mb or _three_quarters_of_the_machine()
        self._wanted_mb = 0  # what starts wait for
        self._shelf_bounded = False
        self._keepers: dict[int, Keeper] = {}
        self.recovery = Recovery()

    # -- versions

    def keep(self, version: Version, pool: Pool) -> Keeper:
        """The keeper of `version`, new with `pool` when it has none."""
        keeper = self._keepers.get(version.id)
        if keeper is None:
            keeper = Keeper(version, pool, self._yard, self._obtain)
            self._keepers[version.id] = keeper
        return keeper

    def publish(self, gone: Iterable[Version], come: Iterable[Version]) -> None:
        """Aliases lead to the versions `come` from now on, and no longer to `gone`."""
        for versions, change in ((gone, -1), (come, 1)):
            for version in versions:
                if version.layer is None:  # else its keeper has a frozen instance
                    self._shelf.publish(Kind.of(version), change)

    def keeper(self, version_id: int) -> Keeper | None:
        return self._keepers.get(version_id)

    def retire(self, version_id: int) -> None:
        """Drain and stop all instances of a version that is not to be called any more."""
        keeper = self._keepers.pop(version_id, None)
        if keeper is not None:
            keeper.retire()
            self._tasks.spawn(keeper.finished(), f"retire {keeper.version}")

    def lost(self, instance: Instance) -> None:
        """The connection of `instance` ended."""
        if instance.state is InstanceState.READY:
            keeper = self._keeper_of(instance)
            if keeper is not None:
                keeper.lost(instance)
            else:  # of a version that was deleted while this one had calls
                self._tasks.spawn(self._yard.bury(instance), f"bury {instance.id}")
        elif self._shelf.discard(instance):
            self._tasks.spawn(self._yard.bury(instance), f"bury {instance.id}")

    def late(self, instance_id: str) -> None:
        """A call of this instance ran out of time."""
        instance = self._yard.running.get(instance_id)
        keeper = self._keeper_of(instance) if instance is not None else None
        if keeper is not None:
            keeper.late(instance_id)

    # -- life

    async def recover(self, keeper_of: Callable[[int], Keeper | None]) -> Recovery:
        """Adopt what an earlier node left running; `keeper_of` gives the keeper of a version id that is still good."""
        report = self.recovery
        listed = await self._yard.listed()
        adopting = []
        for id in listed:
            remembered = Instance.recall(self._settings.run_dir, id)
            if remembered is not None:
                adopting.append(self._adopt(*remembered, keeper_of))
        await asyncio.gather(*adopting)
        report.removed += await self._yard.sweep()
        if any(asdict(report).values()):
            logger.info("recovered: %s", asdict(report))
        return report

    def start(self, resting: Iterator[Keeper]) -> None:
        """Begin to keep what should wait: generic instances, and one of each version in `resting`, which it goes
        through as slowly as they start."""
        self._shelf.start()
        self._tasks.spawn(self._sweeps(), "sweep")
        self._tasks.spawn(self._restore(resting), "restore")

    async def stop(self, shutdown_s: float) -> None:
        """Stop every instance; an application's shutdown may take `shutdown_s` seconds."""
        await self._shelf.close()
        await self._tasks.aclose()
        await asyncio.gather(*(keeper.close(shutdown_s) for keeper in self._keepers.values()))
        await asyncio.gather(*(self._yard.stop(instance, 0) for instance in list(self._yard.running.values())))
        await self._yard.close()

    def status(self) -> dict[str, Any]:
        """For `GET /system`: instances by version, what waits on the shelf, memory, the recovery report."""
        running = list(self._yard.running.values())
        return {
            "instances": [
                {
                    "id": i.id,
                    "state": str(i.state),
                    "version_id": i.version.id if i.version else None,
                    "namespace": i.version.namespace if i.version else None,
                    "function": i.version.function if i.version else None,
                    "version": i.version.number if i.version else None,
                    "in_flight": i.member.in_flight if i.member else 0,
                    "memory_mb": i.memory_mb,
                }
                for i in running
            ],
            "waiting": len(self._shelf),
            "memory_mb": {"limit": self._memory_mb, "reserved": self._used()},
            "recovery": asdict(self.recovery),
        }

    # -- inside

    async def _obtain(self, version: Version) -> Instance:
        """An instance that runs `version`: one from the shelf, else a new one. Raises why there is none."""
        config = version.config
        kind = Kind.of(version)
        keeper = self._keepers.get(version.id)
        foreseen = keeper is not None and keeper.in_traffic and keeper.have <= 1 and kind.layer is None
        while (instance := self._shelf.take(kind, foreseen=foreseen)) is not None:
            try:
                await self._make_room(config.memory_mb - instance.memory_mb)
            except BaseException:
                await self._yard.stop(instance, 0)
                raise
            if instance.link is not None and not instance.link.lost:
                break
            await self._yard.bury(instance)  # it died while room was made
        else:
            await self._make_room(config.memory_mb)
            instance = await self._yard.launch(kind, config, self.lost)
        instance.memory_mb = config.memory_mb  # reserved in the same step in which it was found free
        await self._yard.load(instance, version)
        return instance

    def _keeper_of(self, instance: Instance) -> Keeper | None:
        return self._keepers.get(instance.version.id) if instance.version is not None else None

    async def _adopt(
        self, instance: Instance, version_id: int | None, keeper_of: Callable[[int], Keeper | None]
    ) -> None:
        if not await self._yard.adopt(instance, self.lost, _PATIENCE_S):
            self.recovery.removed += 1
            return
        assert instance.link is not None
        loaded = bool(instance.link.hello.get("loaded"))
        keeper = keeper_of(version_id) if version_id is not None else None
        lost = instance.link.lost
        if keeper is not None and loaded and not lost:
            self._yard.resume(instance, keeper.version)
            keeper.enlist(instance)
            keeper.wake()
            self.recovery.adopted += 1
        elif version_id is None and not loaded and not lost:
            instance.memory_mb = WAITING_MB
            instance.limits = None  # perhaps it was just being adjusted for a version
            self._shelf.put(instance)
            self.recovery.shelved += 1
        else:
            await self._yard.stop(instance, 0)
            self.recovery.removed += 1

    async def _restore(self, resting: Iterator[Keeper]) -> None:
        """Versions with dependencies get back the instance that a stopped node took from them, one after the other."""
        for keeper in resting:
            if self._used() * 2 > self._memory_mb:
                logger.info("half of the memory is taken: the other versions with dependencies start when called")
                return
            await self._yard.calm.wait()
            try:
                async with asyncio.timeout(_RESTORE_S):
                    await keeper.ready()
            except TimeoutError:
                logger.warning("%s had no instance ready within %g s", keeper.version, _RESTORE_S)
            except errors.HeadraceError as error:
                logger.warning("%s has no instance ready: %s", keeper.version, error.detail)

    async def _sweeps(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                await self.sweep()
            except Exception:
                logger.exception("a sweep failed; the next one is in %g s", _SWEEP_S)

    async def sweep(self) -> None:
        """Stop what nobody asks for any more, remove what runs and belongs to nobody."""
        for instance in self._shelf.stale():
            await self._yard.stop(instance, 0)
        self._shelf.refill()
        try:
            removed = await self._yard.sweep()
        except errors.EngineUnavailable as error:
            logger.warning("the engine does not answer: %s", error.detail)
        else:
            if removed:
                logger.warning("removed %d instances that belonged to nobody", removed)

    def _used(self) -> int:
        return sum(instance.memory_mb for instance in self._yard.running.values())

    def _fits(self, memory_mb: int) -> bool:
        return self._used() + memory_mb <= self._memory_mb

    def _warm(self, kind: Kind) -> int:
        """How many published versions of `kind` have an instance."""
        loaded = {i.version.id for i in self._yard.running.values() if i.version is not None and i.kind == kind}
        return sum(1 for id in loaded if id in self._keepers and self._keepers[id].in_traffic)

    def _shelf_may_grow(self) -> bool:
        """Waiting instances take a quarter of the memory at most, and nobody's place."""
        share_mb = self._memory_mb // 4
        if (len(self._shelf) + 1) * WAITING_MB > share_mb:
            if not self._shelf_bounded:
                self._shelf_bounded = True
                logger.warning(
                    "%d generic instances wait and more are wanted, but they may take a quarter of %d MiB at most: "
                    "lower HEADRACE_PREWARM and HEADRACE_PREWARM_MOST, or raise HEADRACE_INSTANCE_MEMORY_MB.",
                    len(self._shelf),
                    self._memory_mb,
                )
            return False
        return self._fits(WAITING_MB)

    async def _make_room(self, memory_mb: int) -> None:
        """Return when `memory_mb` more fit. What is stopped for it, in this order: generic instances beyond the
        setting, idle instances by worth, the other generic ones (they are what keeps cold calls short).

        Raises `NoCapacity`.
        """
        if self._fits(memory_mb):
            return
        if self._busy_mb() + memory_mb > self._memory_mb:
            raise self._full()  # stopping all that is idle would not help
        deadline = asyncio.get_running_loop().time() + _ROOM_S
        self._wanted_mb += memory_mb
        try:
            with self._shelf.held():
                while not self._fits(memory_mb):
                    coming = self._stopping_mb()
                    enough = self._used() + self._wanted_mb - coming <= self._memory_mb
                    if asyncio.get_running_loop().time() > deadline or not (enough or self._give_up() or coming):
                        raise self._full()
                    await asyncio.sleep(_LOOK_S)
        finally:
            self._wanted_mb -= memory_mb

    def _full(self) -> errors.NoCapacity:
        return errors.NoCapacity(
            f"instances hold {self._used()} of {self._memory_mb} MiB and too many are busy: lower memory_mb, stop "
            "functions, or raise HEADRACE_INSTANCE_MEMORY_MB.",
            retry_after_s=1,
        )

    def _give_up(self) -> bool:
        """Begin to stop one instance that can be spared; False when there is none."""
        waiting = self._shelf.give_up(spare=True)
        if waiting is None:
            idle = [(worth, keeper) for keeper in self._keepers.values() if (worth := keeper.worth) is not None]
            if idle:
                min(idle, key=lambda pair: pair[0])[1].evict()
                return True
            waiting = self._shelf.give_up(spare=False)
        if waiting is None:
            return self._shelf.filling
        self._tasks.spawn(self._yard.stop(waiting, 0), f"give up {waiting.id}")
        return True

    def _busy_mb(self) -> int:
        """What nobody can give up now: instances with calls, and those that are on their way to some."""
        return sum(
            i.memory_mb
            for i in self._yard.running.values()
            if i.state not in (InstanceState.WAITING, InstanceState.DRAINING)
            and (i.member is None or i.member.in_flight)
        )

    def _stopping_mb(self) -> int:
        return sum(i.memory_mb for i in self._yard.running.values() if i.state is InstanceState.DRAINING)


def _three_quarters_of_the_machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 20) * 3 // 4
