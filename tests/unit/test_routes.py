"""Routes: what a spelling means, how splits choose, and that a swap is seen by the very next lookup."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from headrace import errors
from headrace.gateway.pool import Pool
from headrace.gateway.routes import Routes
from headrace.model import Function, Target, Version, VersionConfig, VersionState


def _version(number: int, function: int = 1) -> Version:
    config = VersionConfig(timeout_s=number)
    return Version(
        function * 1000 + number,
        function,
        "default",
        "hello",
        number,
        VersionState.READY,
        None,
        "d",
        None,
        config,
        1,
        0,
        0,
    )


def _target(
    aliases: dict[str, dict[int, int]],
    *numbers: int,
    id: int = 1,
    revision: int = 1,
    name: str = "hello",
    namespace: str = "default",
    **settings: Any,
) -> Target:
    wanted = {"access": "public", "balancing": "least-loaded", "sticky": False, **settings}
    function = Function(id, namespace, name, "", labels={}, created_at=0, updated_at=0, **wanted)
    return Target(function, aliases, {number: _version(number, id) for number in numbers}, revision)


def _routes(*targets: Target) -> Routes:
    routes = Routes(lambda target, version: Pool(1, "least-loaded", set()))
    for target in targets:
        routes.put(target)
    return routes


def _number(routes: Routes, spelling: str, key: str | None = None) -> int:
    return routes.lookup(spelling).choose(key).version.number


@pytest.mark.parametrize(
    ("spelling", "number"),
    [
        ("hello", 2),
        ("hello@live", 2),
        ("hello@1", 1),
        ("hello@beta", 3),
        ("hello.default", 2),
        ("hello.default@1", 1),
    ],
)
def test_spellings(spelling: str, number: int) -> None:
    routes = _routes(_target({"live": {2: 100}, "beta": {3: 100}}, 1, 2, 3))
    assert _number(routes, spelling) == number
    assert routes.lookup(spelling).prefix == f"/fn/{spelling}"


@pytest.mark.parametrize(
    "spelling",
    [
        "",
        "nobody",
        "hello@",
        "hello.",
        "hello@4",
        "hello@gamma",
        "hello.team",
        "hello@-1",
        "hello@\u0661",
        "@1",
        "hello@1@2",
    ],
)
def test_what_is_not_there_is_said(spelling: str) -> None:
    routes = _routes(_target({"live": {1: 100}}, 1))
    with pytest.raises(errors.NotFound):
        routes.lookup(spelling)


def test_nothing_published_yet_says_what_to_do() -> None:
    with pytest.raises(errors.NotFound, match="publish a version first"):
        _routes(_target({}, 1)).lookup("hello")


def test_the_lookup_after_a_swap_sees_it_and_an_older_revision_does_not_come_back() -> None:
    routes = _routes(_target({"live": {1: 100}}, 1, 2))
    assert _number(routes, "hello") == 1
    routes.put(_target({"live": {2: 100}}, 1, 2, revision=2))
    assert _number(routes, "hello") == 2
    routes.put(_target({"live": {1: 100}}, 1, 2, revision=1))
    assert _number(routes, "hello") == 2


def test_a_dropped_function_is_gone_and_a_new_one_of_the_name_takes_over() -> None:
    routes = _routes(_target({"live": {1: 100}}, 1, id=1))
    assert _number(routes, "hello") == 1
    routes.put(_target({"live": {2: 100}}, 2, id=2))
    routes.drop(1)
    assert _number(routes, "hello") == 2
    routes.drop(2)
    with pytest.raises(errors.NotFound):
        routes.lookup("hello")
    assert len(routes) == 0


def test_namespaces_are_apart() -> None:
    routes = _routes(_target({"live": {1: 100}}, 1, id=1), _target({"live": {2: 100}}, 2, id=2, namespace="team"))
    assert (_number(routes, "hello"), _number(routes, "hello.team")) == (1, 2)


def test_a_split_follows_its_weights() -> None:
    routes = _routes(_target({"live": {1: 90, 2: 10}}, 1, 2))
    seen = Counter(_number(routes, "hello") for _ in range(5000))
    assert 350 < seen[2] < 650
    assert not routes.lookup("hello").chooses


def test_a_sticky_split_keeps_each_caller_and_still_follows_its_weights() -> None:
    routes = _routes(_target({"live": {1: 50, 2: 50}}, 1, 2, sticky=True))
    assert routes.lookup("hello").chooses
    of = {key: _number(routes, "hello", key) for key in map(str, range(1000))}
    assert of == {key: _number(routes, "hello", key) for key in of}
    assert 400 < Counter(of.values())[1] < 600
