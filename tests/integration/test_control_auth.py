"""Who may do what: every scope on every endpoint, as the application itself lists them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute, iter_route_contexts
from test_control_records import CALL, LINE, record

from control_kit import World, world
from headrace.control import auth
from headrace.control.app import create_app
from headrace.model import Scope

# Everything that may be read without a token. A new path here is a decision, not an accident.
OPEN = {"/", "/docs", "/openapi.json", "/v1/openapi.json", "/healthz", "/readyz", "/v1/healthz", "/v1/readyz"}
EVERYWHERE = ("/v1/tokens", "/v1/system", "/v1/metrics")  # about all namespaces at once


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def endpoints() -> list[tuple[str, str]]:
    """Method and path of each endpoint but the open ones, from the application's own routes."""
    found = []
    for context in iter_route_contexts(create_app(None).routes):  # type: ignore[arg-type]
        assert isinstance(context.original_route, APIRoute), f"{context} is no route of the API"
        if context.path not in OPEN:
            found += [(method, str(context.path)) for method in context.methods or ()]
    assert len(found) > 20
    return sorted(found)


def allowed(method: str, path: str) -> set[str]:
    """The scopes that an endpoint should take, told by its place and method alone."""
    if path.startswith("/v1/tokens"):
        return {"admin"}
    return {"admin", "deploy", "read"} if method == "GET" else {"admin", "deploy"}


def concrete(path: str) -> str:
    values = {"name": "nowhere", "number": "1", "alias": "live", "id": "2000000000"}
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], path)


async def ask(http: httpx.AsyncClient, method: str, path: str, **options: Any) -> httpx.Response:
    return await http.request(method, concrete(path), **options)


async def test_every_scope_on_every_endpoint(w: World) -> None:
    for scope in get_args(Scope):
        async with w.client(await w.token(f"only-{scope}", scope)) as http:
            for method, path in endpoints():
                answer = await ask(http, method, path)
                passed = answer.status_code != 403
                assert passed == (scope in allowed(method, path)), (scope, method, path, answer.text)
                assert answer.status_code not in (401, 500), (scope, method, path, answer.text)
                if not passed:
                    assert f"token 'only-{scope}'" in answer.json()["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer hr_wrong"},
        {"Authorization": "Bearer " + "x" * 5000},
        {"Authorization": b"Bearer \xff\xfe"},
        {"Authorization": "Basic YWRtaW46YWRtaW4="},
        {"Authorization": "hr_wrong"},
    ],
)
async def test_without_a_valid_token_nothing_is_answered(w: World, headers: dict[str, Any]) -> None:
    async with w.client(None) as http:
        for method, path in endpoints():
            for content in (None, b"{"):
                answer = await ask(http, method, path, headers=headers, content=content)
                assert answer.status_code == 401, (method, path)
                assert answer.json()["code"] == "unauthenticated"
                assert answer.headers["www-authenticate"] == "Bearer"


async def test_two_tokens_in_one_request_are_none(w: World) -> None:
    headers = [("Authorization", f"Bearer {w.admin}"), ("Authorization", "Bearer x")]
    async with w.client(None) as http:
        assert (await http.get("/v1/functions", headers=headers)).status_code == 401


async def test_the_scheme_is_case_insensitive(w: World) -> None:
    async with w.client(None) as http:
        assert (await http.get("/v1/functions", headers={"Authorization": f"bearer {w.admin}"})).status_code == 200


async def test_a_token_limited_to_a_namespace_sees_no_other(w: World) -> None:
    """Every endpoint, asked about a namespace that the token may not see."""
    limited = await w.token("limited", "admin", namespaces=("mine",))
    async with w.client(limited) as http:
        for method, path in endpoints():
            if path == "/v1/invocations/{id}":
                continue  # see below: nothing in the request names a namespace
            params = {} if path.startswith(EVERYWHERE) else {"namespace": "theirs"}
            answer = await ask(http, method, path, params=params)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), (method, path)
            assert "mine" in answer.json()["detail"]
            if not path.startswith(EVERYWHERE):
                assert (await ask(http, method, path)).status_code == 403, "the default namespace is another one too"
                mine = await ask(http, method, path, params={"namespace": "mine"})
                assert mine.status_code not in (401, 403), (method, path)


async def test_lists_of_all_namespaces_hold_only_what_the_token_may_see(w: World) -> None:
    await w.http.put("/v1/functions/a", params={"namespace": "mine"}, json={})
    await w.http.put("/v1/functions/b", params={"namespace": "theirs"}, json={})
    async with w.client(await w.token("limited", "read", namespaces=("mine", "other"))) as http:
        page = (await http.get("/v1/functions", params={"namespace": "*"})).json()
    assert [(item["namespace"], item["name"]) for item in page["items"]] == [("mine", "a")]
    assert len((await w.http.get("/v1/functions", params={"namespace": "*"})).json()["items"]) == 2


async def test_invocations_of_other_namespaces_do_not_exist(w: World) -> None:
    await w.live()
    await record(w, CALL, lines=(LINE,))
    async with w.client(await w.token("limited", "read", namespaces=("mine",))) as http:
        hidden = await http.get("/v1/invocations/c1")
        unknown = await http.get("/v1/invocations/c2")
    assert hidden.status_code == unknown.status_code == 404
    told = [answer.text.replace("c1", "ID").replace("c2", "ID") for answer in (hidden, unknown)]
    assert told[0] == told[1], "the answer must not tell that it exists"
    assert (await w.http.get("/v1/invocations/c1")).status_code == 200


def test_an_endpoint_without_a_scope_cannot_be_made() -> None:
    router = APIRouter(route_class=auth.Guarded)
    with pytest.raises(TypeError, match="which scope"):
        router.get("/leak")(test_an_endpoint_without_a_scope_cannot_be_made)
