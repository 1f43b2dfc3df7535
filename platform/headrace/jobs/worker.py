"""The worker: claims jobs and hands each to the handler of its kind, for as long as it holds the job's lease.

A lease says who works on a job. It is renewed at a third of its time while the handler runs; when it is lost (another
worker took the job, or the store did not answer for so long that another may have) the handler is cancelled at once
and nothing more is said about the job. A handler that returns has done the job. One that raises is tried again, later
and later, here or elsewhere. So handlers must be safe to repeat from any point, and guard what they write by the lease.

A worker that is cancelled frees its jobs for the others; one that is killed loses them when their leases run out.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping

from headrace.clock import Clock
from headrace.errors import HeadraceError
from headrace.jobs.base import Job, JobQueue
from headrace.jobs.wake import Wake
from headrace.tasks import Tasks

logger = logging.getLogger(__name__)

Handler = Callable[[Job], Awaitable[None]]

_AT_ONCE = 2  # jobs; each may be a build, which takes a processor of its own
_LOOK_S = 5.0  # without being woken, look for jobs this often
_MAX_ATTEMPTS = 25  # a handler should give up before; this ends jobs whose handler can't even say so
_MAX_BACKOFF_S = 30.0


def backoff_s(attempts: int) -> float:
    """How long to wait after the failed attempt number `attempts`: 1, 2, 4, ... seconds, at most 30."""
    return float(min(2 ** min(attempts - 1, 16), _MAX_BACKOFF_S))


class Worker:
    def __init__(
        self, queue: JobQueue, handlers: Mapping[str, Handler], wake: Wake, clock: Clock, lease_s: float = 30.0
    ) -> None:
        self._queue = queue
        self._handlers = handlers
        self._wake = wake
        self._clock = clock
        self._lease_s = lease_s
        self._running: set[asyncio.Task[None]] = set()
        self._look_at = math.inf  # when a job that was put off here is due again
        self._blind = False

    async def run(self) -> None:
        """Work until cancelled; then jobs that are not done are freed for others."""
        tasks = Tasks()
        try:
            while True:
                if len(self._running) >= _AT_ONCE:
                    await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                elif (job := await self._claim()) is not None:
                    task = tasks.spawn(self._perform(job), f"{job.kind} job {job.id}")
                    self._running.add(task)
                    task.add_done_callback(self._running.discard)
                else:
                    await self._wake.wait(self._rest_s())
        finally:
            await tasks.aclose()

    async def _claim(self) -> Job | None:
        """A job, or None when there is none or the store does not answer."""
        try:
            job = await self._queue.claim(list(self._handlers), self._lease_s)
        except HeadraceError as error:
            if not self._blind:
                logger.warning("can't look for jobs: %s", error)
            self._blind = True
            return None
        self._blind = False
        return job

    def _rest_s(self) -> float:
        """How long to sleep without being woken."""
        now = self._clock.monotonic()
        if self._look_at <= now:
            self._look_at = math.inf
        return min(self._look_at - now, _LOOK_S)

    async def _perform(self, job: Job) -> None:
        handler = asyncio.ensure_future(self._handlers[job.kind](job))
        try:
            held = await self._hold(job, handler)
        except asyncio.CancelledError:
            await self._settle(job, self._queue.retry(job, 0.0, "the worker was stopped"))
            raise
        if held:
            await self._conclude(job, handler)
        else:
            logger.warning("lost the lease of %s job %d: left it to whoever has it now", job.kind, job.id)

    async def _hold(self, job: Job, handler: asyncio.Future[None]) -> bool:
        """Renew the lease until the handler has ended. False: it was lost, or may be, and the handler was cancelled."""
        good_until = self._clock.monotonic() + self._lease_s
        try:
            while True:
                await asyncio.wait({handler}, timeout=self._lease_s / 3)
                if handler.done():
                    return True
                asked_at = self._clock.monotonic()
                renewed = await self._renew(job)
                if renewed:
                    good_until = asked_at + self._lease_s
                elif renewed is False or self._clock.monotonic() >= good_until:
                    return False
        finally:
            handler.cancel()
            await asyncio.gather(handler, return_exceptions=True)

    async def _renew(self, job: Job) -> bool | None:
        """None: the store did not answer, and the lease runs on."""
        try:
            return await self._queue.renew(job, self._lease_s)
        except HeadraceError as error:
            logger.warning("can't renew the lease of %s job %d: %s", job.kind, job.id, error)
            return None

    async def _conclude(self, job: Job, handler: asyncio.Future[None]) -> None:
        """The handler ended by itself: the job is done, or is tried again later, or has failed for good."""
        error = asyncio.CancelledError() if handler.cancelled() else handler.exception()
        if error is None:
            await self._settle(job, self._queue.finish(job))
            return
        expected = isinstance(error, HeadraceError) and error.retryable
        said = str(error) if expected else f"{type(error).__name__}: {error}"
        logger.log(
            logging.WARNING if expected else logging.ERROR,
            "%s job %d failed in attempt %d: %s",
            job.kind,
            job.id,
            job.attempts,
            said,
            exc_info=None if expected else error,
        )
        if job.attempts >= _MAX_ATTEMPTS:
            logger.error("%s job %d is given up after %d attempts", job.kind, job.id, job.attempts)
            await self._settle(job, self._queue.finish(job))
            return
        after_s = backoff_s(job.attempts)
        await self._settle(job, self._queue.retry(job, after_s, said))
        self._look_at = min(self._look_at, self._clock.monotonic() + after_s)
        await self._wake.poke()  # so that `run` sleeps no longer than that

    async def _settle(self, job: Job, write: Awaitable[bool]) -> None:
        """Write the last word on the job. If that fails its lease runs out, and it is done again."""
        try:
            if not await write:
                logger.warning("lost the lease of %s job %d at its end: it may be done again", job.kind, job.id)
        except HeadraceError as error:
            logger.warning("can't note the end of %s job %d, it will be done again: %s", job.kind, job.id, error)
