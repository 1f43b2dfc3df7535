"""The slots of one version: who may take a call now, who waits, and when to say no.

Plain state on one event loop, no I/O: every method decides and changes the state before it returns, so there is
never an `await` between reading and changing it. `take` reserves a slot; `release` gives it back, unconditionally,
and hands it to the next waiter in the same step. Waiters are first in, first out. `repr()` shows everything.

A member that fails call after call while others do not is ejected for a while (outlier detection as in Envoy: five
failures in a row, each ejection twice as long as the last), but never the last one that could take a call, and it comes
back early when a call waits and no slot is free. A frozen member is out of reach until it is thawed: `freeze` withdraws
it before anybody pauses it, so no call races with that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from headrace import errors
from headrace.gateway import balance
from headrace.model import Balancing

if TYPE_CHECKING:
    from headrace.gateway.link import Link

_FAILURES = 5  # in a row, and a member is ejected
_EJECT_S = 1.0  # the first time; then twice as long each time
_MOST_EJECT_S = 60.0

Settle = Callable[["Member | errors.HeadraceError"], None]


def _nobody_listens() -> None:
    """A pool without a keeper."""


class Member:
    """One instance in the pool. `in_flight` never exceeds `capacity`; the pool alone changes it."""

    __slots__ = (
        "_at",
        "_ejections",
        "_failures",
        "capacity",
        "cold",
        "cpus",
        "draining",
        "ejected_until",
        "frozen",
        "idle_since",
        "in_flight",
        "link",
        "name",
        "served",
        "start_ms",
        "steps",
    )

    def __init__(self, link: Link, capacity: int, cpus: float, start_ms: float, now: float) -> None:
        self.link = link
        self.name = link.instance
        self.capacity = capacity
        self.cpus = cpus
        self.start_ms = start_ms  # what it took to get this instance ready
        self.steps: Mapping[str, float] = {}  # and of what the call that waited for it, or for its thaw, waited
        self.in_flight = 0
        self.served = 0  # calls it was ever given
        self.idle_since = now  # monotonic; meaningful while in_flight is 0
        self.draining = False
        self.cold = True  # it was started or thawed for the call that waits for it
        self.frozen = False
        self.ejected_until = 0.0  # monotonic; 0: it is not ejected
        self._failures = 0  # in a row
        self._ejections = 0
        self._at = -1  # position in Pool._available

    def __repr__(self) -> str:
        marks = (" draining" * self.draining) + (" frozen" * self.frozen) + (" ejected" * bool(self.ejected_until))
        return f"{self.name} {self.in_flight}/{self.capacity}{marks}"

    @property
    def serving(self) -> bool:
        """True when calls go to it, now or once it has a free slot."""
        return not self.draining and not self.frozen and not self.ejected_until

    @property
    def open(self) -> bool:
        """True when a call may be given to it."""
        return self.in_flight < self.capacity and self.serving


class Waiter:
    """A call in the queue. `settle` is called once: with the member whose slot it now holds, or with the reason."""

    __slots__ = ("deadline", "settle")

    def __init__(self, deadline: float, settle: Settle) -> None:
        self.deadline = deadline  # monotonic
        self.settle = settle


class Pool:
    """Its keeper listens at `on_demand`: a call begins to wait, or a draining member has ended its last one.

    A pool with calls adds itself to `active`; whoever sweeps that set takes idle ones out by `rest`.
    """

    def __init__(self, queue: int, balancing: Balancing, active: set[Pool]) -> None:
        self.queue = queue
        self.members: dict[str, Member] = {}
        self.in_flight = 0
        self.throttled = 0
        self.lacking: errors.HeadraceError | None = None  # why there are not more instances, for who waits in vain
        self._active = active
        self._resting = True
        self._peak = 0  # most calls in flight at once since `take_peak`
        self._area = 0.0  # calls in flight and waiting, integrated over seconds, since `observe`
        self._ejected: list[Member] = []
        self.on_demand: Callable[[], None] = _nobody_listens
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

    def sample(self, seconds: float) -> None:
        """`seconds` have passed with as many calls as there are now."""
        self._area += (self.in_flight + self.waiting) * seconds

    def observe(self) -> float:
        """Call-seconds, running and waiting, since the last time this was asked."""
        area, self._area = self._area, 0.0
        return area

    def take_peak(self) -> int:
        """Most calls in flight at once since the last time this was asked."""
        peak, self._peak = self._peak, self.in_flight
        return peak

    def rest(self) -> bool:
        """Leave the active set when nothing runs and nothing waits; False while something does."""
        if self.in_flight or self._waiters or self._ejected:
            return False
        self._active.discard(self)
        self._resting = True
        return True

    def take(self, key: str | None = None) -> Member | None:
        """Reserve a slot of the member that the policy picks; None when there is none (see `wait`)."""
        available = self._available
        if not available:
            return None
        member = available[0] if len(available) == 1 else self._pick(available, key)
        self._reserve(member)
        member.cold = False  # nobody waited for it
        return member

    def wait(self, waiter: Waiter, now: float) -> None:
        """Queue up. Raises the gate's error while it is shut, `QueueFull` beyond `queue` waiters.

        Where no instance serves, one call may wait whatever `queue` says: it is what starts or thaws the first.
        """
        if self._shut is not None and now < self._shut_until:
            raise self._shut.with_traceback(None)  # one error for many callers: it must not collect their frames
        if self.waiting >= (self.queue or int(not any(member.serving for member in self.members.values()))):
            self.throttled += 1
            raise errors.QueueFull(
                f"{self.waiting} calls already wait for this version; try again, or raise its queue or max_instances.",
                retry_after_s=1,
            )
        self._waiters[waiter] = None
        self._wake()
        self.on_demand()

    def forget(self, waiter: Waiter) -> None:
        """The call behind `waiter` is gone. Does nothing when it was settled before."""
        self._waiters.pop(waiter, None)

    def release(self, member: Member, now: float, failed: bool = False) -> None:
        """Give a slot back; the next waiter gets it in the same step. `failed`: the function failed the call."""
        member.in_flight -= 1
        self.in_flight -= 1
        if failed:
            self._blame(member, now)
        else:
            member._failures = 0
        if self._waiters or member._at < 0:
            self._offer(member)
        if not member.in_flight:
            member.idle_since = now
            if member.draining:
                self.on_demand()

    def join(self, link: Link, capacity: int, cpus: float, start_ms: float, now: float) -> Member:
        """A new instance is ready: it takes waiters at once."""
        self.lacking = None
        member = self.members[link.instance] = Member(link, capacity, cpus, start_ms, now)
        self._offer(member)
        return member

    def drain(self, member: Member) -> None:
        """No further call goes to `member`; `on_demand` tells when its last one has ended."""
        member.draining = True
        self._withdraw(member)
        if not member.in_flight:
            self.on_demand()

    def freeze(self, member: Member) -> bool:
        """Take an idle member out of reach, to be paused; False when it is not idle any more."""
        if member.in_flight or not member.open:
            return False
        member.frozen = True
        self._withdraw(member)
        return True

    def thaw(self, member: Member) -> None:
        """A frozen member runs again: it takes waiters at once."""
        member.frozen = False
        member.cold = True
        self._offer(member)

    def remove(self, member: Member) -> None:
        """The instance is gone. Slots that its calls still hold are released as they end."""
        member.draining = True
        self._withdraw(member)
        self.members.pop(member.name, None)
        self.on_demand()

    def shut(self, error: errors.HeadraceError, until: float) -> None:
        """Fail fast: no instance can start. Waiters get `error` now, newcomers until `until` (monotonic)."""
        self._shut, self._shut_until = error, until
        while self._waiters:
            self._waiters.popitem(last=False)[0].settle(error)

    def reopen(self) -> None:
        self._shut = None

    def expire(self, now: float) -> None:
        """Answer the waiters whose time is up, let members back whose ejection is over."""
        starved = self._waiters and not self._available
        while self._ejected and (self._ejected[0].ejected_until <= now or starved):
            starved = False
            self._let_back(self._ejected[0])
        while self._waiters and next(iter(self._waiters)).deadline <= now:
            waiter, _ = self._waiters.popitem(last=False)
            waiter.settle(
                self.lacking
                or errors.NoCapacity(
                    "no instance became free in time; try again, or raise max_instances or concurrency.",
                    retry_after_s=1,
                )
            )

    def _reserve(self, member: Member) -> None:
        member.in_flight += 1
        member.served += 1
        self.in_flight += 1
        if self.in_flight > self._peak:  # noqa: PLR1730 - on the path of every call
            self._peak = self.in_flight
        if self._resting:
            self._wake()
        if member.in_flight >= member.capacity:
            self._withdraw(member)

    def _offer(self, member: Member) -> None:
        while self._waiters and member.open:
            waiter, _ = self._waiters.popitem(last=False)
            self._reserve(member)
            waiter.settle(member)
        if member._at < 0 and member.open:
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

    def _wake(self) -> None:
        if self._resting:
            self._resting = False
            self._active.add(self)

    def _blame(self, member: Member, now: float) -> None:
        member._failures += 1
        others = (other for other in self.members.values() if other is not member)
        if member._failures < _FAILURES or not any(other.serving for other in others):
            return
        member._failures = 0
        member.ejected_until = now + min(_EJECT_S * 2**member._ejections, _MOST_EJECT_S)
        member._ejections = min(member._ejections + 1, 10)
        self._withdraw(member)
        self._ejected.append(member)
        self._ejected.sort(key=lambda ejected: ejected.ejected_until)

    def _let_back(self, member: Member) -> None:
        self._ejected.remove(member)
        member.ejected_until = 0.0
        self._offer(member)
