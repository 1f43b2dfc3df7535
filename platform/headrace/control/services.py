"""What the control API works with, handed to it by the composition root."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from headrace.clock import Clock
from headrace.errors import HeadraceError, NoCapacity
from headrace.jobs.base import JobQueue
from headrace.releases.bundle import Bundles
from headrace.releases.nodes import NodeClient
from headrace.releases.publish import Publisher
from headrace.releases.version import Releases
from headrace.settings import Settings
from headrace.store.aliases import Aliases
from headrace.store.functions import Functions
from headrace.store.records import Records
from headrace.store.tokens import Tokens
from headrace.store.versions import Versions

logger = logging.getLogger(__name__)

STATUS_AGE_S = 1.0  # what the nodes said is shown for this long


@dataclass(frozen=True, slots=True)
class Following:
    """How logs are followed. A follower that is sent away after `longest_s` dials again where it was."""

    poll_s: float = 0.5
    heartbeat_s: float = 15.0
    longest_s: float = 3600.0


class Gate:
    """Lets at most `most` in at once; the next one is refused, not kept waiting."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._inside = 0

    def __repr__(self) -> str:
        return f"Gate({self._inside} of {self._most} {self._what})"

    def check(self) -> None:
        if self._inside >= self._most:
            raise NoCapacity(f"there are {self._most} {self._what} already; try again in a moment.")

    @contextmanager
    def enter(self) -> Iterator[None]:
        self.check()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


class NodeStatuses:
    """What the live nodes say about themselves, asked at most once in `STATUS_AGE_S`."""

    def __init__(self, nodes: NodeClient, clock: Clock) -> None:
        self._nodes = nodes
        self._clock = clock
        self._lock = asyncio.Lock()
        self._asked_at: float | None = None
        self._statuses: list[dict[str, Any]] = []

    async def get(self) -> list[dict[str, Any]]:
        """One JSON object per node that answers; none when none does."""
        async with self._lock:
            now = self._clock.monotonic()
            if self._asked_at is None or now - self._asked_at >= STATUS_AGE_S:
                self._statuses = await self._ask()
                self._asked_at = self._clock.monotonic()
            return self._statuses

    async def _ask(self) -> list[dict[str, Any]]:
        try:
            return await self._nodes.status()
        except HeadraceError as error:
            logger.warning("no node told its status: %s", error.detail)
            return []


@dataclass(frozen=True)
class Services:
    settings: Settings
    clock: Clock
    functions: Functions
    versions: Versions
    aliases: Aliases
    records: Records
    tokens: Tokens
    releases: Releases
    bundles: Bundles
    publisher: Publisher
    nodes: NodeClient
    queue: JobQueue
    following: Following = field(default_factory=Following)
    followers: Gate = field(default_factory=lambda: Gate(100, "followers of logs"))
    uploads: Gate = field(default_factory=lambda: Gate(8, "uploads"))
    statuses: NodeStatuses = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "statuses", NodeStatuses(self.nodes, self.clock))


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _services(request: Request) -> Services:
    return services_of(request)


Platform = Annotated[Services, Depends(_services)]
