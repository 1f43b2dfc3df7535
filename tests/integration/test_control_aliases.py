"""Publishing, rolling back and splitting over the control API."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from control_kit import World, world
from headrace.errors import LoadFailed
from headrace.model import VersionState

BASE = "/v1/functions/hello"


@pytest.fixture
async def w(tmp_path: Path, database_url: str) -> AsyncIterator[World]:
    async with world(tmp_path, url=database_url) as made:
        for number in (1, 2):
            await made.ready(text=f"def handler(event, context):\n    return {number}\n")
        yield made


async def test_publish_moves_the_alias_and_says_from_where(w: World) -> None:
    first = await w.http.post(f"{BASE}/publish", json={"version": 1})
    assert first.json() == {"alias": "live", "generation": 1, "traffic": {"1": 100}, "previous": {}}
    second = await w.http.post(f"{BASE}/publish", json={"version": 2, "alias": "live", "if_generation": 1})
    assert second.json() == {"alias": "live", "generation": 2, "traffic": {"2": 100}, "previous": {"1": 100}}


async def test_nodes_are_warm_before_and_swapped_before_the_answer(w: World) -> None:
    w.node.asked.clear()
    await w.http.post(f"{BASE}/publish", json={"version": 2})
    ops = [op for op in w.node.ops() if op in ("warm", "refresh")]
    assert ops == ["warm", "refresh"]


async def test_a_stale_generation_changes_nothing_and_shows_the_state(w: World) -> None:
    await w.http.post(f"{BASE}/publish", json={"version": 1})
    answer = await w.http.post(f"{BASE}/publish", json={"version": 2, "if_generation": 7})
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["fault"]) == (409, "conflict", "caller")
    assert (problem["generation"], problem["traffic"]) == (1, {"1": 100})
    shown = (await w.http.get(f"{BASE}/aliases")).json()["items"]
    assert [(item["generation"], item["traffic"]) for item in shown] == [(1, {"1": 100})]


async def test_only_ready_versions_are_published(w: World) -> None:
    pending = await w.upload(text="def handler(event, context):\n    return 3\n")
    answer = await w.http.post(f"{BASE}/publish", json={"version": pending})
    assert (answer.status_code, answer.json()["state"]) == (409, "pending")
    assert "wait until it is ready" in answer.json()["detail"]
    await w.build(VersionState.FAILED, reason="it would not load")
    answer = await w.http.post(f"{BASE}/publish", json={"version": pending})
    assert (answer.status_code, answer.json()["state"]) == (409, "failed")
    assert "wait" not in answer.json()["detail"]
    assert (await w.http.post(f"{BASE}/publish", json={"version": 99})).status_code == 404
    assert (await w.http.post("/v1/functions/helo/publish", json={"version": 1})).status_code == 404
    assert (await w.http.get(f"{BASE}/aliases")).json()["items"] == []


async def test_a_version_that_does_not_load_is_not_published(w: World) -> None:
    w.node.failures["warm"] = LoadFailed("the module raised KeyError.", type="KeyError")
    answer = await w.http.post(f"{BASE}/publish", json={"version": 1})
    assert 400 <= answer.status_code <= 599
    assert answer.headers["content-type"] == "application/problem+json"
    assert "KeyError" in answer.text
    assert (await w.http.get(f"{BASE}/aliases")).json()["items"] == []


async def test_rollback_goes_to_the_traffic_before_or_to_a_version(w: World) -> None:
    assert (await w.http.post(f"{BASE}/rollback")).status_code == 404, "there is no such alias yet"
    await w.http.post(f"{BASE}/publish", json={"version": 1})
    await w.http.post(f"{BASE}/publish", json={"version": 2})
    back = await w.http.post(f"{BASE}/rollback", json={"alias": "live", "to": None})
    assert back.json() == {"alias": "live", "generation": 3, "traffic": {"1": 100}, "previous": {"2": 100}}
    forth = await w.http.post(f"{BASE}/rollback", json={"to": 2, "if_generation": 3})
    assert forth.json()["traffic"] == {"2": 100}


async def test_traffic_is_split_by_weight(w: World) -> None:
    answer = await w.http.put(f"{BASE}/aliases/beta", json={"traffic": {"1": 90, "2": 10}})
    assert answer.json() == {"alias": "beta", "generation": 1, "traffic": {"1": 90, "2": 10}, "previous": {}}


async def test_every_version_that_is_named_must_exist(w: World) -> None:
    answer = await w.http.put(f"{BASE}/aliases/beta", json={"traffic": {"1": 100, "99": 0}})
    assert (answer.status_code, answer.json()["version"]) == (404, 99)
    answer = await w.http.put(f"{BASE}/aliases/beta", json={"traffic": {"1": 100, "2": 0}})
    assert answer.json()["traffic"] == {"1": 100}
    assert [question["version"] for op, question in w.node.asked if op == "warm"] == [1]


@pytest.mark.parametrize(
    ("traffic", "told"),
    [
        ({"1": 99}, "sum to 99"),
        ({"1": 50, "2": 51}, "sum to 101"),
        ({}, "body.traffic"),
        ({"1": 101}, "body.traffic.1"),
        ({"1": -1, "2": 101}, "body.traffic.1"),
        ({"1": 99.5, "2": 0.5}, "body.traffic.1"),
        ({"1": True, "2": 99}, "body.traffic.1"),
        ({"1": "100"}, "body.traffic.1"),
        ({"0": 100}, "body.traffic.0"),
        ({"live": 100}, "body.traffic.live"),
        ({"01": 100}, "body.traffic.01"),
        ([1], "body.traffic"),
        (None, "body.traffic"),
    ],
)
async def test_bad_weights_change_nothing(w: World, traffic: Any, told: str) -> None:
    answer = await w.http.put(f"{BASE}/aliases/live", json={"traffic": traffic})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")
    assert told in answer.json()["detail"]
    assert (await w.http.get(f"{BASE}/aliases")).json()["items"] == []


async def test_history_tells_who_moved_what(w: World) -> None:
    ci = await w.token("ci", "deploy")
    async with w.client(ci) as http:
        await http.post(f"{BASE}/publish", json={"version": 1})
    await w.http.put(f"{BASE}/aliases/live", json={"traffic": {"1": 50, "2": 50}})
    await w.http.post(f"{BASE}/rollback")
    await w.http.delete(f"{BASE}/aliases/live")
    page = (await w.http.get(f"{BASE}/aliases/live/history", params={"limit": 3})).json()
    rest = (await w.http.get(f"{BASE}/aliases/live/history", params={"limit": 3, "cursor": page["next"]})).json()
    moves = page["items"] + rest["items"]
    assert [(move["action"], move["actor"]) for move in moves] == [
        ("delete", "admin"),
        ("rollback", "admin"),
        ("traffic", "admin"),
        ("publish", "ci"),
    ]
    assert (moves[0]["previous"], moves[0]["traffic"]) == ({"1": 100}, {})
    assert moves[0]["at"] >= moves[3]["at"]
    assert rest["next"] is None


async def test_forged_cursors_are_refused(w: World) -> None:
    await w.http.post(f"{BASE}/publish", json={"version": 1})
    for values in ([2**40], [-1], [2**63], [1.5], ["a"], [], [1, 1], {}, "x"):
        forged = base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")
        for list_ in ("aliases/live/history", "versions"):
            answer = await w.http.get(f"{BASE}/{list_}", params={"cursor": forged})
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), (list_, values)


async def test_deleting_an_alias_answers_what_it_was(w: World) -> None:
    await w.http.post(f"{BASE}/publish", json={"version": 1, "alias": "beta"})
    gone = await w.http.delete(f"{BASE}/aliases/beta")
    assert gone.json() == {"alias": "beta", "generation": 2, "traffic": {}, "previous": {"1": 100}}
    assert (await w.http.delete(f"{BASE}/aliases/beta")).status_code == 404
    assert (await w.http.get(f"{BASE}/aliases/nix/history")).status_code == 404
