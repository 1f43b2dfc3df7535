"""Functions over the control API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from control_kit import World, instance, world
from headrace.model import Invocation


@pytest.fixture
async def w(tmp_path: Path, database_url: str) -> AsyncIterator[World]:
    async with world(tmp_path, url=database_url) as made:
        yield made


def failed(id: str, at: float, **changes: Any) -> tuple[Any, ...]:
    fields: dict[str, Any] = {
        "id": id,
        "namespace": "default",
        "function": "hello",
        "version": 1,
        "instance": "i1",
        "node": "n1",
        "started_at": at,
        "queue_ms": 0.0,
        "start_ms": 0.0,
        "run_ms": 1.5,
        "status": 500,
        "outcome": "function_error",
        "method": "GET",
        "path": "/",
        "bytes_in": 0,
        "bytes_out": 10,
        "error": {"type": "KeyError", "message": "'name'", "stack": "Traceback ..."},
    } | changes
    assert list(fields) == list(Invocation.__slots__)
    return tuple(fields.values())


async def test_put_creates_then_changes_only_what_it_names(w: World) -> None:
    created = await w.http.put("/v1/functions/hello", json={"description": "Greets.", "labels": {"team": "web"}})
    assert created.status_code == 201
    assert created.json()["access"] == "public"
    changed = await w.http.put("/v1/functions/hello", json={"access": "private"})
    assert changed.status_code == 200
    shown = (await w.http.get("/v1/functions/hello")).json()
    assert (shown["description"], shown["access"], shown["labels"]) == ("Greets.", "private", {"team": "web"})
    assert shown["updated_at"] >= shown["created_at"]
    assert "refresh" in w.node.ops(), "the nodes learn of a change of access at once"


async def test_a_function_shows_where_it_is_called_and_what_is_live(w: World) -> None:
    await w.live()
    await w.live("report", namespace="team-a")
    here = (await w.http.get("/v1/functions/hello")).json()
    assert here["url"] == "http://127.0.0.1:7780/fn/hello"
    assert here["live_version"] == 1
    assert here["live"]["traffic"] == {"1": 100}
    assert here["live"]["generation"] == 1
    there = (await w.http.get("/v1/functions/report", params={"namespace": "team-a"})).json()
    assert there["url"] == "http://127.0.0.1:7780/fn/report.team-a"
    assert (await w.http.get("/v1/functions/report")).status_code == 404, "another namespace"


async def test_live_version_is_the_one_with_most_traffic(w: World) -> None:
    first = await w.ready(text="def handler(event, context):\n    return 1\n")
    second = await w.ready(text="def handler(event, context):\n    return 2\n")
    traffic = {str(first): 30, str(second): 70}
    await w.http.put("/v1/functions/hello/aliases/live", json={"traffic": traffic})
    assert (await w.http.get("/v1/functions/hello")).json()["live_version"] == second
    await w.http.delete("/v1/functions/hello/aliases/live")
    shown = (await w.http.get("/v1/functions/hello")).json()
    assert (shown["live"], shown["live_version"]) == (None, None)


async def test_the_last_error_is_shown(w: World) -> None:
    await w.live()
    now = w.clock.now()
    rows = [failed("a1", now - 20), failed("a2", now - 10, outcome="timeout", error=None)]
    await w.services.records.append(rows, [], [])
    error = (await w.http.get("/v1/functions/hello")).json()["last_error"]
    assert (error["invocation"], error["outcome"], error["type"]) == ("a2", "timeout", None)


async def test_a_list_tells_each_function_its_own(w: World) -> None:
    await w.live()
    await w.live("other")
    await w.ready("quiet")
    now = w.clock.now()
    rows = [
        failed("a1", now - 30),
        failed("a2", now - 20),
        failed("b1", now - 10, function="other"),
        failed("b2", now - 5, function="other", status=200, outcome="ok", error=None),
        failed("c1", now - 1, namespace="elsewhere"),
    ]
    await w.services.records.append(rows, [], [])
    page = (await w.http.get("/v1/functions")).json()["items"]
    shown = {
        item["name"]: (item["live_version"], item["last_error"] and item["last_error"]["invocation"]) for item in page
    }
    assert shown == {"hello": (1, "a2"), "other": (1, "b1"), "quiet": (None, None)}


async def test_instances_are_counted_over_the_nodes(w: World) -> None:
    await w.live()
    w.node.instances = [
        instance("ready", 3),
        instance("ready", 1),
        instance("creating", 0),
        instance("draining", 2),
        instance("ready", 9, function="other"),
        instance("ready", 9, namespace="other"),
        instance("waiting", 0, namespace=None, function=None, version=None),
    ]
    shown = (await w.http.get("/v1/functions/hello")).json()["instances"]
    assert shown == {"ready": 2, "starting": 1, "draining": 1, "in_flight": 6}


async def test_a_dead_node_does_not_hide_functions(w: World) -> None:
    await w.live()
    await w.node.close()
    shown = await w.http.get("/v1/functions")
    assert shown.status_code == 200
    assert shown.json()["items"][0]["instances"] == {"ready": 0, "starting": 0, "draining": 0, "in_flight": 0}


async def test_nodes_are_asked_once_for_many_readers(w: World) -> None:
    await w.live()
    w.node.asked.clear()
    for _ in range(5):
        await w.http.get("/v1/functions/hello")
    assert w.node.ops().count("status") == 1


async def test_lists_come_in_pages(w: World) -> None:
    for name in ("e", "d", "c", "b", "a"):
        await w.http.put(f"/v1/functions/{name}", json={})
    await w.http.put("/v1/functions/z", params={"namespace": "other"}, json={})
    names, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await w.http.get("/v1/functions", params=params)).json()
        assert len(page["items"]) <= 2
        names += [item["name"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert names == ["a", "b", "c", "d", "e"]
    everything = (await w.http.get("/v1/functions", params={"namespace": "*"})).json()
    assert [item["name"] for item in everything["items"]] == ["a", "b", "c", "d", "e", "z"]


async def test_a_cursor_that_no_list_gave_is_refused(w: World) -> None:
    answer = await w.http.get("/v1/functions", params={"cursor": "zzz"})
    assert answer.status_code == 422
    assert "start again without it" in answer.json()["detail"]


async def test_delete_removes_the_function_and_tells_the_nodes(w: World) -> None:
    await w.live()
    w.node.asked.clear()
    assert (await w.http.delete("/v1/functions/hello")).status_code == 204
    assert "refresh" in w.node.ops()
    for path in ("", "/versions", "/versions/1", "/aliases", "/logs", "/invocations", "/metrics"):
        answer = await w.http.get(f"/v1/functions/hello{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
    assert (await w.http.delete("/v1/functions/hello")).status_code == 404
