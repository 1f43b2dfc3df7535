"""Starts, limits and moves at once: bursts, instances that die at the limit, versions that are cold or cannot start."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import virtual_time
from fleet_kit import House, house
from headrace.drivers.base import InstanceSpec


def _now() -> float:
    return asyncio.get_running_loop().time()


class Engine:
    """Starting and stopping take a while; `most` is how many instances there ever were at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rig: House, start_s: float = 0.2, stop_s: float = 0.5) -> None:
        self.most = self.starts = 0
        start, stop = rig.driver.start, rig.driver.stop

        async def slow_start(spec: InstanceSpec) -> None:
            self.starts += 1
            await asyncio.sleep(start_s)
            await start(spec)
            self.most = max(self.most, len(rig.engine.instances))

        async def slow_stop(id: str) -> None:
            await asyncio.sleep(stop_s)
            await stop(id)

        monkeypatch.setattr(rig.driver, "start", slow_start)
        monkeypatch.setattr(rig.driver, "stop", slow_stop)


def test_a_burst_of_200_calls_to_a_cold_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        config: dict[str, Any] = {"concurrency": 1, "max_instances": 20, "queue": 200, "timeout_s": 30, "memory_mb": 32}
        async with house(tmp_path, **config) as rig:
            engine = Engine(monkeypatch, rig)
            answers = await asyncio.gather(*(rig.call("/slow") for _ in range(200)))
            assert [answer.status for answer in answers] == [200] * 200
            assert engine.most == 20
            assert engine.starts == 20
            rows = sorted(rig.records)  # by id: in order of arrival
            waited = [round(row[7] + row[8], 3) for row in rows]
            assert waited == sorted(waited), "somebody was served before one who had come earlier"
            assert len({row[4] for row in rows}) == 20
            assert _now() < 13, "20 at a time, one second each, and the starts"

    virtual_time.run(scenario())


def test_max_reached_while_one_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(at: float) -> None:
        async with house(tmp_path / str(at), concurrency=1, max_instances=2, timeout_s=20) as rig:
            engine = Engine(monkeypatch, rig)
            calls = [asyncio.ensure_future(rig.call("/slow")) for _ in range(6)]
            await asyncio.sleep(at)
            rig.kill(next(iter(rig.engine.instances.values())))
            keeper = rig.fleet.keeper(1)
            assert keeper is not None
            while not all(call.done() for call in calls):
                assert keeper.have <= 2
                await asyncio.sleep(0.01)
            statuses = sorted(call.result().status for call in calls)
            assert statuses in ([200] * 5 + [502], [200] * 6), "only the dead one's own call is lost"
            assert engine.most == 2, "one that is dying still counts"
            assert engine.starts == 3

    for at in (0.3, 1.0, 1.2, 1.2001):
        virtual_time.run(scenario(at))


def test_all_die_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with house(tmp_path, concurrency=2, max_instances=3, timeout_s=20) as rig:
            engine = Engine(monkeypatch, rig)
            calls = [asyncio.ensure_future(rig.call("/slow")) for _ in range(12)]
            await asyncio.sleep(1)
            for instance in list(rig.engine.instances.values()):
                rig.kill(instance)
            statuses = sorted([answer.status for answer in await asyncio.gather(*calls)])
            assert statuses == [200] * 6 + [502] * 6
            assert engine.most == 3
            assert engine.starts == 6

    virtual_time.run(scenario())


def test_publish_while_cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(at: float) -> None:
        async with house(tmp_path / str(at)) as rig:
            engine = Engine(monkeypatch, rig)
            old = [asyncio.ensure_future(rig.call()) for _ in range(3)]
            await asyncio.sleep(at)
            rig.publish(2, revision=2)
            new = [asyncio.ensure_future(rig.call()) for _ in range(2)]
            await asyncio.sleep(0)
            rig.publish(3, revision=3)
            newest = [asyncio.ensure_future(rig.call())]
            answers = await asyncio.gather(*old, *new, *newest)
            assert {answer.status for answer in answers} == {200}
            rows = sorted(rig.records)
            assert [row[3] for row in rows] == [1, 1, 1, 2, 2, 3], "each by the version that was live when it came"
            assert engine.starts == 4, "two for three calls of the first, one for each other"

    for at in (0.001, 0.1, 0.199, 0.2, 0.201):
        virtual_time.run(scenario(at))


def test_a_cold_version_is_deleted_while_calls_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(at: float) -> None:
        async with house(tmp_path / str(at)) as rig:
            Engine(monkeypatch, rig)
            calls = [asyncio.ensure_future(rig.call()) for _ in range(3)]
            await asyncio.sleep(at)
            rig.route(2, [2], revision=2)
            assert {answer.status for answer in await asyncio.gather(*calls)} == {404}
            assert _now() == pytest.approx(at)
            assert (await rig.call()).status == 200
            await asyncio.sleep(2)
            assert [id for _, id in rig.engine.instances] == [rig.records[-1][4]]

    for at in (0.0, 0.1, 0.19):
        virtual_time.run(scenario(at))


def test_callers_of_a_version_that_cannot_start_get_the_reason_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as rig:
            engine = Engine(monkeypatch, rig)
            rig.program.load_error = {"type": "ImportError", "message": "no", "stack": ""}
            answers = await asyncio.gather(*(rig.call() for _ in range(10)))
            assert {answer.status for answer in answers} == {500}
            assert all("ImportError" in answer.problem["detail"] for answer in answers)
            assert {row[16]["message"] for row in rig.records} == {"no"}, "the record has the rest"
            tried, began = engine.starts, _now()
            for _ in range(20):  # within the backoff of 1 s nobody waits and nothing is tried
                assert (await rig.call()).status == 500
                await asyncio.sleep(0.02)
            assert engine.starts == tried
            assert _now() - began == pytest.approx(0.4)
            await asyncio.sleep(1)
            assert (await rig.call()).status == 500
            assert engine.starts == tried + 1, "one try after the backoff"
            rig.program.load_error = None
            await asyncio.sleep(2.1)
            assert (await rig.call()).status == 200

    virtual_time.run(scenario())


def test_callers_get_the_reason_at_once_while_the_engine_is_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as rig:
            rig.driver.fault("start", always=True)
            answers = await asyncio.gather(*(rig.call() for _ in range(5)))
            assert {answer.status for answer in answers} == {503}
            assert {answer.problem["code"] for answer in answers} == {"engine_unavailable"}
            headers = answers[0].fields
            assert int(headers[b"retry-after"]) >= 1
            assert _now() < 0.1
            rig.driver.mend()
            await asyncio.sleep(1.1)
            assert (await rig.call()).status == 200

    virtual_time.run(scenario())


def test_a_failed_start_does_not_turn_away_whom_a_running_instance_can_serve(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, concurrency=1) as rig:
            running = asyncio.ensure_future(rig.call("/slow"))
            await asyncio.sleep(0.5)
            rig.program.load_error = {"type": "ImportError", "message": "no", "stack": ""}
            waiting = [asyncio.ensure_future(rig.call()) for _ in range(3)]
            assert (await running).status == 200
            assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}
            assert {row[4] for row in rig.records} == {rig.records[0][4]}

    virtual_time.run(scenario())
