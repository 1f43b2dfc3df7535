"""Functions at rest: deployed, published and called by nobody, until no instance of them runs or all are frozen."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from measure import Unavailable

from headrace.settings import Settings
from stack import Headrace, example

_STOPPED_S = 240.0  # within this, instances that nobody calls have stopped
_FROZEN_S = 60.0
_SHELF_S = 600.0  # instances are made one at a time
_LOOK_S = 0.5
_REST_S = 2.0  # the engine comes to rest as well


def deploy_cold(platform: Headrace, count: int, say: Callable[[str], None]) -> list[str]:
    """Deploy `count` functions that answer as hello does; their names. Their instances stop soon."""
    files, config = example("hello")
    names = [f"cold-{number}" for number in range(1, count + 1)]
    for name in names:
        platform.deploy(name, files, {**config, "idle_s": 1, "min_instances": 0})
    say(f"{count} functions are deployed; their instances stop in a minute or two")
    return names


def wait_until_stopped(platform: Headrace, names: Sequence[str]) -> None:
    """Return when none of these functions has an instance any more."""
    deadline = time.monotonic() + _STOPPED_S
    while running := instances(platform, names):
        _wait(deadline, f"{len(running)} instances still run")
    time.sleep(_REST_S)


def instances(platform: Headrace, names: Sequence[str]) -> set[str]:
    """Ids of the instances of these functions."""
    return {instance["id"] for instance in _node(platform)["instances"] if instance["function"] in names}


def wait_for_shelf(platform: Headrace, size: int) -> None:
    """Return when `size` generic instances wait for a cold call."""
    deadline = time.monotonic() + _SHELF_S
    while (waiting := _node(platform)["waiting"]) < size:
        _wait(deadline, f"{waiting} of {size} generic instances wait")
    time.sleep(_REST_S)


def wait_until_frozen(platform: Headrace, count: int) -> None:
    """Return when `count` instances are paused."""
    label = f"label=headrace.home={Settings(home=platform.home).home_tag}"
    command = ["docker", "ps", "--quiet", "--filter", label, "--filter", "status=paused"]
    deadline = time.monotonic() + _FROZEN_S
    while (paused := len(subprocess.check_output(command, text=True).split())) < count:
        _wait(deadline, f"{paused} of {count} instances are frozen")
    time.sleep(_REST_S)


def _node(platform: Headrace) -> dict[str, Any]:
    nodes = platform.ask("GET", "/system")["nodes"]
    if not nodes:
        raise Unavailable("no node answers.")
    node: dict[str, Any] = nodes[0]
    return node


def _wait(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise Unavailable(f"{what}, and nothing changes that: look at the node's log.")
    time.sleep(_LOOK_S)
