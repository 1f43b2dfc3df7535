"""The shelf: as many as are wanted, none after the end, each used once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import virtual_time
from fleet_kit import house


def test_a_cold_call_takes_a_waiting_instance_and_the_shelf_fills_up_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, prewarm=2) as rig:
            await asyncio.sleep(1)
            waiting = {id for _, id in rig.engine.instances}
            assert len(waiting) == 2
            started = asyncio.get_running_loop().time()
            assert (await rig.call()).status == 200
            assert asyncio.get_running_loop().time() == started, "it was there already"
            used = {row[4] for row in rig.records}
            assert used <= waiting
            await asyncio.sleep(700)
            assert rig.fleet.status()["waiting"] == 2, "a quarter of the node's memory and no more"

    virtual_time.run(scenario())


def test_what_was_taken_of_late_is_wanted_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, prewarm=1) as rig:
            await asyncio.sleep(1)
            assert (await rig.call()).status == 200
            await asyncio.sleep(5)
            assert rig.fleet.status()["waiting"] == 2, "one was taken of late, so one more waits"

    virtual_time.run(scenario())


def test_what_waits_makes_room_for_a_version_that_needs_its_memory(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, prewarm=2, memory_mb=900) as rig:
            await asyncio.sleep(1)
            assert rig.fleet.status()["waiting"] == 2
            assert (await rig.call()).status == 200
            await asyncio.sleep(60)
            assert (await rig.call()).status == 200
            assert rig.fleet.status()["memory_mb"]["reserved"] <= 1024

    virtual_time.run(scenario())


def test_starts_at_once_never_reserve_more_than_there_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, prewarm=2, memory_mb=400, concurrency=1) as rig:
            await asyncio.sleep(1)
            answers = await asyncio.gather(*(rig.call("/slow") for _ in range(4)))
            assert {answer.status for answer in answers} == {200}
            assert rig.fleet.status()["memory_mb"]["reserved"] <= 1024

    virtual_time.run(scenario())


def test_a_waiting_instance_that_dies_is_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, prewarm=1) as rig:
            await asyncio.sleep(1)
            key, instance = next(iter(rig.engine.instances.items()))
            assert instance.task is not None
            instance.task.cancel()
            await asyncio.sleep(5)
            assert key not in rig.engine.instances
            assert len(rig.engine.instances) == 1
            assert (await rig.call()).status == 200

    virtual_time.run(scenario())


def test_nothing_is_started_once_the_node_stops(tmp_path: Path) -> None:
    async def scenario(after: float) -> None:
        async with house(tmp_path / str(after), prewarm=3) as rig:
            await asyncio.sleep(after)
            await rig.fleet.stop(1.0)
            starts = [verb for verb, _ in rig.driver.calls].count("start")
            await asyncio.sleep(120)
            assert [verb for verb, _ in rig.driver.calls].count("start") == starts
            assert rig.engine.instances == {}

    for after in (0.0, 0.001, 1.0):
        virtual_time.run(scenario(after))


def test_the_memory_of_the_node_bounds_the_shelf_and_idle_instances_make_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, prewarm=0, memory_mb=512, concurrency=1) as rig:
            assert [answer.status for answer in await asyncio.gather(rig.call("/slow"), rig.call("/slow"))] == [
                200,
                200,
            ]
            assert len(rig.engine.instances) == 2, "1024 MiB hold two of 512"
            rig.publish(2, revision=2)
            assert (await rig.call()).status == 200
            await asyncio.sleep(1)
            assert len(rig.engine.instances) == 2, "an idle one of the old version made room"
            assert {row[3] for row in rig.records} == {1, 2}

    virtual_time.run(scenario())
