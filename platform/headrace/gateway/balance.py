"""Which instance takes a call: policies as plain functions over the members of a pool that have a free slot.

A policy gets the available members (never empty) and the affinity key of the call (None without one) and returns
one of them. `least-loaded` is "the power of two random choices" (Mitzenmacher, 2001) once scanning would cost more;
`hash` is rendezvous hashing (Thaler and Ravishankar, 1998), whose keys move only when the instance they were on
goes away, over the members that still have room: that is its bound on load.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import count
from typing import Protocol, TypeVar

from headrace.model import Balancing

_SCAN = 4  # up to this many members are compared; beyond it two random ones


class Candidate(Protocol):
    """What a policy may know about a member."""

    @property
    def name(self) -> str: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def cpus(self) -> float: ...


M = TypeVar("M", bound=Candidate)
Policy = Callable[[Sequence[M], str | None], M]


def least_loaded(members: Sequence[M], key: str | None) -> M:
    """The member with the fewest calls in flight."""
    if len(members) <= _SCAN:
        least = members[0]
        for member in members:
            if member.in_flight < least.in_flight:
                least = member
        return least
    first, second = random.sample(members, 2)
    return first if first.in_flight <= second.in_flight else second


def uniform(members: Sequence[M], key: str | None) -> M:
    """Any member, each with the same chance."""
    return random.choice(members)  # noqa: S311 - balancing, not cryptography


def weighted(members: Sequence[M], key: str | None) -> M:
    """The member with the fewest calls in flight for the CPU it has."""
    return min(members, key=_load_per_cpu)


def by_hash(members: Sequence[M], key: str | None) -> M:
    """The member that `key` belongs to among those with a free slot; the least loaded without a key."""
    if key is None:
        return least_loaded(members, key)
    return max(members, key=lambda member: _score(key, member.name))


def policy(name: Balancing) -> Policy[M]:
    """A policy by its name. Each call gives a fresh one: round-robin keeps its own turn."""
    if name == "round-robin":
        turns = count()
        return lambda members, key: members[next(turns) % len(members)]
    policies: dict[str, Policy[M]] = {
        "least-loaded": least_loaded,
        "random": uniform,
        "weighted": weighted,
        "hash": by_hash,
    }
    return policies[name]


def _load_per_cpu(member: Candidate) -> float:
    return (member.in_flight + 1) / member.cpus


def _score(key: str, name: str) -> bytes:
    return blake2b(f"{key}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
