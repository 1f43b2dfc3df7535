"""The job queue as rows of the database: accepted in the same transaction as what the job is about."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, func, or_, select, update

from headrace.clock import Clock
from headrace.jobs.base import Job
from headrace.store import tables
from headrace.store.sql import Database, clean_text

_LONGEST_ERROR = 2_000


class RowQueue:
    """A `JobQueue`. Leases are judged by the rows and by `clock`, so the workers' clocks should agree to a second."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def claim(self, kinds: Sequence[str], lease_s: float) -> Job | None:
        """One statement. Workers that claim at once skip the rows of each other instead of waiting for them."""
        c, now = tables.jobs.c, self._clock.now()
        due = (
            select(c.id)
            .where(c.kind.in_(kinds), c.due_at <= now, self._free(now))
            .order_by(c.due_at, c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        taken = (
            update(tables.jobs)
            .where(c.id == due.scalar_subquery())
            .values(lease=secrets.token_hex(16), lease_until=now + lease_s, attempts=c.attempts + 1)
            .returning(c.id, c.kind, c.payload, c.attempts, c.lease)
        )
        async with self._database.begin() as connection:
            row = (await connection.execute(taken)).first()
        return None if row is None else Job(*row)

    async def renew(self, job: Job, lease_s: float) -> bool:
        return await self._write(job, lease_until=self._clock.now() + lease_s)

    async def retry(self, job: Job, after_s: float, error: str) -> bool:
        due_at = self._clock.now() + after_s
        return await self._write(
            job, lease=None, lease_until=None, due_at=due_at, error=clean_text(error)[:_LONGEST_ERROR]
        )

    async def _write(self, job: Job, **values: Any) -> bool:
        async with self._database.begin() as connection:
            done = await connection.execute(update(tables.jobs).where(*_held(job)).values(**values))
        return done.rowcount == 1

    async def finish(self, job: Job) -> bool:
        async with self._database.begin() as connection:
            done = await connection.execute(delete(tables.jobs).where(*_held(job)))
        return done.rowcount == 1

    async def waiting(self) -> int:
        query = select(func.count()).select_from(tables.jobs).where(self._free(self._clock.now()))
        async with self._database.connect() as connection:
            return int((await connection.execute(query)).scalar_one())

    def _free(self, now: float) -> ColumnElement[bool]:
        c = tables.jobs.c
        return or_(c.lease.is_(None), c.lease_until <= now)


def _held(job: Job) -> tuple[ColumnElement[bool], ...]:
    return tables.jobs.c.id == job.id, tables.jobs.c.lease == job.lease
