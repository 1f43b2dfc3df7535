"""What every driver keeps of `headrace.drivers.base.Driver`: the fake, plain processes and Docker alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from driver_kit import NO_SUCH_REQUIREMENT, PATIENCE_S, REQUIREMENT, Kit, kit_of, until
from headrace.drivers.base import Driver
from headrace.errors import BuildFailed, Invalid


@pytest.fixture(params=["fake", "process", "docker"])
async def kit(request: pytest.FixtureRequest) -> AsyncIterator[Kit]:
    async with kit_of(request.param) as kit:
        yield kit


@pytest.fixture
async def driver(kit: Kit) -> Driver:
    driver = kit.driver()
    await driver.prepare("python")
    return driver


async def test_check_tells_what_is_there(kit: Kit) -> None:
    info = await kit.driver().check()
    assert info.name == kit.kind
    assert info.version
    assert info.isolated == (kit.kind != "process")


async def test_prepare_may_be_repeated_and_refuses_an_unknown_runtime(kit: Kit, driver: Driver) -> None:
    await driver.prepare("python")
    with pytest.raises(Invalid, match="cobol"):
        await driver.prepare("cobol")


@pytest.mark.parametrize("network", ["none", "egress"])
@pytest.mark.parametrize("generic", [False, True])
async def test_a_started_instance_dials_in_and_is_known(kit: Kit, driver: Driver, generic: bool, network: str) -> None:
    spec = await kit.spec("serve", generic=generic, network=network)
    await driver.start(spec)
    link = await kit.listener(spec).dialled()
    assert await link.readline() == f"{spec.id}\n".encode()
    status = await driver.inspect(spec.id)
    assert status is not None
    assert (status.running, status.exit_code, status.out_of_memory) == (True, None, False)
    assert status.labels == spec.labels
    assert await driver.list() == [type(status)(spec.id, True, None, False, spec.labels)]


async def test_starting_twice_starts_once(kit: Kit, driver: Driver) -> None:
    spec = await kit.spec("serve")
    await driver.start(spec)
    await driver.start(spec)
    await kit.listener(spec).dialled()
    assert [status.id for status in await driver.list()] == [spec.id]


async def test_a_dead_instance_is_not_started_again(kit: Kit, driver: Driver) -> None:
    spec = await kit.spec("crash")
    await driver.start(spec)
    await until(driver, spec.id, lambda status: not status.running)
    await driver.start(spec)
    status = await driver.inspect(spec.id)
    assert status is not None
    assert not status.running


async def test_stop_ends_the_instance_and_leaves_nothing(kit: Kit, driver: Driver) -> None:
    spec = await kit.spec("serve")
    await driver.start(spec)
    link = await kit.listener(spec).dialled()
    await driver.stop(spec.id)
    async with asyncio.timeout(PATIENCE_S):
        await link.read()  # to the end of the connection
    assert await driver.inspect(spec.id) is None
    assert await driver.list() == []


async def test_what_is_gone_may_be_stopped_adjusted_and_inspected(kit: Kit, driver: Driver) -> None:
    spec = await kit.spec("serve")
    await driver.start(spec)
    await driver.stop(spec.id)
    await driver.stop(spec.id)
    await driver.stop("never-was")
    await driver.adjust("never-was", memory_mb=256, frozen=True)
    assert await driver.inspect("never-was") is None


async def test_a_stopped_while_frozen_instance_is_gone(kit: Kit, driver: Driver) -> None:
    spec = await kit.spec("serve")
    await driver.start(spec)
    await driver.adjust(spec.id, frozen=True)
    await driver.stop(spec.id)
    assert await driver.list() == []


async def test_a_new_driver_finds_and_stops_the_instances_of_the_old_one(kit: Kit, driver: Driver) -> None:
    spec = await kit.spec("serve")
    await driver.start(spec)
    link = await kit.listener(spec).dialled()
    await driver.close()
    later = kit.driver()
    found = await later.list()
    assert [(status.id, status.running, status.labels) for status in found] == [(spec.id, True, spec.labels)]
    await later.start(spec)  # already so
    await later.stop(spec.id)
    async with asyncio.timeout(PATIENCE_S):
        await link.read()
    assert await later.list() == []


async def test_homes_do_not_see_each_other(kit: Kit, driver: Driver) -> None:
    spec = await kit.spec("serve")
    await driver.start(spec)
    neighbours = Kit(kit.kind, kit.engine)
    try:
        other = neighbours.driver()
        await other.prepare("python")
        assert await other.list() == []
        await other.stop(spec.id)
        assert await other.inspect(spec.id) is None
        status = await driver.inspect(spec.id)
        assert status is not None
        assert status.running
    finally:
        await neighbours.close()


async def test_a_crashed_instance_leaves_exit_code_and_last_words_until_it_is_stopped(kit: Kit, driver: Driver) -> None:
    spec = await kit.spec("crash")
    await driver.start(spec)
    status = await until(driver, spec.id, lambda status: not status.running)
    assert (status.exit_code, status.out_of_memory) == (3, False)
    assert "last words" in (await until(driver, spec.id, lambda status: bool(status.tail))).tail
    later = kit.driver()
    assert [(item.id, item.running, item.exit_code) for item in await later.list()] == [(spec.id, False, 3)]
    await driver.stop(spec.id)
    assert await driver.list() == []


async def test_an_instance_sees_its_own_environment_only(
    kit: Kit, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOMETHING_OF_THE_HOST", "secret")
    spec = await kit.spec("environment")
    await driver.start(spec)
    status = await until(driver, spec.id, lambda status: not status.running and bool(status.tail))
    assert "'HEADRACE_CODE', 'HEADRACE_INSTANCE', 'HEADRACE_SOCKET'" in status.tail
    assert "SOMETHING_OF_THE_HOST" not in status.tail


@pytest.mark.parametrize("kit", ["fake", "docker"], indirect=True)
async def test_a_memory_hog_is_killed_and_said_to_be_one(kit: Kit, driver: Driver) -> None:
    spec = await kit.spec("hog", memory_mb=64)
    await driver.start(spec)
    status = await until(driver, spec.id, lambda status: not status.running)
    assert (status.exit_code, status.out_of_memory) == (137, True)
    assert [(item.exit_code, item.out_of_memory) for item in await driver.list()] == [(137, True)]


async def test_a_frozen_instance_stands_still_until_it_is_thawed(kit: Kit, driver: Driver) -> None:
    spec = await kit.spec("serve")
    await driver.start(spec)
    link = await kit.listener(spec).dialled()
    await link.readline()
    for _ in range(2):
        await driver.adjust(spec.id, frozen=True)
    status = await driver.inspect(spec.id)
    assert status is not None
    assert status.running
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            while await link.read(1 << 16):
                pass  # what was on its way; then nothing comes
    for _ in range(2):
        await driver.adjust(spec.id, frozen=False)
    async with asyncio.timeout(PATIENCE_S):
        assert await link.read(1)


async def test_limits_of_a_running_instance_may_change(kit: Kit, driver: Driver) -> None:
    spec = await kit.spec("serve")
    await driver.start(spec)
    link = await kit.listener(spec).dialled()
    await link.readline()
    await driver.adjust(spec.id, memory_mb=256, cpus=0.5)
    await driver.adjust(spec.id)
    async with asyncio.timeout(PATIENCE_S):
        assert await link.read(1)


@pytest.mark.parametrize("turns", [0, 1, 3])
async def test_a_start_that_was_cancelled_is_gone_after_stop(kit: Kit, driver: Driver, turns: int) -> None:
    spec = await kit.spec("serve")
    starting = asyncio.ensure_future(driver.start(spec))
    for _ in range(turns):
        await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])
    await driver.stop(spec.id)
    await driver.close()
    assert await kit.driver().list() == []


async def test_a_build_installs_what_is_required(kit: Kit, driver: Driver) -> None:
    spec = kit.build_spec(REQUIREMENT)
    lines: list[str] = []
    await driver.build(spec, lines.append)
    assert (spec.out_dir / "idna").is_dir()
    assert any(line.startswith(f"Collecting {REQUIREMENT}") for line in lines)
    assert await driver.list() == []


async def test_a_failed_build_says_why(kit: Kit, driver: Driver) -> None:
    lines: list[str] = []
    with pytest.raises(BuildFailed, match=r"(?i)no matching distribution.*idna==99\.0"):
        await driver.build(kit.build_spec(NO_SUCH_REQUIREMENT), lines.append)
    assert lines


async def test_a_build_ends_when_its_time_is_up(kit: Kit, driver: Driver) -> None:
    with pytest.raises(BuildFailed, match=r"longer than 0\.01 s"):
        await driver.build(kit.build_spec(REQUIREMENT, timeout_s=0.01), lambda _: None)


async def test_a_cancelled_build_ends_and_may_be_repeated(kit: Kit, driver: Driver) -> None:
    spec = kit.build_spec(REQUIREMENT)
    begun = asyncio.Event()
    building = asyncio.ensure_future(driver.build(spec, lambda _: begun.set()))
    async with asyncio.timeout(PATIENCE_S):
        await begun.wait()
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    await driver.build(spec, lambda _: None)
    assert (spec.out_dir / "idna").is_dir()
