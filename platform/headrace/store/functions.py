"""Functions, and what nodes need to route to them.

`routing.revision` grows with every change that routing depends on. The same transaction stamps it on the function,
so a node that asks for what is newer finds exactly the functions to load again.
"""

from __future__ import annotations

import builtins
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from hashlib import blake2b
from sys import intern
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import Row, delete, func, select, tuple_, update
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
_CHUNK = 500  # functions whose targets are read at once


class _Configs:
    """Equal configs are one object for as long as somebody holds it: most versions differ from others in their code.

    Those that differ share the set of their fields' names, which takes more memory than the rest of one.
    """

    def __init__(self) -> None:
        self._known: WeakValueDictionary[bytes, VersionConfig] = WeakValueDictionary()
        self._fields = set(VersionConfig.model_fields)

    def validate(self, stored: Mapping[str, Any]) -> VersionConfig:
        key = blake2b(json.dumps(stored, sort_keys=True).encode(), digest_size=16).digest()
        config = self._known.get(key)
        if config is None:
            valid = VersionConfig.model_validate(stored)
            config = self._known[key] = VersionConfig.model_construct(self._fields, **dict(valid))
        return config


class Functions:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._configs = _Configs()

    async def put(self, namespace: str, name: str, changes: Mapping[str, Any]) -> tuple[Function, bool]:
        """Create the function or change the settings named in `changes`; True when it was created.

        Settings: description, access, balancing, sticky, labels. Without a difference nothing is written.
        """
        if unknown := sorted(set(changes) - set(_DEFAULTS)):
            raise Invalid(f"unknown settings {', '.join(unknown)}: use {', '.join(_DEFAULTS)}.")
        check_text(str(changes.get("description", "")), "description")
        now = self._clock.now()
        async with self._database.begin() as connection:
            row, created = await ensure(connection, namespace, name, now)
            different = {key: value for key, value in changes.items() if getattr(row, key) != value}
            if different:
                different["updated_at"] = now
            if different or created:
                row = await touch(connection, row.id, **different)
            return make_function(row), created

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

    async def changed(self, since: int) -> tuple[dict[int, int], int]:
        """Function id to revision of those new or changed after revision `since`; and how many there are in all."""
        c = tables.functions.c
        async with self._database.connect() as connection:
            rows = (await connection.execute(select(c.id, c.revision).where(c.revision > since))).all()
            count = (await connection.execute(select(func.count()).select_from(tables.functions))).scalar_one()
        return {row.id: row.revision for row in rows}, int(count)

    async def ids(self) -> set[int]:
        """Ids of all functions."""
        async with self._database.connect() as connection:
            return set((await connection.execute(select(tables.functions.c.id))).scalars())

    async def target(self, function_id: int) -> Target | None:
        """What a node needs to route to this function; None when it is gone."""
        c = tables.functions.c
        async with self._database.connect() as connection:
            row = (await connection.execute(select(tables.functions).where(c.id == function_id))).first()
            return None if row is None else (await self._targets(connection, [row]))[0]

    async def targets(self) -> AsyncIterator[Target]:
        """The targets of all functions as they are at one moment; read in parts, since rows take much more memory."""
        c = tables.functions.c
        rows: Sequence[Row[Any]] = ()
        async with self._database.connect() as connection:
            query = select(tables.functions).order_by(c.id).limit(_CHUNK)
            while rows := (await connection.execute(query.where(c.id > (rows[-1].id if rows else 0)))).all():
                for target in await self._targets(connection, rows):
                    yield target
            await self._database.shed(connection)

    async def _targets(self, connection: AsyncConnection, rows: Sequence[Row[Any]]) -> builtins.list[Target]:
        """The targets of the functions `rows`, which are by id and have no others between them."""
        first, last = rows[0].id, rows[-1].id
        aliases = select(tables.aliases).where(tables.aliases.c.function_id.between(first, last))
        c = tables.versions.c
        versions = select_versions().where(c.function_id.between(first, last), c.state == VersionState.READY)
        traffic: defaultdict[int, dict[str, dict[int, int]]] = defaultdict(dict)
        for row in await connection.execute(aliases):
            if row.traffic:
                traffic[row.function_id][row.name] = make_traffic(row.traffic)
        ready: defaultdict[int, dict[int, Version]] = defaultdict(dict)
        for row in await connection.execute(versions):
            ready[row.function_id][row.number] = make_version(row, self._configs.validate(row.config))
        return [Target(make_function(row), traffic[row.id], ready[row.id], row.revision) for row in rows]


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
        .returning(*tables.functions.c)
    )
    if (row := made.first()) is not None:
        return row, True
    try:
        return await find(connection, namespace, name, lock=True), False
    except NotFound:
        raise Conflict(f"{namespace}/{name} was deleted at this moment: try again.") from None


async def touch(connection: AsyncConnection, function_id: int, **changes: Any) -> Row[Any]:
    """Tell the nodes that something of this function changed, `changes` of its columns among them; its row.

    Comes last: it locks the routing row.
    """
    changed = (
        update(tables.functions)
        .where(tables.functions.c.id == function_id)
        .values(**changes, revision=await _next_revision(connection))
        .returning(*tables.functions.c)
    )
    return (await connection.execute(changed)).one()


async def _next_revision(connection: AsyncConnection) -> int:
    c = tables.routing.c
    grown = update(tables.routing).values(revision=c.revision + 1).returning(c.revision)
    return int((await connection.execute(grown)).scalar_one())


def _shared(text: Any) -> Any:
    """One object for all equal texts."""
    return intern(text)


def make_function(row: Row[Any]) -> Function:
    return Function(
        row.id,
        _shared(row.namespace),
        row.name,
        row.description,
        _shared(row.access),
        _shared(row.balancing),
        row.sticky,
        row.labels,
        row.created_at,
        row.updated_at,
    )


def select_versions() -> Any:
    """Versions with `namespace` and `function`, as `make_version` needs them."""
    functions = tables.functions.c
    return select(tables.versions, functions.namespace, functions.name.label("function")).join(tables.functions)


def make_version(row: Row[Any], config: VersionConfig | None = None) -> Version:
    """`config`: the row's, when it is known already."""
    return Version(
        row.id,
        row.function_id,
        _shared(row.namespace),
        row.function,
        row.number,
        VersionState(row.state),
        row.reason,
        row.digest,
        row.layer,
        config or VersionConfig.model_validate(row.config),
        row.size_bytes,
        row.created_at,
        row.built_at,
    )


def make_traffic(stored: Mapping[str, int]) -> dict[int, int]:
    """JSON has no whole keys: `{"3": 100}` is how `{3: 100}` is stored."""
    return {int(number): weight for number, weight in stored.items()}
