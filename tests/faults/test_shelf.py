"""The shelf: as many as are wanted, none after the end, each used once."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

import virtual_time
from fleet_kit import FAILURE, House, house
from headrace.fleet.shelf import Bursts
from headrace.gateway.pool import Pool
from headrace.model import Version


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
            assert rig.fleet.status()["waiting"] == 2

    virtual_time.run(scenario())


def test_what_a_burst_took_is_wanted_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, prewarm=1, concurrency=1, memory_mb=128) as rig:
            await asyncio.sleep(1)
            assert (await rig.call()).status == 200
            await asyncio.sleep(60)
            assert rig.fleet.status()["waiting"] == 1, "the first one of a published version was foreseen"
            await asyncio.gather(*(rig.call("/slow") for _ in range(3)))
            await asyncio.sleep(60)
            assert rig.fleet.status()["waiting"] == 4, "three more are wanted in a burst"
            await asyncio.sleep(2000)
            assert rig.fleet.status()["waiting"] == 1, "that was half an hour ago"

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


def published(rig: House, count: int) -> list[Version]:
    """So many functions, none of which has an instance."""
    version = rig.target.versions[1]
    versions = [dataclasses.replace(version, id=100 + n, function=f"f{n}") for n in range(count)]
    rig.fleet.publish((), versions)
    return versions


def test_as_many_wait_as_there_are_published_functions_without_an_instance(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, prewarm=1) as rig:
            versions = published(rig, 4)
            rig.fleet.publish((), rig.target.versions.values())
            await asyncio.sleep(10)
            assert rig.fleet.status()["waiting"] == 5
            assert (await rig.call()).status == 200
            await asyncio.sleep(10)
            assert rig.fleet.status()["waiting"] == 4, "one function has an instance now"
            await asyncio.sleep(60)
            assert rig.fleet.status()["waiting"] == 5, "and now it has none again"
            rig.fleet.publish(versions, ())
            await asyncio.sleep(2000)
            assert rig.fleet.status()["waiting"] == 1

    virtual_time.run(scenario())


def test_a_quarter_of_the_memory_bounds_what_waits_and_the_log_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with house(tmp_path, prewarm=1) as rig:
            published(rig, 20)
            with caplog.at_level(logging.WARNING):
                await asyncio.sleep(300)
            assert rig.fleet.status()["waiting"] == 5, "256 MiB hold five of 48"
            assert rig.fleet.status()["memory_mb"]["reserved"] == 5 * 48

    virtual_time.run(scenario())
    assert [record.message for record in caplog.records if "HEADRACE_PREWARM" in record.message] == [
        "5 generic instances wait and more are wanted, but they may take a quarter of 1024 MiB at most: lower "
        "HEADRACE_PREWARM and HEADRACE_PREWARM_MOST, or raise HEADRACE_INSTANCE_MEMORY_MB."
    ]


def test_the_shelf_gives_way_to_calls_that_need_instances_of_their_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, prewarm=1, concurrency=1, memory_mb=128) as rig:
            await asyncio.sleep(1)
            rig.program.dial_s = 1.0
            calls = asyncio.gather(*(rig.call() for _ in range(3)))
            await asyncio.sleep(0.5)
            assert [verb for verb, _ in rig.driver.calls].count("start") == 3, "one at first, and two for calls"
            assert {answer.status for answer in await calls} == {200}
            await asyncio.sleep(10)
            assert rig.fleet.status()["waiting"] > 1

    virtual_time.run(scenario())


def test_idle_instances_go_before_the_generic_ones_that_the_setting_asks_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, prewarm=1, concurrency=1, memory_mb=480, idle_s=600) as rig:
            await asyncio.gather(rig.call("/slow"), rig.call("/slow"))
            await asyncio.sleep(1)
            assert rig.fleet.status()["waiting"] == 1, "960 and 48 of 1024 MiB"
            rig.publish(2, revision=2)
            assert (await rig.call()).status == 200
            await asyncio.sleep(5)
            status = rig.fleet.status()
            assert status["waiting"] == 1
            assert sorted(i["version"] for i in status["instances"] if i["version"]) == [1, 2]

    virtual_time.run(scenario())


def test_a_version_that_cannot_fit_stops_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, concurrency=1, memory_mb=600, idle_s=600) as rig:
            assert (await rig.call()).status == 200
            busy = asyncio.create_task(rig.call("/slow"))
            await asyncio.sleep(0.1)
            assert (await rig.call("/slow")).status == 200, "it waits for the busy one: there is no room for another"
            assert (await busy).status == 200
            assert [verb for verb, _ in rig.driver.calls].count("stop") == 0

    virtual_time.run(scenario())


def test_bursts_are_remembered_for_half_an_hour() -> None:
    bursts = Bursts()
    assert bursts.largest(0) == 0
    for at in (8, 9, 11, 12, 13, 400):
        bursts.note(at)
    assert bursts.largest(500) == 5, "two of one stretch and three of its neighbour"
    assert bursts.largest(1900) == 1
    assert bursts.largest(3000) == 0


def test_server_timing_says_what_a_cold_call_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(rig: House) -> None:
        adjust = rig.driver.adjust

        async def slow_adjust(id: str, **changes: Any) -> None:
            await asyncio.sleep(0.1)
            await adjust(id, **changes)

        monkeypatch.setattr(rig.driver, "adjust", slow_adjust)

    async def steps(rig: House) -> list[str]:
        answer = await rig.call()
        value = answer.fields[b"server-timing"].decode()
        return [part.partition(";")[0] for part in value.split(", ")]

    async def scenario() -> None:
        async with house(tmp_path / "launched", memory_mb=256) as rig:
            rig.program.dial_s = 0.2
            assert await steps(rig) == ["queue", "start", "launch", "code", "load", "run"]
            assert await steps(rig) == ["queue", "run"]
            await asyncio.sleep(15)
            slow(rig)
            assert await steps(rig) == ["queue", "start", "thaw", "run"]
        async with house(tmp_path / "waiting", prewarm=1, memory_mb=256) as rig:
            await asyncio.sleep(1)
            slow(rig)
            assert await steps(rig) == ["queue", "start", "limits", "code", "load", "run"]

    virtual_time.run(scenario())


def test_versions_with_dependencies_get_an_instance_back_while_half_of_the_memory_is_free(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, prewarm=1, memory_mb=200) as rig:
            version = dataclasses.replace(rig.target.versions[1], layer="l")
            keepers = []
            for n in range(5):
                own = dataclasses.replace(version, id=100 + n, function=f"f{n}")
                pool = rig.pools[own.id] = Pool(10, "least-loaded", rig.active)
                keepers.append(rig.fleet.keep(own, pool))
                keepers[-1].in_traffic = True
            rig.program.load_error = FAILURE
            rig.fleet.start(iter(keepers[:1]))
            await asyncio.sleep(0.1)
            rig.program.load_error = None
            rig.fleet.start(iter(keepers[1:]))
            await asyncio.sleep(120)
            assert [len(keeper.instances) for keeper in keepers] == [0, 1, 1, 1, 0], "one failed, three are half of it"
            assert all(instance.frozen for instance in rig.engine.instances.values() if instance.memory_mb == 200)

    virtual_time.run(scenario())
