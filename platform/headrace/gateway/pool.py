"""The slots of one version: who may take a call now, who waits, and when to say no.

Plain state on one event loop, no I/O: every method decides and changes the state before it returns, so there is
never an `await` between reading and changing it. `take` reserves a slot; `release` gives it back, unconditionally,
and hands it to the next waiter in the same step. Waiters are first in, first out. `repr()` shows everything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace import errors
from headrace.gateway import balance
from headrace.model import Balancing

if TYPE_CHECKING:
    from headrace.gateway.link import Link

Settle = Callable[["Member | errors.HeadraceError"], None]


class Member:
    """One instance in the pool. `in_flight` never exceeds `capacity`; the pool alone changes it."""

    __slots__ = ("_at", "capacity", "cpus", "draining", "idle_since", "in_flight", "link", "name", "served", "start_ms")

    def __init__(self, link: Link, capacity: int, cpus: float, start_ms: float, now: float) -> None:
        self.link = link
        self.name = link.instance
        self.capacity = capacity
        self.cpus = cpus
        self.start_ms = start_ms  # what it took to get this instance ready
        self.in_flight = 0
        self.served = 0  # calls it was ever given
        self.idle_since = now  # monotonic; meaningful while in_flight is 0
        self.draining = False
        self._at = -1  # position in Pool._available

    def __repr__(self) -> str:
        return f"{self.name} {self.in_flight}/{self.capacity}{' draining' if self.draining else ''}"


class Waiter:
    """A call in the queue. `settle` is called once: with the member whose slot it now holds, or with the reason."""

    __slots__ = ("deadline", "settle")

    def __init__(self, deadline: float, settle: Settle) -> None:
        self.deadline = deadline  # monotonic
        self.settle = settle


class Pool:
    """`on_demand` is called when calls begin to wait, when a call leaves an instance idle, and after a drain."""

    def __init__(self, queue: int, balancing: Balancing, on_demand: Callable[[], None]) -> None:
        self.queue = queue
        self.members: dict[str, Member] = {}
        self.in_flight = 0
        self.peak = 0  # most calls in flight and waiting since `observe`
        self.throttled = 0
        self._on_demand = on_demand
        self._pick: balance.Policy[Member] = balance.policy(balancing)
        self._available: list[Member] = []  # members with a free slot, in no order
        self._waiters: OrderedDict[Waiter, None] = OrderedDict()
        self._shut: errors.HeadraceError | None = None
        self._shut_until = 0.0

    def __repr__(self) -> str:
        gate = f" shut: {self._shut}" if self._shut else ""
        return f"<Pool {list(self.members.values())} in_flight={self.in_flight} waiting={self.waiting}{gate}>"

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def balance_by(self, balancing: Balancing) -> None:
        self._pick = balance.policy(balancing)

    def observe(self) -> int:
        """Most calls in flight and waiting at once since the last time this was asked."""
        peak, self.peak = self.peak, self.in_flight + self.waiting
        return max(peak, self.peak)

    def take(self, key: str | None = None) -> Member | None:
        """Reserve a slot of the member that the policy picks; None when there is none (see `wait`)."""
        available = self._available
        if not available:
            return None
        member = available[0] if len(available) == 1 else self._pick(available, key)
        self._reserve(member)
        return member

    def wait(self, waiter: Waiter, now: float) -> None:
        """Queue up. Raises the gate's error while it is shut, `QueueFull` beyond `queue` waiters.

        Where no instance is up, one call may wait whatever `queue` says: it is what starts the first.
        """
        if self._shut is not None and now < self._shut_until:
            raise self._shut
        if self.waiting >= (self.queue if self.members else max(self.queue, 1)):
            self.throttled += 1
            raise errors.QueueFull(
                f"{self.waiting} calls already wait for this version; try again, or raise its queue or max_instances.",
                retry_after_s=1,
            )
        self._waiters[waiter] = None
        self.peak = max(self.peak, self.in_flight + self.waiting)
        self._on_demand()

    def forget(self, waiter: Waiter) -> None:
        """The call behind `waiter` is gone. Does nothing when it was settled before."""
        self._waiters.pop(waiter, None)

    def release(self, member: Member, now: float) -> None:
        """Give a slot back; the next waiter gets it in the same step."""
        member.in_flight -= 1
        self.in_flight -= 1
        self._offer(member)
        if not member.in_flight:
            member.idle_since = now
            if member.draining:
                self._on_demand()

    def join(self, link: Link, capacity: int, cpus: float, start_ms: float, now: float) -> Member:
        """A new instance is ready: it takes waiters at once."""
        member = self.members[link.instance] = Member(link, capacity, cpus, start_ms, now)
        self._offer(member)
        return member

    def drain(self, member: Member) -> None:
        """No further call goes to `member`; `on_demand` tells when its last one has ended."""
        member.draining = True
        self._withdraw(member)
        if not member.in_flight:
            self._on_demand()

    def remove(self, member: Member) -> None:
        """The instance is gone. Slots that its calls still hold are released as they end."""
        member.draining = True
        self._withdraw(member)
        self.members.pop(member.name, None)
        self._on_demand()

    def shut(self, error: errors.HeadraceError, until: float) -> None:
        """Fail fast: no instance can start. Waiters get `error` now, newcomers until `until` (monotonic)."""
        self._shut, self._shut_until = error, until
        while self._waiters:
            self._waiters.popitem(last=False)[0].settle(error)

    def reopen(self) -> None:
        self._shut = None

    def expire(self, now: float) -> None:
        """Answer the waiters whose time is up."""
        while self._waiters and next(iter(self._waiters)).deadline <= now:
            waiter, _ = self._waiters.popitem(last=False)
            waiter.settle(
                errors.NoCapacity(
                    "no instance became free in time; try again, or raise max_instances or concurrency.",
                    retry_after_s=1,
                )
            )

    def _reserve(self, member: Member) -> None:
        member.in_flight += 1
        member.served += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        if member.in_flight >= member.capacity:
            self._withdraw(member)

    def _offer(self, member: Member) -> None:
        while self._waiters and not member.draining and member.in_flight < member.capacity:
            waiter, _ = self._waiters.popitem(last=False)
            self._reserve(member)
            waiter.settle(member)
        if member._at < 0 and not member.draining and member.in_flight < member.capacity:
            member._at = len(self._available)
            self._available.append(member)

    def _withdraw(self, member: Member) -> None:
        at = member._at
        if at < 0:
            return
        last = self._available.pop()
        if last is not member:
            self._available[at] = last
            last._at = at
        member._at = -1
