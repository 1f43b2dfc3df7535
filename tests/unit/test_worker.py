"""The worker's life in virtual time, against a queue that says what it was told to say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import pytest

from headrace.errors import NodeUnavailable, StoreUnavailable
from headrace.jobs.base import Job
from headrace.jobs.worker import Worker, backoff_s
from virtual_time import LoopClock, run


class Queue:
    """Jobs with leases, in memory. Notes every call with its time; `trouble` is raised by the calls it names."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.due = {job.id: 0.0 for job in jobs}
        self.until: dict[int, float] = {}
        self.trouble: dict[str, Exception] = {}
        self.calls: list[tuple[float, str, int | None]] = []

    def _note(self, call: str, id: int | None) -> float:
        now = asyncio.get_running_loop().time()
        self.calls.append((now, call, id))
        if call in self.trouble:
            raise self.trouble[call]
        return now

    def _holds(self, job: Job) -> bool:
        return job.id in self.jobs and self.jobs[job.id].lease == job.lease

    async def claim(self, kinds: Sequence[str], lease_s: float) -> Job | None:
        now = self._note("claim", None)
        for id, job in self.jobs.items():
            if self.due[id] <= now and self.until.get(id, 0.0) <= now:
                self.until[id] = now + lease_s
                self.jobs[id] = Job(id, job.kind, job.payload, job.attempts + 1, f"{job.lease}+")
                return self.jobs[id]
        return None

    async def renew(self, job: Job, lease_s: float) -> bool:
        now = self._note("renew", job.id)
        if self._holds(job):
            self.until[job.id] = now + lease_s
        return self._holds(job)

    async def finish(self, job: Job) -> bool:
        self._note("finish", job.id)
        return self._holds(job) and self.jobs.pop(job.id) is not None

    async def retry(self, job: Job, after_s: float, error: str) -> bool:
        now = self._note(f"retry {after_s:g} {error}", job.id)
        if self._holds(job):
            self.due[job.id] = now + after_s
            self.until.pop(job.id)
        return self._holds(job)

    async def waiting(self) -> int:
        return len(self.jobs) - len(self.until)

    def said(self, call: str) -> list[float]:
        return [at for at, said, _ in self.calls if said.startswith(call)]


class Wake:
    def __init__(self) -> None:
        self.poked = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.poked.wait(), timeout_s)
        self.poked.clear()

    async def poke(self) -> None:
        self.poked.set()

    async def close(self) -> None:
        raise AssertionError("the worker was lent its wake-up call, and must not close it")


def job(id: int, attempts: int = 0) -> Job:
    return Job(id, "build", {"version_id": id}, attempts, f"lease{id}")


Handler = Callable[[Job], Awaitable[None]]


def work(queue: Queue, handler: Handler, seconds: float, wake: Wake | None = None) -> None:
    """Run a worker for so long."""

    async def scenario() -> None:
        worker = Worker(queue, {"build": handler}, wake or Wake(), LoopClock())
        with suppress(TimeoutError):
            await asyncio.wait_for(worker.run(), seconds)

    run(scenario())


def test_a_job_is_handed_to_its_handler_and_finished() -> None:
    queue, seen = Queue(job(7)), []

    async def handler(job: Job) -> None:
        seen.append((job.payload, job.attempts, job.lease))

    work(queue, handler, 1)
    assert seen == [({"version_id": 7}, 1, "lease7+")]
    assert [call for _, call, _ in queue.calls] == ["claim", "claim", "finish"]
    assert not queue.jobs


def test_the_lease_is_renewed_while_the_handler_runs_and_not_after() -> None:
    queue = Queue(job(1))

    async def handler(job: Job) -> None:
        await asyncio.sleep(95)

    work(queue, handler, 300)
    assert queue.said("renew") == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert queue.said("finish") == [95]


def test_two_jobs_at_once_and_no_third() -> None:
    queue, running, most = Queue(*(job(n) for n in range(5))), set[int](), []

    async def handler(job: Job) -> None:
        running.add(job.id)
        most.append(len(running))
        await asyncio.sleep(10)
        running.discard(job.id)

    work(queue, handler, 100)
    assert max(most) == 2
    assert queue.said("finish") == [10, 10, 20, 20, 30]


def test_a_lost_lease_cancels_the_handler_and_nothing_is_said_of_the_job(caplog: pytest.LogCaptureFixture) -> None:
    queue, ended = Queue(job(1)), []

    async def handler(mine: Job) -> None:
        await asyncio.sleep(15)
        queue.jobs[1] = Job(1, "build", {}, 2, "somebody else's")
        queue.until[1] = 1e9
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            ended.append(asyncio.get_running_loop().time())
            raise

    work(queue, handler, 200)
    assert ended == [20]
    assert not queue.said("finish") and not queue.said("retry")
    assert "lost the lease of build job 1" in caplog.text


@pytest.mark.parametrize("away_s", [15, 60])
def test_a_store_that_does_not_answer_is_borne_until_the_lease_runs_out(away_s: float) -> None:
    queue, ended = Queue(job(1)), []

    async def handler(job: Job) -> None:
        queue.trouble["renew"] = StoreUnavailable("gone")
        asyncio.get_running_loop().call_later(away_s, queue.trouble.clear)
        try:
            await asyncio.sleep(50)
        finally:
            ended.append(asyncio.get_running_loop().time())

    work(queue, handler, 55)
    assert ended[0] == (50 if away_s < 30 else 30)


def test_a_failed_job_is_tried_again_later_and_later(caplog: pytest.LogCaptureFixture) -> None:
    queue, tries = Queue(job(1)), []

    async def handler(job: Job) -> None:
        tries.append((job.attempts, asyncio.get_running_loop().time()))
        if len(tries) < 5:
            raise NodeUnavailable("no node yet")

    work(queue, handler, 100)
    assert tries == [(1, 0), (2, 1), (3, 3), (4, 7), (5, 15)], "due at once when due, not at the next look"
    assert queue.said("finish") == [15]
    assert "attempt 4: no node yet" in caplog.text and "Traceback" not in caplog.text


def test_an_unexpected_error_is_loud_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue(job(1))

    async def handler(job: Job) -> None:
        if job.attempts == 1:
            raise ZeroDivisionError("oh")

    work(queue, handler, 10)
    assert [call for _, call, _ in queue.calls if "oh" in call] == ["retry 1 ZeroDivisionError: oh"]
    assert "Traceback" in caplog.text
    assert not queue.jobs


def test_a_job_that_never_works_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue(job(1, attempts=23))

    async def handler(job: Job) -> None:
        raise NodeUnavailable("never")

    work(queue, handler, 200)
    assert len(queue.said("retry")) == 1
    assert not queue.jobs
    assert "given up after 25 attempts" in caplog.text


def test_the_backoff_is_bounded() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 5, 6, 25, 10_000)] == [1, 2, 4, 16, 30, 30, 30]


def test_idle_it_looks_now_and_then_and_at_once_when_woken() -> None:
    queue, wake = Queue(), []

    async def scenario() -> None:
        wake.append(Wake())
        worker = asyncio.ensure_future(Worker(queue, {"build": handler}, wake[0], LoopClock()).run())
        await asyncio.sleep(12)
        queue.jobs[1], queue.due[1] = job(1), 0.0
        await wake[0].poke()
        await asyncio.sleep(6)
        worker.cancel()
        with suppress(asyncio.CancelledError):
            await worker

    async def handler(job: Job) -> None:
        return None

    run(scenario())
    assert queue.said("claim") == [0, 5, 10, 12, 12, 17]
    assert queue.said("finish") == [12]


def test_jobs_of_a_stopped_worker_are_free_at_once_after_their_handlers_ended() -> None:
    queue, order = Queue(job(1), job(2)), []

    async def handler(job: Job) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(3)  # takes the sandbox down
            order.append(asyncio.get_running_loop().time())

    work(queue, handler, 5)
    assert order == [8, 8]
    assert queue.said("retry 0 the worker was stopped") == [8, 8]
    assert not queue.until


def test_a_handler_that_cancels_itself_is_tried_again() -> None:
    queue = Queue(job(1))

    async def handler(job: Job) -> None:
        if job.attempts == 1:
            raise asyncio.CancelledError

    work(queue, handler, 5)
    assert queue.said("retry 1") == [0]
    assert not queue.jobs


def test_an_unreachable_store_is_said_once_and_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    queue, seen = Queue(job(1)), []
    queue.trouble["claim"] = StoreUnavailable("no database")

    async def handler(job: Job) -> None:
        seen.append(asyncio.get_running_loop().time())

    async def scenario() -> None:
        asyncio.get_running_loop().call_later(22, queue.trouble.clear)
        with suppress(TimeoutError):
            await asyncio.wait_for(Worker(queue, {"build": handler}, Wake(), LoopClock()).run(), 60)

    run(scenario())
    assert seen == [25]
    assert caplog.text.count("can't look for jobs: no database") == 1


@pytest.mark.parametrize("trouble", [StoreUnavailable("gone"), None])
def test_a_job_whose_end_could_not_be_noted_is_done_again(
    trouble: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    queue, seen = Queue(job(1)), []

    async def handler(job: Job) -> None:
        seen.append(asyncio.get_running_loop().time())
        if len(seen) == 1 and trouble is not None:
            queue.trouble["finish"] = trouble
            asyncio.get_running_loop().call_later(1, queue.trouble.clear)
        elif len(seen) == 1:
            queue.jobs[1] = Job(1, "build", {}, 2, "taken over")

    work(queue, handler, 60)
    assert seen == [0, 30]
    assert "done again" in caplog.text
