"""Balancing policies, on members made for the purpose."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from headrace.gateway import balance


@dataclass
class Instance:
    name: str
    in_flight: int = 0
    capacity: int = 10
    cpus: float = 1.0


def _instances(*loads: int) -> list[Instance]:
    return [Instance(f"i{at}", load) for at, load in enumerate(loads)]


def test_least_loaded_takes_the_emptiest_of_few() -> None:
    assert balance.least_loaded(_instances(3, 1, 2), None).name == "i1"


def test_least_loaded_of_many_never_takes_the_fullest() -> None:
    members = _instances(*([1] * 20), 9)
    assert all(balance.least_loaded(members, None).in_flight == 1 for _ in range(500))


def test_round_robin_takes_turns_per_pool() -> None:
    members = _instances(0, 0, 0)
    one: balance.Policy[Instance] = balance.policy("round-robin")
    other: balance.Policy[Instance] = balance.policy("round-robin")
    assert [one(members, None).name for _ in range(4)] == ["i0", "i1", "i2", "i0"]
    assert other(members, None).name == "i0"


def test_random_reaches_every_member() -> None:
    members = _instances(0, 0, 0)
    assert set(Counter(balance.uniform(members, None).name for _ in range(200))) == {"i0", "i1", "i2"}


def test_weighted_fills_by_cpu() -> None:
    small, big = Instance("small", cpus=0.5), Instance("big", cpus=2.0)
    for _ in range(10):
        balance.weighted([small, big], None).in_flight += 1
    assert (small.in_flight, big.in_flight) == (2, 8)


def test_hash_keeps_a_key_on_its_member_and_moves_only_the_keys_of_one_that_left() -> None:
    members = _instances(0, 0, 0, 0, 0)
    keys = [f"caller-{n}" for n in range(300)]
    before = {key: balance.by_hash(members, key).name for key in keys}
    assert before == {key: balance.by_hash(list(reversed(members)), key).name for key in keys}
    assert min(Counter(before.values()).values()) > 30
    left = [member for member in members if member.name != "i2"]
    after = {key: balance.by_hash(left, key).name for key in keys}
    assert {key for key in keys if before[key] != after[key]} == {key for key in keys if before[key] == "i2"}


def test_hash_without_a_key_is_least_loaded() -> None:
    assert balance.by_hash(_instances(2, 0), None).name == "i1"


@pytest.mark.parametrize("name", ["least-loaded", "round-robin", "random", "weighted", "hash"])
def test_every_policy_of_the_api_exists(name: str) -> None:
    policy: balance.Policy[Instance] = balance.policy(name)  # type: ignore[arg-type]
    members = _instances(0, 0)
    assert policy(members, "key") in members
