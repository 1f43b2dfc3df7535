"""Invocations, log lines and metric slots: written in bulk by nodes, read by people, pruned by age and size.

Writing is one transaction with one driver-level `executemany` per table; SQLAlchemy only makes the statements. An
invocation that arrives twice, after a lost answer, is kept once. Text that functions wrote is never refused: what
the database can't hold is replaced.

Pruning walks each table from its oldest `seq` in batches, each a short transaction of its own, so that writers
never wait long. Rows arrive nearly in order of time, so no index on time alone is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, Table, delete, func, insert, or_, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from headrace.clock import Clock
from headrace.errors import Invalid, NotFound
from headrace.model import Invocation, LogLine, MetricSlot, Outcome, Page
from headrace.store import paging, tables
from headrace.store.sql import Database, check_text, clean_text, upsert

_BATCH = 5_000  # rows removed in one transaction
_MOST_LINES = 10_000
_TABLES = (tables.invocations, tables.logs, tables.slots)
_TIME = {"invocations": "started_at", "logs": "at", "slots": "at"}
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_INVOCATION = [column for column in tables.invocations.columns if column.name not in {"seq", "error_type"}]
_LINE = [column for column in tables.logs.columns if column.name != "seq"]
_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class InvocationFilter:
    """Which invocations to list; None: any. `error` is an outcome or the type of an error."""

    status: int | None = None
    version: int | None = None
    since: float | None = None  # started at or after
    until: float | None = None  # started before
    min_duration_ms: float | None = None
    error: str | None = None
    outcome: Outcome | None = None


class Records:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._statements: dict[str, str] = {}

    async def append(
        self,
        invocations: Sequence[tuple[Any, ...]],
        lines: Sequence[tuple[Any, ...]],
        slots: Sequence[MetricSlot],
    ) -> None:
        """Store all of it in one transaction.

        `invocations`: tuples in the field order of `model.Invocation`; `lines`: in that of `model.LogLine` without
        `seq`.
        """
        async with self._database.begin(durable=False) as connection:
            if invocations:
                rows = [_invocation_row(row) for row in invocations]
                await connection.exec_driver_sql(self._insert(connection, tables.invocations), rows)
            if lines:
                rows = [(*row[:8], clean_text(row[8])) for row in lines]
                await connection.exec_driver_sql(self._insert(connection, tables.logs), rows)
            if slots:
                await connection.execute(insert(tables.slots), [_slot_row(slot) for slot in slots])

    def _insert(self, connection: AsyncConnection, table: Table) -> str:
        """The INSERT of all columns but `seq`, in their order, with the driver's own placeholders."""
        if table.name not in self._statements:
            columns = [column.name for column in table.columns if column.name != "seq"]
            statement = upsert(connection, table)
            if table is tables.invocations:
                statement = statement.on_conflict_do_nothing(index_elements=["id"])
            compiled = statement.compile(dialect=connection.dialect, column_keys=columns)
            self._statements[table.name] = str(compiled)
        return self._statements[table.name]

    async def invocations(
        self, namespace: str, name: str, filter: InvocationFilter, limit: int, cursor: str | None
    ) -> Page[Invocation]:
        """Newest first, by start."""
        c = tables.invocations.c
        query = select(tables.invocations).where(c.namespace == namespace, c.function == name)
        query = _filtered(query, filter)
        if cursor is not None:
            query = query.where(tuple_(c.started_at, c.seq) < tuple_(*paging.decode(cursor, float, int)))
        query = query.order_by(c.started_at.desc(), c.seq.desc()).limit(paging.check_limit(limit) + 1)
        async with self._database.connect() as connection:
            rows = (await connection.execute(query)).all()
        return paging.page(rows, limit, _make_invocation, lambda row: (row.started_at, row.seq))

    async def invocation(self, id: str) -> Invocation:
        """Raises `NotFound`."""
        query = select(tables.invocations).where(tables.invocations.c.id == clean_text(id))
        async with self._database.connect() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFound(
                "There is no record of this invocation: it is written within a second after the call has ended, and "
                "kept as long as the retention settings say.",
                invocation=id[:80],
            )
        return _make_invocation(row)

    async def lines_of(self, id: str, limit: int = _MOST_LINES) -> list[LogLine]:
        """What the invocation wrote, in order; the first `limit` lines."""
        if not id:
            return []
        c = tables.logs.c
        query = select(tables.logs).where(text(tables.IN_A_CALL), c.invocation == clean_text(id)).order_by(c.seq)
        return await self._lines(query.limit(paging.check_limit(limit, _MOST_LINES)))

    async def logs(
        self,
        namespace: str,
        name: str,
        *,
        since: float | None,
        after_seq: int,
        level: str | None,
        version: int | None,
        limit: int,
    ) -> list[LogLine]:
        """Lines in order of arrival that came after `after_seq`, were written at or after `since`, and are at least
        `level`. With neither a position nor a time: the last `limit` lines.
        """
        c = tables.logs.c
        query = select(tables.logs).where(c.namespace == namespace, c.function == name, c.seq > after_seq)
        if since is not None:
            query = query.where(c.at >= since)
        if level is not None:
            query = query.where(c.level.in_(_levels_from(level)))
        if version is not None:
            query = query.where(c.version == _whole(version, "version"))
        query = query.limit(paging.check_limit(limit, _MOST_LINES))
        if since is None and after_seq == 0:
            return (await self._lines(query.order_by(c.seq.desc())))[::-1]
        return await self._lines(query.order_by(c.seq))

    async def _lines(self, query: Select[Any]) -> list[LogLine]:
        async with self._database.connect() as connection:
            return [_make_line(row) for row in await connection.execute(query)]

    async def slots(self, namespace: str, name: str, since: float, until: float) -> list[MetricSlot]:
        """The slots that start in [since, until), oldest first. Slots of the same key add up."""
        c = tables.slots.c
        query = (
            select(tables.slots)
            .where(c.namespace == namespace, c.function == name, c.at >= since, c.at < until)
            .order_by(c.at, c.seq)
        )
        async with self._database.connect() as connection:
            return [_make_slot(row) for row in await connection.execute(query)]

    async def last_error(self, namespace: str, name: str) -> Invocation | None:
        """The newest invocation that failed by the function's or the platform's fault."""
        c = tables.invocations.c
        query = (
            select(tables.invocations)
            .where(c.namespace == namespace, c.function == name, text(tables.FAILED))
            .order_by(c.started_at.desc(), c.seq.desc())
            .limit(1)
        )
        async with self._database.connect() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else _make_invocation(row)

    async def prune(self, before: float, max_bytes: int) -> int:
        """Remove what is older than `before`, then the oldest until the records take `max_bytes` or less.

        Returns the number of rows removed.
        """
        removed = 0
        for table in _TABLES:
            removed += await self._prune_age(table, before)
        async with self._database.connect() as connection:
            size = await _size(connection)
        if size > max_bytes:
            for table in _TABLES:
                removed += await self._prune_share(table, 1 - max_bytes / size)
        return removed

    async def _prune_age(self, table: Table, before: float) -> int:
        """A batch in which nothing was old is the end: what follows is younger."""
        time, removed, reached = table.c[_TIME[table.name]], 0, 0
        while True:
            async with self._database.begin(durable=False) as connection:
                batch = select(table.c.seq).where(table.c.seq > reached).order_by(table.c.seq).limit(_BATCH)
                last = await connection.scalar(select(func.max(batch.subquery().c.seq)))
                if last is None:
                    return removed
                old = delete(table).where(table.c.seq > reached, table.c.seq <= last, time < before)
                count = (await connection.execute(old)).rowcount
            if count == 0:
                return removed
            removed += count
            reached = last

    async def _prune_share(self, table: Table, share: float) -> int:
        """Remove the oldest `share` (0 to 1) of the table, as far as its range of `seq` tells."""
        seq = table.c.seq
        async with self._database.connect() as connection:
            first, last = (await connection.execute(select(func.min(seq), func.max(seq)))).one()
        if first is None:
            return 0
        removed, end = 0, first + int((last - first + 1) * share)
        for reached in range(first, end, _BATCH):
            async with self._database.begin(durable=False) as connection:
                gone = delete(table).where(seq >= reached, seq < min(reached + _BATCH, end))
                removed += (await connection.execute(gone)).rowcount
        return removed


async def forget(database: Database, namespace: str, name: str) -> None:
    """Remove all records of a function, in batches."""
    for table in _TABLES:
        oldest = select(table.c.seq).where(table.c.namespace == namespace, table.c.function == name).limit(_BATCH)
        while True:
            async with database.begin(durable=False) as connection:
                gone = await connection.execute(delete(table).where(table.c.seq.in_(oldest)))
            if gone.rowcount < _BATCH:
                break


async def _size(connection: AsyncConnection) -> float:
    """Bytes that the records take, about.

    SQLite: the pages in use, without the build logs. PostgreSQL keeps the space of removed rows in the table's file
    for new ones, so there it is the number of rows times the size of recent ones, and as much again for indexes.
    """
    if connection.dialect.name == "sqlite":
        pragmas = [(await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one() for name in _PAGES]
        pages, free, page_bytes = pragmas
        logs = await connection.scalar(select(func.coalesce(func.sum(tables.versions.c.log_bytes), 0)))
        return float((pages - free) * page_bytes - (logs or 0))
    return sum([await _postgresql_size(connection, table) for table in _TABLES])


_PAGES = ("page_count", "freelist_count", "page_size")


async def _postgresql_size(connection: AsyncConnection, table: Table) -> float:
    sample = f"SELECT avg(pg_column_size(t.*)) FROM (SELECT * FROM {table.name} ORDER BY seq DESC LIMIT 1000) t"  # noqa: S608
    row: Any = (await connection.exec_driver_sql(f"SELECT count(*), ({sample}) FROM {table.name}")).one()  # noqa: S608
    count, row_bytes = row
    return float(count) * float(row_bytes or 0) * 2


def _filtered(query: Select[Any], filter: InvocationFilter) -> Select[Any]:
    c = tables.invocations.c
    if filter.status is not None:
        query = query.where(c.status == _whole(filter.status, "status"))
    if filter.version is not None:
        query = query.where(c.version == _whole(filter.version, "version"))
    if filter.since is not None:
        query = query.where(c.started_at >= filter.since)
    if filter.until is not None:
        query = query.where(c.started_at < filter.until)
    if filter.min_duration_ms is not None:
        query = query.where(c.queue_ms + c.start_ms + c.run_ms >= filter.min_duration_ms)
    if filter.error is not None:
        error = check_text(filter.error, "error")
        query = query.where(or_(c.outcome == error, c.error_type == error))
    if filter.outcome is not None:
        query = query.where(c.outcome == filter.outcome)
    return query


def _whole(value: int, what: str) -> int:
    if not 0 <= value <= _LARGEST:
        raise Invalid(f"{what} {value} is out of range.")
    return value


def _levels_from(level: str) -> tuple[str, ...]:
    if level.upper() not in _LEVELS:
        raise Invalid(f"level {level[:40]!r} is not known: use one of {', '.join(_LEVELS)}.")
    return _LEVELS[_LEVELS.index(level.upper()) :]


def _invocation_row(row: tuple[Any, ...]) -> tuple[Any, ...]:
    error = row[16]
    if error is None:
        return (*row[:13], clean_text(row[13]), row[14], row[15], None, None)
    encoded, kind = json.dumps(error, ensure_ascii=False), str(error.get("type", ""))
    return (*row[:13], clean_text(row[13]), row[14], row[15], clean_text(encoded), clean_text(kind))


def _make_invocation(row: Any) -> Invocation:
    """Columns are in the field order, between `seq` and `error_type`."""
    _seq, *values, error, _error_type = row
    return Invocation(*values, error=None if error is None else json.loads(error))


def _make_line(row: Any) -> LogLine:
    seq, *values = row
    return LogLine(*values, seq=seq)


def _slot_row(slot: MetricSlot) -> Mapping[str, Any]:
    return {name: getattr(slot, name) for name in MetricSlot.__slots__}


def _make_slot(row: Row[Any]) -> MetricSlot:
    histogram = {int(bucket): count for bucket, count in row.histogram.items()}
    return MetricSlot(**{name: getattr(row, name) for name in MetricSlot.__slots__} | {"histogram": histogram})
