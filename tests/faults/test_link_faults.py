"""The N-th frame between node and instance is lost, torn, or the last of its connection: for every N of a life.

The life: cold calls, a streamed answer, a death under calls, a caller who leaves, a call that runs out of time, a
frozen instance that is called, a version that is deleted. Whatever frame is struck, every caller gets one answer and
every call one record, nothing leaks, and the version works again by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import pytest

import virtual_time
from fleet_kit import Answer, House, house
from headrace import wire
from headrace.gateway import link as links
from headrace.gateway.sockets import Sockets
from headrace.node import Switchboard

Writer = Literal["node", "instance"]
Strike = Literal["lost", "torn", "cut", "before", "after"]

_STATUSES = {200, 400, 500, 502, 503, 504}


class Scissors(Switchboard):
    """Strikes the `at`-th frame that `writer` writes, counted over all connections; 0: none."""

    def __init__(self, writer: Writer, strike: Strike, at: int) -> None:
        super().__init__(Sockets(1))
        self.writer = writer
        self.strike = strike
        self.at = at
        self.frames = 0

    def link(self, instance: str, on_lost: Callable[[], None]) -> links.Link:
        return CutLink(instance, on_lost, self)

    def passed(self, frame: wire.Frame) -> tuple[bytes, bool]:
        """What comes through of a frame, and whether the connection breaks then."""
        raw = wire.encode(*frame)
        self.frames += 1
        if self.frames != self.at:
            return raw, False
        if self.strike in ("lost", "before"):
            return b"", self.strike == "before"
        if self.strike == "after":
            return raw, True
        return raw[: len(raw) // 2], self.strike == "cut"


class CutLink(links.Link):
    """A link whose frames pass the scissors, in either direction."""

    def __init__(self, instance: str, on_lost: Callable[[], None], scissors: Scissors) -> None:
        super().__init__(instance, on_lost)
        self.scissors = scissors
        self.frames = wire.Decoder()
        self.broken = False
        self.real: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.real = cast(asyncio.WriteTransport, transport)
        super().connection_made(CutTransport(self) if self.scissors.writer == "node" else transport)

    def data_received(self, data: bytes) -> None:
        if self.scissors.writer == "instance":
            self.cut(data, super().data_received)
        else:
            super().data_received(data)

    def cut(self, data: bytes, deliver: Callable[[bytes], None]) -> None:
        assert self.real is not None
        for frame in self.frames.feed(data):
            if self.broken:
                return
            rest, self.broken = self.scissors.passed(frame)
            if rest:
                deliver(rest)
            if self.broken:
                self.real.abort()


class CutTransport(asyncio.WriteTransport):
    def __init__(self, link: CutLink) -> None:
        super().__init__()
        self.link = link

    def write(self, data: Any) -> None:
        assert self.link.real is not None
        self.link.cut(bytes(data), self.link.real.write)

    def abort(self) -> None:
        assert self.link.real is not None
        self.link.real.abort()


async def _life(rig: House) -> list[Answer]:
    answers = list(await asyncio.gather(*(rig.call(path) for path in ("/ok", "/slow", "/stream"))))
    answers += await asyncio.gather(*(rig.call(path) for path in ("/slow", "/slow", "/die")))
    gone = asyncio.Event()
    leaving = asyncio.ensure_future(rig.call("/wait", gone=gone))
    await asyncio.sleep(0.5)
    gone.set()
    answers += [await leaving, await rig.call("/wait"), await rig.call("/ok")]
    await asyncio.sleep(11)
    answers.append(await rig.call("/ok"))
    await asyncio.sleep(11)
    rig.route(2, [2], revision=2)
    answers.append(await rig.call("/ok"))
    await asyncio.sleep(2)
    return answers


def _run(home: Path, writer: Writer, strike: Strike, at: int) -> int:
    """Live the life with one frame struck; how many frames `writer` wrote."""

    async def scenario() -> int:
        scissors = Scissors(writer, strike, at)
        async with house(home, 0, scissors, timeout_s=2) as rig:
            answers = await _life(rig)
            written = scissors.frames
            for answer in answers:
                assert answer.status in _STATUSES, answer.problem
                assert answer.whole != answer.broken
            rig.balanced()
            assert len(rig.records) == len({row[0] for row in rig.records}) == len(answers)
            await _works_again(rig)
            return written

    return virtual_time.run(scenario())


async def _works_again(rig: House) -> None:
    """What is half started (a LOADED that never came: 60 s) is given up, and then a call is answered."""
    for _ in range(20):
        if (await rig.call("/ok")).status == 200:
            break
        await asyncio.sleep(5)
    else:
        raise AssertionError(f"it never came back: {rig.fleet.keeper(2)}")
    known = {instance["id"] for instance in rig.fleet.status()["instances"]}
    keeper = rig.fleet.keeper(2)
    assert keeper is not None
    assert {id for _, id in rig.engine.instances} == known, "an orphan runs"
    assert known >= {instance.id for instance in keeper.instances}


@pytest.mark.parametrize("strike", ["lost", "torn", "cut", "before", "after"])
@pytest.mark.parametrize("writer", ["node", "instance"])
def test_the_nth_frame(tmp_path: Path, writer: Writer, strike: Strike) -> None:
    frames = _run(tmp_path / "0", writer, strike, 0)
    assert frames > 12, "the life is too quiet to say anything"
    for at in range(1, frames + 1):
        _run(tmp_path / str(at), writer, strike, at)


def test_the_life_without_faults(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, 0, Scissors("node", "lost", 0), timeout_s=2) as rig:
            answers = await _life(rig)
            assert [answer.status for answer in answers] == [200, 200, 200, 502, 200, 502, 400, 504, 200, 200, 200]
            assert rig.program.cancelled == 2
            assert [row[3] for row in rig.records] == [1] * 10 + [2]
            assert len(rig.engine.instances) == 1, "the instances of the deleted version are gone"

    virtual_time.run(scenario())


def test_a_call_that_got_its_slot_as_the_connection_broke_goes_to_another_instance(tmp_path: Path) -> None:
    async def scenario() -> None:
        scissors = Scissors("instance", "after", at=3)  # HELLO, LOADED, and the REPLY whose slot the next call gets
        async with house(tmp_path, 0, scissors, concurrency=1, max_instances=1, timeout_s=5) as rig:
            first = asyncio.ensure_future(rig.call("/slow"))
            await asyncio.sleep(0.5)
            rig.driver.fault("inspect", always=True)  # the engine has no word for what has happened
            second = await rig.call("/ok")
            assert (await first).status == 200
            assert second.status == 200
            assert len({row[4] for row in rig.records}) == 2
            assert asyncio.get_running_loop().time() < 1.5, "not only when its time is up"
            rig.balanced()
            rig.driver.mend()
            assert (await rig.call("/ok")).status == 200

    virtual_time.run(scenario())
