"""Generic instances that wait, started and connected, until a version needs one.

Each is used for one version and never handed to another. How many of a kind should wait: as many as there are published
versions without an instance, each of which may be called in the next moment, and at least the setting `prewarm`; and
beside them as many as were taken in one burst of late by versions that had an instance already, or were not published.
Two bounds hold over that, the setting `prewarm_most` and a part of the node's memory.

Refilling gives way: one at a time per kind, not while calls wait for instances of their own, and beyond the setting it
rests as long as it worked. A kind that nobody has asked for lately is let go; the first kind (the default runtime
with the default network) always waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator

from headrace import errors
from headrace.fleet.instance import Instance, Kind
from headrace.fleet.yard import Yard
from headrace.model import DEFAULT_RUNTIME
from headrace.settings import Settings
from headrace.tasks import Tasks

logger = logging.getLogger(__name__)

_FORGET_S = 600.0  # a kind is kept on the shelf this long after it was last asked for
_BURST_S = 10.0  # what is taken within this was taken at once
_REMEMBER_S = 1800.0  # a burst
_LAYERED = 4  # most that wait of a kind with dependencies: its versions keep frozen instances as well
_BACKOFF_S = 5.0  # after a launch failed
_MOST_GIVEN_S = 10.0  # calls wait for instances of their own: after this the shelf takes its turn all the same
FIRST = Kind(DEFAULT_RUNTIME, "egress", None)


class Bursts:
    """When something was taken, in stretches of `_BURST_S`, for `_REMEMBER_S`."""

    def __init__(self) -> None:
        self._stretches: deque[tuple[int, int]] = deque()  # number of the stretch, how many

    def note(self, now: float) -> None:
        stretch, taken = int(now / _BURST_S), 1
        if self._stretches and self._stretches[-1][0] == stretch:
            taken += self._stretches.pop()[1]
        self._stretches.append((stretch, taken))
        self._forget(now)

    def largest(self, now: float) -> int:
        """The most that were taken in one stretch or two neighbours."""
        self._forget(now)
        most, before = 0, (-2, 0)
        for stretch, taken in self._stretches:
            most = max(most, taken + (before[1] if before[0] == stretch - 1 else 0))
            before = (stretch, taken)
        return most

    def _forget(self, now: float) -> None:
        while self._stretches and self._stretches[0][0] * _BURST_S < now - _REMEMBER_S:
            self._stretches.popleft()


class Shelf:
    """Instances of each kind in demand.

    `may_grow` says whether the node's memory allows another, `warm` how many published versions of a kind have an
    instance.
    """

    def __init__(
        self,
        yard: Yard,
        settings: Settings,
        may_grow: Callable[[], bool],
        warm: Callable[[Kind], int],
        on_lost: Callable[[Instance], None],
    ) -> None:
        self._yard = yard
        self._size = settings.prewarm
        self._most = max(settings.prewarm_most, settings.prewarm)
        self._may_grow = may_grow
        self._warm = warm
        self._on_lost = on_lost
        self._tasks = Tasks()
        self._waiting: defaultdict[Kind, deque[Instance]] = defaultdict(deque)
        self._asked: dict[Kind, float] = {FIRST: float("inf")}
        self._published: Counter[Kind] = Counter()
        self._bursts: defaultdict[Kind, Bursts] = defaultdict(Bursts)
        self._filling: set[Kind] = set()
        self._open = False
        self._holds = 0

    def __len__(self) -> int:
        return sum(len(instances) for instances in self._waiting.values())

    def start(self) -> None:
        self._open = True
        self.refill()

    async def close(self) -> None:
        """Never refill again; what was being launched is gone when this returns."""
        self._open = False
        await self._tasks.aclose()

    def take(self, kind: Kind, *, foreseen: bool) -> Instance | None:
        """An instance of `kind` that is ready to be loaded, now the caller's; None when there is none.

        `foreseen`: it is the first one of a published version.
        """
        now = asyncio.get_running_loop().time()
        self._asked[kind] = max(self._asked.get(kind, 0.0), now)
        if not foreseen:
            self._bursts[kind].note(now)
        waiting = self._waiting[kind]
        instance = waiting.popleft() if waiting else None
        self._refill(kind)
        return instance

    def put(self, instance: Instance) -> None:
        """An instance that an earlier node had on its shelf."""
        self._asked.setdefault(instance.kind, asyncio.get_running_loop().time())
        self._waiting[instance.kind].append(instance)

    def publish(self, kind: Kind, change: int) -> None:
        """So many more versions of `kind` (less, when negative) may be called at any moment."""
        self._published[kind] += change
        self._refill(kind)

    def give_up(self, *, spare: bool) -> Instance | None:
        """An instance to stop because its memory is needed more elsewhere; None when none waits.

        `spare`: only one that waits beyond the setting.
        """
        for kind, waiting in self._waiting.items():
            if len(waiting) > (self._base(kind) if spare else 0):
                return waiting.pop()
        return None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is refilled in here: somebody is making room."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            self.refill()

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
        """Instances of kinds that nobody asks for any more and those that are too many, now the caller's to stop."""
        gone: list[Instance] = []
        now = asyncio.get_running_loop().time()
        for kind, asked in list(self._asked.items()):
            if now - asked > _FORGET_S:
                del self._asked[kind]
                self._bursts.pop(kind, None)
        for kind, waiting in list(self._waiting.items()):
            gone += (waiting.pop() for _ in range(len(waiting) - self._wanted(kind)))
            if not waiting:
                del self._waiting[kind]
        self._published = +self._published
        return gone

    def refill(self) -> None:
        """Look whether instances of any kind are lacking."""
        for kind in self._asked.keys() | self._published.keys():
            self._refill(kind)

    def _refill(self, kind: Kind) -> None:
        if kind not in self._filling and self._lacks(kind):
            self._filling.add(kind)
            self._tasks.spawn(self._fill(kind), f"shelf {kind.runtime} {kind.network}")

    def _base(self, kind: Kind) -> int:
        """How many wait whatever was asked for: one of a kind with dependencies."""
        return self._size if kind.layer is None else min(self._size, 1)

    def _wanted(self, kind: Kind) -> int:
        base, published = self._base(kind), self._published[kind]
        if not base or not (kind in self._asked or published):
            return 0
        bursts = self._bursts.get(kind)
        recent = bursts.largest(asyncio.get_running_loop().time()) if bursts is not None else 0
        if kind.layer is not None:
            return min(base + recent, _LAYERED, self._most)
        return min(max(base, published - self._warm(kind)) + recent, self._most)

    def _lacks(self, kind: Kind) -> bool:
        return self._open and not self._holds and len(self._waiting.get(kind, ())) < self._wanted(kind)

    async def _fill(self, kind: Kind) -> None:
        loop = asyncio.get_running_loop()
        try:
            await self._give_way()
            while self._lacks(kind) and self._may_grow():
                began = loop.time()
                try:
                    instance = await self._yard.launch_ahead(kind, self._on_lost)
                except errors.HeadraceError as error:
                    logger.warning("no instance for the shelf: %s", error.detail)
                    await asyncio.sleep(_BACKOFF_S)
                    continue
                if instance.link is not None and instance.link.lost:
                    await self._yard.bury(instance)
                    continue
                self._waiting[kind].append(instance)
                if len(self._waiting[kind]) >= self._base(kind):
                    await asyncio.sleep(loop.time() - began)
                await self._give_way()
        finally:
            self._filling.discard(kind)

    async def _give_way(self) -> None:
        """Wait while instances start for calls, though not for ever."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_MOST_GIVEN_S):
                await self._yard.calm.wait()
