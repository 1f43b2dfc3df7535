"""Tokens over the control API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from control_kit import World, world


@pytest.fixture
async def w(tmp_path: Path, database_url: str) -> AsyncIterator[World]:
    async with world(tmp_path, url=database_url) as made:
        yield made


async def test_a_new_token_works_and_its_secret_is_shown_once(w: World) -> None:
    made = await w.http.post("/v1/tokens", json={"name": "ci", "scopes": ["read", "read"], "namespaces": ["team-a"]})
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    token = made.json()
    assert (token["scopes"], token["namespaces"], token["expires_at"]) == (["read"], ["team-a"], None)
    async with w.client(token["secret"]) as http:
        assert (await http.get("/v1/functions", params={"namespace": "team-a"})).status_code == 200
        assert (await http.get("/v1/functions")).status_code == 403
    listed = (await w.http.get("/v1/tokens")).json()["items"]
    assert [item["name"] for item in listed] == ["admin", "ci"]
    assert token["secret"] not in (await w.http.get("/v1/tokens")).text
    assert "refresh_tokens" in w.node.ops(), "nodes check callers of private functions"


async def test_a_deleted_token_is_refused_at_once(w: World) -> None:
    made = (await w.http.post("/v1/tokens", json={"name": "ci", "scopes": ["admin"]})).json()
    async with w.client(made["secret"]) as http:
        assert (await http.get("/v1/tokens")).status_code == 200
        assert (await w.http.delete(f"/v1/tokens/{made['id']}")).status_code == 204
        assert (await http.get("/v1/tokens")).status_code == 401
    assert w.node.ops().count("refresh_tokens") == 2
    assert (await w.http.delete(f"/v1/tokens/{made['id']}")).status_code == 404


async def test_a_token_expires(w: World) -> None:
    made = (await w.http.post("/v1/tokens", json={"name": "ci", "scopes": ["read"], "expires_in_s": 60})).json()
    now = w.clock.now()
    w.clock.now = lambda: now + 59  # type: ignore[method-assign]
    async with w.client(made["secret"]) as http:
        assert (await http.get("/v1/functions")).status_code == 200
        w.clock.now = lambda: now + 61  # type: ignore[method-assign]
        assert (await http.get("/v1/functions")).status_code == 401


async def test_nobody_saws_off_the_branch_they_sit_on(w: World) -> None:
    own = (await w.http.get("/v1/tokens")).json()["items"][0]
    answer = await w.http.delete(f"/v1/tokens/{own['id']}")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert (await w.http.get("/v1/tokens")).status_code == 200


async def test_names_are_unique(w: World) -> None:
    answer = await w.http.post("/v1/tokens", json={"name": "admin", "scopes": ["read"]})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"scopes": ["read"]}, "body.name"),
        ({"name": "ci"}, "body.scopes"),
        ({"name": "ci", "scopes": []}, "body.scopes"),
        ({"name": "ci", "scopes": ["root"]}, "body.scopes.0"),
        ({"name": "ci", "scopes": "read"}, "body.scopes"),
        ({"name": "C I", "scopes": ["read"]}, "body.name"),
        ({"name": "ci", "scopes": ["read"], "namespaces": ["A"]}, "body.namespaces.0"),
        ({"name": "ci", "scopes": ["read"], "expires_in_s": 0}, "body.expires_in_s"),
        ({"name": "ci", "scopes": ["read"], "expires_in_s": "60"}, "body.expires_in_s"),
        ({"name": "ci", "scopes": ["read"], "secret": "hr_mine"}, "body.secret"),
    ],
)
async def test_bad_tokens_are_refused(w: World, body: Any, told: str) -> None:
    answer = await w.http.post("/v1/tokens", json=body)
    assert answer.status_code == 422
    assert told in answer.json()["detail"]
    assert len((await w.http.get("/v1/tokens")).json()["items"]) == 1


async def test_a_limited_admin_cannot_make_a_token_that_may_more(w: World) -> None:
    limited = await w.token("limited", "admin", namespaces=("team-a",))
    async with w.client(limited) as http:
        for answer in (
            await http.get("/v1/tokens"),
            await http.post("/v1/tokens", json={"name": "free", "scopes": ["admin"]}),
            await http.delete("/v1/tokens/1"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
