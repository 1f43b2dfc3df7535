"""Removing records: what is old, what is too much, what belongs to a function that goes.

Tables are walked from their oldest `seq` in batches, each a short transaction of its own, so that writers never wait
long. Rows arrive nearly in the order of their times, so no index on time alone is needed.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from headrace.store import tables
from headrace.store.sql import Database

_BATCH = 5_000  # rows removed in one transaction
_TABLES = (tables.invocations, tables.logs, tables.slots)
_TIME = {"invocations": "started_at", "logs": "at", "slots": "at"}


async def prune(database: Database, before: float, max_bytes: int) -> int:
    """Remove what is older than `before`, then the oldest share of each table that brings them to `max_bytes`.

    Returns the number of rows removed.
    """
    removed = 0
    for table in _TABLES:
        removed += await _prune_age(database, table, before)
    async with database.connect() as connection:
        size = await _size(connection)
    if size > max_bytes:
        for table in _TABLES:
            removed += await _prune_share(database, table, 1 - max_bytes / size)
    return removed


async def forget(database: Database, namespace: str, name: str) -> None:
    """Remove all records of a function."""
    for table in _TABLES:
        some = select(table.c.seq).where(table.c.namespace == namespace, table.c.function == name).limit(_BATCH)
        while True:
            async with database.begin(durable=False) as connection:
                gone = await connection.execute(delete(table).where(table.c.seq.in_(some)))
            if gone.rowcount < _BATCH:
                break


async def _prune_age(database: Database, table: Table, before: float) -> int:
    """A batch in which nothing was old is the end: what follows is younger."""
    seq, time = table.c.seq, table.c[_TIME[table.name]]
    removed = reached = 0
    while True:
        async with database.begin(durable=False) as connection:
            batch = select(seq).where(seq > reached).order_by(seq).limit(_BATCH).subquery()
            last = await connection.scalar(select(func.max(batch.c.seq)))
            if last is None:
                return removed
            gone = await connection.execute(delete(table).where(seq > reached, seq <= last, time < before))
        if gone.rowcount == 0:
            return removed
        removed += gone.rowcount
        reached = last


async def _prune_share(database: Database, table: Table, share: float) -> int:
    """Remove the oldest `share` (0 to 1) of the table, as far as its range of `seq` tells."""
    seq = table.c.seq
    async with database.connect() as connection:
        first, last = (await connection.execute(select(func.min(seq), func.max(seq)))).one()
    if first is None:
        return 0
    removed, end = 0, first + int((last - first + 1) * share)
    for start in range(first, end, _BATCH):
        async with database.begin(durable=False) as connection:
            gone = await connection.execute(delete(table).where(seq >= start, seq < min(start + _BATCH, end)))
        removed += gone.rowcount
    return removed


async def _size(connection: AsyncConnection) -> float:
    """Bytes that the records take, about.

    SQLite: the pages in use, without the build logs. PostgreSQL keeps the space of removed rows in the table's file
    for new ones, so there it is the number of rows times the size of recent ones, and as much again for indexes.
    """
    if connection.dialect.name == "sqlite":
        pages, free, page_bytes = [
            (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
            for name in ("page_count", "freelist_count", "page_size")
        ]
        build_logs = await connection.scalar(select(func.coalesce(func.sum(tables.versions.c.log_bytes), 0)))
        return float((pages - free) * page_bytes - (build_logs or 0))
    return sum([await _postgresql_size(connection, table) for table in _TABLES])


async def _postgresql_size(connection: AsyncConnection, table: Table) -> float:
    recent = f"SELECT * FROM {table.name} ORDER BY seq DESC LIMIT 1000"  # noqa: S608
    query = f"SELECT count(*), (SELECT avg(pg_column_size(r.*)) FROM ({recent}) r) FROM {table.name}"  # noqa: S608
    found: Any = (await connection.exec_driver_sql(query)).one()
    rows, row_bytes = found
    return float(rows) * float(row_bytes or 0) * 2
