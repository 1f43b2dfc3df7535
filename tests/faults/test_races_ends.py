"""A call whose end comes from an unexpected side: its caller leaves, its time is up, its instance or its node ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import virtual_time
from fleet_kit import house
from headrace import wire
from headrace.drivers.base import InstanceSpec
from headrace.gateway.link import Link


def _now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("cut", [False, True], ids=["leaves", "is cancelled"])
def test_client_gone_while_queued(tmp_path: Path, cut: bool) -> None:
    async def scenario(at: float) -> int:
        async with house(tmp_path / str(at), concurrency=1, max_instances=1) as rig:
            running = asyncio.ensure_future(rig.call("/slow"))
            await asyncio.sleep(0.01)
            gone = asyncio.Event()
            leaving = asyncio.ensure_future(rig.call("/leaves", gone=gone))
            await asyncio.sleep(0.01)
            staying = asyncio.ensure_future(rig.call("/stays"))
            await asyncio.sleep(at - _now())
            if cut:
                leaving.cancel()
            else:
                gone.set()
            await asyncio.gather(leaving, return_exceptions=True)
            assert (await running).status == (await staying).status == 200
            rig.balanced()
            outcomes = {row[13]: row[11] for row in rig.records}
            assert len(outcomes) == len(rig.records) == 3
            assert outcomes["/leaves"] in ("client_gone", "ok")
            assert (await rig.call()).status == 200
            return rig.program.calls

    # The slot is free at 1.0: long before, in the very moment (also a turn of the loop later), after it.
    calls = [virtual_time.run(scenario(at)) for at in (0.1, 0.5, 0.999, 1.0, 1.0000001, 1.001)]
    assert calls[:3] == [3, 3, 3], "who left in the queue never reaches an instance"


def test_a_caller_who_leaves_in_the_turn_in_which_it_gets_its_slot(tmp_path: Path) -> None:
    async def scenario(turns: int) -> None:
        async with house(tmp_path / str(turns), concurrency=1, max_instances=1) as rig:
            running = asyncio.ensure_future(rig.call("/slow"))
            leaving = asyncio.ensure_future(rig.call("/leaves"))
            await running
            for _ in range(turns):
                await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            rig.balanced()
            assert (await rig.call()).status == 200
            assert len(rig.records) == 3

    for turns in range(8):
        virtual_time.run(scenario(turns))


def test_timeout_while_streaming(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, timeout_s=2, max_instances=1) as rig:
            other = asyncio.ensure_future(rig.call("/slow"))
            answer = await rig.call("/endless")
            assert (answer.status, answer.broken, answer.whole) == (200, True, False), "the headers were out"
            assert 2 <= _now() < 2.1
            assert (await other).status == 200
            rig.balanced()
            await asyncio.sleep(1.5)
            late = rig.records[-1]
            assert (late[10], late[11], late[13]) == (200, "timeout", "/endless")
            assert rig.program.cancelled == 1
            assert late[4] not in {id for _, id in rig.engine.instances}, "nobody knows what its code still does"
            assert (await rig.call()).status == 200
            assert rig.records[-1][4] != late[4]

    virtual_time.run(scenario())


@pytest.mark.parametrize("path", ["/stream", "/endless"])
def test_a_caller_who_does_not_read_is_cut_off_and_the_instance_is_kept(tmp_path: Path, path: str) -> None:
    async def scenario() -> None:
        async with house(tmp_path, timeout_s=2, idle_s=300) as rig:
            answer = await rig.call(path, reads=asyncio.Event())
            assert (answer.status, answer.broken) == (200, True)
            assert _now() < 2.5
            rig.balanced()
            await asyncio.sleep(2)
            assert (await rig.call()).status == 200
            assert rig.records[0][4] == rig.records[1][4]

    virtual_time.run(scenario())


@pytest.mark.parametrize("out_of_memory", [False, True])
def test_instance_death_between_head_and_end(tmp_path: Path, out_of_memory: bool) -> None:
    async def scenario() -> None:
        async with house(tmp_path, concurrency=3) as rig:
            calls = [asyncio.ensure_future(rig.call(path)) for path in ("/endless", "/stream", "/wait")]
            await asyncio.sleep(0.5)
            instance = next(iter(rig.engine.instances.values()))
            instance.out_of_memory = out_of_memory
            rig.kill(instance)
            endless, stream, wait = await asyncio.gather(*calls)
            assert _now() < 1
            assert (endless.status, endless.broken, endless.body) == (200, True, b"half")
            assert (stream.status, stream.whole) == (200, True), "it had ended before"
            assert (wait.status, wait.whole) == (502, True)
            rig.balanced()
            died = "out_of_memory" if out_of_memory else "instance_died"
            assert {(row[13], row[10], row[11]) for row in rig.records} == {
                ("/stream", 200, "ok"),
                ("/endless", 200, died),
                ("/wait", 502, died),
            }
            assert len(rig.records) == 3
            assert (await rig.call()).status == 200
            assert [id for _, id in rig.engine.instances] == [rig.records[-1][4]]

    virtual_time.run(scenario())


@pytest.mark.parametrize("at", [0.001, 0.1, 0.2, 0.21, 0.5, 1.2, 1.3])
def test_node_stop_during_a_burst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: float) -> None:
    async def scenario() -> None:
        async with house(tmp_path, concurrency=1, timeout_s=30) as rig:
            start = rig.driver.start

            async def slow_start(spec: InstanceSpec) -> None:
                await asyncio.sleep(0.2)
                await start(spec)

            monkeypatch.setattr(rig.driver, "start", slow_start)
            calls = [asyncio.ensure_future(rig.call("/slow")) for _ in range(50)]
            await asyncio.sleep(at)
            began = _now()
            stopping = asyncio.ensure_future(rig.fleet.stop(0.5))
            await asyncio.sleep(0)
            late = await rig.call()
            answers = await asyncio.gather(*calls)
            await stopping
            assert _now() - began < 1, "nobody waits for a timeout that no ticker looks at any more"
            assert late.status == 503
            statuses = [answer.status for answer in answers]
            assert set(statuses) <= {200, 502, 503}
            assert statuses.count(503) >= 40, "who waited is told to try again"
            rig.balanced()
            assert len(rig.records) == len({row[0] for row in rig.records}) == 51
            assert rig.engine.instances == {}

    virtual_time.run(scenario())


def test_an_instance_lost_before_the_call_was_written_to_it(tmp_path: Path) -> None:
    """The call had its slot: it goes to another instance, once, and its caller notices nothing."""

    async def scenario() -> None:
        async with house(tmp_path, max_instances=2) as rig:
            assert (await rig.call()).status == 200
            (pool,) = rig.pools.values()
            (member,) = pool.members.values()
            calls = [asyncio.ensure_future(rig.call(f"/{n}")) for n in range(2)]
            while member.in_flight < 2:
                await asyncio.sleep(0)
            member.link.connection_lost(None)
            answers = await asyncio.gather(*calls)
            assert [(answer.status, answer.body) for answer in answers] == [(200, b"/0"), (200, b"/1")]
            assert {row[4] for row in rig.records[1:]}.isdisjoint({member.name})
            assert [row[11] for row in rig.records] == ["ok"] * 3
            member.link.close()

    virtual_time.run(scenario())


def test_instances_that_are_lost_again_and_again_end_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: set[Link] = set()
    send = Link.send

    def send_and_lose(link: Link, type: int, stream: int, header: bytes = b"", body: bytes = b"") -> None:
        send(link, type, stream, header, body)
        if type == wire.CALL:
            lost.add(link)
            link.connection_lost(None)

    async def scenario() -> None:
        async with house(tmp_path, max_instances=2) as rig:
            monkeypatch.setattr(Link, "send", send_and_lose)
            assert ((await rig.call()).status, len(lost)) == (502, 2)
            assert [row[11] for row in rig.records] == ["instance_died"]
            for link in lost:
                link.close()

    virtual_time.run(scenario())
