"""Hostile instances and callers against the real gateway and fleet, on the fake engine in virtual time."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

import virtual_time
from fleet_kit import Program, house
from headrace import wire
from headrace.gateway.call import Call


def test_a_huge_header_is_refused_and_harms_no_neighbour(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, concurrency=6) as rig:
            neighbours = [asyncio.ensure_future(rig.call("/slow")) for _ in range(4)]
            await asyncio.sleep(0.5)
            answer = await rig.call("/" + "x" * (1 << 20))
            assert (answer.status, answer.problem["fault"]) == (413, "caller")
            assert {a.status for a in await asyncio.gather(*neighbours)} == {200}

    virtual_time.run(scenario())


def test_a_bundle_that_is_gone_is_said_with_a_backoff(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as rig:
            shutil.rmtree(rig.settings.code_dir("d"))
            answer = await rig.call()
            assert (answer.status, answer.problem["fault"]) == (500, "platform")
            await asyncio.sleep(60)
            starts = [verb for verb, _ in rig.driver.calls].count("start")
            assert starts < 10, "it was tried again and again without a pause"

    virtual_time.run(scenario())


def test_a_call_of_a_deleted_version_whose_instance_dies_is_answered_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, timeout_s=300) as rig:
            running = asyncio.ensure_future(rig.call("/wait"))
            await asyncio.sleep(0.5)
            rig.routes.drop(1)
            rig.fleet.retire(1)
            for instance in list(rig.engine.instances.values()):
                assert instance.task is not None
                instance.task.cancel()
            answer = await running
            assert answer.status == 502
            assert asyncio.get_running_loop().time() < 10

    virtual_time.run(scenario())


def test_a_body_where_there_is_none_is_not_passed_on(tmp_path: Path) -> None:
    """On a kept connection it would read as the next answer."""

    class Smuggler(Program):
        async def _call(self, frame: wire.Frame, writer: asyncio.StreamWriter) -> None:
            status = wire.loads(frame.header)["p"].strip("/")
            writer.write(wire.encode(wire.HEAD, frame.stream, b'{"s":%b,"h":[]}' % status.encode()))
            writer.write(wire.encode(wire.BODY, frame.stream, b"", b"HTTP/1.1 200 OK"))
            writer.write(wire.encode(wire.END, frame.stream))

    async def scenario() -> None:
        async with house(tmp_path, program=Smuggler()) as rig:
            for status, body in ((204, b""), (304, b""), (200, b"HTTP/1.1 200 OK")):
                answer = await rig.call(f"/{status}")
                assert (answer.status, answer.body, answer.whole) == (status, body, True)

    virtual_time.run(scenario())


def test_a_fault_of_our_own_is_recorded_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as rig:
            monkeypatch.setattr(Call, "timing", lambda self: 1 / 0)
            answer = await rig.call()
            assert (answer.status, answer.problem["fault"]) == (500, "platform")
            assert [row[11] for row in rig.records] == ["platform_error"]

    virtual_time.run(scenario())
