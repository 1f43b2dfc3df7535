"""The N-th request to the engine goes wrong, for every N of a life: nothing leaks, every caller gets one answer.

The life: a cold call, a burst, an instance that dies under a call, a call that runs out of time, an idle stop. Then
the engine is mended, and the version must work again by itself.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import virtual_time
from fakes import FaultKind, Verb
from fleet_kit import FAILURE, Answer, House, house

_STATUSES = {200, 502, 503, 504}


async def _life(rig: House) -> list[Answer]:
    answers = [await rig.call("/ok")]
    answers += await asyncio.gather(*(rig.call("/slow") for _ in range(6)))
    answers += await asyncio.gather(rig.call("/die"), rig.call("/slow"))
    answers.append(await rig.call("/wait"))
    answers.append(await rig.call("/half"))
    answers.append(await rig.call("/stream"))
    await asyncio.sleep(40)
    answers.append(await rig.call("/ok"))
    return answers


def _check(rig: House, answers: list[Answer]) -> None:
    for answer in answers:
        assert answer.status in _STATUSES, answer.problem
        assert answer.whole != answer.broken
    rig.balanced()
    assert len(rig.records) == len(answers)
    assert len({row[0] for row in rig.records}) == len(answers), "one record per call, each with its own id"


async def _recovers(rig: House) -> None:
    rig.driver.mend()
    for _ in range(20):
        await asyncio.sleep(30)
        if (await rig.call("/ok")).status == 200:
            break
    else:
        raise AssertionError(f"it never came back: {rig.fleet.keeper(1)}")
    await rig.fleet.sweep()
    assert len(rig.engine.instances) == len(rig.fleet.status()["instances"]), "an orphan runs"


def _run(tmp_path: Path, verb: Verb | None, at: int = 1, kind: FaultKind = "fail", always: bool = False) -> int:
    """Live the life with one fault; how often `verb` was asked."""

    async def scenario() -> int:
        async with house(tmp_path) as rig:
            if verb is not None:
                rig.driver.fault(verb, at, kind, always=always)
            answers = await _life(rig)
            asked = sum(1 for asked, _ in rig.driver.calls if asked == verb)
            _check(rig, answers)
            await _recovers(rig)
            return asked

    return virtual_time.run(scenario())


def test_the_life_without_faults(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as rig:
            answers = await _life(rig)
            _check(rig, answers)
            assert [answer.status for answer in answers] == [200] * 7 + [502, 200, 504, 200, 200, 200]
            assert [answer.broken for answer in answers].index(True) == 10

    virtual_time.run(scenario())


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("kind", ["fail", "hang", "cancel"])
@pytest.mark.parametrize("verb", ["start", "stop", "inspect", "adjust", "list"])
def test_the_nth_request_to_the_engine(tmp_path: Path, verb: Verb, kind: FaultKind, always: bool) -> None:
    for at in range(1, 30):
        asked = _run(tmp_path / str(at), verb, at, kind, always)
        if asked < at:
            assert at > 1 or verb in ("adjust", "list"), f"the life never asked for {verb}"
            return
    raise AssertionError("the life asks too often to be tried out")


@pytest.mark.parametrize("at", [0.001, 0.05, 0.5, 1.02])
def test_callers_who_leave_at_any_time(tmp_path: Path, at: float) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as rig:
            gone = asyncio.Event()
            calls = [asyncio.ensure_future(rig.call(path, gone=gone)) for path in ("/wait", "/slow", "/stream") * 3]
            await asyncio.sleep(at)
            gone.set()
            await asyncio.gather(*calls)
            rig.balanced()
            outcomes = {row[11] for row in rig.records}
            assert outcomes <= {"ok", "client_gone", "timeout"}
            assert len(rig.records) == len(calls)
            assert (await rig.call()).status == 200

    virtual_time.run(scenario())


def test_cancelled_calls_release_everything(tmp_path: Path) -> None:
    async def scenario(delay: float) -> None:
        async with house(tmp_path / str(delay)) as rig:
            calls = [asyncio.ensure_future(rig.call("/slow")) for _ in range(8)]
            await asyncio.sleep(delay)
            for call in calls:
                call.cancel()
            results: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) or result.status == 200 for result in results)
            rig.balanced()
            assert (await rig.call()).status == 200

    for delay in (0.0, 0.001, 0.01, 0.2, 1.5):
        virtual_time.run(scenario(delay))


def test_a_version_that_cannot_load_says_why_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as rig:
            rig.program.load_error = {"type": "ImportError", "message": "no module named secret", "stack": "..."}
            answers = await asyncio.gather(*(rig.call() for _ in range(5)))
            assert {answer.status for answer in answers} == {500}
            assert "ImportError" in answers[0].problem["detail"]
            assert "secret" not in answers[0].problem["detail"]
            assert asyncio.get_running_loop().time() < 1
            rig.program.load_error = None
            await asyncio.sleep(5)
            assert (await rig.call()).status == 200

    virtual_time.run(scenario())


@pytest.mark.parametrize(("path", "status", "body"), [("/page", 500, b"my own page"), ("/late", 200, b"all of it")])
def test_a_failure_after_a_complete_answer_is_recorded_and_the_answer_stands(
    tmp_path: Path, path: str, status: int, body: bytes
) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as rig:
            answer = await rig.call(path)
            assert (answer.status, answer.body, answer.whole, answer.broken) == (status, body, True, False)
            row = rig.records[0]
            assert (row[10], row[11], row[15], row[16]) == (status, "function_error", len(body), FAILURE)
            assert (await rig.call()).status == 200
            assert rig.records[1][11] == "ok"

    virtual_time.run(scenario())


def test_stopping_the_node_during_a_burst_answers_everybody_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path, timeout_s=3) as rig:
            calls = [asyncio.ensure_future(rig.call("/slow")) for _ in range(12)]
            await asyncio.sleep(0.5)
            await rig.fleet.stop(0)
            answers = await asyncio.gather(*calls)
            assert {answer.status for answer in answers} <= _STATUSES
            rig.balanced()

    virtual_time.run(scenario())


def test_a_move_while_the_new_version_is_cold(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as rig:
            before = [asyncio.ensure_future(rig.call("/slow")) for _ in range(4)]
            await asyncio.sleep(0.2)
            rig.publish(2, revision=2)
            after = await asyncio.gather(*(rig.call("/ok") for _ in range(4)))
            assert {answer.status for answer in after} == {200}
            assert {answer.status for answer in await asyncio.gather(*before)} == {200}
            assert [row[3] for row in rig.records] == [2, 2, 2, 2, 1, 1, 1, 1]

    virtual_time.run(scenario())


def test_a_deleted_version_lets_running_calls_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with house(tmp_path) as rig:
            running = asyncio.ensure_future(rig.call("/slow"))
            await asyncio.sleep(0.5)
            rig.routes.drop(1)
            rig.fleet.retire(1)
            assert (await rig.call()).status == 404
            assert (await running).status == 200
            await asyncio.sleep(30)
            assert rig.engine.instances == {}

    virtual_time.run(scenario())
