"""An instance that is about to rest or to end, and a call that arrives just then: it is answered, never by halves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import virtual_time
from fleet_kit import House, house

_FREEZE_S = 10.0


def _slow_engine(monkeypatch: pytest.MonkeyPatch, rig: House, seconds: float) -> None:
    """Pausing and resuming take a while, and take effect half way."""
    at_once = rig.driver.adjust

    async def adjust(id: str, **how: Any) -> None:
        await asyncio.sleep(seconds / 2)
        await at_once(id, **how)
        await asyncio.sleep(seconds / 2)

    monkeypatch.setattr(rig.driver, "adjust", adjust)


async def _until_frozen(rig: House) -> None:
    while not any(member.frozen for member in rig.pools[1].members.values()):
        await asyncio.sleep(0.01)


def test_freeze_against_an_arriving_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(after: float) -> bool:
        async with house(tmp_path / str(after)) as rig:
            _slow_engine(monkeypatch, rig, 0.1)
            assert (await rig.call()).status == 200
            await _until_frozen(rig)
            await asyncio.sleep(after)
            paused = [instance.frozen for instance in rig.engine.instances.values()]
            arrived = asyncio.get_running_loop().time()
            assert (await rig.call()).status == 200
            assert asyncio.get_running_loop().time() - arrived < 0.25, "one pause and one thaw at most"
            assert rig.program.calls_while_frozen == 0
            assert len({row[4] for row in rig.records}) == 1, "the same instance answers"
            assert not any(instance.frozen for instance in rig.engine.instances.values())
            return any(paused)

    seen = [virtual_time.run(scenario(after / 1000)) for after in range(0, 130, 10)]
    assert True in seen
    assert False in seen, "both before and after the pause took effect"


def test_a_call_in_the_very_moment_in_which_an_instance_is_to_be_frozen(tmp_path: Path) -> None:
    async def scenario(at: float) -> None:
        async with house(tmp_path / str(at)) as rig:
            assert (await rig.call()).status == 200
            await asyncio.sleep(at)
            calls = [asyncio.ensure_future(rig.call()) for _ in range(3)]
            await asyncio.sleep(0)
            calls.append(asyncio.ensure_future(rig.call()))
            assert {answer.status for answer in await asyncio.gather(*calls)} == {200}
            assert rig.program.calls_while_frozen == 0
            assert {row[11] for row in rig.records} == {"ok"}

    for ms in (-21, -20, -1, 0, 1, 20, 21, 500, 980, 1000, 1001):
        virtual_time.run(scenario(_FREEZE_S + ms / 1000))


@pytest.mark.parametrize("lost", [False, True], ids=["not done", "done, the answer lost"])
@pytest.mark.parametrize("kind", ["fail", "hang", "cancel"])
def test_an_instance_that_may_be_paused_or_not_gets_no_call_and_is_replaced(
    tmp_path: Path, kind: Any, lost: bool
) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as rig:
            assert (await rig.call()).status == 200
            rig.driver.fault("adjust", 1, kind, after=lost)
            await asyncio.sleep(12 + (60 if kind == "hang" else 0))
            assert (await rig.call()).status == 200
            await asyncio.sleep(15)
            first, second = (row[4] for row in rig.records)
            assert first != second
            assert rig.program.calls_while_frozen == 0
            assert [id for _, id in rig.engine.instances] == [second]

    virtual_time.run(scenario())


def test_a_call_thaws_the_only_instance_although_no_call_may_queue(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, queue=0, max_instances=1) as rig:
            assert (await rig.call()).status == 200
            await _until_frozen(rig)
            await asyncio.sleep(1)
            assert (await rig.call()).status == 200
            assert len({row[4] for row in rig.records}) == 1

    virtual_time.run(scenario())


def test_a_paused_instance_that_cannot_be_resumed_does_not_stay(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as rig:
            assert (await rig.call()).status == 200
            await _until_frozen(rig)
            await asyncio.sleep(1)
            rig.driver.fault("adjust", always=True)
            assert (await rig.call()).status == 200
            await asyncio.sleep(5)
            first, second = (row[4] for row in rig.records)
            assert first != second
            assert [i["id"] for i in rig.fleet.status()["instances"]] == [second], "its memory is free again"
            assert [id for _, id in rig.engine.instances] == [second]

    virtual_time.run(scenario())


def test_a_frozen_instance_that_dies_under_the_call_that_needs_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(after: float) -> None:
        async with house(tmp_path / str(after), max_instances=1) as rig:
            _slow_engine(monkeypatch, rig, 0.1)
            assert (await rig.call()).status == 200
            await _until_frozen(rig)
            await asyncio.sleep(1)
            waiting = asyncio.ensure_future(rig.call())
            await asyncio.sleep(after)
            rig.kill(next(iter(rig.engine.instances.values())))
            assert (await waiting).status == 200
            first, second = (row[4] for row in rig.records)
            assert first != second
            await asyncio.sleep(1)
            assert [id for _, id in rig.engine.instances] == [second]

    for after in (0.0, 0.03, 0.06, 0.099):
        virtual_time.run(scenario(after))


def test_drain_of_a_late_instance_against_an_arriving_call(tmp_path: Path) -> None:
    async def scenario(at: float) -> str:
        async with house(tmp_path / str(at), timeout_s=2) as rig:
            assert (await rig.call()).status == 200
            late = asyncio.ensure_future(rig.call("/wait"))
            await asyncio.sleep(2 + at)
            arriving = await rig.call("/slow")
            assert (await late).status == 504
            assert arriving.status == 200, "who has a slot may end, who comes later gets another instance"
            await asyncio.sleep(3)
            instance = {row[12] + row[13]: row[4] for row in rig.records}
            assert (await rig.call()).status == 200
            assert rig.records[-1][4] != instance["GET/wait"], "the late one is gone"
            assert instance["GET/wait"] not in {id for _, id in rig.engine.instances}
            return "old" if instance["GET/slow"] == instance["GET/wait"] else "new"

    where = [virtual_time.run(scenario(ms / 1000)) for ms in range(-30, 31, 5)]
    assert where[0] == "old"
    assert where[-1] == "new"
    assert where == sorted(where, reverse=True), "once it drains, none goes there any more"


def test_drain_of_a_deleted_version_against_an_arriving_call(tmp_path: Path) -> None:
    async def scenario(turns: int) -> int:
        async with house(tmp_path / str(turns)) as rig:
            running = asyncio.ensure_future(rig.call("/slow"))
            await asyncio.sleep(0.5)
            arriving = asyncio.ensure_future(rig.call("/slow"))
            for _ in range(turns):
                await asyncio.sleep(0)
            rig.route(None, [], revision=2)
            assert (await running).status == 200
            status = (await arriving).status
            assert (await rig.call()).status == 404
            await asyncio.sleep(15)
            assert rig.engine.instances == {}
            return status

    statuses = [virtual_time.run(scenario(turns)) for turns in range(4)]
    assert statuses == [404, 200, 200, 200], "it had not begun, or it ends"


def test_a_start_that_fails_after_its_version_was_deleted_does_not_let_calls_wait(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as rig:
            rig.driver.fault("start", kind="hang")
            waiting = asyncio.ensure_future(rig.call())
            await asyncio.sleep(1)
            route = rig.routes.lookup("f")
            rig.route(None, [], revision=2)
            assert (await waiting).status == 404
            await asyncio.sleep(62)
            assert route.runnable is not None
            assert "was deleted" in repr(route.runnable.pool), "who still holds the route is told at once"

    virtual_time.run(scenario())
