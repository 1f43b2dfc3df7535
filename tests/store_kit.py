"""The whole store on one database, with a clock that tests move by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Table, func, insert, select

from headrace.jobs.base import Job
from headrace.jobs.rows import RowQueue
from headrace.model import Version, VersionConfig, VersionState
from headrace.store import tables
from headrace.store.aliases import Aliases
from headrace.store.functions import Functions
from headrace.store.nodes import Nodes
from headrace.store.records import Records
from headrace.store.sql import Database
from headrace.store.tokens import Tokens
from headrace.store.versions import Versions

NS, NAME = "default", "hello"
START = 1_700_000_000.0


class HandClock:
    def __init__(self) -> None:
        self.time = START

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


class Store:
    def __init__(self, url: str, clock: HandClock) -> None:
        self.url = url
        self.clock = clock
        self.database = Database(url)
        self.functions = Functions(self.database, clock)
        self.versions = Versions(self.database, clock)
        self.aliases = Aliases(self.database, clock)
        self.records = Records(self.database, clock)
        self.tokens = Tokens(self.database, clock)
        self.nodes = Nodes(self.database, clock)
        self.queue = RowQueue(self.database, clock)

    async def count(self, table: Table) -> int:
        async with self.database.connect() as connection:
            return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())

    async def submit(self, digest: str = "d1", name: str = NAME, namespace: str = NS, **config: Any) -> Version:
        return (await self.versions.submit(namespace, name, digest, VersionConfig(**config), 10))[0]

    async def claim(self) -> Job:
        job = await self.queue.claim(["build"], 30)
        assert job is not None
        return job

    async def build(
        self,
        digest: str = "d1",
        *,
        to: VersionState = VersionState.READY,
        reason: str | None = None,
        layer: str | None = None,
        name: str = NAME,
        namespace: str = NS,
    ) -> Version:
        """A new version, built to its end by the job that came with it. No other job may be due."""
        version = await self.submit(digest, name, namespace)
        job = await self.claim()
        assert job.payload == {"version_id": version.id}
        for state in (VersionState.BUILDING, VersionState.PROBING, to):
            assert await self.versions.advance(version.id, state, job.lease, reason=reason, layer=layer)
        assert await self.queue.finish(job)
        return await self.versions.by_id(version.id)

    async def publish(self, *numbers: int, alias: str = "live", name: str = NAME) -> None:
        """Move the alias to each of these versions in turn."""
        for number in numbers:
            await self.aliases.move(NS, name, alias, {number: 100}, action="publish", actor="ann", if_generation=None)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = Store(url, HandClock())
    try:
        yield store
    finally:
        await store.database.close()


async def empty(url: str) -> None:
    """Take a migrated PostgreSQL back to the moment after its migration."""
    database = Database(url)
    async with database.begin() as connection:
        names = ", ".join(table.name for table in tables.metadata.sorted_tables)
        await connection.exec_driver_sql(f"TRUNCATE {names} RESTART IDENTITY CASCADE")
        await connection.execute(insert(tables.routing).values(id=1, revision=0))
    await database.close()
