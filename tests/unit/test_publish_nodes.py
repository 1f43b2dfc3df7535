"""Asking the nodes: all at once, the dead skipped, what several say made one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.errors import NodeUnavailable
from headrace.releases import nodes
from headrace.releases.nodes import merged
from release_kit import Kit, kit


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Kit]:
    async with kit(tmp_path / "home") as made:
        yield made


async def test_status_and_metrics_of_those_that_answer(world: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_SHOW_S", 0.2)
    for id in ("n1", "n2", "n3", "n4"):
        await world.node(id)
    await world.running[1].close()
    for op in ("status", "metrics"):
        world.running[2].fails(op, RuntimeError("bug"))
        world.running[3].hangs(op)
    await world.node("n5")
    assert await world.client.status() == [{"id": "n1"}, {"id": "n5"}]
    assert await world.client.metrics() == (
        "# HELP headrace_calls Calls.\n# TYPE headrace_calls gauge\n"
        'headrace_calls{node="n1"} 1\nheadrace_calls{node="n5"} 1\n'
    )


async def test_without_nodes_there_is_nothing_to_show(world: Kit) -> None:
    assert await world.client.status() == []
    assert await world.client.metrics() == ""
    await world.client.refresh(1)
    await world.client.refresh_tokens()
    await world.client.warm(1, 1)


async def test_tokens_are_told_to_all(world: Kit) -> None:
    told = [await world.node(id) for id in ("n1", "n2")]
    await world.client.refresh_tokens()
    assert [node.asked for node in told] == [[("refresh_tokens", {})]] * 2


async def test_a_probe_takes_one_node_and_passes_over_dead_ones(world: Kit) -> None:
    alive = [await world.node(id) for id in ("n1", "n2")]
    world.clock.at += 1
    dead = await world.node("n3")
    await dead.close()
    assert await world.client.probe(7) == {"kind": "handler", "ms": 3.4}
    assert sorted(len(node.asked) for node in alive) == [0, 1]


async def test_a_probe_waits_for_a_first_node(world: Kit) -> None:
    probing = asyncio.ensure_future(world.client.probe(7))
    await asyncio.sleep(0.05)
    assert not probing.done()
    node = await world.node()
    async with asyncio.timeout(5):
        await probing
    assert node.asked == [("probe", {"version_id": 7})]


async def test_a_probe_does_not_wait_for_ever(world: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(nodes, "_LOOK_AGAIN_S", 0.01)
    with pytest.raises(NodeUnavailable, match="no node runs"):
        await world.client.probe(7)


def test_families_of_several_nodes_come_in_one_piece() -> None:
    one = "# HELP a A.\n# TYPE a gauge\na 1\n# HELP b B.\n# TYPE b counter\n# HELP c C.\n# TYPE c gauge\nc 1\n"
    two = "loose 1\n# HELP b B.\n# TYPE b counter\nb 2\n\n# HELP a A.\n# TYPE a gauge\na 2\n"
    assert merged([one, two]).splitlines() == [
        "loose 1",
        *("# HELP a A.", "# TYPE a gauge", "a 1", "a 2"),
        *("# HELP b B.", "# TYPE b counter", "b 2"),
        *("# HELP c C.", "# TYPE c gauge", "c 1"),
    ]
