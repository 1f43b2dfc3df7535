"""Signals as on a terminal, and fixtures for tests that need a database: each runs once on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from headrace.store.sql import migrate
from postgresql import Cluster
from store_kit import Store, empty, opened


def pytest_configure() -> None:
    """A shell's background job ignores SIGINT, and so would the programs that tests interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    cluster = Cluster()
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql: Cluster) -> str:
    """The URL of a migrated database to empty for each test: that is much faster than to make one."""
    url = postgresql.url(postgresql.create())
    asyncio.run(migrate(url))
    return url


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file to copy."""
    path = tmp_path_factory.mktemp("migrated") / "headrace.db"
    asyncio.run(migrate(f"sqlite+aiosqlite:///{path}"))
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without any table."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'headrace.db'}"
    cluster: Cluster = request.getfixturevalue("postgresql")
    return cluster.url(cluster.create())


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a migrated database without any row."""
    if request.param == "sqlite":
        copied = shutil.copy(request.getfixturevalue("migrated_sqlite"), tmp_path / "headrace.db")
        return f"sqlite+aiosqlite:///{copied}"
    url: str = request.getfixturevalue("migrated_postgresql")
    asyncio.run(empty(url))
    return url


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with opened(database_url) as store:
        yield store
