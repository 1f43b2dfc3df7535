"""Any order of calls, deaths, moves, faults and idle time over the real fleet and gateway, in virtual time.

Each rule starts something and lets a moment pass; what must always hold is checked after each of them and many times
while time passes. At the end everything that was broken is mended: the version must work again by itself, then fall
idle, then stop, and nothing may be left.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fakes import FakeInstance, FaultKind, Verb
from fleet_kit import Answer, House, house
from headrace.fleet.keeper import Keeper
from headrace.gateway.pool import Member, Pool
from virtual_time import VirtualLoop

T = TypeVar("T")

_PATHS = ("/ok", "/ok", "/slow", "/stream", "/raise", "/half", "/die", "/wait")
_MOMENTS = (0.0, 0.001, 0.05, 0.3, 1.1, 4.0, 11.0, 65.0)  # instances are frozen after 10 s and stopped after 60 s
_IDLE_S = 12.0
_STATUSES = {200, 400, 404, 429, 500, 502, 503, 504}


@dataclass
class Caller:
    task: asyncio.Task[Answer]
    answer: Answer
    routed: bool  # a version was live when it came
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class FleetMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.home = tempfile.TemporaryDirectory(prefix="hr-")
        self.stack = AsyncExitStack()
        self.callers: list[Caller] = []
        self.judged = 0
        self.numbers = [1]
        self.live: int | None = 1
        self.revision = 1
        self.newest = 1
        self.faults = 0
        self.keepers: dict[int, Keeper] = {}
        self.members: dict[str, Member] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize(
        concurrency=st.integers(1, 3),
        most=st.integers(1, 3),
        least=st.integers(0, 1),
        queue=st.sampled_from((0, 2, 100)),
        prewarm=st.integers(0, 2),
        memory_mb=st.sampled_from((64, 128, 400)),
    )
    def start(self, concurrency: int, most: int, least: int, queue: int, prewarm: int, memory_mb: int) -> None:
        self.most = most

        async def begin() -> House:
            config = {"concurrency": concurrency, "max_instances": most, "min_instances": least, "queue": queue}
            made = house(Path(self.home.name), prewarm, memory_mb=memory_mb, idle_s=_IDLE_S, timeout_s=2, **config)
            return await self.stack.enter_async_context(made)

        self.rig = self.run(begin())

    # -- what happens

    @rule(path=st.sampled_from(_PATHS), times=st.sampled_from((1, 1, 1, 2, 5)))
    def call(self, path: str, times: int) -> None:
        async def begin() -> None:
            for _ in range(times):
                gone, answer = asyncio.Event(), Answer(path)
                task = self.loop.create_task(self.rig.call(path, answer, gone))
                self.callers.append(Caller(task, answer, self.live is not None, gone))
            await asyncio.sleep(0)

        self.run(begin())

    @precondition(lambda self: any(not caller.task.done() for caller in self.callers))
    @rule(data=st.data(), cut=st.booleans())
    def a_caller_leaves(self, data: st.DataObject, cut: bool) -> None:
        caller = data.draw(st.sampled_from([caller for caller in self.callers if not caller.task.done()]))
        if cut:
            caller.task.cancel()
        else:
            caller.gone.set()
        self.run(asyncio.sleep(0))

    @precondition(lambda self: self.rig.engine.instances)
    @rule(data=st.data())
    def an_instance_dies(self, data: st.DataObject) -> None:
        instances: list[FakeInstance] = list(self.rig.engine.instances.values())
        self.rig.kill(instances[data.draw(st.integers(0, len(instances) - 1))])
        self.run(asyncio.sleep(0))

    @rule(seconds=st.sampled_from(_MOMENTS))
    def time_passes(self, seconds: float) -> None:
        self.run(self._pass(seconds))

    @rule(data=st.data(), fresh=st.booleans())
    def publish(self, data: st.DataObject, fresh: bool) -> None:
        if fresh or not self.numbers:
            self.newest += 1
            self.numbers.append(self.newest)
        self._route(data.draw(st.sampled_from(self.numbers)) if not fresh else self.newest)

    @precondition(lambda self: len(self.numbers) > 1)
    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.numbers))
        self.numbers.remove(number)
        self._route(None if number == self.live else self.live)

    @rule(
        verb=st.sampled_from(("start", "stop", "inspect", "adjust", "list")),
        kind=st.sampled_from(("fail", "hang", "cancel")),
        after=st.booleans(),
    )
    def the_engine_will_fail_once(self, verb: Verb, kind: FaultKind, after: bool) -> None:
        self.faults += 1
        self.rig.driver.fault(verb, 1, kind, after=after)

    @rule(fails=st.booleans())
    def code_breaks_or_heals(self, fails: bool) -> None:
        self.rig.program.load_error = {"type": "ImportError", "message": "no", "stack": ""} if fails else None

    # -- what always holds

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "rig"):
            self._slots_balance()
            self._instances_are_bounded_and_known()
            self._frozen_ones_are_left_alone()
            self._everybody_got_one_answer()

    def _slots_balance(self) -> None:
        running = sum(not caller.answer.ended for caller in self.callers)
        assert self.rig.invoker.in_flight == running
        pools: list[Pool] = [*self.rig.pools.values(), *self.rig.retired]
        assert sum(pool.in_flight + pool.waiting for pool in pools) <= running
        for pool in pools:
            self.members |= pool.members
            assert sum(member.in_flight for member in pool.members.values()) <= pool.in_flight
            for member in pool.members.values():
                assert 0 <= member.link.in_flight <= member.in_flight <= member.capacity, pool
            if any(member.open for member in pool.members.values()):
                assert not pool.waiting, f"a call waits although a slot is free: {pool}"

    def _instances_are_bounded_and_known(self) -> None:
        known = self.rig.fleet.status()["instances"]
        for number in self.rig.pools:
            if (keeper := self.rig.fleet.keeper(number)) is not None:
                self.keepers[number] = keeper
        for keeper in self.keepers.values():
            assert keeper.have <= self.most, keeper
        for version, count in Counter(i["version_id"] for i in known if i["version_id"]).items():
            assert count <= self.most, f"{count} instances of version {version}"
        if not self.faults:
            strays = {id for _, id in self.rig.engine.instances} - {i["id"] for i in known}
            assert not strays, "an instance runs that the fleet does not know"

    def _frozen_ones_are_left_alone(self) -> None:
        for member in self.members.values():
            assert not (member.frozen and member.in_flight), member
        for (_, id), instance in self.rig.engine.instances.items():
            member = self.members.get(id)
            if instance.frozen and member is not None:
                assert not member.open, f"a call could be given to a paused instance: {member}"
        assert self.rig.program.calls_while_frozen == 0

    def _everybody_got_one_answer(self) -> None:
        done = [caller for caller in self.callers if caller.answer.ended]
        rows = self.rig.records
        assert len(rows) == sum(caller.routed for caller in done), "one record per call that found a version"
        if len(done) == self.judged:
            return
        self.judged = len(done)
        assert len({row[0] for row in rows}) == len(rows), "two records of one call"
        for caller in done:
            assert caller.answer.status in _STATUSES
            assert caller.answer.whole != caller.answer.broken

    # -- the end

    def teardown(self) -> None:
        try:
            if hasattr(self, "rig"):
                try:
                    self.run(self._come_to_rest())
                finally:
                    self.run(self.stack.aclose())
                left = asyncio.all_tasks(self.loop)
                assert not left, f"tasks outlived the node: {left}"
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
                self.run(asyncio.wait([task]))
            self.loop.close()
            self.home.cleanup()

    async def _come_to_rest(self) -> None:
        rig = self.rig
        rig.driver.mend()
        rig.program.load_error = None
        if self.callers:
            await asyncio.wait([caller.task for caller in self.callers], timeout=100)
        self.holds()
        assert rig.invoker.in_flight == 0, f"a call was never answered: {rig.pools}"
        rig.balanced()
        await self._works_again()
        self._route(None)
        for _ in range(30):
            if len(rig.engine.instances) == rig.fleet.status()["waiting"] == len(rig.fleet.status()["instances"]):
                return
            await self._pass(10.0)
        raise AssertionError(f"it does not come to rest: {rig.fleet.status()} {list(rig.engine.instances)}")

    async def _works_again(self) -> None:
        """A version that is live answers before long, whatever has happened."""
        self.newest += 1
        for number in [self.live or self.newest, self.newest]:
            if number not in self.numbers:
                self.numbers.append(number)
            self._route(number)
            for _ in range(20):
                answer = await self.rig.call()
                self.callers.append(Caller(_done(answer), answer, True))
                if answer.status == 200:
                    break
                await self._pass(4.0)
            else:
                raise AssertionError(f"it never came back: {self.rig.fleet.keeper(number)} {self.rig.fleet.status()}")

    # -- tools

    async def _pass(self, seconds: float) -> None:
        for _ in range(20):
            await asyncio.sleep(seconds / 20)
            self.holds()

    def _route(self, live: int | None) -> None:
        async def move() -> None:
            self.rig.route(live, self.numbers, self.revision)

        self.revision += 1
        self.live = live
        if self.loop.is_running():
            self.rig.route(live, self.numbers, self.revision)
        else:
            self.run(move())


def _done(answer: Answer) -> asyncio.Task[Answer]:
    task: Any = asyncio.get_running_loop().create_future()
    task.set_result(answer)
    return task  # type: ignore[no-any-return]


FleetMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestFleetMachine = FleetMachine.TestCase
