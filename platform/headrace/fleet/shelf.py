"""Generic instances that wait, started and connected, until a version needs one.

Each is used for one version and never handed to another. The shelf is refilled one instance at a time per kind,
after it was taken from, so that refilling never starves calls. A kind that nobody has asked for lately is let go;
the first kind (the default runtime with the default network) always waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headrace import errors
from headrace.fleet.instance import Instance, Kind
from headrace.fleet.yard import DEFAULTS, Yard
from headrace.model import DEFAULT_RUNTIME
from headrace.tasks import Tasks

logger = logging.getLogger(__name__)

_FORGET_S = 600.0  # a kind is kept on the shelf this long after it was last asked for
_RECENT_S = 60.0  # what was taken within this says how many are wanted next
_MOST_RECENT = 100
_MOST_TIMES = 4  # never more than so many times the size
_BACKOFF_S = 5.0  # after a launch failed
FIRST = Kind(DEFAULT_RUNTIME, "egress", None)


class Shelf:
    """Instances of each kind in demand. `may_grow` says whether the node's memory allows another of so many MiB."""

    def __init__(
        self,
        yard: Yard,
        size: int,
        may_grow: Callable[[int], bool],
        on_lost: Callable[[Instance], None],
        tasks: Tasks,
    ) -> None:
        self._yard = yard
        self._size = size
        self._may_grow = may_grow
        self._on_lost = on_lost
        self._tasks = tasks
        self._waiting: defaultdict[Kind, deque[Instance]] = defaultdict(deque)
        self._asked: dict[Kind, float] = {FIRST: float("inf")}
        self._taken: defaultdict[Kind, deque[float]] = defaultdict(lambda: deque(maxlen=_MOST_RECENT))
        self._filling: set[Kind] = set()
        self._closed = False
        self._holds = 0

    def __len__(self) -> int:
        return sum(len(instances) for instances in self._waiting.values())

    def start(self) -> None:
        for kind in list(self._asked):
            self._refill(kind)

    def close(self) -> None:
        """Never refill again."""
        self._closed = True

    def take(self, kind: Kind) -> Instance | None:
        """An instance of `kind` that is ready to be loaded, now the caller's; None when there is none."""
        now = asyncio.get_running_loop().time()
        self._asked[kind] = max(self._asked.get(kind, 0.0), now)
        self._taken[kind].append(now)
        waiting = self._waiting[kind]
        instance = waiting.popleft() if waiting else None
        self._refill(kind)
        return instance

    def put(self, instance: Instance) -> None:
        """An instance that an earlier node had on its shelf."""
        self._asked.setdefault(instance.kind, asyncio.get_running_loop().time())
        self._waiting[instance.kind].append(instance)

    def give_up(self) -> Instance | None:
        """An instance to stop because its memory is needed more elsewhere; None when none waits."""
        for waiting in self._waiting.values():
            if waiting:
                return waiting.pop()
        return None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is refilled in here: somebody is making room."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            for kind in list(self._asked):
                self._refill(kind)

    @property
    def filling(self) -> bool:
        return bool(self._filling)

    def discard(self, instance: Instance) -> bool:
        """Forget an instance that died while it waited; False when it was not here."""
        try:
            self._waiting[instance.kind].remove(instance)
        except ValueError:
            return False
        self._refill(instance.kind)
        return True

    def stale(self) -> list[Instance]:
        """Instances of kinds that nobody asks for any more, now the caller's to stop."""
        gone: list[Instance] = []
        for kind, asked in list(self._asked.items()):
            if asyncio.get_running_loop().time() - asked > _FORGET_S:
                del self._asked[kind]
                self._taken.pop(kind, None)
                gone += self._waiting.pop(kind, ())
        return gone

    def _refill(self, kind: Kind) -> None:
        if not self._closed and kind not in self._filling and self._lacks(kind):
            self._filling.add(kind)
            self._tasks.spawn(self._fill(kind), f"shelf {kind.runtime} {kind.network}")

    def _lacks(self, kind: Kind) -> bool:
        """Fewer wait than `size` (one, of a kind with dependencies) and as many as were taken of late."""
        if kind not in self._asked or self._closed or self._holds:
            return False
        since = asyncio.get_running_loop().time() - _RECENT_S
        base = self._size if kind.layer is None else min(self._size, 1)
        recent = sum(1 for taken in self._taken[kind] if taken > since)
        return len(self._waiting[kind]) < min(base + recent, base * _MOST_TIMES)

    async def _fill(self, kind: Kind) -> None:
        try:
            while self._lacks(kind):
                if not self._may_grow(DEFAULTS.memory_mb):
                    return
                try:
                    instance = await self._yard.launch(kind, DEFAULTS.memory_mb, DEFAULTS.cpus, self._on_lost)
                except errors.HeadraceError as error:
                    logger.warning("no instance for the shelf: %s", error.detail)
                    await asyncio.sleep(_BACKOFF_S)
                    continue
                if instance.ended or (instance.link is not None and instance.link.lost):
                    continue
                self._waiting[kind].append(instance)
        finally:
            self._filling.discard(kind)
