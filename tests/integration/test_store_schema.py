"""Migrations: they make what the models say, can be undone, and several processes may run them at once."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, select

from headrace.errors import HeadraceError, SettingsError, StoreUnavailable
from headrace.store import tables
from headrace.store.sql import Database, alembic_config, migrate
from store_kit import opened

MIGRATE = """
import asyncio, sys
from headrace.store.sql import migrate

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(migrate(sys.argv[1]))
"""


async def ask(url: str, question: Any) -> Any:
    database = Database(url)
    try:
        async with database.connect() as connection:
            return await connection.run_sync(question)
    finally:
        await database.close()


def difference(connection: Connection) -> list[Any]:
    return list(compare_metadata(MigrationContext.configure(connection), tables.metadata))


def table_names(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names()) - {"alembic_version"}


def partial_indexes(connection: Connection) -> set[str]:
    found = set()
    for table in ("invocations", "logs"):
        for index in inspect(connection).get_indexes(table):
            if any(option.endswith("_where") for option in index.get("dialect_options", {})):
                found.add(str(index["name"]))
    return found


async def test_the_migrated_schema_is_what_the_models_say(empty_url: str) -> None:
    assert await ask(empty_url, difference) != []
    await migrate(empty_url)
    assert await ask(empty_url, difference) == []
    assert await ask(empty_url, partial_indexes) == {"ix_invocations_failed", "ix_logs_invocation"}


async def test_down_to_nothing_and_up_again(empty_url: str) -> None:
    await migrate(empty_url)
    await asyncio.to_thread(command.downgrade, alembic_config(empty_url), "base")
    assert await ask(empty_url, table_names) == set()
    await migrate(empty_url)
    assert await ask(empty_url, difference) == []
    async with opened(empty_url) as store:
        await store.build()


async def test_migrating_again_keeps_what_is_there(database_url: str) -> None:
    async with opened(database_url) as store:
        await store.build()
        await migrate(database_url)
        assert [target.function.name async for target in store.functions.targets()] == ["hello"]


async def test_processes_that_migrate_at_once_all_succeed(empty_url: str) -> None:
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", MIGRATE, empty_url), stdin=pipe, stdout=pipe, stderr=pipe
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    answers = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    for process, (_, errors) in zip(processes, answers, strict=True):
        assert process.returncode == 0, errors.decode()
    assert await ask(empty_url, difference) == []
    database = Database(empty_url)
    async with database.connect() as connection:
        assert (await connection.execute(select(tables.routing))).all() == [(1, 0)]
    await database.close()


async def test_a_writer_of_a_new_file_is_waited_for(tmp_path: Path) -> None:
    """SQLite refuses the switch to WAL at once then, whatever its busy timeout is."""
    path = tmp_path / "headrace.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("CREATE TABLE other (x)")
        migrating = asyncio.create_task(migrate(f"sqlite+aiosqlite:///{path}"))
        await asyncio.sleep(0.2)
        assert not migrating.done()
        writer.execute("COMMIT")
        await migrating
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("PRAGMA journal_mode").fetchall() == [("wal",)]


async def test_a_migration_that_fails_leaves_nothing(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic.operations import Operations

    create_table = Operations.create_table

    def fail_late(self: Operations, name: str, *columns: Any, **options: Any) -> Any:
        if name == "slots":
            raise RuntimeError("pulled the plug")
        return create_table(self, name, *columns, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Operations, "create_table", fail_late)
        with pytest.raises(RuntimeError, match="plug"):
            await migrate(empty_url)
    assert await ask(empty_url, table_names) == set()
    await migrate(empty_url)
    assert await ask(empty_url, difference) == []


async def test_a_database_of_a_later_release_is_refused_with_what_to_do(empty_url: str) -> None:
    await migrate(empty_url)
    database = Database(empty_url)
    async with database.begin() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    await database.close()
    with pytest.raises(HeadraceError, match="another release of Headrace"):
        await migrate(empty_url)


async def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="unable to open database file"):
        await migrate(f"sqlite+aiosqlite:///{tmp_path / 'nowhere' / 'headrace.db'}")


async def test_a_postgresql_that_does_not_answer_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="headrace doctor"):
        await migrate(f"postgresql+asyncpg://nobody@/none?host={tmp_path}")


@pytest.mark.parametrize("url", ["postgresql+asyncpg://user:pa/ss@host:port/x", "nonsense"])
async def test_an_unreadable_url_is_a_bad_setting_and_is_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError, match="HEADRACE_DATABASE_URL") as caught:
        Database(url)
    assert "pa/ss" not in caught.value.detail
