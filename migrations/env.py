"""Run by alembic for `headrace.store.sql.migrate`: everything pending, in one transaction that holds off others."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection

from headrace.store import tables
from headrace.store.sql import Database, lock_schema


async def run() -> None:
    database = Database(context.config.attributes["url"])
    try:
        async with database.begin() as connection:
            await lock_schema(connection)
            await connection.run_sync(run_migrations)
    finally:
        await database.close()


def run_migrations(connection: Connection) -> None:
    # The transaction is ours, also on SQLite, where DDL takes part in it since we begin it ourselves.
    context.configure(connection=connection, target_metadata=tables.metadata, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


asyncio.run(run())
