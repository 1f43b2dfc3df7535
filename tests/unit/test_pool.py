"""The pool: every slot is given once, waiters are served in order, and nothing is lost whatever the order of events."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace import errors
from headrace.gateway.pool import Member, Pool, Waiter


class Link:
    def __init__(self, instance: str) -> None:
        self.instance = instance


class Desk:
    """A pool with its news counted, and waiters that remember how they were settled."""

    def __init__(self, queue: int = 100) -> None:
        self.news = 0
        self.active: set[Pool] = set()
        self.pool = Pool(queue, "least-loaded", self.active)
        self.pool.on_demand = self._told

    def _told(self) -> None:
        self.news += 1

    def join(self, name: str, capacity: int = 1) -> Member:
        link: Any = Link(name)
        return self.pool.join(link, capacity, 1.0, 5.0, now=0.0)

    def wait(self, deadline: float = 10.0, now: float = 0.0) -> list[Any]:
        settled: list[Any] = []
        self.waiter = Waiter(deadline, settled.append)
        self.pool.wait(self.waiter, now)
        return settled


def test_a_slot_is_taken_and_comes_back() -> None:
    desk = Desk()
    member = desk.join("a", capacity=2)
    assert desk.pool.take() is member
    assert desk.pool.take() is member
    assert desk.pool.take() is None
    assert repr(desk.pool) == "<Pool [a 2/2] in_flight=2 waiting=0>"
    desk.pool.release(member, now=7.0)
    assert desk.pool.take() is member
    desk.pool.release(member, now=8.0)
    desk.pool.release(member, now=9.0)
    assert (member.in_flight, member.idle_since, member.served) == (0, 9.0, 3)


def test_a_released_slot_goes_to_the_first_waiter_in_the_same_step() -> None:
    desk = Desk()
    member = desk.join("a")
    desk.pool.take()
    first, second = desk.wait(), desk.wait()
    desk.pool.release(member, now=1.0)
    assert (first, second) == ([member], [])
    assert desk.pool.take() is None
    desk.pool.release(member, now=2.0)
    assert second == [member]


def test_a_new_instance_takes_as_many_waiters_as_it_has_slots() -> None:
    desk = Desk()
    waiting = [desk.wait() for _ in range(3)]
    assert desk.news == 3
    member = desk.join("a", capacity=2)
    assert waiting == [[member], [member], []]


def test_a_full_queue_says_so_and_one_call_may_always_start_the_first_instance() -> None:
    desk = Desk(queue=0)
    desk.wait()
    with pytest.raises(errors.QueueFull, match="try again"):
        desk.wait()
    desk.join("a")
    with pytest.raises(errors.QueueFull):
        desk.wait()
    assert desk.pool.throttled == 2


def test_waiters_expire_in_order_and_are_told() -> None:
    desk = Desk()
    early, late = desk.wait(deadline=1.0), desk.wait(deadline=2.0)
    desk.pool.expire(now=1.5)
    assert isinstance(early[0], errors.NoCapacity)
    assert late == []
    assert desk.pool.waiting == 1


def test_a_shut_gate_answers_at_once_until_its_time_and_opens_again() -> None:
    desk = Desk()
    waiting = desk.wait()
    reason = errors.LoadFailed("SyntaxError: no")
    desk.pool.shut(reason, until=5.0)
    assert waiting == [reason]
    with pytest.raises(errors.LoadFailed):
        desk.wait(now=4.9)
    assert desk.wait(now=5.1) == []
    desk.pool.shut(reason, until=50.0)
    desk.pool.reopen()
    assert desk.wait(now=6.0) == []


def test_many_refusals_do_not_grow_the_error_they_share() -> None:
    desk = Desk()
    reason = errors.LoadFailed("no")
    desk.pool.shut(reason, until=5.0)
    for _ in range(100):
        with pytest.raises(errors.LoadFailed):
            desk.wait(now=1.0)
    frames, entry = 0, reason.__traceback__
    while entry is not None:
        frames, entry = frames + 1, entry.tb_next
    assert frames < 10


def test_who_waits_in_vain_learns_why_there_are_no_more_instances() -> None:
    desk = Desk()
    waiting = desk.wait(deadline=1.0)
    desk.pool.lacking = errors.NoCapacity("the node is full")
    desk.pool.expire(now=2.0)
    assert waiting == [desk.pool.lacking]


def test_an_ejected_member_comes_back_early_when_nobody_else_can_take_a_call() -> None:
    desk = Desk()
    bad, good = desk.join("bad"), desk.join("good")
    _fail(desk, bad, 5)
    assert bad.ejected_until
    desk.pool.remove(good)
    waiting = desk.wait()
    desk.pool.expire(now=0.0)
    assert waiting == [bad]


def test_a_forgotten_waiter_gets_nothing() -> None:
    desk = Desk()
    gone = desk.wait()
    desk.pool.forget(desk.waiter)
    kept = desk.wait()
    member = desk.join("a")
    assert (gone, kept) == ([], [member])


def test_a_draining_member_finishes_its_calls_and_gets_no_new_one() -> None:
    desk = Desk()
    member = desk.join("a", capacity=2)
    desk.pool.take()
    desk.pool.drain(member)
    assert desk.pool.take() is None
    waiting, news = desk.wait(), desk.news
    desk.pool.release(member, now=1.0)
    assert waiting == []
    assert desk.news == news + 1


def test_a_removed_member_still_takes_its_slots_back() -> None:
    desk = Desk()
    member = desk.join("a", capacity=2)
    desk.pool.take()
    desk.pool.remove(member)
    assert desk.pool.members == {}
    desk.pool.release(member, now=1.0)
    assert desk.pool.in_flight == 0
    assert desk.pool.take() is None


def test_call_seconds_are_what_ran_and_waited_while_time_passed() -> None:
    desk = Desk()
    member = desk.join("a", capacity=1)
    desk.pool.take()
    desk.wait()
    desk.pool.sample(0.5)
    desk.pool.release(member, now=1.0)
    desk.pool.sample(2.0)
    assert desk.pool.observe() == 2 * 0.5 + 1 * 2.0
    assert desk.pool.observe() == 0


def test_a_pool_is_active_exactly_while_it_has_calls() -> None:
    desk = Desk()
    member = desk.join("a")
    assert desk.active == set()
    desk.pool.take()
    assert desk.active == {desk.pool}
    assert not desk.pool.rest()
    desk.pool.release(member, now=1.0)
    assert desk.pool.rest()
    assert desk.active == set()
    desk.pool.drain(member)
    desk.wait()
    assert desk.active == {desk.pool}


def test_a_frozen_member_is_out_of_reach_until_it_is_thawed() -> None:
    desk = Desk()
    member = desk.join("a")
    desk.pool.take()
    assert not desk.pool.freeze(member), "it has a call"
    desk.pool.release(member, now=1.0)
    assert desk.pool.freeze(member)
    assert desk.pool.take() is None
    waiting = desk.wait()
    desk.pool.thaw(member)
    assert waiting == [member]


def _fail(desk: Desk, member: Member, times: int) -> None:
    for _ in range(times):
        member.in_flight += 1
        desk.pool.in_flight += 1
        desk.pool.release(member, now=0.0, failed=True)


def test_a_member_that_fails_in_a_row_is_ejected_and_comes_back() -> None:
    desk = Desk()
    bad, good = desk.join("bad"), desk.join("good")
    _fail(desk, bad, 4)
    assert not bad.ejected_until
    desk.pool.release(desk.pool.take() or bad, now=0.0)
    _fail(desk, bad, 5)
    assert bad.ejected_until == 1.0
    assert desk.pool.take() is good
    assert desk.pool.take() is None
    waiting = desk.wait()
    desk.pool.expire(now=1.0)
    assert waiting == [bad]
    desk.pool.release(bad, now=1.0)
    _fail(desk, bad, 5)
    assert bad.ejected_until == 2.0, "the second time is twice as long"


def test_the_last_member_is_never_ejected() -> None:
    desk = Desk()
    only = desk.join("only")
    _fail(desk, only, 50)
    assert desk.pool.take() is only


@pytest.mark.parametrize("how", ["gone", "frozen", "busy"])
def test_an_ejected_member_comes_back_when_a_call_waits(how: str) -> None:
    desk = Desk()
    bad, good = desk.join("bad"), desk.join("good")
    _fail(desk, bad, 5)
    if how == "gone":
        desk.pool.remove(good)
    elif how == "frozen":
        assert desk.pool.freeze(good)
    else:
        assert desk.pool.take() is good
    waiting = desk.wait()
    desk.pool.expire(now=0.02)
    assert waiting == [bad]
    assert not bad.ejected_until


def test_one_call_may_wait_for_a_frozen_instance_whatever_the_queue() -> None:
    desk = Desk(queue=0)
    member = desk.join("a")
    assert desk.pool.freeze(member)
    waiting = desk.wait()
    with pytest.raises(errors.QueueFull):
        desk.wait()
    desk.pool.thaw(member)
    assert waiting == [member]


class PoolMachine(RuleBasedStateMachine):
    """Any order of events against a plain model of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(8, "least-loaded", set())
        self.held: list[Member] = []
        self.members: list[Member] = []
        self.waiting: list[tuple[Waiter, list[Any]]] = []
        self.now = 0.0
        self.names = 0

    def _collect(self) -> None:
        """Waiters that were settled leave the queue from its front, each exactly once."""
        still = []
        for waiter, settled in self.waiting:
            assert len(settled) <= 1
            if not settled:
                still.append((waiter, settled))
            elif isinstance(settled[0], Member):
                assert not still, "a later waiter was served before an earlier one"
                self.held.append(settled[0])
        self.waiting = still

    @rule(capacity=st.integers(1, 3))
    def join(self, capacity: int) -> None:
        self.names += 1
        link: Any = Link(f"m{self.names}")
        self.members.append(self.pool.join(link, capacity, 1.0, 0.0, self.now))
        self._collect()

    @rule()
    def call(self) -> None:
        free = any(m.open for m in self.members)
        member = self.pool.take()
        assert (member is not None) == free
        if member is not None:
            self.held.append(member)
            return
        settled: list[Any] = []
        waiter = Waiter(self.now + 3, settled.append)
        try:
            self.pool.wait(waiter, self.now)
        except errors.QueueFull:
            assert len(self.waiting) >= 1
        else:
            self.waiting.append((waiter, settled))
            self._collect()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), failed=st.booleans())
    def release(self, data: st.DataObject, failed: bool) -> None:
        member = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(member, self.now, failed)
        self._collect()

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def freeze_or_thaw(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(self.members))
        if member.frozen:
            self.pool.thaw(member)
        else:
            idle = not member.in_flight and member.open
            assert self.pool.freeze(member) == idle
        self._collect()

    @precondition(lambda self: self.members)
    @rule(data=st.data(), lost=st.booleans())
    def leave(self, data: st.DataObject, lost: bool) -> None:
        member = data.draw(st.sampled_from(self.members))
        if lost:
            self.members.remove(member)
            self.pool.remove(member)
        else:
            self.pool.drain(member)
        self._collect()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        pair = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(pair)
        self.pool.forget(pair[0])

    @rule(seconds=st.floats(0, 4))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.pool.expire(self.now)
        late = [waiter for waiter, settled in self.waiting if settled and not isinstance(settled[0], Member)]
        self.waiting = [pair for pair in self.waiting if pair[0] not in late]
        assert all(waiter.deadline <= self.now for waiter in late)
        self._collect()
        for waiter, settled in self.waiting:
            assert not settled
            assert waiter.deadline > self.now

    @invariant()
    def counters_balance(self) -> None:
        assert self.pool.in_flight == len(self.held)
        assert self.pool.waiting == len(self.waiting)
        assert all(0 <= m.in_flight <= m.capacity for m in self.members)
        if any(m.open for m in self.members):
            assert not self.waiting, "a call waits although a slot is free"


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase
