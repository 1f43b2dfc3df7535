"""Aliases: movable pointers from a name to versions with weights, and the audit of every move.

A move is one UPDATE guarded by the generation that the caller saw, with its audit row and the new routing revision
in the same transaction. A deleted alias keeps its row, without traffic, so that its generation goes on growing: a
caller who saw generation 7 can't overwrite what was made after a deletion.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from sqlalchemy import Row, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from headrace.clock import Clock
from headrace.errors import Conflict, NotFound
from headrace.model import Alias, Move, Page, VersionState, check_name, check_traffic
from headrace.store import functions, paging, tables, versions
from headrace.store.sql import Database, check_text

Action = Literal["publish", "rollback", "traffic", "delete"]


class Aliases:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def move(
        self,
        namespace: str,
        name: str,
        alias: str,
        traffic: dict[int, int],
        *,
        action: Literal["publish", "rollback", "traffic"],
        actor: str,
        if_generation: int | None,
    ) -> Move:
        """Point `alias` at `traffic`, making the alias when it is new (its generation then counts as 0).

        Moving it where it already points changes nothing, so that a repeated request doesn't make rollback
        pointless: the answer is the move that brought it there. Raises `NotFound` for an unknown function or
        version (one of weight 0 too), `Conflict` for a version that is not ready or when the generation is not
        `if_generation`.
        """
        check_name(alias, "alias")
        wanted = check_traffic(traffic)
        async with self._database.begin() as connection:
            function = await functions.find(connection, namespace, name, lock=True)
            current = await _current(connection, function.id, alias)
            _check_generation(alias, current, if_generation)
            for number in traffic:
                version = await versions.find(connection, function, number)
                if number in wanted:
                    _check_ready(version)
            if current is not None and functions.make_traffic(current.traffic) == wanted:
                return await _last_move(connection, function.id, alias)
            move = self._next(alias, current, wanted, action, actor)
            await _apply(connection, function.id, move)
            return move

    async def delete(self, namespace: str, name: str, alias: str, actor: str) -> Move:
        """Remove the alias; its history stays, and a rollback brings it back. Raises `NotFound`."""
        check_name(alias, "alias")
        async with self._database.begin() as connection:
            function = await functions.find(connection, namespace, name, lock=True)
            current = await _current(connection, function.id, alias)
            if current is None or not current.traffic:
                raise _unknown(function, alias)
            move = self._next(alias, current, {}, "delete", actor)
            await _apply(connection, function.id, move)
            return move

    def _next(self, alias: str, current: Row[Any] | None, traffic: dict[int, int], action: Action, actor: str) -> Move:
        seen, previous = (0, {}) if current is None else (current.generation, functions.make_traffic(current.traffic))
        return Move(alias, seen + 1, action, check_text(actor, "actor"), self._clock.now(), traffic, previous)

    async def before(self, namespace: str, name: str, alias: str) -> dict[int, int]:
        """Where the alias pointed before its last move, a deletion included. Raises `Conflict` when nowhere."""
        check_name(alias, "alias")
        async with self._database.connect() as connection:
            function = await functions.find(connection, namespace, name)
            current = await _current(connection, function.id, alias)
            move = None if current is None else await _last_move(connection, function.id, alias)
        if move is None or not move.previous:
            raise Conflict(
                f"{alias} of {namespace}/{name} pointed nowhere before: there is nothing to roll back to; "
                "name a version instead.",
                alias=alias,
            )
        return move.previous

    async def get(self, namespace: str, name: str, alias: str) -> Alias:
        """Raises `NotFound`."""
        check_name(alias, "alias")
        async with self._database.connect() as connection:
            function = await functions.find(connection, namespace, name)
            row = await _current(connection, function.id, alias)
        if row is None or not row.traffic:
            raise _unknown(function, alias)
        return _make_alias(function, row)

    async def list(self, namespace: str, name: str) -> list[Alias]:
        """All aliases of the function, by name."""
        c = tables.aliases.c
        async with self._database.connect() as connection:
            function = await functions.find(connection, namespace, name)
            query = select(tables.aliases).where(c.function_id == function.id).order_by(c.name)
            rows = (await connection.execute(query)).all()
        return [_make_alias(function, row) for row in rows if row.traffic]

    async def named(self, alias: str, function_ids: Collection[int]) -> dict[int, Alias]:
        """This alias of several functions, by function id; those where it leads nowhere are left out."""
        a, f = tables.aliases.c, tables.functions.c
        query = (
            select(tables.aliases, f.id, f.namespace, f.name.label("function"))
            .join(tables.functions, f.id == a.function_id)
            .where(a.function_id.in_(function_ids), a.name == alias)
        )
        async with self._database.connect() as connection:
            rows = (await connection.execute(query)).all()
        return {
            row.id: Alias(
                row.id,
                row.namespace,
                row.function,
                row.name,
                row.generation,
                functions.make_traffic(row.traffic),
                row.moved_at,
            )
            for row in rows
            if row.traffic
        }

    async def history(self, namespace: str, name: str, alias: str, limit: int, cursor: str | None) -> Page[Move]:
        """The moves of the alias, newest first, those before a deletion too. Raises `NotFound`."""
        check_name(alias, "alias")
        c = tables.moves.c
        async with self._database.connect() as connection:
            function = await functions.find(connection, namespace, name)
            query = select(tables.moves).where(c.function_id == function.id, c.alias == alias)
            if cursor is not None:
                query = query.where(c.generation < paging.decode_number(cursor))
            query = query.order_by(c.generation.desc()).limit(paging.check_limit(limit) + 1)
            rows = (await connection.execute(query)).all()
        if not rows and cursor is None:
            raise _unknown(function, alias)
        return paging.page(rows, limit, _make_move, lambda row: (row.generation,))


async def _apply(connection: AsyncConnection, function_id: int, move: Move) -> None:
    """Write the move: the guarded pointer, the audit row, the routing revision. The function row is locked."""
    c = tables.aliases.c
    if move.generation == 1:
        fresh = {"generation": 0, "traffic": {}, "moved_at": move.at}
        await connection.execute(insert(tables.aliases).values(function_id=function_id, name=move.alias, **fresh))
    moved = await connection.execute(
        update(tables.aliases)
        .where(c.function_id == function_id, c.name == move.alias, c.generation == move.generation - 1)
        .values(generation=move.generation, traffic=_stored(move.traffic), moved_at=move.at)
    )
    assert moved.rowcount == 1, "the function row is locked: nobody else moves its aliases"
    await connection.execute(
        insert(tables.moves).values(
            function_id=function_id,
            alias=move.alias,
            generation=move.generation,
            action=move.action,
            actor=move.actor,
            at=move.at,
            traffic=_stored(move.traffic),
            previous=_stored(move.previous),
        )
    )
    await functions.touch(connection, function_id)


async def _current(connection: AsyncConnection, function_id: int, alias: str) -> Row[Any] | None:
    c = tables.aliases.c
    query = select(tables.aliases).where(c.function_id == function_id, c.name == alias)
    return (await connection.execute(query)).first()


async def _last_move(connection: AsyncConnection, function_id: int, alias: str) -> Move:
    c = tables.moves.c
    query = select(tables.moves).where(c.function_id == function_id, c.alias == alias)
    return _make_move((await connection.execute(query.order_by(c.generation.desc()).limit(1))).one())


def _check_generation(alias: str, current: Row[Any] | None, expected: int | None) -> None:
    generation = 0 if current is None else current.generation
    if expected is not None and expected != generation:
        raise Conflict(
            f"{alias} is at generation {generation}, not {expected}: somebody moved it; look at it and decide again.",
            alias=alias,
            generation=generation,
            traffic={} if current is None else current.traffic,
        )


def _check_ready(version: Row[Any]) -> None:
    if version.state != VersionState.READY:
        coming = version.state in (VersionState.PENDING, VersionState.BUILDING, VersionState.PROBING)
        raise Conflict(
            f"Version {version.number} of {version.namespace}/{version.function} is {version.state}"
            + (f" ({version.reason})" if version.reason else "")
            + (": wait until it is ready." if coming else ": only ready versions can be published."),
            version=version.number,
            state=version.state,
            reason=version.reason,
        )


def _unknown(function: Row[Any], alias: str) -> NotFound:
    return NotFound(
        f"{function.namespace}/{function.name} has no alias {alias}: publish a version to it.",
        namespace=function.namespace,
        function=function.name,
        alias=alias,
    )


def _make_alias(function: Row[Any], row: Row[Any]) -> Alias:
    traffic = functions.make_traffic(row.traffic)
    return Alias(function.id, function.namespace, function.name, row.name, row.generation, traffic, row.moved_at)


def _make_move(row: Row[Any]) -> Move:
    traffic, previous = functions.make_traffic(row.traffic), functions.make_traffic(row.previous)
    return Move(row.alias, row.generation, row.action, row.actor, row.at, traffic, previous)


def _stored(traffic: Mapping[int, int]) -> dict[str, int]:
    return {str(number): weight for number, weight in sorted(traffic.items())}
