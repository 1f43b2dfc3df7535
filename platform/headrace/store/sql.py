"""The database: SQLite in a file, or PostgreSQL; one engine room for both.

SQLite runs in WAL mode, where readers never wait for the writer. It has one writer at a time, so each process keeps
a single writing connection whose users queue in order (a pool of one) instead of fighting for the lock; between
processes the busy timeout arbitrates. A write transaction starts with BEGIN IMMEDIATE: what it read stays true
until it commits, which makes compare-and-set safe without more locks. PostgreSQL gets the same from row locks, taken
in the order that `tables` gives.

Durability. What was accepted must survive a power cut, so write transactions sync to disk before they return
(`synchronous=FULL`; PostgreSQL's default). Records and heartbeats pass `durable=False`: they survive a killed
process, but a power cut may take the last moments of them. In WAL mode that is safe for the rest: the file stays
consistent, and the next durable commit syncs everything before it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Table, event, exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from headrace import resources
from headrace.errors import HeadraceError, Invalid, SettingsError, StoreUnavailable

_WAIT_S = 10.0  # longest wait for a connection, for SQLite's lock, for PostgreSQL to accept
_MIGRATION_LOCK = 0x4845_4144_5241_4345  # advisory lock of PostgreSQL: "HEADRACE"
_SQLITE_READERS = 4
# SQLSTATE classes: connection, read-only, deadlock, resources, operator's intervention, object in use, system error.
_PASSING = frozenset({"08", "25", "40", "53", "55", "57", "58"})
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Database:
    """Connections to one database. Used on one event loop; nothing is opened before it is needed."""

    def __init__(self, url: str) -> None:
        parsed = _parse(url)
        self._sqlite = parsed.get_backend_name() == "sqlite"
        self._file = str(parsed.database)  # of SQLite
        if self._sqlite:
            self._writer = _sqlite_engine(parsed, "BEGIN IMMEDIATE", connections=1)
            self._reader = _sqlite_engine(parsed, "BEGIN", connections=_SQLITE_READERS, query_only=True)
        else:
            self._writer = create_async_engine(
                parsed,
                pool_pre_ping=True,
                pool_timeout=_WAIT_S,
                connect_args={"timeout": _WAIT_S, "server_settings": {"application_name": "headrace"}},
            )
            self._reader = self._writer.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._relaxed = self._writer.execution_options(durable=False)

    @asynccontextmanager
    async def begin(self, *, durable: bool = True) -> AsyncIterator[AsyncConnection]:
        """A write transaction: commits at the end, rolls back when the body raises.

        Raises `StoreUnavailable` when the database can't be reached or written.
        """
        engine = self._writer if durable else self._relaxed
        with _translated(self._file):
            async with engine.begin() as connection:
                if not durable and not self._sqlite:
                    await connection.exec_driver_sql("SET LOCAL synchronous_commit TO off")
                yield connection

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[AsyncConnection]:
        """A read-only transaction: all its queries see the same moment."""
        with _translated(self._file):
            async with self._reader.connect() as connection:
                yield connection

    async def shed(self, connection: AsyncConnection) -> None:
        """Give back the memory that a large read has left on `connection`."""
        if self._sqlite:
            await connection.exec_driver_sql("PRAGMA shrink_memory")

    async def close(self) -> None:
        await self._reader.dispose()
        await self._writer.dispose()


def _parse(url: str) -> URL:
    try:
        return make_url(url)
    except (exc.ArgumentError, ValueError):
        raise SettingsError(
            "HEADRACE_DATABASE_URL can't be read: write it as postgresql://user:password@host:port/database, "
            "with special characters of the password percent-encoded."
        ) from None


def _sqlite_engine(url: URL, begin: str, *, connections: int, query_only: bool = False) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=_WAIT_S,
        # The driver begins nothing on its own: `on_begin` says when and how.
        connect_args={"timeout": _WAIT_S, "isolation_level": None},
    )

    def on_connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("foreign_keys=ON", "temp_store=MEMORY", "cache_size=-16384", f"query_only={query_only:d}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def on_begin(connection: Connection) -> None:
        if not query_only:
            durable = connection.get_execution_options().get("durable", True)
            connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        connection.exec_driver_sql(begin)

    def on_invalidate(connection: Any, _record: Any, _error: BaseException | None) -> None:
        # A task was cancelled in the middle of a statement. To close the connection is not enough: SQLite keeps the
        # transaction, and with it the write lock, until the cursor that the traceback still holds is collected.
        connection.rollback()

    event.listen(engine.sync_engine, "connect", on_connect)
    event.listen(engine.sync_engine, "begin", on_begin)
    event.listen(engine.sync_engine, "invalidate", on_invalidate)
    return engine


class _translated:
    """Turns the drivers' ways of saying "not now" into `StoreUnavailable`, and that SQLite's `file` is damaged."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, exc.DBAPIError) and _is_damage(error.orig):
            raise _damaged(self._file, error.orig) from error
        if isinstance(error, exc.DBAPIError) and _is_passing(error):
            raise _unavailable(str(error.orig)) from error
        if isinstance(error, exc.TimeoutError):
            raise _unavailable(f"all connections were busy for {_WAIT_S:g} s") from error
        if isinstance(error, asyncpg.PostgresError | OSError):
            raise _unavailable(str(error) or type(error).__name__) from error


def _is_passing(error: exc.DBAPIError) -> bool:
    """A fault of the database's state or of the way there, not of the statement."""
    known = error.connection_invalidated or isinstance(error, exc.OperationalError | exc.InterfaceError)
    return known or (getattr(error.orig, "sqlstate", None) or "")[:2] in _PASSING


def _is_damage(error: BaseException | None) -> bool:
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def _damaged(file: str, error: BaseException | None) -> StoreUnavailable:
    return StoreUnavailable(
        f"The database file {file} is damaged ({error}): stop Headrace and put a backup in its place, or move it away "
        f"with its -wal and -shm files to begin with an empty database."
    )


def _unavailable(problem: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"The database can't do this now ({problem}): try again; `headrace doctor` checks disk and database."
    )


def upsert(connection: AsyncConnection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that can carry ON CONFLICT, in the dialect of `connection`."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def check_text(value: str, what: str) -> str:
    """Return `value` when both databases can hold it; raise `Invalid` for NUL and for half a surrogate pair."""
    if "\0" in value or not _encodable(value):
        raise Invalid(f"{what} holds a NUL byte or broken unicode: remove it.")
    return value


def clean_text(value: str) -> str:
    """`value` with what no database can hold replaced: for text that functions write, which must never be refused."""
    if "\0" in value:
        value = value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return value if value.isascii() or _encodable(value) else value.encode("utf-8", "replace").decode()


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


async def migrate(url: str) -> None:
    """Bring the database to the schema of this release, creating what is missing.

    Works in a thread. Several processes may do it at once: one migrates, the others wait and find it done. Within one
    process call it once at a time (alembic keeps its context in module globals). Raises `StoreUnavailable`, also for
    a damaged file.
    """
    await asyncio.to_thread(_upgrade, url)


def alembic_config(url: str) -> Config:
    """What alembic's commands need to work on the database at `url`."""
    config = Config(attributes={"url": url})
    config.set_main_option("script_location", str(resources.share("migrations")).replace("%", "%%"))
    return config


def _upgrade(url: str) -> None:
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        _enable_wal(str(parsed.database))
    try:
        with _translated(str(parsed.database)):
            command.upgrade(alembic_config(url), "head")
    except CommandError as error:
        raise HeadraceError(
            f"The database can't be migrated ({error}): it was written by another release of Headrace; run that one."
        ) from error


async def lock_schema(connection: AsyncConnection) -> None:
    """Hold off other migrating processes until the transaction ends. SQLite's BEGIN IMMEDIATE has done so already."""
    if connection.dialect.name == "postgresql":
        await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")


def _enable_wal(path: str) -> None:
    """Switch the file to WAL, which it remembers. The switch doesn't honour the busy timeout, so it is repeated."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            with closing(sqlite3.connect(path, timeout=_WAIT_S)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.DatabaseError as error:
            if _is_damage(error):
                raise _damaged(path, error) from error
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise _unavailable(f"{path}: {error}") from error
        time.sleep(0.02)
