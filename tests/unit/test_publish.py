"""Moving aliases: what is refused changes nothing, what is answered is in force on every node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import (
    Conflict,
    EngineUnavailable,
    HeadraceError,
    Invalid,
    LoadFailed,
    NoCapacity,
    NodeUnavailable,
    NotFound,
)
from headrace.model import Move, Version, VersionState
from headrace.releases import nodes
from release_kit import FakeNode, Kit, kit

ACTOR = "ada"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Kit]:
    async with kit(tmp_path / "home") as made:
        yield made


async def three_versions(world: Kit) -> FakeNode:
    node = await world.node()
    for n in range(3):
        await world.ready(other=f"n = {n}")
    node.asked.clear()
    return node


async def publish(world: Kit, version: int, if_generation: int | None = None, alias: str = "live") -> Move:
    return await world.publisher.publish("default", "hello", version, alias, if_generation, actor=ACTOR)


async def rollback(world: Kit, to: int | None = None, if_generation: int | None = None) -> Move:
    return await world.publisher.rollback("default", "hello", "live", to, if_generation, actor=ACTOR)


async def split(world: Kit, traffic: dict[int, int], if_generation: int | None = None) -> Move:
    return await world.publisher.split("default", "hello", "live", traffic, if_generation, actor=ACTOR)


async def traffic(world: Kit) -> tuple[int, dict[int, int]]:
    alias = await world.aliases.get("default", "hello", "live")
    return alias.generation, alias.traffic


def served(node: FakeNode) -> dict[str, dict[int, int]]:
    [target] = node.serves.values()
    assert target is not None
    return target.aliases


async def test_publish_warms_then_moves_then_has_every_node_take_it_over(world: Kit) -> None:
    first = await three_versions(world)
    second = await world.node("n2")
    moved_when_warmed: list[dict[str, dict[int, int]]] = []

    async def warm(question: dict[str, Any]) -> dict[str, Any]:
        target = await world.functions.target(question["function_id"])
        moved_when_warmed.append(target.aliases if target is not None else {})
        return {"ready": True}

    for node in (first, second):
        node.answers["warm"] = warm
    move = await publish(world, 2)
    assert (move.alias, move.generation, move.traffic, move.previous) == ("live", 1, {2: 100}, {})
    assert (move.action, move.actor) == ("publish", ACTOR)
    assert moved_when_warmed == [{}, {}]
    for node in (first, second):
        assert node.ops() == ["warm", "refresh"]
        assert node.asked[0][1]["version"] == 2
        assert served(node) == {"live": {2: 100}}


async def test_the_answer_waits_until_the_last_node_serves_it(world: Kit) -> None:
    await three_versions(world)
    slow, go_on = await world.node("n2"), asyncio.Event()
    refresh = slow._refresh

    async def hesitate(question: dict[str, Any]) -> dict[str, Any]:
        await go_on.wait()
        return await refresh(question)

    slow.answers["refresh"] = hesitate
    publishing = asyncio.ensure_future(publish(world, 1))
    while "refresh" not in slow.ops():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert not publishing.done()
    go_on.set()
    await publishing
    assert served(slow) == {"live": {1: 100}}


async def test_every_move_is_in_force_when_it_is_answered(world: Kit) -> None:
    node = await three_versions(world)
    for n in range(30):
        move = await publish(world, n % 2 + 1) if n % 3 else await rollback(world, to=3)
        assert served(node)["live"] == move.traffic


@pytest.mark.parametrize("left", ["no socket", "a socket that nobody serves", "cut off"])
async def test_a_dead_node_holds_nothing_up(world: Kit, left: str) -> None:
    node = await three_versions(world)
    dead = await world.node("dead")
    if left == "cut off":
        for op in ("warm", "refresh"):
            dead.answers[op] = cut_off
    else:
        dead._server._server.close()  # type: ignore[union-attr]
        if left == "no socket":
            dead.path.unlink()
    async with asyncio.timeout(5):
        await publish(world, 2)
    assert served(node) == {"live": {2: 100}}


async def cut_off(_: dict[str, Any]) -> dict[str, Any]:
    raise asyncio.CancelledError  # the conversation ends without an answer


async def test_without_any_node_the_move_is_made(world: Kit) -> None:
    node = await three_versions(world)
    await node.close()
    await world.nodes.remove("n1")
    await publish(world, 2)
    assert await traffic(world) == (1, {2: 100})


async def test_a_node_that_was_not_seen_for_long_is_not_asked(world: Kit) -> None:
    node = await three_versions(world)
    world.clock.at += 31
    await publish(world, 2)
    assert not node.asked


async def test_a_node_that_is_there_but_silent_is_an_error_that_tells_the_truth(
    world: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_CHANGE_S", 0.1)
    node = await three_versions(world)
    silent = await world.node("silent")
    silent.hangs("refresh")
    with pytest.raises(NodeUnavailable, match="the change is stored, but node silent has not confirmed") as caught:
        await publish(world, 2)
    assert caught.value.ids == {"node": "silent"}
    assert await traffic(world) == (1, {2: 100})
    assert served(node) == {"live": {2: 100}}
    silent.fails("refresh", NoCapacity("the store sleeps."))
    with pytest.raises(NodeUnavailable, match="the store sleeps"):
        await publish(world, 1)


async def test_a_version_that_does_not_start_any_more_is_refused(world: Kit) -> None:
    node = await three_versions(world)
    await publish(world, 1)
    raised = {"type": "ImportError", "message": "no more", "stack": "..."}
    node.fails("warm", LoadFailed("ImportError: no more", error=raised))
    for move in (publish(world, 2), split(world, {2: 50, 3: 50}), rollback(world, to=3)):
        with pytest.raises(Conflict, match=r"does not start .ImportError: no more.*nothing was moved") as caught:
            await move
        assert caught.value.ids["error"] == raised and caught.value.ids["version"] in (2, 3)
    assert await traffic(world) == (1, {1: 100})
    assert served(node) == {"live": {1: 100}}


async def test_a_failure_of_the_function_counts_more_than_one_of_the_platform(world: Kit) -> None:
    node = await three_versions(world)
    (await world.node("n0")).fails("warm", NoCapacity("full."))
    node.fails("warm", LoadFailed("ImportError: no more"))
    with pytest.raises(Conflict, match="ImportError"):
        await publish(world, 2)


@pytest.mark.parametrize("error", [EngineUnavailable("the engine sleeps."), NoCapacity("full."), RuntimeError("bug")])
async def test_what_the_platform_cannot_do_now_does_not_block_a_move(world: Kit, error: Exception) -> None:
    node = await three_versions(world)
    node.fails("warm", error)
    await publish(world, 2)
    assert served(node) == {"live": {2: 100}}


@pytest.mark.parametrize("state", [VersionState.PENDING, VersionState.FAILED])
async def test_only_ready_versions_are_published_and_others_not_even_started(world: Kit, state: VersionState) -> None:
    node = await three_versions(world)
    other: Version = await world.submit(other="n = 4")
    if state is VersionState.FAILED:
        job = await world.claim()
        await world.versions.advance(other.id, state, job.lease, reason="it was bad")
    with pytest.raises(Conflict) as caught:
        await publish(world, other.number)
    assert caught.value.ids["state"] == state
    assert "warm" not in node.ops() and "refresh" not in node.ops()
    with pytest.raises(NotFound):
        await traffic(world)


async def test_a_stale_generation_is_told_the_current_state_and_changes_nothing(world: Kit) -> None:
    node = await three_versions(world)
    await publish(world, 1, if_generation=0)
    await publish(world, 2, if_generation=1)
    node.asked.clear()
    for stale in (publish(world, 3, 1), rollback(world, None, 1), rollback(world, 3, 1), split(world, {3: 100}, 1)):
        with pytest.raises(Conflict) as caught:
            await stale
        assert caught.value.ids["generation"] == 2
        assert {int(number): weight for number, weight in caught.value.ids["traffic"].items()} == {2: 100}
    assert await traffic(world) == (2, {2: 100})
    assert "refresh" not in node.ops()
    assert len((await world.aliases.history("default", "hello", "live", 10, None)).items) == 2


async def test_of_many_publishers_at_one_generation_one_wins(world: Kit) -> None:
    await three_versions(world)
    moves = await asyncio.gather(*(publish(world, n % 3 + 1, 0) for n in range(9)), return_exceptions=True)
    won = [move for move in moves if isinstance(move, Move)]
    assert len(won) == 1 and all(isinstance(move, Conflict) for move in moves if move not in won)
    assert await traffic(world) == (1, won[0].traffic)


async def test_rollback_to_the_traffic_before_and_back_again(world: Kit) -> None:
    node = await three_versions(world)
    await split(world, {1: 90, 2: 10})
    await publish(world, 3)
    move = await rollback(world)
    assert (move.action, move.traffic, move.previous) == ("rollback", {1: 90, 2: 10}, {3: 100})
    assert served(node) == {"live": {1: 90, 2: 10}}
    assert (await rollback(world)).traffic == {3: 100}


async def test_rollback_to_a_version(world: Kit) -> None:
    node = await three_versions(world)
    await publish(world, 3)
    assert (await rollback(world, to=1)).traffic == {1: 100}
    assert served(node) == {"live": {1: 100}}
    with pytest.raises(NotFound):
        await rollback(world, to=9)


async def test_nothing_to_roll_back_to(world: Kit) -> None:
    await three_versions(world)
    with pytest.raises(NotFound):
        await rollback(world)
    await publish(world, 1)
    with pytest.raises(Conflict, match="nothing to roll back to"):
        await rollback(world)


async def test_two_rollbacks_at_once_do_not_undo_each_other(world: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    await three_versions(world)
    await publish(world, 1)
    await publish(world, 2)
    before, both = world.aliases.before, asyncio.Barrier(2)

    async def together(namespace: str, name: str, alias: str) -> dict[int, int]:
        found = await before(namespace, name, alias)
        await both.wait()
        return found

    monkeypatch.setattr(world.aliases, "before", together)
    moves = await asyncio.gather(rollback(world), rollback(world), return_exceptions=True)
    assert {type(move) for move in moves} == {Move, Conflict}
    assert await traffic(world) == (3, {1: 100})


async def test_split_between_versions(world: Kit) -> None:
    node = await three_versions(world)
    move = await split(world, {1: 0, 2: 70, 3: 30})
    assert (move.action, move.traffic) == ("traffic", {2: 70, 3: 30})
    assert sorted(question["version"] for op, question in node.asked if op == "warm") == [2, 3]
    assert served(node) == {"live": {2: 70, 3: 30}}
    for wrong in ({1: 50, 2: 49}, {}, {1: 150, 2: -50}):
        with pytest.raises(Invalid):
            await split(world, wrong)
    with pytest.raises(NotFound):
        await split(world, {1: 50, 9: 50})
    assert await traffic(world) == (1, {2: 70, 3: 30})


async def test_an_alias_is_deleted_everywhere(world: Kit) -> None:
    node = await three_versions(world)
    await publish(world, 1, alias="beta")
    move = await world.publisher.delete_alias("default", "hello", "beta", actor=ACTOR)
    assert (move.action, move.traffic, move.previous) == ("delete", {}, {1: 100})
    assert served(node) == {}
    with pytest.raises(NotFound):
        await world.publisher.delete_alias("default", "hello", "beta", actor=ACTOR)


async def test_unknown_functions(world: Kit) -> None:
    for move in (publish(world, 1), rollback(world), rollback(world, to=1), split(world, {1: 100})):
        with pytest.raises(NotFound):
            await move


async def test_changed_and_deleted_functions_reach_the_nodes(world: Kit) -> None:
    node = await three_versions(world)
    await publish(world, 1)
    function, created = await world.releases.put_function("default", "hello", {"access": "private"})
    assert not created
    target = node.serves[function.id]
    assert target is not None and target.function.access == "private"
    await world.releases.delete_version("default", "hello", 2)
    target = node.serves[function.id]
    assert target is not None and sorted(target.versions) == [1, 3]
    with pytest.raises(Conflict):
        await world.releases.delete_version("default", "hello", 1)
    await world.releases.delete_function("default", "hello")
    assert node.serves == {function.id: None}


async def test_a_new_version_wakes_the_worker_and_a_known_one_does_not(world: Kit) -> None:
    first = await world.submit()
    assert (await world.submit()).id == first.id
    assert world.wake.pokes == 1


async def test_errors_carry_their_kind_over_the_socket(world: Kit) -> None:
    node = await world.node()
    node.fails("probe", LoadFailed("ValueError: boom", error={"stack": "line 3"}))
    with pytest.raises(HeadraceError) as caught:
        await world.client.probe(1)
    assert isinstance(caught.value, LoadFailed) and caught.value.ids == {"error": {"stack": "line 3"}}
