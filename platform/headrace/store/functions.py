"""Functions, and what nodes need to route to them.

`routing.revision` grows with every change that routing depends on. The same transaction stamps it on the function,
so a node that compares revisions finds exactly the functions to load again.
"""

from __future__ import annotations

import builtins
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, delete, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from headrace.clock import Clock
from headrace.errors import Conflict, Invalid, NotFound
from headrace.model import Function, Page, Target, Version, VersionConfig, VersionState, check_name
from headrace.store import paging, retention, tables
from headrace.store.sql import Database, check_text, upsert

_DEFAULTS: Mapping[str, Any] = {
    "description": "",
    "access": "public",
    "balancing": "least-loaded",
    "sticky": False,
    "labels": {},
}


class Functions:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def put(self, namespace: str, name: str, changes: Mapping[str, Any]) -> tuple[Function, bool]:
        """Create the function or change the settings named in `changes`; True when it was created.

        Settings: description, access, balancing, sticky, labels. Without a difference nothing is written.
        """
        if unknown := sorted(set(changes) - set(_DEFAULTS)):
            raise Invalid(f"unknown settings {', '.join(unknown)}: use {', '.join(_DEFAULTS)}.")
        check_text(str(changes.get("description", "")), "description")
        now = self._clock.now()
        async with self._database.begin() as connection:
            before, created = await ensure(connection, namespace, name, now)
            different = {key: value for key, value in changes.items() if getattr(before, key) != value}
            if different:
                await connection.execute(
                    update(tables.functions)
                    .where(tables.functions.c.id == before.id)
                    .values(**different, updated_at=now)
                )
            if different or created:
                await touch(connection, before.id)
            return make_function(await find(connection, namespace, name)), created

    async def get(self, namespace: str, name: str) -> Function:
        """Raises `NotFound`."""
        async with self._database.connect() as connection:
            return make_function(await find(connection, namespace, name))

    async def list(self, namespaces: Sequence[str] | None, limit: int, cursor: str | None) -> Page[Function]:
        """By namespace and name; only inside `namespaces` unless it is None."""
        c = tables.functions.c
        query = select(tables.functions).order_by(c.namespace, c.name).limit(paging.check_limit(limit) + 1)
        if namespaces is not None:
            query = query.where(c.namespace.in_(namespaces))
        if cursor is not None:
            query = query.where(tuple_(c.namespace, c.name) > tuple_(*paging.decode(cursor, str, str)))
        async with self._database.connect() as connection:
            rows = (await connection.execute(query)).all()
        return paging.page(rows, limit, make_function, lambda row: (row.namespace, row.name))

    async def delete(self, namespace: str, name: str) -> Function:
        """Remove the function with its versions, aliases, build logs, jobs and records.

        Records go first and in batches, each its own transaction, since there may be millions of them; a delete
        that is cut short leaves the function in place, to be deleted again. Raises `NotFound`.
        """
        await self.get(namespace, name)
        await retention.forget(self._database, namespace, name)
        async with self._database.begin() as connection:
            row = await find(connection, namespace, name, lock=True)
            await connection.execute(delete(tables.functions).where(tables.functions.c.id == row.id))
            await _next_revision(connection)
            return make_function(row)

    async def revision(self) -> int:
        """Grows with every change that routing depends on."""
        async with self._database.connect() as connection:
            return int((await connection.execute(select(tables.routing.c.revision))).scalar_one())

    async def revisions(self) -> dict[int, int]:
        """Function id to the revision of its last change."""
        c = tables.functions.c
        async with self._database.connect() as connection:
            return {row.id: row.revision for row in await connection.execute(select(c.id, c.revision))}

    async def target(self, function_id: int) -> Target | None:
        """What a node needs to route to this function; None when it is gone."""
        async with self._database.connect() as connection:
            found = await _targets(connection, function_id)
        return found[0] if found else None

    async def targets(self) -> builtins.list[Target]:
        """The targets of all functions, in three queries."""
        async with self._database.connect() as connection:
            return await _targets(connection, None)


async def _targets(connection: AsyncConnection, function_id: int | None) -> list[Target]:
    functions = select(tables.functions)
    aliases = select(tables.aliases)
    versions = select_versions().where(tables.versions.c.state == VersionState.READY)
    if function_id is not None:
        functions = functions.where(tables.functions.c.id == function_id)
        aliases = aliases.where(tables.aliases.c.function_id == function_id)
        versions = versions.where(tables.versions.c.function_id == function_id)
    traffic: defaultdict[int, dict[str, dict[int, int]]] = defaultdict(dict)
    for row in await connection.execute(aliases):
        if row.traffic:
            traffic[row.function_id][row.name] = make_traffic(row.traffic)
    ready: defaultdict[int, dict[int, Version]] = defaultdict(dict)
    for row in await connection.execute(versions):
        ready[row.function_id][row.number] = make_version(row)
    return [
        Target(make_function(row), traffic[row.id], ready[row.id], row.revision)
        for row in await connection.execute(functions)
    ]


async def find(connection: AsyncConnection, namespace: str, name: str, *, lock: bool = False) -> Row[Any]:
    """The function's row; with `lock`, held until the transaction ends. Raises `NotFound`."""
    check_name(namespace, "namespace")
    check_name(name, "function name")
    c = tables.functions.c
    query = select(tables.functions).where(c.namespace == namespace, c.name == name)
    row = (await connection.execute(query.with_for_update() if lock else query)).first()
    if row is None:
        raise NotFound(
            f"There is no function {name} in namespace {namespace}: deploy it, or look at the list of functions.",
            namespace=namespace,
            function=name,
        )
    return row


async def ensure(connection: AsyncConnection, namespace: str, name: str, now: float) -> tuple[Row[Any], bool]:
    """The function's row, locked; made with the default settings when there is none (True)."""
    check_name(namespace, "namespace")
    check_name(name, "function name")
    made = await connection.execute(
        upsert(connection, tables.functions)
        .values(namespace=namespace, name=name, **_DEFAULTS, last_number=0, revision=0, created_at=now, updated_at=now)
        .on_conflict_do_nothing(index_elements=["namespace", "name"])
        .returning(tables.functions.c.id)
    )
    created = made.first() is not None
    try:
        return await find(connection, namespace, name, lock=True), created
    except NotFound:
        raise Conflict(f"{namespace}/{name} was deleted at this moment: try again.") from None


async def touch(connection: AsyncConnection, function_id: int) -> None:
    """Tell the nodes that something of this function changed. Comes last: it locks the routing row."""
    revision = await _next_revision(connection)
    await connection.execute(
        update(tables.functions).where(tables.functions.c.id == function_id).values(revision=revision)
    )


async def _next_revision(connection: AsyncConnection) -> int:
    c = tables.routing.c
    grown = update(tables.routing).values(revision=c.revision + 1).returning(c.revision)
    return int((await connection.execute(grown)).scalar_one())


def make_function(row: Row[Any]) -> Function:
    return Function(
        row.id,
        row.namespace,
        row.name,
        row.description,
        row.access,
        row.balancing,
        row.sticky,
        row.labels,
        row.created_at,
        row.updated_at,
    )


def select_versions() -> Any:
    """Versions with `namespace` and `function`, as `make_version` needs them."""
    functions = tables.functions.c
    return select(tables.versions, functions.namespace, functions.name.label("function")).join(tables.functions)


def make_version(row: Row[Any]) -> Version:
    return Version(
        row.id,
        row.function_id,
        row.namespace,
        row.function,
        row.number,
        VersionState(row.state),
        row.reason,
        row.digest,
        row.layer,
        VersionConfig.model_validate(row.config),
        row.size_bytes,
        row.created_at,
        row.built_at,
    )


def make_traffic(stored: Mapping[str, int]) -> dict[int, int]:
    """JSON has no whole keys: `{"3": 100}` is how `{3: 100}` is stored."""
    return {int(number): weight for number, weight in stored.items()}
