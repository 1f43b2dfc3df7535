"""What every job queue promises: each job is worked on by one at a time, and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from headrace.jobs.base import Job, JobQueue
from store_kit import START, HandClock, Store

Add = Callable[[int], Awaitable[list[int]]]


@pytest.fixture
def queue(store: Store) -> JobQueue:
    return store.queue


@pytest.fixture
def clock(store: Store) -> HandClock:
    return store.clock


@pytest.fixture
def add(store: Store) -> Add:
    """Accepts that many jobs, each for a version of its own; the ids of the versions, oldest first."""

    async def submit(count: int) -> list[int]:
        return [(await store.submit(f"d{n}", f"f{n}")).id for n in range(count)]

    return submit


async def claim(queue: JobQueue, lease_s: float = 30) -> Job:
    job = await queue.claim(["build"], lease_s)
    assert job is not None
    return job


async def test_an_empty_queue_has_nothing_to_claim(queue: JobQueue) -> None:
    assert await queue.claim(["build"], 30) is None
    assert await queue.waiting() == 0


async def test_jobs_are_claimed_in_the_order_they_are_due(queue: JobQueue, clock: HandClock, add: Add) -> None:
    ids = await add(3)
    first = await claim(queue)
    assert (first.kind, first.payload, first.attempts) == ("build", {"version_id": ids[0]}, 1)
    await queue.retry(first, 5, "later")
    assert [(await claim(queue)).payload["version_id"] for _ in range(2)] == ids[1:]
    assert await queue.claim(["build"], 30) is None
    clock.time += 5
    assert (await claim(queue)).id == first.id


async def test_a_claimed_job_is_claimed_by_nobody_else(queue: JobQueue, add: Add) -> None:
    await add(1)
    assert await queue.waiting() == 1
    await claim(queue)
    assert await queue.claim(["build"], 30) is None
    assert await queue.waiting() == 0


async def test_only_the_kinds_asked_for_are_claimed(queue: JobQueue, add: Add) -> None:
    await add(1)
    assert await queue.claim(["dispatch", "schedule"], 30) is None
    assert await queue.claim([], 30) is None
    assert await queue.claim(["dispatch", "build"], 30) is not None


@pytest.mark.parametrize("jobs", [1, 5, 30])
async def test_ten_workers_at_once_never_get_the_same_job(queue: JobQueue, add: Add, jobs: int) -> None:
    ids = await add(jobs)

    async def work() -> list[Job]:
        mine: list[Job] = []
        while len(mine) <= jobs and (job := await queue.claim(["build"], 30)):
            mine.append(job)
        return mine

    claimed = [job for mine in await asyncio.gather(*(work() for _ in range(10))) for job in mine]
    assert sorted(job.payload["version_id"] for job in claimed) == ids
    assert len({job.lease for job in claimed}) == jobs
    assert {job.attempts for job in claimed} == {1}


async def test_a_lease_that_ran_out_is_taken_over_under_a_new_token(
    queue: JobQueue, clock: HandClock, add: Add
) -> None:
    await add(1)
    lost = await claim(queue, lease_s=10)
    clock.time = START + 9.9
    assert await queue.claim(["build"], 10) is None
    clock.time = START + 10
    assert await queue.waiting() == 1
    taken = await claim(queue, lease_s=10)
    assert taken == replace(lost, attempts=2, lease=taken.lease)
    assert taken.lease != lost.lease
    for answer in (queue.renew(lost, 10), queue.retry(lost, 0, "late"), queue.finish(lost)):
        assert not await answer
    assert await queue.finish(taken)
    assert await queue.waiting() == 0


async def test_one_of_ten_takes_over(queue: JobQueue, clock: HandClock, add: Add) -> None:
    await add(1)
    await claim(queue)
    clock.time += 30
    claims = await asyncio.gather(*(queue.claim(["build"], 30) for _ in range(10)))
    assert len([job for job in claims if job is not None]) == 1


async def test_renewing_holds_the_job_from_now_on(queue: JobQueue, clock: HandClock, add: Add) -> None:
    await add(1)
    job = await claim(queue, lease_s=10)
    clock.time = START + 8
    assert await queue.renew(job, 10)
    clock.time = START + 17.9
    assert await queue.claim(["build"], 10) is None
    clock.time = START + 18
    assert (await claim(queue)).id == job.id


async def test_a_lease_that_ran_out_but_was_not_taken_can_be_renewed(
    queue: JobQueue, clock: HandClock, add: Add
) -> None:
    await add(1)
    job = await claim(queue, lease_s=10)
    clock.time += 60
    assert await queue.renew(job, 10)
    assert await queue.claim(["build"], 10) is None


async def test_a_finished_job_is_gone(queue: JobQueue, clock: HandClock, add: Add) -> None:
    await add(1)
    job = await claim(queue)
    assert await queue.finish(job)
    assert not await queue.finish(job)
    assert not await queue.renew(job, 30)
    clock.time += 3600
    assert await queue.claim(["build"], 30) is None


async def test_a_retried_job_comes_back_when_it_is_due(queue: JobQueue, clock: HandClock, add: Add) -> None:
    await add(1)
    job = await claim(queue)
    assert await queue.retry(job, 5, "the engine is away \0 " + "x" * 10_000)
    assert not await queue.renew(job, 30)
    assert await queue.waiting() == 1
    clock.time += 4.9
    assert await queue.claim(["build"], 30) is None
    clock.time += 0.1
    again = await claim(queue)
    assert (again.id, again.attempts) == (job.id, 2)


async def test_renewing_and_taking_over_at_once_leaves_one_owner(queue: JobQueue, clock: HandClock, add: Add) -> None:
    await add(1)
    job = await claim(queue, lease_s=10)
    clock.time += 10
    renewed, taken = await asyncio.gather(queue.renew(job, 10), queue.claim(["build"], 10))
    assert renewed == (taken is None)
    assert await queue.finish(taken or job)
    if taken is not None:
        assert not await queue.finish(job)
