"""Every kind of failure is a problem that people can read, and shows nothing of the inside."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from control_kit import World, world
from headrace.control import reading, uploads
from headrace.errors import EngineUnavailable, HeadraceError, NodeUnavailable, StoreUnavailable

NAMES = [
    "Hello",
    "1st",
    "-x",
    "a" * 64,
    "a b",
    "ä",
    "a\n",
    "a_b",
    "%2e%2e",
    "a@1",
    "a.b",
    "中文",
    "\U0001f600",
]


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:headrace:error:{code}"
    assert {"title", "detail", "fault"} <= set(problem)
    for secret in ("Traceback", "headrace/", "sqlalchemy", ".py"):
        assert secret not in answer.text
    return problem


@pytest.mark.parametrize("name", NAMES)
async def test_names_that_are_none(w: World, name: str) -> None:
    for answer in (
        await w.http.put(f"/v1/functions/{quote(name, safe='')}", json={}),
        await w.http.get("/v1/functions/x", params={"namespace": name}),
        await w.http.put(f"/v1/functions/x/aliases/{quote(name, safe='')}", json={"traffic": {"1": 100}}),
        await w.http.post("/v1/functions/x/publish", json={"version": 1, "alias": name}),
    ):
        problem = assert_problem(answer, 422, "invalid")
        assert "use 1 to 63 of a-z, 0-9 and '-'" in problem["detail"]
    assert (await w.http.get("/v1/functions")).json()["items"] == []


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/functions/", "/v1/functions/a/b/c", "/v1/functions/a%2Fb", "/x"])
async def test_addresses_that_are_none(w: World, path: str) -> None:
    assert_problem(await w.http.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PATCH", "/v1/functions/hello", "DELETE, GET, PUT"),
        ("POST", "/v1/functions", "GET"),
        ("GET", "/v1/functions/hello/publish", "POST"),
        ("PUT", "/v1/functions/hello/versions", "GET, POST"),
        ("TRACE", "/v1/system", "GET"),
        ("OPTIONS", "/v1/tokens", "GET, POST"),
        ("QUERY", "/healthz", "GET"),
    ],
)
async def test_methods_that_an_address_does_not_take(w: World, method: str, path: str, allow: str) -> None:
    answer = await w.http.request(method, path)
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allow


@pytest.mark.parametrize(
    ("content", "status", "told"),
    [
        (b"{", 400, "not JSON"),
        (b"{'a': 1}", 400, "not JSON"),
        (b'{"description": "x"} x', 400, "not JSON"),
        (b"\xff\xfe{\x00}\x00", 400, "not UTF-8"),
        (b'{"description": "\xff"}', 400, "not UTF-8"),
        (b"\xef\xbb\xbf{}", 400, "BOM"),
        (b'{"sticky": ' + b"9" * 5000 + b"}", 400, "too many digits"),
        (b'{"sticky": NaN}', 400, "NaN"),
        (b'{"sticky": -Infinity}', 400, "-Infinity"),
        (b'{"description": "a\\u0000b"}', 422, "NUL"),
        (b'{"labels": {"a\\u0000": "b"}}', 422, "NUL"),
        (b'{"description": "\\ud800"}', 422, "surrogate"),
        (b'{"\\ud800": 1}', 422, "surrogate"),
        (b'{"sticky": true, "sticky": false}', 422, "twice"),
        (b"[" * 100_000 + b"]" * 100_000, 422, "deep"),
        (b'{"labels": ' + b"[" * 40 + b"]" * 40 + b"}", 422, "deep"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, 422, "deep"),
        (b"", 422, "body: this is missing"),
        (b"null", 422, "body: "),
        (b"[]", 422, "body: "),
        (b'"{}"', 422, "body: "),
        (b'{"nix": 1}', 422, "body.nix: this is not known here; remove it"),
        (b'{"sticky": 1}', 422, "body.sticky: "),
        (b'{"sticky": "true"}', 422, "body.sticky: "),
        (b'{"description": null}', 422, "body.description: "),
        (b'{"description": 1e999}', 422, "body.description: "),
        (b'{"access": "open"}', 422, "'public' or 'private'"),
        (b'{"labels": {"a b": "c"}}', 422, "body.labels.a b"),
        (b'{"labels": {"a": 1}}', 422, "body.labels.a: "),
        (b'{"description": "' + b"x" * 2001 + b'"}', 422, "body.description: "),
        (json.dumps({"labels": {f"l{n}": "" for n in range(65)}}).encode(), 422, "body.labels: "),
    ],
)
async def test_bodies_that_cannot_be_taken(w: World, content: bytes, status: int, told: str) -> None:
    answer = await w.http.put("/v1/functions/hello", content=content, headers={"Content-Type": "application/json"})
    problem = assert_problem(answer, status, "bad_request" if status == 400 else "invalid")
    assert told in problem["detail"]
    assert (await w.http.get("/v1/functions")).json()["items"] == []


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "application/x-www-form-urlencoded", "nonsense", ""])
async def test_a_body_of_another_type_is_refused(w: World, kind: str) -> None:
    headers = {"Content-Type": kind} if kind else {}
    answer = await w.http.put("/v1/functions/hello", content=b"{}", headers=headers)
    assert_problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "application/x+json"]
)
async def test_json_by_any_of_its_names(w: World, kind: str) -> None:
    answer = await w.http.put("/v1/functions/hello", content=b"{}", headers={"Content-Type": kind})
    assert answer.status_code == 201


async def test_all_violations_are_listed_and_the_detail_stays_short(w: World) -> None:
    answer = await w.http.put("/v1/functions/hello", json={f"k{number}": 1 for number in range(200)})
    problem = assert_problem(answer, 422, "invalid")
    assert len(problem["errors"]) == 50
    assert problem["errors"][0] == {
        "at": "body.k0",
        "problem": "this is not known here; remove it or correct its name.",
    }
    assert problem["detail"].endswith("And 195 more.")


async def test_what_is_told_back_is_bounded_and_printable(w: World) -> None:
    answer = await w.http.put("/v1/functions/hello", json={"\x1b[31m" + "k" * 100_000: 1})
    problem = assert_problem(answer, 422, "invalid")
    assert len(answer.content) < 2000
    assert "\x1b" not in problem["detail"]


@pytest.mark.parametrize("query", ["nix=1", "namespace=a&namespace=b", "%00=1", "NAMESPACE=a", "=", "namespace[]=a"])
async def test_query_names_that_are_unknown_or_double(w: World, query: str) -> None:
    problem = assert_problem(await w.http.get(f"/v1/functions/hello?{query}"), 422, "invalid")
    assert problem["detail"].startswith("query.")


async def test_a_limit_on_every_body(w: World) -> None:
    big = b'{"description": "' + b"x" * reading.JSON_LIMIT + b'"}'
    headers = {"Content-Type": "application/json"}
    for method, path in (
        ("PUT", "/v1/functions/hello"),
        ("POST", "/v1/functions/hello/publish"),
        ("POST", "/v1/functions/hello/rollback"),
        ("PUT", "/v1/functions/hello/aliases/live"),
        ("POST", "/v1/tokens"),
    ):
        answer = await w.http.request(method, path, content=big, headers=headers)
        problem = assert_problem(answer, 413, "too_large")
        assert problem["limit_bytes"] == reading.JSON_LIMIT


async def test_a_body_that_grows_over_the_limit_is_cut_off_while_it_is_read(w: World) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1 << 16
            yield b"x" * (1 << 16)

    answer = await w.http.put("/v1/functions/hello", content=endless(), headers={"Content-Type": "application/json"})
    assert_problem(answer, 413, "too_large")
    assert taken <= reading.JSON_LIMIT + (1 << 17)
    assert answer.headers["connection"] == "close"


async def test_limits_of_uploads(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "/v1/functions/hello/versions"
    inline = json.dumps({"files": {"handler.py": "#" * (8 << 20)}}).encode()
    answer = await w.http.post(url, content=inline, headers={"Content-Type": "application/json"})
    assert_problem(answer, 413, "too_large")
    monkeypatch.setattr(uploads, "MAX_PACKED", 1 << 20)
    answer = await w.http.post(url, files={"bundle": b"x" * ((1 << 20) + 1)})
    assert "over 1 MiB packed" in assert_problem(answer, 413, "too_large")["detail"]
    answer = await w.http.post(url, files={"bundle": b"x"}, data={"config": " " * (uploads.CONFIG_LIMIT + 1)})
    assert "'config'" in assert_problem(answer, 413, "too_large")["detail"]
    answer = await w.http.post(url, files={"bundle": b"x" * (3 << 20)})
    assert_problem(answer, 413, "too_large")
    assert w.leftovers() == []


@pytest.mark.parametrize("length", ["10737418240", "9" * 30, "1048577"])
async def test_an_announced_giant_is_refused_unread(w: World, length: str) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    headers = {"Content-Type": "application/json", "Content-Length": length}
    answer = await w.http.put("/v1/functions/hello", content=never(), headers=headers)
    assert_problem(answer, 413, "too_large")


async def test_a_failure_of_a_part_is_told_as_it_is(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (
        StoreUnavailable("the database is locked; try again."),
        NodeUnavailable("no node is there."),
        EngineUnavailable("Docker does not answer."),
    ):

        async def fails(*_: Any, error: HeadraceError = error) -> Any:
            raise error

        monkeypatch.setattr(w.services.releases, "put_function", fails)
        answer = await w.http.put("/v1/functions/hello", json={})
        problem = assert_problem(answer, 503, error.code)
        assert (problem["detail"], problem["fault"]) == (error.detail, "platform")
        assert answer.headers["retry-after"] == "1"


async def test_the_unforeseen_is_logged_and_hidden(
    w: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaks(*_: Any) -> Any:
        raise KeyError("a secret of the inside")

    monkeypatch.setattr(w.services.releases, "put_function", breaks)
    with caplog.at_level(logging.ERROR):
        answer = await w.http.put("/v1/functions/hello", json={})
    problem = assert_problem(answer, 500, "internal")
    assert problem["fault"] == "platform"
    assert "secret" not in answer.text
    assert "a secret of the inside" in caplog.text
