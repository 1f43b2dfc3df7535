"""Invocations, log lines and metric slots: written in bulk by nodes, read by people.

Writing is one transaction of driver-level statements. SQLite gets INSERTs of many rows rather than `executemany`: the
driver takes the interpreter's lock back after each step of a statement, so with a step per row a busy event loop and
the writing thread would slow each other down several times over. PostgreSQL gets one array per column.

An invocation that arrives twice, after a lost answer, is kept once. Text that functions wrote is never refused: what
the database can't hold is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, get_args

from sqlalchemy import Row, Select, Table, insert, or_, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from headrace.clock import Clock
from headrace.errors import Invalid, NotFound
from headrace.model import Invocation, LogLine, MetricSlot, Outcome, Page
from headrace.store import paging, retention, tables
from headrace.store.sql import Database, check_text, clean_text

_ROWS = 500  # in one INSERT: enough to pay, far from SQLite's 32,766 parameters
_MOST_LINES = 10_000
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_LARGEST = 2**31 - 1
_FAILURES = frozenset(get_args(Outcome)) - {"ok", "client_gone", "rejected"}


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
            await _write(connection, tables.invocations, [_invocation_row(row) for row in invocations])
            await _write(connection, tables.logs, [(*row[:8], clean_text(row[8])) for row in lines])
            if slots:
                await connection.execute(insert(tables.slots), [_slot_row(slot) for slot in slots])

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

    async def last_errors(self, function_ids: Collection[int]) -> dict[int, Invocation]:
        """`last_error` of several functions, by function id; those without one are left out."""
        f, failed = tables.functions.c, tables.invocations.alias("failed")
        newest = (
            select(failed.c.seq)
            .where(failed.c.namespace == f.namespace, failed.c.function == f.name, text(tables.FAILED))
            .order_by(failed.c.started_at.desc(), failed.c.seq.desc())
            .limit(1)
            .correlate(tables.functions)
            .scalar_subquery()
        )
        latest = select(f.id, newest.label("seq")).where(f.id.in_(function_ids)).subquery()
        query = select(tables.invocations, latest.c.id.label("owner")).join(
            latest, latest.c.seq == tables.invocations.c.seq
        )
        async with self._database.connect() as connection:
            return {row.owner: _make_invocation(row) for row in await connection.execute(query)}

    async def prune(self, before: float, max_bytes: int) -> int:
        """Remove what is older than `before`, then the oldest until the records take about `max_bytes` or less.

        Returns the number of rows removed.
        """
        return await retention.prune(self._database, before, max_bytes)


async def _write(connection: AsyncConnection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows that hold all columns but `seq`, in their order."""
    columns = [column for column in table.columns if column.name != "seq"]
    head = f"INSERT INTO {table.name} ({', '.join(column.name for column in columns)})"
    if connection.dialect.name == "sqlite":
        row = f"({', '.join('?' * len(columns))})"
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            statement = f"{head} VALUES {', '.join([row] * len(part))} ON CONFLICT DO NOTHING"
            await connection.exec_driver_sql(statement, tuple(chain.from_iterable(part)))
    elif rows:
        types = [column.type.compile(connection.dialect) for column in columns]
        arrays = ", ".join(f"${position}::{type}[]" for position, type in enumerate(types, 1))
        statement = f"{head} SELECT * FROM unnest({arrays}) ON CONFLICT DO NOTHING"  # noqa: S608 - our own names
        await connection.exec_driver_sql(statement, tuple(list(values) for values in zip(*rows, strict=True)))


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
    if filter.error in _FAILURES or filter.outcome in _FAILURES:
        query = query.where(text(tables.FAILED))  # brings in the index of failures
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
    fields = (*row[1:17], None if row.error is None else json.loads(row.error))
    return Invocation(*fields)


def _make_line(row: Any) -> LogLine:
    fields = (*row[1:], row.seq)
    return LogLine(*fields)


def _slot_row(slot: MetricSlot) -> Mapping[str, Any]:
    return {name: getattr(slot, name) for name in MetricSlot.__slots__}


def _make_slot(row: Row[Any]) -> MetricSlot:
    histogram = {int(bucket): count for bucket, count in row.histogram.items()}
    return MetricSlot(**{name: getattr(row, name) for name in MetricSlot.__slots__} | {"histogram": histogram})
