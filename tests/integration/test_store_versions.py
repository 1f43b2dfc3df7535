"""Versions: numbers, states that only move forward under a lease, build logs, retirement."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from headrace.errors import Conflict, Invalid, NotFound
from headrace.model import VersionConfig, VersionState
from headrace.store import tables, versions
from store_kit import NAME, NS, START, Store

FORWARD = [VersionState.PENDING, VersionState.BUILDING, VersionState.PROBING, VersionState.READY]


async def test_submit_makes_function_version_and_job_at_once(store: Store) -> None:
    config = VersionConfig(memory_mb=256, env={"A": "1"})
    version, created = await store.versions.submit(NS, NAME, "d1", config, 4_000_000_000)
    assert created
    assert (version.number, version.state, version.digest, version.config) == (1, VersionState.PENDING, "d1", config)
    assert (version.size_bytes, version.created_at, version.built_at, version.layer, version.reason) == (
        4_000_000_000,
        START,
        None,
        None,
        None,
    )
    assert (await store.functions.get(NS, NAME)).id == version.function_id
    assert await store.versions.get(NS, NAME, 1) == await store.versions.by_id(version.id) == version
    job = await store.claim()
    assert (job.kind, job.payload) == ("build", {"version_id": version.id})


async def test_submit_keeps_the_settings_of_a_function_that_exists(store: Store) -> None:
    await store.functions.put(NS, NAME, {"access": "private"})
    await store.submit()
    assert (await store.functions.get(NS, NAME)).access == "private"


async def test_the_same_code_and_config_is_the_same_version(store: Store) -> None:
    first = await store.submit("d1", env={"A": "1", "B": "2"})
    again, created = await store.versions.submit(NS, NAME, "d1", VersionConfig(env={"B": "2", "A": "1"}), 10)
    assert (again, created) == (first, False)
    assert await store.count(tables.jobs) == 1


async def test_another_digest_config_or_function_is_another_version(store: Store) -> None:
    await store.submit("d1")
    assert (await store.submit("d2")).number == 2
    assert (await store.submit("d1", memory_mb=256)).number == 3
    assert (await store.submit("d1", "other")).number == 1
    assert (await store.submit("d1", NAME, "elsewhere")).number == 1


async def test_failed_and_retired_versions_are_built_again_under_a_new_number(store: Store) -> None:
    await store.build("d1", to=VersionState.FAILED, reason="no luck")
    assert (await store.build("d1")).number == 2
    await store.versions.retire(NS, NAME, 2)
    assert (await store.submit("d1")).number == 3


async def test_numbers_are_never_reused(store: Store) -> None:
    await store.build("d1")
    await store.build("d2")
    await store.versions.retire(NS, NAME, 2)
    assert (await store.submit("d3")).number == 3


async def test_concurrent_submits_get_distinct_numbers(store: Store) -> None:
    made = await asyncio.gather(*(store.versions.submit(NS, NAME, f"d{n}", VersionConfig(), 10) for n in range(20)))
    assert sorted(version.number for version, _ in made) == list(range(1, 21))
    assert all(created for _, created in made)


async def test_concurrent_identical_submits_collapse(store: Store) -> None:
    made = await asyncio.gather(*(store.versions.submit(NS, NAME, "d1", VersionConfig(), 10) for _ in range(20)))
    assert {version.number for version, _ in made} == {1}
    assert sorted(created for _, created in made) == [False] * 19 + [True]
    assert await store.count(tables.jobs) == 1


async def test_submit_under_a_bad_name_changes_nothing(store: Store) -> None:
    with pytest.raises(Invalid):
        await store.versions.submit(NS, "../etc", "d1", VersionConfig(), 10)
    assert await store.count(tables.functions) == await store.count(tables.jobs) == 0


async def test_a_build_from_pending_to_ready(store: Store) -> None:
    version = await store.submit()
    job = await store.claim()
    for state in FORWARD[1:]:
        store.clock.time += 1
        assert await store.versions.advance(version.id, state, job.lease, layer="l1" if state == "probing" else None)
        assert (await store.versions.by_id(version.id)).state is state
    ready = await store.versions.by_id(version.id)
    assert (ready.layer, ready.reason, ready.built_at) == ("l1", None, START + 3)


async def test_a_build_that_fails_says_why(store: Store) -> None:
    version = await store.build(to=VersionState.FAILED, reason="SyntaxError in handler.py, line 3")
    assert (version.state, version.reason, version.built_at) == (
        VersionState.FAILED,
        "SyntaxError in handler.py, line 3",
        START,
    )


async def test_states_only_move_forward(store: Store) -> None:
    for at, to in itertools.product(range(4), range(1, 4)):
        version = await store.submit(f"from {at} to {to}")
        job = await store.claim()
        for state in FORWARD[1 : at + 1]:
            await store.versions.advance(version.id, state, job.lease)
        assert await store.versions.advance(version.id, FORWARD[to], job.lease)
        assert (await store.versions.by_id(version.id)).state is FORWARD[max(at, to)]
        await store.queue.finish(job)


@pytest.mark.parametrize("end", [VersionState.READY, VersionState.FAILED])
async def test_what_has_ended_stays_as_it_is(store: Store, end: VersionState) -> None:
    """A worker that died between the last step and finishing its job: the next one repeats all steps."""
    version = await store.submit()
    job = await store.claim()
    await store.versions.advance(version.id, end, job.lease, reason="first")
    ended = await store.versions.by_id(version.id)
    store.clock.time += 31
    second = await store.claim()
    for state in (VersionState.BUILDING, VersionState.PROBING, VersionState.READY, VersionState.FAILED):
        assert await store.versions.advance(version.id, state, second.lease, reason="second", layer="l2")
    assert await store.versions.by_id(version.id) == ended


async def test_a_stale_lease_changes_nothing(store: Store) -> None:
    version = await store.submit()
    stale = await store.claim()
    await store.versions.advance(version.id, VersionState.BUILDING, stale.lease)
    store.clock.time += 31
    fresh = await store.claim()
    building = await store.versions.by_id(version.id)
    for state in [*FORWARD[1:], VersionState.FAILED]:
        assert not await store.versions.advance(version.id, state, stale.lease, reason="late", layer="late")
    assert await store.versions.by_id(version.id) == building
    assert await store.versions.advance(version.id, VersionState.READY, fresh.lease)


async def test_a_lease_of_another_versions_job_is_worth_nothing(store: Store) -> None:
    one, two = await store.submit("d1"), await store.submit("d2")
    first = await store.claim()
    assert first.payload == {"version_id": one.id}
    assert not await store.versions.advance(two.id, VersionState.READY, first.lease)
    assert not await store.versions.advance(two.id, VersionState.READY, "")
    assert (await store.versions.by_id(two.id)).state is VersionState.PENDING


async def test_a_finished_job_or_a_deleted_function_ends_the_lease(store: Store) -> None:
    version = await store.submit()
    job = await store.claim()
    await store.queue.finish(job)
    assert not await store.versions.advance(version.id, VersionState.READY, job.lease)
    other = await store.submit("d2", "other")
    job = await store.claim()
    await store.functions.delete(NS, "other")
    assert not await store.versions.advance(other.id, VersionState.READY, job.lease)


async def test_deletes_and_steps_at_once_never_block_each_other(store: Store) -> None:
    version = await store.submit()
    job = await store.claim()
    async with asyncio.timeout(20):
        answers = await asyncio.gather(
            *(store.versions.advance(version.id, state, job.lease) for state in FORWARD[1:]),
            store.versions.append_log(version.id, ["line"]),
            store.functions.delete(NS, NAME),
            store.queue.renew(job, 30),
            store.versions.append_log(version.id, ["line"]),
            return_exceptions=True,
        )
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    assert await store.count(tables.versions) == await store.count(tables.build_logs) == 0


async def test_list_is_newest_first_and_stable_under_inserts(store: Store) -> None:
    for n in range(5):
        await store.submit(f"d{n}")
    first = await store.versions.list(NS, NAME, 2, None)
    await store.submit("d9")
    second = await store.versions.list(NS, NAME, 2, first.next)
    last = await store.versions.list(NS, NAME, 2, second.next)
    assert [[version.number for version in page.items] for page in (first, second, last)] == [[5, 4], [3, 2], [1]]
    assert last.next is None
    with pytest.raises(Invalid, match="cursor"):
        await store.versions.list(NS, NAME, 2, "WyJhIl0")
    with pytest.raises(NotFound):
        await store.versions.list(NS, "nobody", 2, None)


@pytest.mark.parametrize("number", [0, -1, 2, 2**31, 2**70])
async def test_an_unknown_number_is_not_found(store: Store, number: int) -> None:
    await store.submit()
    for call in (store.versions.get, store.versions.retire):
        with pytest.raises(NotFound, match="no version"):
            await call(NS, NAME, number)


async def test_an_unknown_id_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="was deleted"):
        await store.versions.by_id(77)


async def test_retire_keeps_the_row_and_drops_the_log(store: Store) -> None:
    version = await store.build()
    await store.versions.append_log(version.id, ["a line"])
    retired = await store.versions.retire(NS, NAME, 1)
    assert retired.state is VersionState.RETIRED
    assert await store.versions.get(NS, NAME, 1) == retired
    assert await store.versions.read_log(version.id) == ([], 0)
    revision = await store.functions.revision()
    assert await store.versions.retire(NS, NAME, 1) == retired
    assert await store.functions.revision() == revision


async def test_retire_is_refused_while_an_alias_points_there(store: Store) -> None:
    for digest in ("d1", "d2"):
        await store.build(digest)
    await store.publish(1)
    await store.aliases.move(NS, NAME, "beta", {1: 10, 2: 90}, action="traffic", actor="ann", if_generation=None)
    with pytest.raises(Conflict) as caught:
        await store.versions.retire(NS, NAME, 1)
    assert caught.value.ids == {"version": 1, "aliases": ["beta", "live"]}
    await store.publish(2)
    await store.aliases.delete(NS, NAME, "beta", "ann")
    assert (await store.versions.retire(NS, NAME, 1)).state is VersionState.RETIRED


async def test_retire_is_refused_while_it_is_built(store: Store) -> None:
    version = await store.submit()
    job = await store.claim()
    for state in FORWARD[:3]:
        if state is not VersionState.PENDING:
            await store.versions.advance(version.id, state, job.lease)
        with pytest.raises(Conflict, match="wait until") as caught:
            await store.versions.retire(NS, NAME, 1)
        assert caught.value.ids == {"version": 1, "state": state.value}


async def test_publishing_and_retiring_at_once_leaves_no_alias_at_a_retired_version(store: Store) -> None:
    for digest in ("d1", "d2"):
        await store.build(digest)
    await store.publish(1)
    answers = await asyncio.gather(store.publish(2), store.versions.retire(NS, NAME, 2), return_exceptions=True)
    assert len([answer for answer in answers if isinstance(answer, Conflict)]) == 1
    live = await store.aliases.get(NS, NAME, "live")
    for number in live.traffic:
        assert (await store.versions.get(NS, NAME, number)).state is VersionState.READY


async def test_a_build_log_is_read_from_a_position_on(store: Store) -> None:
    version = await store.submit()
    await store.versions.append_log(version.id, ["one", "two"])
    lines, position = await store.versions.read_log(version.id)
    assert (lines, position) == (["one", "two"], 2)
    assert await store.versions.read_log(version.id, position) == ([], 2)
    await store.versions.append_log(version.id, ["thr\0ee \ud800"])
    assert await store.versions.read_log(version.id, position) == (["thr�ee ?"], 3)
    await store.versions.append_log(version.id, [])
    await store.versions.append_log(version.id + 1, ["nobody's"])
    assert await store.versions.read_log(version.id + 1) == ([], 0)


async def test_appends_at_once_keep_their_lines_together(store: Store) -> None:
    version = await store.submit()
    await asyncio.gather(*(store.versions.append_log(version.id, [f"{n}a", f"{n}b"]) for n in range(10)))
    lines, position = await store.versions.read_log(version.id)
    assert position == 20
    assert sorted(lines[::2]) == [f"{n}a" for n in range(10)]
    assert [line[:-1] for line in lines[::2]] == [line[:-1] for line in lines[1::2]]


async def test_a_build_log_is_capped_and_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_LOG_BYTES", 100)
    version = await store.submit()
    await store.versions.append_log(version.id, ["ä" * 20] * 2)  # 2 x (40 + 1) bytes
    await store.versions.append_log(version.id, ["b" * 17, "c" * 10, "d" * 10])
    await store.versions.append_log(version.id, ["e"])
    lines, _ = await store.versions.read_log(version.id)
    assert lines[:3] == ["ä" * 20, "ä" * 20, "b" * 17]
    assert len(lines) == 4
    assert "full" in lines[3]


async def test_digests_in_use_leave_out_what_will_never_run(store: Store) -> None:
    await store.build("d1", layer="l1")
    await store.build("d2", to=VersionState.FAILED, layer="l2")
    await store.build("d1", to=VersionState.FAILED, layer="l1", name="other")
    await store.build("d3", layer="l3")
    await store.build("d3", layer="l3", name="other")
    await store.build("d4", layer="l4")
    await store.versions.retire(NS, NAME, 3)
    await store.versions.retire(NS, NAME, 4)
    await store.submit("d5")
    assert await store.versions.digests() == ({"d1", "d3", "d5"}, {"l1", "l3"})
