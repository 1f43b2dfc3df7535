"""Nodes: their last report, and who is alive."""

from __future__ import annotations

from dataclasses import replace

from headrace.model import Node
from store_kit import START, Store

ONE = Node("n1", "/run/n1.sock", "http://127.0.0.1:7780", START - 60, 0.0, {"instances": {"hello": 2}})


async def test_a_node_is_live_until_it_was_silent_for_long(store: Store) -> None:
    await store.nodes.announce(ONE)
    assert await store.nodes.live(30) == [replace(ONE, seen_at=START)]
    store.clock.time += 30
    assert [node.id for node in await store.nodes.live(30)] == ["n1"]
    store.clock.time += 0.1
    assert await store.nodes.live(30) == []


async def test_a_new_report_replaces_the_last_one(store: Store) -> None:
    await store.nodes.announce(ONE)
    store.clock.time += 5
    restarted = replace(ONE, address="/run/other.sock", started_at=START + 1, info={})
    await store.nodes.announce(restarted)
    assert await store.nodes.live(30) == [replace(restarted, seen_at=START + 5)]


async def test_nodes_are_listed_by_id_and_can_go(store: Store) -> None:
    for id in ("n3", "n1", "n2"):
        await store.nodes.announce(replace(ONE, id=id))
    await store.nodes.remove("n1")
    await store.nodes.remove("unknown")
    assert [node.id for node in await store.nodes.live(30)] == ["n2", "n3"]
