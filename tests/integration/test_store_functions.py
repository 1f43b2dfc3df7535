"""Functions: settings, lists, deletion, and the revisions that tell nodes what to load again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.errors import Invalid, NotFound
from headrace.model import MetricSlot, VersionState
from headrace.store import retention, tables
from records_kit import invocation, line
from store_kit import NAME, NS, START, Store

SLOT = MetricSlot(START, "n1", NS, NAME, 1, {"ok": 1}, 0, 0, {3: 1}, 1.0, 1, 1)


async def test_a_new_function_has_the_default_settings(store: Store) -> None:
    function, created = await store.functions.put(NS, NAME, {"description": "says hello"})
    assert created
    assert (function.namespace, function.name, function.description) == (NS, NAME, "says hello")
    assert (function.access, function.balancing, function.sticky, function.labels) == (
        "public",
        "least-loaded",
        False,
        {},
    )
    assert function.created_at == function.updated_at == START
    assert await store.functions.get(NS, NAME) == function


async def test_put_changes_what_it_names_and_nothing_else(store: Store) -> None:
    before, _ = await store.functions.put(NS, NAME, {"description": "one", "labels": {"team": "a"}})
    store.clock.time += 5
    after, created = await store.functions.put(NS, NAME, {"access": "private", "sticky": True, "balancing": "hash"})
    assert not created
    assert (after.access, after.sticky, after.balancing) == ("private", True, "hash")
    assert (after.id, after.description, after.labels) == (before.id, "one", {"team": "a"})
    assert (after.created_at, after.updated_at) == (START, START + 5)


async def test_put_without_a_difference_writes_nothing(store: Store) -> None:
    before, _ = await store.functions.put(NS, NAME, {"description": "one"})
    revision = await store.functions.revision()
    store.clock.time += 5
    assert await store.functions.put(NS, NAME, {"description": "one"}) == (before, False)
    assert await store.functions.revision() == revision


async def test_concurrent_puts_create_one_function(store: Store) -> None:
    answers = await asyncio.gather(*(store.functions.put(NS, NAME, {"sticky": True}) for _ in range(10)))
    assert sorted(created for _, created in answers) == [False] * 9 + [True]
    assert len({function.id for function, _ in answers}) == 1


@pytest.mark.parametrize(
    ("namespace", "name", "changes"),
    [
        (NS, NAME, {"colour": "red"}),
        (NS, NAME, {"description": "a\0b"}),
        (NS, NAME, {"description": "\ud800"}),
        (NS, "Hello", {}),
        (NS, "a/b", {}),
        (NS, "hello\n", {}),
        (NS, "h\0", {}),
        ("", NAME, {}),
        (NS, "grün", {}),
    ],
)
async def test_bad_input_changes_nothing(store: Store, namespace: str, name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        await store.functions.put(namespace, name, changes)
    assert await store.count(tables.functions) == 0
    assert await store.functions.revision() == 0


async def test_an_unknown_function_is_not_found_and_says_what_to_do(store: Store) -> None:
    for call in (store.functions.get, store.functions.delete):
        with pytest.raises(NotFound, match="deploy it") as caught:
            await call(NS, "nobody")
        assert caught.value.ids == {"namespace": NS, "function": "nobody"}


async def test_list_pages_by_namespace_and_name(store: Store) -> None:
    names = [("a", "one"), ("a", "two"), ("a-b", "one"), ("b", "a1"), ("b", "b1")]
    for namespace, name in reversed(names):
        await store.functions.put(namespace, name, {})
    seen, cursor = [], None
    while True:
        page = await store.functions.list(None, 2, cursor)
        seen += [(function.namespace, function.name) for function in page.items]
        cursor = page.next
        if cursor is None:
            break
        assert len(page.items) == 2
    assert seen == names
    only = await store.functions.list(["a", "b"], 10, None)
    assert [function.namespace for function in only.items] == ["a", "a", "b", "b"]
    assert (await store.functions.list([], 10, None)).items == []


async def test_a_page_stays_where_it_was_when_rows_come_and_go(store: Store) -> None:
    for name in ("b", "d", "f"):
        await store.functions.put(NS, name, {})
    first = await store.functions.list(None, 2, None)
    await store.functions.put(NS, "a", {})
    await store.functions.put(NS, "e", {})
    await store.functions.delete(NS, "d")
    rest = await store.functions.list(None, 10, first.next)
    assert [function.name for function in rest.items] == ["e", "f"]


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "!!!", "bnVsbA", "W10", "WzFd", "WyJhIl0", "WyJhIiwxXQ", "WyJhIiwiXHUwMDAwIl0", "WyJhIiwiw6QiXQ", "ä"],
)
async def test_a_bad_cursor_is_invalid(store: Store, cursor: str) -> None:
    with pytest.raises(Invalid, match="cursor"):
        await store.functions.list(None, 10, cursor)


@pytest.mark.parametrize("limit", [0, -1, 1001])
async def test_a_limit_out_of_range_is_invalid(store: Store, limit: int) -> None:
    with pytest.raises(Invalid, match="limit"):
        await store.functions.list(None, limit, None)


async def test_delete_takes_everything_of_the_function_and_nothing_of_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_BATCH", 2)  # several batches
    version = await store.build()
    await store.publish(1)
    await store.versions.append_log(version.id, ["line"])
    await store.submit("d2")
    await store.submit("d1", "other")
    ours, theirs = [invocation(f"i{n}") for n in range(5)], [invocation("i9", function="other")]
    await store.records.append(
        ours + theirs, [line("x", invocation="i1"), line("y", function="other", invocation="i9")], [SLOT]
    )
    assert (await store.functions.delete(NS, NAME)).id == version.function_id
    assert await store.count(tables.functions) == await store.count(tables.versions) == 1
    assert await store.count(tables.jobs) == 1
    for table in (tables.aliases, tables.moves, tables.build_logs, tables.slots):
        assert await store.count(table) == 0, table.name
    assert (await store.records.invocation("i9")).function == "other"
    assert [line.text for line in await store.records.lines_of("i9")] == ["y"]
    assert await store.count(tables.invocations) == await store.count(tables.logs) == 1


async def test_a_function_made_again_is_another_one(store: Store) -> None:
    before = await store.build()
    await store.functions.delete(NS, NAME)
    after = await store.build()
    assert after.function_id > before.function_id
    assert after.id > before.id
    assert after.number == 1


async def test_the_revision_grows_with_every_change_that_routing_depends_on(store: Store) -> None:
    seen = [await store.functions.revision()]

    async def grows(by: int = 1) -> None:
        seen.append(await store.functions.revision())
        assert seen[-1] == seen[-2] + by

    await store.submit()
    await grows()  # the function is new
    job = await store.claim()
    for state in (VersionState.BUILDING, VersionState.PROBING):
        await store.versions.advance(1, state, job.lease)
    await grows(by=0)
    await store.versions.advance(1, VersionState.READY, job.lease)
    await grows()
    await store.versions.advance(1, VersionState.READY, job.lease)
    await grows(by=0)
    await store.publish(1)
    await grows()
    await store.functions.put(NS, NAME, {"access": "private"})
    await grows()
    await store.aliases.delete(NS, NAME, "live", "ann")
    await grows()
    await store.versions.retire(NS, NAME, 1)
    await grows()
    await store.functions.delete(NS, NAME)
    await grows()


async def test_what_changed_since_a_revision_is_named_and_counted(store: Store) -> None:
    one, _ = await store.functions.put(NS, "one", {})
    two, _ = await store.functions.put(NS, "two", {})
    before = await store.functions.revision()
    assert await store.functions.changed(before) == ({}, 2)
    await store.functions.put(NS, "two", {"sticky": True})
    after = await store.functions.revision()
    assert await store.functions.changed(before) == ({two.id: after}, 2)
    await store.functions.delete(NS, "one")
    assert await store.functions.changed(after) == ({}, 1)
    assert one.id not in await store.functions.ids() == {two.id}


async def test_a_target_has_the_aliases_and_the_ready_versions(store: Store) -> None:
    ready = await store.build("d1")
    await store.build("d2", to=VersionState.FAILED, reason="no")
    await store.build("d3")
    await store.versions.retire(NS, NAME, 3)
    pending = await store.submit("d4")
    await store.publish(1)
    await store.publish(1, alias="beta")
    await store.aliases.delete(NS, NAME, "beta", "ann")
    target = await store.functions.target(ready.function_id)
    assert target is not None
    assert target.function == await store.functions.get(NS, NAME)
    assert target.aliases == {"live": {1: 100}}
    assert target.versions == {1: ready}
    assert target.revision == await store.functions.revision()
    assert pending.number == 4


async def test_targets_are_those_of_each_function(store: Store) -> None:
    one, two = await store.build(name="one"), await store.build(name="two")
    await store.build("d2", name="two")
    await store.publish(2, name="two")
    targets = [target async for target in store.functions.targets()]
    assert sorted(targets, key=lambda target: target.function.id) == [
        await store.functions.target(one.function_id),
        await store.functions.target(two.function_id),
    ]
    assert {target.function.name: sorted(target.versions) for target in targets} == {"one": [1], "two": [1, 2]}
    await store.functions.delete(NS, "one")
    assert await store.functions.target(one.function_id) is None
    assert [target.function.name async for target in store.functions.targets()] == ["two"]
