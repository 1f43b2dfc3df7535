"""Drivers under contract on the real engine; a suite of several drivers has a `kit` of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from docker import APIClient

from driver_kit import Kit, kit_of
from headrace.drivers.base import Driver


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    async with kit_of("docker") as kit:
        yield kit


@pytest.fixture
async def driver(kit: Kit) -> Driver:
    return kit.driver()


@pytest.fixture
def engine(kit: Kit) -> Iterator[Any]:
    """A client of the engine itself."""
    client = APIClient(f"unix://{kit.settings.engine_socket}", version="auto")
    yield client
    client.close()
