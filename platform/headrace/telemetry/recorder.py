"""Records of calls: noted in memory on the hot path, written in batches beside it.

`invocation` is called once per call, on the event loop that serves calls: it appends a tuple, adds to the counters
of its version and returns. Everything else (closing metric slots by the clock, writing, trying again, reporting) is
the flusher's, `run`, four times a second.

A write runs in a task of its own. Cancelling `run` does not cancel a write that is under way, so no one has to guess
whether its transaction was committed; `flush` waits for it, then writes the rest. What a failed write carried is kept
and tried again, after a pause that doubles; when more waits than `capacity` allows, the oldest is dropped and
counted. A write that failed after its commit is written again: the store must ignore an invocation id it has.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from headrace.clock import Clock
from headrace.model import SLOT_S, MetricSlot
from headrace.tasks import Tasks
from headrace.telemetry.backlog import BATCH, PLAIN_PATH, Backlog, Row
from headrace.telemetry.counts import Counts, Key, Totals
from headrace.telemetry.metrics import BUCKETS, HIGHEST_MS, LOWEST_MS, OFFSET, PARTS, Family

logger = logging.getLogger(__name__)

Write = Callable[[list[Row], list[Row], list[MetricSlot]], Awaitable[None]]

TICK_S = 0.25  # longest wait of a record before it is written
WRITE_S = 30.0  # a write that takes longer has failed
FIRST_PAUSE_S = 0.25  # after a failed write; doubles
LONGEST_PAUSE_S = 10.0
FLUSH_S = 5.0  # what is left at the stop has this long

_PLAIN_METHOD = 16  # characters
_LONGEST_PATH = 2_048  # characters
_LONGEST_LINE = 64 << 10  # characters
_ERROR_FIELDS = {"type": 256, "message": 8 << 10, "stack": 64 << 10}  # characters

_frexp = math.frexp


class Recorder:
    """Notes calls, log lines and gauges of one node; `run` writes them. All of it on one event loop."""

    def __init__(self, write: Write, clock: Clock, node: str, capacity: int = 100_000) -> None:
        self._write = write
        self._clock = clock
        self._node = node
        self._backlog = Backlog(capacity)
        self._rows = self._backlog.invocations.items
        self._crowd = min(BATCH, capacity)
        self._active: dict[Key, Counts] = {}
        self._slot_at = _slot_of(clock.now())
        self._totals = Totals(clock)
        self._kick = asyncio.Event()
        self._tasks = Tasks()
        self._writing: asyncio.Task[None] | None = None
        self._pause = 0.0
        self._retry_at = -math.inf
        self._troubled = False
        self._dropped_before = 0  # when the present trouble began

    def __repr__(self) -> str:
        return f"Recorder({self._backlog}, {len(self._active)} versions, pause {self._pause:g} s)"

    @property
    def dropped_invocations(self) -> int:
        return self._backlog.invocations.dropped

    @property
    def dropped_lines(self) -> int:
        return self._backlog.lines.dropped

    # -- the hot path

    def invocation(self, row: Row) -> None:
        """Note a finished call: the fields of `model.Invocation` in their order."""
        if row[16] is None and len(row[13]) <= PLAIN_PATH and len(row[12]) <= _PLAIN_METHOD:
            self._rows.append(row)
        else:
            self._backlog.invocations.put(_bounded(row))
        if len(self._rows) >= self._crowd:
            self._crowded()
        counts = self._active.get((row[1], row[2], row[3]))
        if counts is None:
            counts = self._active[row[1], row[2], row[3]] = Counts()
        outcome = row[11]
        counts.outcomes[outcome] += 1
        if outcome == "rejected":
            if row[10] in (429, 503):
                counts.throttled += 1
            return  # it never ran: an overloaded version must not look fast
        if row[8]:
            counts.cold_starts += 1
        ms = row[7] + row[8] + row[9]
        counts.sum_ms += ms
        if ms > counts.max_ms:  # noqa: PLR1730 - max() costs a tenth of this method
            counts.max_ms = ms
        if LOWEST_MS <= ms < HIGHEST_MS:  # metrics.bucket, without the call
            mantissa, exponent = _frexp(ms)
            counts.buckets[exponent * PARTS + int(mantissa * (2 * PARTS)) - OFFSET] += 1
        else:
            counts.buckets[0 if ms < LOWEST_MS else BUCKETS - 1] += 1

    def line(self, row: Row) -> None:
        """Note a log line: the fields of `model.LogLine` in their order, without `seq`."""
        if len(row[8]) > _LONGEST_LINE:
            row = (*row[:8], _cut(row[8], _LONGEST_LINE))
        self._backlog.lines.put(row)
        if len(self._backlog.lines) >= self._crowd:
            self._crowded()

    def gauge(self, namespace: str, function: str, version: int, in_flight: int, instances: int) -> None:
        """Note how many calls run now and how many instances there are; about once a second per active version."""
        key = (namespace, function, version)
        counts = self._active.get(key)
        if counts is None:
            counts = self._active[key] = Counts()
        counts.concurrency = max(counts.concurrency, in_flight)
        counts.instances = max(counts.instances, instances)

    def _crowded(self) -> None:
        self._backlog.invocations.trim()
        if self._writing is None and not self._pause:
            self._kick.set()

    # -- the flusher

    async def run(self) -> None:
        """Close slots and write, until cancelled; then call `flush`."""
        while True:
            try:
                async with asyncio.timeout(TICK_S):
                    await self._kick.wait()
            except TimeoutError:
                pass
            self._kick.clear()
            self._roll()
            self._look_for_trouble()
            due = self._clock.monotonic() >= self._retry_at
            if self._writing is None and self._backlog.waiting and due:
                self._writing = self._tasks.spawn(self._drain(), "records writer")

    async def flush(self) -> None:
        """Write the rest, within about `FLUSH_S` seconds; what could not be written is counted in the log."""
        self._close_slot()
        try:
            async with asyncio.timeout(FLUSH_S):
                if self._writing is not None:
                    await asyncio.wait((self._writing,))
                while self._backlog.waiting:
                    if not await self._write_batch():
                        await asyncio.sleep(FIRST_PAUSE_S)
        except TimeoutError:
            await self._tasks.aclose()
            waiting = self._backlog.waiting
            logger.error("stopping with %d records that could not be written within %g s", waiting, FLUSH_S)  # noqa: TRY400

    async def _drain(self) -> None:
        try:
            while self._backlog.waiting and await self._write_batch():
                pass
        finally:
            self._writing = None

    async def _write_batch(self) -> bool:
        """Write one batch. False: it failed and is kept."""
        batch = self._backlog.take()
        try:
            async with asyncio.timeout(WRITE_S):
                await self._write(*batch)
        except asyncio.CancelledError:
            self._backlog.give_back(batch)
            raise
        except Exception as error:  # noqa: BLE001 - whatever the store raises, the records stay
            self._backlog.refused(batch)
            self._failed(error)
            return False
        self._backlog.accepted()
        self._pause = 0.0
        return True

    def _failed(self, error: Exception) -> None:
        self._pause = min(self._pause * 2, LONGEST_PAUSE_S) or FIRST_PAUSE_S
        self._retry_at = self._clock.monotonic() + self._pause
        if not self._troubled:
            self._troubled = True
            self._dropped_before = self._backlog.dropped
            logger.warning("invocations and logs can't be written and are kept for now: %r", error)

    def _look_for_trouble(self) -> None:
        """Say once when records begin to be lost, and once when all is well again."""
        if not self._troubled:
            if self._backlog.dropped == self._dropped_before:
                return
            self._troubled = True
            logger.warning("invocations and logs come faster than they can be written; the oldest are dropped")
        elif not self._pause and self._backlog.waiting < BATCH:
            self._troubled = False
            lost = self._backlog.dropped - self._dropped_before
            self._dropped_before = self._backlog.dropped
            logger.warning("invocations and logs are written again; %d records were dropped", lost)

    # -- metric slots

    def _roll(self) -> None:
        """Close the slot when its time is over. A call that ends within a tick after that still counts in it."""
        at = _slot_of(self._clock.now())
        if at != self._slot_at:
            self._close_slot()
            self._slot_at = at
            self._totals.forget_old()

    def _close_slot(self) -> None:
        active, self._active = self._active, {}
        for key, counts in active.items():
            if counts:
                self._totals.add(key, counts)
                self._backlog.slots.put(counts.slot(self._slot_at, self._node, key))

    def families(self) -> list[Family]:
        """Counters and durations by version since this process started, for `metrics.render`."""
        return self._totals.families(self._active, self._node)


def _slot_of(now: float) -> float:
    return math.floor(now / SLOT_S) * SLOT_S


def _bounded(row: Row) -> Row:
    """The row with its method, path and error cut to their bounds."""
    error = row[16]
    if error is not None:
        error = {name: _cut(str(error.get(name, "")), most) for name, most in _ERROR_FIELDS.items()}
    return (*row[:12], row[12][:_PLAIN_METHOD], _cut(row[13], _LONGEST_PATH), *row[14:16], error)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}... [{len(text) - most} more characters were cut off]"
