"""Transactions: all or nothing, also when the process dies; readers read only; every commit is on disk."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import DBAPIError

from headrace.errors import StoreUnavailable
from headrace.store import tables
from headrace.store.sql import Database, clean_text, migrate
from store_kit import NAME, NS, Store

HALFWAY = """
import asyncio, sys
from sqlalchemy import insert
from headrace.store import tables
from headrace.store.sql import Database

async def main():
    async with Database(sys.argv[1]).begin() as connection:
        await connection.execute(insert(tables.tokens).values(
            name="half", hash="h", scopes=[], namespaces=[], created_at=0.0))
        print("halfway", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


async def add_token(database: Database, name: str) -> None:
    async with database.begin() as connection:
        values = {"name": name, "hash": name, "scopes": [], "namespaces": [], "created_at": 0.0}
        await connection.execute(insert(tables.tokens).values(**values))


async def test_a_transaction_that_raises_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError, match="changed my mind"):
        async with store.database.begin() as connection:
            await connection.execute(insert(tables.routing).values(id=2, revision=7))
            raise RuntimeError("changed my mind")
    assert await store.count(tables.routing) == 1


async def test_a_transaction_that_is_cancelled_leaves_nothing_and_frees_the_writer(store: Store) -> None:
    inside = asyncio.Event()

    async def write() -> None:
        async with store.database.begin() as connection:
            await connection.execute(insert(tables.routing).values(id=2, revision=7))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await store.count(tables.routing) == 1
    await add_token(store.database, "next")


async def test_a_process_killed_in_a_transaction_leaves_nothing_and_frees_the_lock(store: Store) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HALFWAY, store.url, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"halfway\n"
    process.kill()
    await process.wait()
    await add_token(store.database, "half")
    assert await store.count(tables.tokens) == 1


async def test_what_was_committed_survives_a_kill(store: Store) -> None:
    kill = "import os; os.kill(os.getpid(), 9)"
    committed = HALFWAY.replace(
        '        print("halfway", flush=True)\n        await asyncio.sleep(3600)\n', f"    {kill}\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", committed, store.url)
    assert await process.wait() == -9
    assert [token.name for token in (await store.tokens.list(10, None)).items] == ["half"]


async def test_fifty_writers_at_once_all_get_their_turn(store: Store) -> None:
    await asyncio.gather(*(add_token(store.database, f"t{number}") for number in range(50)))
    assert await store.count(tables.tokens) == 50


async def test_writers_of_two_processes_alternate(store: Store) -> None:
    other = Database(store.url)
    await asyncio.gather(*(add_token((store.database, other)[n % 2], f"t{n}") for n in range(20)))
    await other.close()
    assert await store.count(tables.tokens) == 20


async def test_a_reader_cannot_write(store: Store) -> None:
    with pytest.raises((StoreUnavailable, DBAPIError)):
        async with store.database.connect() as connection:
            await connection.execute(update(tables.routing).values(revision=7))
            await connection.commit()
    assert await store.functions.revision() == 0


async def test_a_reader_sees_one_moment(store: Store) -> None:
    revision = select(tables.routing.c.revision)
    async with store.database.connect() as connection:
        before = await connection.scalar(revision)
        await store.functions.put(NS, NAME, {})
        assert await connection.scalar(revision) == before
    assert await store.functions.revision() == before + 1


async def test_deleting_a_function_row_takes_all_that_hangs_from_it(store: Store) -> None:
    version = await store.build()
    await store.publish(1)
    await store.versions.append_log(version.id, ["one"])
    await store.submit("d2")
    async with store.database.begin() as connection:
        await connection.execute(delete(tables.functions))
    for table in (tables.versions, tables.aliases, tables.moves, tables.jobs, tables.build_logs):
        assert await store.count(table) == 0, table.name


async def test_what_was_accepted_is_synced_and_records_may_lose_a_moment(store: Store) -> None:
    query, synced, relaxed = (
        ("PRAGMA synchronous", 2, 1) if store.url.startswith("sqlite") else ("SHOW synchronous_commit", "on", "off")
    )
    for durable in (True, False, True):
        async with store.database.begin(durable=durable) as connection:
            level = (await connection.exec_driver_sql(query)).scalar_one()
        assert level == (synced if durable else relaxed)


async def test_a_database_that_is_away_is_a_platform_fault_worth_another_try(tmp_path: Path) -> None:
    for url in (f"sqlite+aiosqlite:///{tmp_path}/no/where.db", f"postgresql+asyncpg://nobody@/none?host={tmp_path}"):
        database = Database(url)
        with pytest.raises(StoreUnavailable) as caught:
            async with database.begin():
                raise AssertionError("there is no such database")
        assert caught.value.retryable
        with pytest.raises(StoreUnavailable):
            async with database.connect():
                raise AssertionError("there is no such database")
        await database.close()


@pytest.mark.parametrize("whole", [0, 4096], ids=["no database", "torn behind its first page"])
async def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, whole: int) -> None:
    path = tmp_path / "headrace.db"
    url = f"sqlite+aiosqlite:///{path}"
    await migrate(url)
    kept = path.read_bytes()
    path.write_bytes(kept[:whole] + b"\xa5" * (len(kept) - whole))
    with pytest.raises(StoreUnavailable) as caught:
        await migrate(url)
    assert f"{path} is damaged" in caught.value.detail
    assert "put a backup in its place, or move it away" in caught.value.detail
    database = Database(url)
    for transaction in (database.connect, database.begin):
        with pytest.raises(StoreUnavailable, match="is damaged"):
            async with transaction() as connection:
                await connection.execute(select(tables.routing))
    await database.close()


def test_text_that_no_database_can_hold_is_replaced() -> None:
    assert clean_text("plain") == "plain"
    assert clean_text("grün 😀") == "grün 😀"
    assert clean_text("a\0b") == "a�b"
    assert clean_text("half \ud800 pair") == "half ? pair"
