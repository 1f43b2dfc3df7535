"""The keeper in virtual time: starts what is needed, never more than allowed, stops what is idle, says why it can't."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import virtual_time
from headrace import errors
from headrace.fleet.instance import Instance, Kind
from headrace.fleet.keeper import Keeper
from headrace.gateway.pool import Member, Pool, Waiter
from headrace.model import InstanceState, Version, VersionConfig, VersionState

_START_S = 0.2


class Yard:
    """Instances without an engine: starting takes a while and may fail, stopping takes a while."""

    def __init__(self) -> None:
        self.up: set[str] = set()
        self.frozen: set[str] = set()
        self.most = 0
        self.fails: list[errors.HeadraceError] = []
        self.drained: list[float] = []

    async def obtain(self, version: Version) -> Instance:
        await asyncio.sleep(_START_S)
        if self.fails:
            raise self.fails.pop(0)
        instance = Instance(Kind.of(version), 128, 1.0, Path("/nowhere"))
        for state in (InstanceState.STARTING, InstanceState.WAITING, InstanceState.LOADING):
            instance.become(state)
        link: Any = Link(instance.id)
        instance.link = link
        instance.version = version
        instance.become(InstanceState.READY)
        self.up.add(instance.id)
        self.most = max(self.most, len(self.up))
        return instance

    async def freeze(self, instance: Instance) -> None:
        await asyncio.sleep(0.01)
        self.frozen.add(instance.id)

    async def thaw(self, instance: Instance) -> None:
        await asyncio.sleep(0.01)
        self.frozen.discard(instance.id)

    async def stop(self, instance: Instance, shutdown_s: float = 10.0) -> None:
        await asyncio.sleep(0.05)
        self.drained.append(shutdown_s)
        self.frozen.discard(instance.id)
        self.up.discard(instance.id)
        if not instance.ended:
            instance.finish(InstanceState.STOPPED)

    async def bury(self, instance: Instance) -> errors.InstanceDied:
        await asyncio.sleep(0.05)
        self.up.discard(instance.id)
        instance.finish(InstanceState.LOST)
        return errors.InstanceDied("gone")


class Link:
    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.lost = False


class House:
    """A keeper, its pool, and callers."""

    def __init__(self, layer: str | None = None, **config: Any) -> None:
        wanted = VersionConfig(**{"concurrency": 1, "max_instances": 3, "idle_s": 60, **config})
        version = Version(1, 1, "default", "f", 1, VersionState.READY, None, "d", layer, wanted, 1, 0, 0)
        self.yard = Yard()
        self.active: set[Pool] = set()
        self.pool = Pool(wanted.queue, "least-loaded", self.active)
        yard: Any = self.yard
        self.keeper = Keeper(version, self.pool, yard, self.yard.obtain)
        self.ticker = asyncio.ensure_future(self._tick())

    async def _tick(self) -> None:
        """What the gateway's ticker does."""
        while True:
            await asyncio.sleep(0.02)
            for pool in list(self.active):
                pool.sample(0.02)
                pool.rest()

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def slot(self) -> Member:
        member = self.pool.take()
        if member is not None:
            return member
        granted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def settle(outcome: Any) -> None:
            if not granted.done():
                granted.set_result(outcome)

        self.pool.wait(Waiter(self.now() + 60, settle), self.now())
        outcome = await granted
        if isinstance(outcome, errors.HeadraceError):
            raise outcome
        return outcome  # type: ignore[no-any-return]

    async def call(self, seconds: float) -> str:
        member = await self.slot()
        try:
            await asyncio.sleep(seconds)
            return member.name
        finally:
            self.pool.release(member, self.now())

    def instance(self) -> Instance:
        return self.keeper.instances[0]


def keeping(scenario: Callable[[House], Awaitable[None]], **config: Any) -> None:
    async def run() -> None:
        house = House(**config)
        try:
            await scenario(house)
        finally:
            house.ticker.cancel()
            await house.keeper.close(0)
        assert house.yard.up == set(), "an instance was left behind"
        assert house.pool.in_flight == 0

    virtual_time.run(run())


def test_the_first_call_starts_an_instance_and_the_next_uses_it() -> None:
    async def scenario(house: House) -> None:
        assert await house.call(0.1) == await house.call(0.1)
        assert house.yard.most == 1

    keeping(scenario)


def test_a_burst_is_answered_by_no_more_than_max_instances() -> None:
    async def scenario(house: House) -> None:
        names = await asyncio.gather(*(house.call(0.1) for _ in range(50)))
        assert len(set(names)) == 3
        assert house.yard.most == 3

    keeping(scenario)


def test_an_idle_instance_stops_after_idle_s_and_not_before() -> None:
    async def scenario(house: House) -> None:
        await house.call(1)
        await asyncio.sleep(59)
        assert len(house.yard.up) == 1
        await asyncio.sleep(3)
        assert house.yard.up == set()
        await house.call(1)
        assert len(house.yard.up) == 1

    keeping(scenario)


def test_min_instances_are_kept_only_with_traffic() -> None:
    async def scenario(house: House) -> None:
        house.keeper.wake()
        await asyncio.sleep(1)
        assert house.yard.up == set()
        house.keeper.in_traffic = True
        house.keeper.wake()
        await asyncio.sleep(1)
        assert len(house.yard.up) == 2
        await asyncio.sleep(600)
        assert len(house.yard.up) == 2
        house.keeper.in_traffic = False
        house.keeper.wake()
        await asyncio.sleep(600)
        assert house.yard.up == set()

    keeping(scenario, min_instances=2)


def test_who_waits_for_a_version_that_cannot_start_gets_the_reason_at_once() -> None:
    async def scenario(house: House) -> None:
        house.yard.fails = [errors.LoadFailed("SyntaxError: bad")]
        began = house.now()
        results = await asyncio.gather(*(house.call(1) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(result, errors.LoadFailed) for result in results)
        assert house.now() - began == pytest.approx(_START_S)
        with pytest.raises(errors.LoadFailed):  # the gate is shut: no start is tried for this one
            await house.call(1)
        assert house.now() - began == pytest.approx(_START_S)
        await asyncio.sleep(1.1)
        assert await house.call(0.1)

    keeping(scenario, max_instances=1)


def test_asking_for_a_ready_instance_starts_one_and_says_why_it_cannot() -> None:
    async def scenario(house: House) -> None:
        house.yard.fails = [errors.LoadFailed("no")]
        with pytest.raises(errors.LoadFailed):
            await house.keeper.ready()
        await house.keeper.ready()  # asked again: tried at once, not after the backoff
        assert len(house.yard.up) == 1
        assert house.now() == pytest.approx(2 * _START_S)

    keeping(scenario)


def test_a_full_node_is_tried_again_while_calls_wait() -> None:
    async def scenario(house: House) -> None:
        house.yard.fails = [errors.NoCapacity("full"), errors.NoCapacity("full")]
        assert await house.call(0.1)
        assert house.now() > 2 * 0.5

    keeping(scenario)


def test_a_lost_instance_is_replaced_while_calls_wait() -> None:
    async def scenario(house: House) -> None:
        member = await house.slot()
        waiting = asyncio.ensure_future(house.call(0.1))
        await asyncio.sleep(0)
        first = house.instance()
        house.keeper.lost(first)
        assert house.pool.members == {}
        house.pool.release(member, house.now())
        assert await waiting != first.id
        assert first.state is InstanceState.LOST

    keeping(scenario, max_instances=1)


def test_max_instances_counts_one_that_is_dying() -> None:
    async def scenario(house: House) -> None:
        await house.call(0.1)
        house.keeper.lost(house.instance())
        await house.call(0.1)
        assert house.yard.most == 1

    keeping(scenario, max_instances=1)


def test_an_instance_with_a_late_call_is_replaced_once_its_other_calls_have_ended() -> None:
    async def scenario(house: House) -> None:
        other = asyncio.ensure_future(house.call(5))
        late = await house.slot()
        while len(house.pool.members) < 1 or late.in_flight < 2:
            await asyncio.sleep(0.01)
        house.keeper.late(late.name)
        house.pool.release(late, house.now())
        await asyncio.sleep(1)
        assert late.name in house.yard.up
        assert await house.call(0.1) != late.name
        await other
        await asyncio.sleep(1)
        assert late.name not in house.yard.up
        assert house.yard.drained == [1.0]

    keeping(scenario, concurrency=2)


def test_a_retired_version_lets_its_calls_end_and_refuses_new_ones() -> None:
    async def scenario(house: House) -> None:
        running = asyncio.ensure_future(house.call(5))
        await asyncio.sleep(1)
        house.keeper.retire()
        member = house.pool.take()
        if member is not None:
            house.pool.release(member, house.now())
        assert await running
        await house.keeper.finished()
        assert house.yard.up == set()

    keeping(scenario)


def test_closing_while_instances_start_leaves_none() -> None:
    async def scenario(house: House) -> None:
        calls = [asyncio.ensure_future(house.call(1)) for _ in range(3)]
        await asyncio.sleep(_START_S / 2)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    keeping(scenario)


def test_an_instance_that_becomes_ready_after_its_version_was_retired_is_stopped() -> None:
    async def scenario(house: House) -> None:
        call = asyncio.ensure_future(house.call(1))
        await asyncio.sleep(_START_S / 2)
        house.keeper.retire()
        with pytest.raises(errors.NotFound, match="deleted"):
            await call
        await house.keeper.finished()
        assert house.yard.up == set()
        assert house.yard.most == 1

    keeping(scenario)


def test_an_idle_instance_is_frozen_and_a_call_thaws_it() -> None:
    async def scenario(house: House) -> None:
        name = await house.call(0.1)
        await asyncio.sleep(9)
        assert house.yard.frozen == set()
        await asyncio.sleep(3)
        assert house.yard.frozen == {name}
        began = house.now()
        assert await house.call(0) == name
        assert house.now() - began == pytest.approx(0.01)
        assert house.yard.frozen == set()

    keeping(scenario)


def test_a_call_that_arrives_while_an_instance_is_being_frozen_gets_it_thawed() -> None:
    async def scenario(house: House) -> None:
        name = await house.call(0.1)
        member = house.instance().member
        assert member is not None
        while not member.frozen:
            await asyncio.sleep(0.001)
        assert house.yard.frozen == set(), "the engine has not paused it yet"
        assert await house.call(0) == name
        assert house.yard.frozen == set()

    keeping(scenario)


def test_a_burst_thaws_only_as_many_as_it_needs() -> None:
    async def scenario(house: House) -> None:
        await asyncio.gather(*(house.call(0.1) for _ in range(3)))
        await asyncio.sleep(15)
        assert len(house.yard.frozen) == 3
        await asyncio.gather(*(house.call(0.1) for _ in range(2)))
        assert len(house.yard.frozen) == 1
        assert house.yard.most == 3

    keeping(scenario)


def test_a_version_with_dependencies_keeps_one_frozen_instance_while_it_has_traffic() -> None:
    async def scenario(house: House) -> None:
        house.keeper.in_traffic = True
        await asyncio.gather(*(house.call(0.1) for _ in range(3)))
        await asyncio.sleep(600)
        assert len(house.yard.up) == len(house.yard.frozen) == 1
        assert house.keeper.worth is not None, "it may still be evicted"
        house.keeper.in_traffic = False
        house.keeper.wake()
        await asyncio.sleep(120)
        assert house.yard.up == set()

    keeping(scenario, layer="abc")


def test_instances_that_a_trickle_of_calls_would_keep_awake_for_ever_are_let_go() -> None:
    async def scenario(house: House) -> None:
        await asyncio.gather(*(house.call(1) for _ in range(3)))
        assert len(house.yard.up) == 3
        house.pool.balance_by("round-robin")
        for _ in range(90):  # one call at a time, now on this instance, now on that
            await house.call(0.001)
            await asyncio.sleep(1)
        await asyncio.sleep(1)
        assert len(house.yard.up) == 1

    keeping(scenario)


def test_an_instance_that_was_thawed_is_frozen_again_when_it_rests_again() -> None:
    async def scenario(house: House) -> None:
        name = await house.call(0.1)
        for _ in range(3):
            await asyncio.sleep(13)
            assert house.yard.frozen == {name}
            await house.call(0)
            assert house.yard.frozen == set()

    keeping(scenario, idle_s=300)


def test_an_engine_that_hangs_over_a_thaw_is_asked_once() -> None:
    async def scenario(house: House) -> None:
        await house.call(0.1)
        await asyncio.sleep(13)
        asked = 0
        thaw = house.yard.thaw

        async def slowly(instance: Instance) -> None:
            nonlocal asked
            asked += 1
            await asyncio.sleep(5)
            await thaw(instance)

        house.yard.thaw = slowly  # type: ignore[method-assign]
        tasks = len(asyncio.all_tasks())
        calls = [asyncio.ensure_future(house.call(0)) for _ in range(3)]
        for _ in range(3):
            await asyncio.sleep(1)
            house.keeper.wake()
        assert len(asyncio.all_tasks()) <= tasks + len(calls) + 1, "a look beside a thaw started another"
        await asyncio.gather(*calls)
        assert asked == 1

    keeping(scenario, max_instances=1)


def test_a_keeper_that_has_nothing_to_do_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(house: House) -> None:
        house.keeper.in_traffic = True
        await house.call(0.1)
        await asyncio.sleep(200)
        assert len(house.yard.frozen) == 1
        looks = 0
        look = house.keeper._look

        def counted() -> float | None:
            nonlocal looks
            looks += 1
            return look()

        monkeypatch.setattr(house.keeper, "_look", counted)
        await asyncio.sleep(1000)
        assert looks <= 1, "the sleep that had begun before"
        await house.call(0)
        assert house.yard.frozen == set()

    keeping(scenario, layer="abc")


def test_a_look_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(house: House) -> None:
        observe = house.pool.observe

        def fails_once() -> float:
            monkeypatch.setattr(house.pool, "observe", observe)
            raise ZeroDivisionError

        monkeypatch.setattr(house.pool, "observe", fails_once)
        await house.call(0.1)

    keeping(scenario)
    assert "looking after default/f@1 failed" in caplog.text
