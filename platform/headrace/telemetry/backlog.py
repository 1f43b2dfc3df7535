"""What waits to be written: bounded by count and by bytes, kept while the store is away.

`take` hands out a batch, and exactly one of `accepted`, `refused` or `give_back` ends it, so nothing is ever in two
places or in none. A refused batch goes back to the front and the next one is an eighth of its size; success doubles
it again. That finds an item that the store will never take without knowing the store's errors: an item refused
alone is set aside and tried once more right after a write that succeeded. Refused even then, it is dropped: the store
was there, so the item is at fault. While the store is away no write succeeds, so no item is blamed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from sys import getsizeof
from typing import Any, Generic, NamedTuple, TypeVar

from headrace.model import MetricSlot

BATCH = 2_000  # items of each kind in one write
BATCH_BYTES = 8 << 20  # of each kind in one write
MOST_BYTES = 64 << 20  # of each kind waiting, besides the fixed part of a row
MOST_SLOTS = 20_000
MOST_ASIDE = 100  # items under suspicion

PLAIN_PATH = 256  # a path up to this many characters is part of a row's fixed size

T = TypeVar("T")
Row = tuple[Any, ...]


class Ring(Generic[T]):
    """First in, first out; beyond its bounds the oldest make room and are counted in `dropped`.

    `items` may be appended to directly when `weigh(item)` is 0 and `trim` is called once it exceeds `capacity`.
    """

    __slots__ = ("_most_bytes", "_weigh", "bytes", "capacity", "dropped", "items")

    def __init__(self, capacity: int, most_bytes: int, weigh: Callable[[T], int]) -> None:
        self.items: deque[T] = deque()
        self.capacity = capacity
        self.bytes = 0
        self.dropped = 0
        self._most_bytes = most_bytes
        self._weigh = weigh

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"Ring({len(self.items)} of {self.capacity}, {self.bytes} of {self._most_bytes} bytes, -{self.dropped})"

    def put(self, item: T) -> None:
        self.items.append(item)
        self.bytes += self._weigh(item)
        self.trim()

    def trim(self) -> None:
        while len(self.items) > self.capacity or self.bytes > self._most_bytes:
            self.bytes -= self._weigh(self.items.popleft())
            self.dropped += 1

    def take(self, count: int) -> list[T]:
        """The oldest items: at most `count`, and no more once they exceed `BATCH_BYTES`."""
        taken: list[T] = []
        size = 0
        while self.items and len(taken) < count and size < BATCH_BYTES:
            item = self.items.popleft()
            size += self._weigh(item)
            taken.append(item)
        self.bytes -= size
        return taken

    def give_back(self, items: Iterable[T]) -> None:
        """Put what `take` returned to the front again."""
        returned = list(items)
        self.items.extendleft(reversed(returned))
        self.bytes += sum(map(self._weigh, returned))
        self.trim()


class Batch(NamedTuple):
    """What one write carries."""

    invocations: list[Row]
    lines: list[Row]
    slots: list[MetricSlot]

    @property
    def size(self) -> int:
        return len(self.invocations) + len(self.lines) + len(self.slots)


class Backlog:
    """Invocations, log lines and metric slots on their way to the store."""

    def __init__(self, capacity: int) -> None:
        self.invocations: Ring[Row] = Ring(capacity, MOST_BYTES, weigh_invocation)
        self.lines: Ring[Row] = Ring(capacity, MOST_BYTES, weigh_line)
        self.slots: Ring[MetricSlot] = Ring(MOST_SLOTS, MOST_BYTES, _weigh_slot)
        self._count = BATCH
        self._aside: deque[Batch] = deque()  # of one item each, refused alone
        self._proven = False  # the last write succeeded

    def __repr__(self) -> str:
        aside = len(self._aside)
        return f"Backlog({self.invocations}, {self.lines}, {self.slots}, batch {self._count}, {aside} aside)"

    @property
    def waiting(self) -> int:
        return len(self.invocations) + len(self.lines) + len(self.slots) + len(self._aside)

    @property
    def dropped(self) -> int:
        return self.invocations.dropped + self.lines.dropped + self.slots.dropped

    def take(self) -> Batch:
        """The next batch; empty when nothing waits."""
        if self._aside and (self._proven or self.waiting == len(self._aside)):
            return self._aside.popleft()
        batch = Batch([], [], [])
        for ring, part in self._paired(batch):
            part.extend(ring.take(self._count))
            if part and self._count == 1:
                break  # alone: neither with an item of another kind
        return batch

    def accepted(self) -> None:
        self._proven = True
        self._count = min(self._count * 2, BATCH)

    def refused(self, batch: Batch) -> None:
        """The store did not take `batch`; see the top of this file."""
        proven, self._proven = self._proven, False
        if batch.size > 1:
            self._count = max(min(self._count, batch.size) // 8, 1)
            self.give_back(batch)
        elif proven:
            for ring, part in self._paired(batch):
                ring.dropped += len(part)
        else:
            self._aside.append(batch)
            if len(self._aside) > MOST_ASIDE:  # the store is away
                while self._aside:
                    self.give_back(self._aside.pop())

    def give_back(self, batch: Batch) -> None:
        """Return a batch whose write did not happen."""
        for ring, part in self._paired(batch):
            ring.give_back(part)

    def _paired(self, batch: Batch) -> list[tuple[Ring[Any], list[Any]]]:
        return [(self.invocations, batch.invocations), (self.lines, batch.lines), (self.slots, batch.slots)]


def weigh_invocation(row: Row) -> int:
    """Bytes of an invocation row beyond its fixed part: a long path, an error."""
    path, error = row[13], row[16]
    size = getsizeof(path) if len(path) > PLAIN_PATH else 0
    return size if error is None else size + sum(map(getsizeof, error.values()))


def weigh_line(row: Row) -> int:
    return getsizeof(row[8])


def _weigh_slot(slot: MetricSlot) -> int:
    return getsizeof(slot.histogram)
