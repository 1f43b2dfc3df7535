"""What the fleet asks of the gateway, as interfaces of its own: the two rooms do not know each other.

The composition root hands the fleet a `Switchboard`; `headrace.gateway` has the real things.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

from headrace.errors import HeadraceError
from headrace.model import Version


class Link(Protocol):
    """The connection of one instance."""

    instance: str
    hello: dict[str, Any]
    connected: asyncio.Future[None]
    gone: asyncio.Future[None]
    lost: bool
    log: Callable[[str, dict[str, Any], bytes], None] | None

    async def load(self, header: dict[str, Any], timeout_s: float) -> dict[str, Any]: ...
    def drain(self) -> None: ...
    def abandon(self, error: HeadraceError) -> None: ...
    def close(self) -> None: ...


class Member(Protocol):
    """An instance's place in a pool."""

    name: str
    in_flight: int
    served: int
    idle_since: float
    draining: bool
    frozen: bool
    steps: Mapping[str, float]


class Pool(Protocol):
    """The slots of one version."""

    in_flight: int
    on_demand: Callable[[], None]
    lacking: HeadraceError | None

    @property
    def members(self) -> Mapping[str, Member]: ...
    @property
    def waiting(self) -> int: ...
    def observe(self) -> float: ...
    def join(self, link: Any, capacity: int, cpus: float, start_ms: float, now: float) -> Member: ...
    def drain(self, member: Any) -> None: ...
    def freeze(self, member: Any) -> bool: ...
    def thaw(self, member: Any) -> None: ...
    def remove(self, member: Any) -> None: ...
    def shut(self, error: HeadraceError, until: float) -> None: ...
    def reopen(self) -> None: ...


class Switchboard(Protocol):
    """Where instances dial in."""

    def link(self, instance: str, on_lost: Callable[[], None]) -> Link:
        """A link that waits for its instance."""
        ...

    def loaded(self, link: Any, version: Version) -> None:
        """The instance of `link` runs `version` from here on."""
        ...

    def listen(self, path: Path, link: Any) -> AbstractAsyncContextManager[None]:
        """Let the instance of `link` dial in on the unix socket `path` while the context is open."""
        ...
