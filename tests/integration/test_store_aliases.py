"""Aliases: compare-and-set moves with their audit, rollback, deletion."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest

from headrace.errors import Conflict, Invalid, NotFound
from headrace.model import Move, VersionState
from headrace.store import tables
from store_kit import NAME, NS, START, Store


@pytest.fixture
async def three(store: Store) -> Store:
    for digest in ("d1", "d2", "d3"):
        await store.build(digest)
    return store


async def move(
    store: Store,
    traffic: dict[int, int],
    if_generation: int | None = None,
    *,
    alias: str = "live",
    action: Literal["publish", "rollback", "traffic"] = "publish",
    actor: str = "ann",
) -> Move:
    return await store.aliases.move(NS, NAME, alias, traffic, action=action, actor=actor, if_generation=if_generation)


async def test_the_first_move_makes_the_alias(three: Store) -> None:
    made = await move(three, {1: 100})
    assert made == Move("live", 1, "publish", "ann", START, {1: 100}, {})
    alias = await three.aliases.get(NS, NAME, "live")
    assert (alias.name, alias.generation, alias.traffic, alias.moved_at) == ("live", 1, {1: 100}, START)
    assert (alias.namespace, alias.function) == (NS, NAME)


async def test_each_move_leaves_an_audit_row(three: Store) -> None:
    await move(three, {1: 100})
    three.clock.time += 1
    await move(three, {2: 10, 1: 90, 3: 0}, action="traffic", actor="bob")
    three.clock.time += 1
    await move(three, {1: 100}, action="rollback", actor="eve")
    page = await three.aliases.history(NS, NAME, "live", 10, None)
    assert page.items == [
        Move("live", 3, "rollback", "eve", START + 2, {1: 100}, {1: 90, 2: 10}),
        Move("live", 2, "traffic", "bob", START + 1, {1: 90, 2: 10}, {1: 100}),
        Move("live", 1, "publish", "ann", START, {1: 100}, {}),
    ]
    assert page.next is None


@pytest.mark.parametrize("existing", [False, True])
async def test_of_fifty_moves_from_one_generation_exactly_one_wins(three: Store, existing: bool) -> None:
    if existing:
        await move(three, {3: 100})
    generation = int(existing)
    answers = await asyncio.gather(
        *(move(three, {1 + n % 2: 100}, generation, actor=f"actor {n}") for n in range(50)), return_exceptions=True
    )
    won = [answer for answer in answers if isinstance(answer, Move)]
    lost = [answer for answer in answers if isinstance(answer, Conflict)]
    assert (len(won), len(lost)) == (1, 49)
    assert all(error.ids["generation"] == generation + 1 for error in lost)
    alias = await three.aliases.get(NS, NAME, "live")
    assert (alias.generation, alias.traffic) == (generation + 1, won[0].traffic)
    assert (await three.aliases.history(NS, NAME, "live", 10, None)).items[0] == won[0]
    assert await three.count(tables.moves) == generation + 1


async def test_moves_without_a_generation_all_happen_one_after_another(three: Store) -> None:
    await asyncio.gather(*(move(three, {1: n, 2: 100 - n}) for n in range(1, 21)))
    moves = (await three.aliases.history(NS, NAME, "live", 100, None)).items
    assert [made.generation for made in moves] == list(range(20, 0, -1))
    assert [made.previous for made in moves] == [made.traffic for made in moves[1:]] + [{}]


async def test_a_stale_generation_answers_with_the_current_state(three: Store) -> None:
    await move(three, {1: 100})
    await move(three, {2: 60, 3: 40})
    with pytest.raises(Conflict, match="generation 2, not 1") as caught:
        await move(three, {3: 100}, 1)
    assert caught.value.ids == {"alias": "live", "generation": 2, "traffic": {"2": 60, "3": 40}}
    with pytest.raises(Conflict):
        await move(three, {3: 100}, 1, alias="beta")
    assert (await move(three, {3: 100}, 2)).generation == 3


async def test_moving_where_it_points_already_changes_nothing(three: Store) -> None:
    """A client that repeats a publish whose answer was lost must not turn the next rollback into nothing."""
    await move(three, {1: 100})
    first = await move(three, {2: 100})
    revision = await three.functions.revision()
    three.clock.time += 5
    assert await move(three, {2: 100}, actor="bob") == first
    assert await three.functions.revision() == revision
    assert await three.aliases.before(NS, NAME, "live") == {1: 100}
    with pytest.raises(Conflict):
        await move(three, {2: 100}, 1)


@pytest.mark.parametrize("state", [VersionState.FAILED, VersionState.PENDING, VersionState.RETIRED])
async def test_only_ready_versions_can_be_pointed_at(three: Store, state: VersionState) -> None:
    if state is VersionState.FAILED:
        await three.build("d4", to=VersionState.FAILED, reason="no handler")
    elif state is VersionState.PENDING:
        await three.submit("d4")
    else:
        await three.build("d4")
        await three.versions.retire(NS, NAME, 4)
    await move(three, {1: 100})
    told = "wait until it is ready" if state is VersionState.PENDING else "only ready versions"
    with pytest.raises(Conflict, match=told) as caught:
        await move(three, {1: 50, 4: 50})
    reason = "no handler" if state is VersionState.FAILED else None
    assert caught.value.ids == {"version": 4, "state": state.value, "reason": reason}
    assert (await three.aliases.get(NS, NAME, "live")).traffic == {1: 100}
    assert await three.count(tables.moves) == 1


@pytest.mark.parametrize(
    ("alias", "traffic", "actor"),
    [
        ("live", {}, "ann"),
        ("live", {1: 99}, "ann"),
        ("live", {1: 101}, "ann"),
        ("live", {1: 50, 2: 49}, "ann"),
        ("live", {1: 110, 2: -10}, "ann"),
        ("live", {0: 100}, "ann"),
        ("Live", {1: 100}, "ann"),
        ("a/b", {1: 100}, "ann"),
        ("live", {1: 100}, "a\0b"),
    ],
)
async def test_bad_input_changes_nothing(three: Store, alias: str, traffic: dict[int, int], actor: str) -> None:
    revision = await three.functions.revision()
    with pytest.raises(Invalid):
        await move(three, traffic, alias=alias, actor=actor)
    assert await three.count(tables.aliases) == await three.count(tables.moves) == 0
    assert await three.functions.revision() == revision


async def test_unknown_functions_versions_and_aliases_are_not_found(three: Store) -> None:
    with pytest.raises(NotFound, match="no version 4"):
        await move(three, {1: 50, 4: 50})
    with pytest.raises(NotFound):
        await three.aliases.move(NS, "nobody", "live", {1: 100}, action="publish", actor="ann", if_generation=None)
    for call in (three.aliases.get(NS, NAME, "live"), three.aliases.history(NS, NAME, "live", 10, None)):
        with pytest.raises(NotFound, match="no alias live"):
            await call
    with pytest.raises(NotFound):
        await three.aliases.delete(NS, NAME, "live", "ann")
    with pytest.raises(NotFound):
        await three.aliases.list(NS, "nobody")


async def test_before_is_where_it_pointed_before_the_last_move(three: Store) -> None:
    for nowhere in ("live", "beta"):
        with pytest.raises(Conflict, match="nothing to roll back to"):
            await three.aliases.before(NS, NAME, nowhere)
    await move(three, {1: 100})
    with pytest.raises(Conflict, match="nothing to roll back to"):
        await three.aliases.before(NS, NAME, "live")
    await move(three, {2: 30, 3: 70})
    assert await three.aliases.before(NS, NAME, "live") == {1: 100}
    await move(three, {1: 100}, action="rollback")
    assert await three.aliases.before(NS, NAME, "live") == {2: 30, 3: 70}


async def test_a_deleted_alias_is_gone_but_its_history_and_generation_go_on(three: Store) -> None:
    await move(three, {1: 100})
    gone = await three.aliases.delete(NS, NAME, "live", "bob")
    assert gone == Move("live", 2, "delete", "bob", START, {}, {1: 100})
    assert await three.aliases.list(NS, NAME) == []
    for call in (three.aliases.get(NS, NAME, "live"), three.aliases.delete(NS, NAME, "live", "bob")):
        with pytest.raises(NotFound):
            await call
    assert await three.aliases.before(NS, NAME, "live") == {1: 100}
    with pytest.raises(Conflict):
        await move(three, {2: 100}, 1)
    assert (await move(three, {1: 100}, 2)).generation == 3
    history = await three.aliases.history(NS, NAME, "live", 10, None)
    assert [made.action for made in history.items] == ["publish", "delete", "publish"]


async def test_list_is_by_name_and_of_this_function(three: Store) -> None:
    await three.build("d1", name="other")
    await three.publish(1, name="other", alias="alpha")
    await three.publish(1, alias="live")
    await three.publish(2, alias="beta")
    assert [(alias.name, alias.traffic) for alias in await three.aliases.list(NS, NAME)] == [
        ("beta", {2: 100}),
        ("live", {1: 100}),
    ]


async def test_one_alias_of_several_functions(three: Store) -> None:
    other, third = [(await three.build("d1", name=name)).function_id for name in ("other", "third")]
    await three.publish(1, name="other")
    await three.publish(1, name="third")
    await three.aliases.delete(NS, "third", "live", "ann")
    await three.publish(2, alias="beta")
    ours = (await three.functions.get(NS, NAME)).id
    assert await three.aliases.named("live", [ours, other, third, 77]) == {
        other: await three.aliases.get(NS, "other", "live")
    }
    assert list(await three.aliases.named("beta", [ours, other])) == [ours]
    assert await three.aliases.named("live", []) == {}


async def test_history_pages_are_stable_under_new_moves(three: Store) -> None:
    await three.publish(1, 2, 3, 1, 2)
    first = await three.aliases.history(NS, NAME, "live", 2, None)
    await three.publish(3)
    second = await three.aliases.history(NS, NAME, "live", 2, first.next)
    last = await three.aliases.history(NS, NAME, "live", 2, second.next)
    generations = [[made.generation for made in page.items] for page in (first, second, last)]
    assert generations == [[5, 4], [3, 2], [1]]
    assert last.next is None
    with pytest.raises(Invalid, match="cursor"):
        await three.aliases.history(NS, NAME, "live", 2, "W10")
