"""What only the process driver must mind: no isolation, pids that are used again, a node that dies."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator

import pytest

from driver_kit import PATIENCE_S, Kit, kit_of, until
from headrace.drivers.process import ProcessDriver
from headrace.drivers.procfs import start_time
from headrace.errors import SettingsError
from headrace.settings import Settings


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    async with kit_of("process") as kit:
        yield kit


def test_it_refuses_to_serve_other_machines() -> None:
    with pytest.raises(SettingsError, match="no isolation"):
        ProcessDriver(Settings(host="0.0.0.0", driver="process"))


def test_it_says_at_every_start_that_it_isolates_nothing(caplog: pytest.LogCaptureFixture) -> None:
    ProcessDriver(Settings(driver="process"))
    assert [(record.levelno, "without isolation" in record.message) for record in caplog.records] == [
        (logging.WARNING, True)
    ]


async def test_a_pid_that_is_used_again_is_left_alone(kit: Kit) -> None:
    stranger = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    try:
        directory = kit.settings.run_dir / "process" / "old"
        directory.mkdir(parents=True)
        start = start_time(stranger.pid)
        assert start is not None
        (directory / "record").write_text(json.dumps({"pid": stranger.pid, "start": start - 1, "labels": {}}))
        driver = kit.driver()
        status = await driver.inspect("old")
        assert status is not None
        assert (status.running, status.exit_code) == (False, None)
        await driver.adjust("old", frozen=True)
        await driver.stop("old")
        assert await driver.list() == []
        assert start_time(stranger.pid) == start
    finally:
        stranger.kill()
        await stranger.wait()


async def test_children_of_an_instance_end_with_it(kit: Kit) -> None:
    driver = kit.driver()
    probe = "import subprocess\nlink.sendall(b'%d\\n' % subprocess.Popen(['sleep', '1000']).pid)"
    spec = await kit.spec("probe", probe=probe)
    await driver.start(spec)
    link = await kit.listener(spec).dialled()
    child = int(await link.readline())
    assert start_time(child) is not None
    await driver.stop(spec.id)
    async with asyncio.timeout(PATIENCE_S):
        while start_time(child) is not None:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("behaviour", ["serve", "crash"])
async def test_an_instance_outlives_the_process_that_started_it(kit: Kit, behaviour: str) -> None:
    spec = await kit.spec(behaviour)
    program = f"""
import asyncio
from pathlib import Path, PosixPath
from headrace.drivers.base import InstanceSpec
from headrace.drivers.process import ProcessDriver
from headrace.settings import Settings
asyncio.run(ProcessDriver(Settings(home=Path({str(kit.home)!r}), driver="process")).start({spec!r}))
"""
    node = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stderr=asyncio.subprocess.DEVNULL, env={"PATH": os.defpath}
    )
    assert await node.wait() == 0
    driver = kit.driver()
    if behaviour == "crash":
        status = await until(driver, spec.id, lambda status: not status.running and bool(status.tail))
        assert (status.exit_code, status.tail) == (3, "last words\n")
    else:
        link = await kit.listener(spec).dialled()
        assert [status.running for status in await driver.list()] == [True]
        await driver.stop(spec.id)
        async with asyncio.timeout(PATIENCE_S):
            await link.read()
    await driver.stop(spec.id)
    assert await driver.list() == []


async def test_output_is_kept_in_bounds(kit: Kit) -> None:
    driver = kit.driver()
    probe = "for _ in range(5000): os.write(1, b'x' * 999 + b'\\n')\nos.write(1, b'the end\\n')\nos._exit(0)"
    spec = await kit.spec("probe", probe="import os\n" + probe)
    await driver.start(spec)
    status = await until(driver, spec.id, lambda status: status.tail.endswith("the end\n"))
    assert len(status.tail) == 8192
    held = sum(path.stat().st_size for path in (kit.settings.run_dir / "process" / spec.id).iterdir())
    assert held < 16_384
