"""The faults that tests script into the fake driver strike exactly where they were put."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from driver_kit import Kit, kit_of
from fakes import FakeDriver
from headrace.errors import EngineUnavailable, NoCapacity


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    async with kit_of("fake") as kit:
        yield kit


async def test_the_nth_call_fails_once(kit: Kit) -> None:
    driver = FakeDriver(kit.engine)
    await driver.list()
    driver.fault("list", at=2)
    await driver.list()
    with pytest.raises(EngineUnavailable, match="scripted"):
        await driver.list()
    assert await driver.list() == []
    assert driver.calls == [("list", "")] * 4


async def test_every_call_from_the_nth_on_fails_until_mended(kit: Kit) -> None:
    driver = FakeDriver(kit.engine)
    driver.fault("start", always=True, error=NoCapacity("full."))
    spec = await kit.spec("serve")
    for _ in range(2):
        with pytest.raises(NoCapacity):
            await driver.start(spec)
    assert await driver.list() == []
    driver.mend()
    await driver.start(spec)
    assert len(await driver.list()) == 1
    await driver.stop(spec.id)


async def test_the_answer_is_lost_but_the_engine_did_it(kit: Kit) -> None:
    driver = FakeDriver(kit.engine)
    driver.fault("start", after=True)
    spec = await kit.spec("serve")
    with pytest.raises(EngineUnavailable):
        await driver.start(spec)
    assert [status.id for status in await driver.list()] == [spec.id]
    driver.fault("stop", after=True)
    with pytest.raises(EngineUnavailable):
        await driver.stop(spec.id)
    assert await driver.list() == []


async def test_a_call_hangs_or_is_cancelled(kit: Kit) -> None:
    driver = FakeDriver(kit.engine)
    driver.fault("check", kind="hang")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await driver.check()
    driver.fault("check", kind="cancel")
    checking = asyncio.ensure_future(driver.check())
    await asyncio.wait([checking])
    assert checking.cancelled()
