"""Versions: numbered, immutable, moving forward from PENDING to READY or FAILED, and their build logs.

A version is built by the job that holds it. Whoever works on that job proves it with the job's lease token: a
worker that was taken for dead and comes back can write nothing, because its token is no longer in the job's row.
"""

from __future__ import annotations

import builtins
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from headrace.clock import Clock
from headrace.errors import Conflict, NotFound
from headrace.model import Page, Version, VersionConfig, VersionState
from headrace.store import functions, paging, tables
from headrace.store.sql import Database, clean_text

_LOG_BYTES = 2 << 20
_LARGEST_NUMBER = 2**31 - 1

# From which states a version may move to the key. A repeated or late step finds itself in none of them.
_BEFORE: dict[VersionState, tuple[VersionState, ...]] = {
    VersionState.BUILDING: (VersionState.PENDING,),
    VersionState.PROBING: (VersionState.PENDING, VersionState.BUILDING),
    VersionState.READY: (VersionState.PENDING, VersionState.BUILDING, VersionState.PROBING),
    VersionState.FAILED: (VersionState.PENDING, VersionState.BUILDING, VersionState.PROBING),
}
_ENDED = (VersionState.READY, VersionState.FAILED, VersionState.RETIRED)


class Versions:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def submit(
        self, namespace: str, name: str, digest: str, config: VersionConfig, size_bytes: int, *, reuse: bool = True
    ) -> tuple[Version, bool]:
        """A new PENDING version and the job that builds it, or the one that exists with this code and config.

        True when it is new. Creates the function when there is none. Failed and retired versions don't count as
        existing: submitting them again builds them again, under a new number. So does everything without `reuse`.
        """
        config_digest = _digest(config)
        now = self._clock.now()
        async with self._database.begin() as connection:
            function, created = await functions.ensure(connection, namespace, name, now)
            same = await self._same(connection, function.id, digest, config_digest) if reuse else None
            if same is not None:
                return same, False
            number = await _next_number(connection, function.id)
            id = await connection.scalar(
                insert(tables.versions)
                .values(
                    function_id=function.id,
                    number=number,
                    state=VersionState.PENDING,
                    digest=digest,
                    config=config.model_dump(mode="json"),
                    config_digest=config_digest,
                    size_bytes=size_bytes,
                    log_lines=0,
                    log_bytes=0,
                    created_at=now,
                )
                .returning(tables.versions.c.id)
            )
            await connection.execute(
                insert(tables.jobs).values(
                    kind="build",
                    payload={"version_id": id},
                    version_id=id,
                    attempts=0,
                    due_at=now,
                    created_at=now,
                )
            )
            if created:
                await functions.touch(connection, function.id)
            return functions.make_version(await _row(connection, function.id, number)), True

    async def _same(
        self, connection: AsyncConnection, function_id: int, digest: str, config_digest: str
    ) -> Version | None:
        c = tables.versions.c
        query = (
            functions.select_versions()
            .where(c.function_id == function_id, c.digest == digest, c.config_digest == config_digest)
            .where(c.state.not_in([VersionState.FAILED, VersionState.RETIRED]))
            .order_by(c.number.desc())
            .limit(1)
        )
        row = (await connection.execute(query)).first()
        return None if row is None else functions.make_version(row)

    async def get(self, namespace: str, name: str, number: int) -> Version:
        """Raises `NotFound`."""
        async with self._database.connect() as connection:
            function = await functions.find(connection, namespace, name)
            return functions.make_version(await find(connection, function, number))

    async def by_id(self, id: int) -> Version:
        """Raises `NotFound`."""
        query = functions.select_versions().where(tables.versions.c.id == id)
        async with self._database.connect() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            raise NotFound(f"There is no version with id {id}: its function was deleted.", version_id=id)
        return functions.make_version(row)

    async def list(self, namespace: str, name: str, limit: int, cursor: str | None) -> Page[Version]:
        """Newest first."""
        c = tables.versions.c
        async with self._database.connect() as connection:
            function = await functions.find(connection, namespace, name)
            query = functions.select_versions().where(c.function_id == function.id).order_by(c.number.desc())
            if cursor is not None:
                query = query.where(c.number < paging.decode_number(cursor))
            rows = (await connection.execute(query.limit(paging.check_limit(limit) + 1))).all()
        return paging.page(rows, limit, functions.make_version, lambda row: (row.number,))

    async def advance(
        self, id: int, to: VersionState, lease: str, *, reason: str | None = None, layer: str | None = None
    ) -> bool:
        """Move the version forward to `to` for the job that holds it under the token `lease`.

        False: the lease was lost, or the version is gone; stop working on it. True: the lease holds, and the version
        is at `to` or was already beyond: a step repeated after a crash changes nothing, and what has ended stays so.
        """
        async with self._database.begin() as connection:
            function_id = await _lock_leased(connection, id, lease)
            if function_id is None:
                return False
            changes: dict[str, Any] = {"state": to, "reason": reason}
            if layer is not None:
                changes["layer"] = layer
            if to in _ENDED:
                changes["built_at"] = self._clock.now()
            c = tables.versions.c
            moved = await connection.execute(
                update(tables.versions).where(c.id == id, c.state.in_(_BEFORE[to])).values(**changes)
            )
            if moved.rowcount and to is VersionState.READY:
                await functions.touch(connection, function_id)
            return True

    async def retire(self, namespace: str, name: str, number: int) -> Version:
        """Delete a version: it keeps its number and its row, and is never run again.

        Raises `Conflict` while an alias points at it (`aliases` names them) or while it is being built.
        """
        async with self._database.begin() as connection:
            function = await functions.find(connection, namespace, name, lock=True)
            row = await find(connection, function, number)
            version = functions.make_version(row)
            if version.state is VersionState.RETIRED:
                return version
            if version.state not in _ENDED:
                raise Conflict(
                    f"{version} is {version.state}: wait until it is ready or failed, then delete it.",
                    version=number,
                    state=version.state.value,
                )
            pointing = await _aliases_at(connection, function.id, number)
            if pointing:
                raise Conflict(
                    f"{', '.join(pointing)} of {namespace}/{name} points at version {number}: "
                    "publish another version there, or delete the alias, first.",
                    version=number,
                    aliases=pointing,
                )
            await connection.execute(
                update(tables.versions).where(tables.versions.c.id == row.id).values(state=VersionState.RETIRED)
            )
            await connection.execute(delete(tables.build_logs).where(tables.build_logs.c.version_id == row.id))
            await functions.touch(connection, function.id)
            return functions.make_version(await _row(connection, function.id, number))

    async def append_log(self, id: int, lines: Sequence[str]) -> None:
        """Add lines to the build log. It holds 2 MiB; one last line says that the rest was left out."""
        c = tables.versions.c
        async with self._database.begin() as connection:
            query = select(c.log_lines, c.log_bytes).where(c.id == id).with_for_update()
            row = (await connection.execute(query)).first()
            if row is None or row.log_bytes >= _LOG_BYTES:
                return
            kept, size = _fitting([clean_text(line) for line in lines], row.log_bytes)
            if not kept:
                return
            await connection.execute(
                insert(tables.build_logs),
                [
                    {"version_id": id, "position": position, "text": line}
                    for position, line in enumerate(kept, row.log_lines + 1)
                ],
            )
            await connection.execute(
                update(tables.versions).where(c.id == id).values(log_lines=row.log_lines + len(kept), log_bytes=size)
            )

    async def read_log(self, id: int, after: int = 0) -> tuple[builtins.list[str], int]:
        """The lines of the build log after position `after`, and the position to go on from."""
        c = tables.build_logs.c
        query = select(c.position, c.text).where(c.version_id == id, c.position > after).order_by(c.position)
        async with self._database.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [row.text for row in rows], rows[-1].position if rows else after

    async def digests(self) -> tuple[set[str], set[str]]:
        """The digests of code and of dependency layers that versions need which run or may come to run."""
        c = tables.versions.c
        ended = [VersionState.FAILED, VersionState.RETIRED]
        query = select(c.digest, c.layer).where(c.state.not_in(ended)).distinct()
        async with self._database.connect() as connection:
            rows = (await connection.execute(query)).all()
        return {row.digest for row in rows}, {row.layer for row in rows if row.layer is not None}


async def find(connection: AsyncConnection, function: Row[Any], number: int) -> Row[Any]:
    """The row of a version of `function`. Raises `NotFound`."""
    row: Row[Any] | None = None
    if 1 <= number <= _LARGEST_NUMBER:
        row = await _row(connection, function.id, number)
    if row is None:
        raise NotFound(
            f"{function.namespace}/{function.name} has no version {number}: look at its list of versions.",
            namespace=function.namespace,
            function=function.name,
            version=number,
        )
    return row


async def _row(connection: AsyncConnection, function_id: int, number: int) -> Any:
    c = tables.versions.c
    query = functions.select_versions().where(c.function_id == function_id, c.number == number)
    return (await connection.execute(query)).first()


async def _next_number(connection: AsyncConnection, function_id: int) -> int:
    c = tables.functions.c
    grown = update(tables.functions).where(c.id == function_id).values(last_number=c.last_number + 1)
    return int((await connection.execute(grown.returning(c.last_number))).scalar_one())


async def _lock_leased(connection: AsyncConnection, version_id: int, lease: str) -> int | None:
    """The function of the version, its row locked, and the job's too, if the job that holds it has this lease."""
    versions, jobs = tables.versions.c, tables.jobs.c
    owner = select(versions.function_id).where(versions.id == version_id).scalar_subquery()
    function_id: int | None = await connection.scalar(
        select(tables.functions.c.id).where(tables.functions.c.id == owner).with_for_update()
    )
    held = select(jobs.id).where(jobs.version_id == version_id, jobs.lease == lease).with_for_update()
    return function_id if (await connection.execute(held)).first() is not None else None


async def _aliases_at(connection: AsyncConnection, function_id: int, number: int) -> list[str]:
    c = tables.aliases.c
    rows = await connection.execute(select(c.name, c.traffic).where(c.function_id == function_id).order_by(c.name))
    return [row.name for row in rows if number in functions.make_traffic(row.traffic)]


def _digest(config: VersionConfig) -> str:
    values = config.model_dump(mode="json", exclude_none=True)  # a key that came later changes no older digest
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _fitting(lines: Sequence[str], size: int) -> tuple[list[str], int]:
    """The lines that still fit into a log of `size` bytes, and its new size; at the end it is marked as full."""
    kept = []
    for line in lines:
        size += len(line.encode()) + 1
        if size > _LOG_BYTES:
            kept.append(f"[the build log is full at {_LOG_BYTES >> 20} MiB: later lines are left out]")
            break
        kept.append(line)
    return kept, size
