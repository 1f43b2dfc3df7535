from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_kit import Answer, Cli, Request, Server, document, problem
from headrace.errors import Conflict, NotFound

HELLO = "/v1/functions/hello"
MOVE = {"alias": "live", "generation": 8, "traffic": {"3": 100}, "previous": {"2": 100}}
LIVE = {"generation": 8, "traffic": {"1": 90, "2": 10}, "moved_at": "2026-01-31T12:00:00Z"}
FUNCTION = {
    "name": "hello",
    "namespace": "default",
    "description": "",
    "access": "public",
    "balancing": "hash",
    "sticky": True,
    "labels": {"team": "images"},
    "created_at": "2026-01-31T12:00:00Z",
    "updated_at": "2026-01-31T12:00:00Z",
    "url": "http://127.0.0.1:7780/fn/hello",
    "live_version": 1,
    "live": LIVE,
    "last_error": {
        "invocation": "0a1b",
        "at": "2026-01-31T12:00:00Z",
        "version": 1,
        "outcome": "function_error",
        "type": "KeyError",
        "message": "'name'",
    },
    "instances": {"ready": 2, "starting": 0, "draining": 0, "in_flight": 1},
}
ALIASES = {"items": [{"alias": "live", **LIVE}], "next": None}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def cli(tmp_path: Path, server: Server) -> Cli:
    return Cli(tmp_path, server.url)


def only(server: Server) -> Request:
    (request,) = server.requests
    return request


def test_publish(server: Server, cli: Cli) -> None:
    server.on("POST", f"{HELLO}/publish", document(MOVE))
    result = cli("publish", "hello", "3", "--if-generation", "7", "--namespace", "team")
    assert (result.code, result.out) == (0, "hello is version 3 now (before: 2; generation 8).\n")
    assert only(server).json == {"version": 3, "alias": "live", "if_generation": 7}
    assert only(server).query == {"namespace": "team"}


def test_publish_to_another_alias_as_json(server: Server, cli: Cli) -> None:
    server.on("POST", f"{HELLO}/publish", document({**MOVE, "alias": "beta"}))
    result = cli("publish", "hello", "3", "--alias", "beta", "--json")
    assert result.json == {**MOVE, "alias": "beta"}
    assert only(server).json["alias"] == "beta"


def test_a_stale_generation_shows_the_present_state(server: Server, cli: Cli) -> None:
    conflict = Conflict("live has moved on: read it again.", generation=9, traffic={"4": 100})
    server.on("POST", f"{HELLO}/publish", problem(conflict))
    result = cli("publish", "hello", "3", "--if-generation", "7")
    assert result.code == 1
    assert result.err.splitlines() == [
        "Error: Conflict (the fault of the request).",
        "  live has moved on: read it again.",
        "  generation is now: 9",
        "  traffic is now: {'4': 100}",
    ]


def test_publishing_code_that_does_not_load_shows_the_stack(server: Server, cli: Cli) -> None:
    stack = 'Traceback (most recent call last):\n  File "handler.py", line 1\nKeyError: 1\n'
    refusal = Conflict("version 3 does not load.", type="KeyError", message="1", stack=stack)
    server.on("POST", f"{HELLO}/publish", problem(refusal))
    result = cli("publish", "hello", "3")
    assert result.code == 1
    assert "  KeyError: 1\n" in result.err
    assert '      File "handler.py", line 1\n' in result.err


@pytest.mark.parametrize(("options", "to"), [([], None), (["--to", "1"], 1)])
def test_rollback(server: Server, cli: Cli, options: list[str], to: int | None) -> None:
    server.on("POST", f"{HELLO}/rollback", document(MOVE))
    result = cli("rollback", "hello", *options)
    assert result.code == 0
    assert only(server).json == {"alias": "live", "to": to, "if_generation": None}


def test_rollback_with_nothing_before(server: Server, cli: Cli) -> None:
    server.on("POST", f"{HELLO}/rollback", problem(Conflict("live has led nowhere before.")))
    result = cli("rollback", "hello")
    assert result.code == 1
    assert "live has led nowhere before." in result.err


def test_traffic(server: Server, cli: Cli) -> None:
    server.on("PUT", f"{HELLO}/aliases/live", document({**MOVE, "traffic": {"1": 90, "2": 10}, "previous": {}}))
    result = cli("traffic", "hello", "1=90", "2=10")
    assert (result.code, result.out) == (
        0,
        "hello is version 1: 90 %, 2: 10 % now (before: nothing; generation 8).\n",
    )
    assert only(server).json == {"traffic": {"1": 90, "2": 10}, "if_generation": None}


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        (["1=90", "2=9"], "sum to 99"),
        (["1=90", "2"], "write VERSION=WEIGHT"),
        (["1=90", "1=10"], "has two weights"),
        (["one=100"], "write VERSION=WEIGHT"),
        (["1=-5", "2=105"], "write VERSION=WEIGHT"),
        (["1=101"], "0 to 100"),
        (["0=100"], "write VERSION=WEIGHT"),
    ],
)
def test_bad_weights_are_wrong_use_and_not_sent(server: Server, cli: Cli, weights: list[str], complaint: str) -> None:
    result = cli("traffic", "hello", *weights)
    assert result.code == 2
    assert complaint in result.err
    assert server.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["publish", "he/llo", "1"],
        ["rollback", "Hello"],
        ["traffic", "héllo", "1=100"],
        ["traffic", "hello", "1=100", "--alias", "../x"],
        ["versions", "a?b"],
        ["functions", "a b"],
        ["delete", "..", "--yes"],
        ["logs", "x" * 64],
        ["metrics", "-"],
        ["invocations", "a/b"],
        ["invoke", "Hello"],
        ["token", "create", "C I", "--scope", "read"],
    ],
)
def test_bad_names_are_wrong_use_and_not_sent(server: Server, cli: Cli, arguments: list[str]) -> None:
    assert cli(*arguments).code == 2
    assert server.requests == []


def test_functions(server: Server, cli: Cli) -> None:
    other = {**FUNCTION, "name": "idle", "namespace": "team", "live": None, "last_error": None}
    server.on("GET", "/v1/functions", document({"items": [FUNCTION, other], "next": None}))
    result = cli("functions", "--namespace", "*")
    assert result.code == 0
    head, first, second = result.out.splitlines()
    assert head.split("  ")[0] == "name"
    assert "1: 90 %, 2: 10 %" in first
    assert "KeyError" in first
    assert "http://127.0.0.1:7780/fn/hello" in first
    assert second.startswith("idle.team  -  ")
    assert only(server).query == {"namespace": "*", "limit": "100"}


def test_lists_are_read_to_their_end(server: Server, cli: Cli) -> None:
    server.on(
        "GET",
        "/v1/functions",
        document({"items": [FUNCTION] * 100, "next": "c1"}),
        document({"items": [FUNCTION] * 100, "next": "c2"}),
        document({"items": [FUNCTION], "next": None}),
    )
    result = cli("functions", "--json")
    assert len(result.json["items"]) == 201
    assert result.json["next"] is None
    assert [request.query.get("cursor") for request in server.requests] == [None, "c1", "c2"]


def test_limit_ends_a_list_with_its_cursor(server: Server, cli: Cli) -> None:
    server.on("GET", "/v1/functions", document({"items": [FUNCTION] * 5, "next": "c1"}))
    assert cli("functions", "--limit", "5", "--json").json["next"] == "c1"
    assert only(server).query["limit"] == "5"


def test_no_functions(server: Server, cli: Cli) -> None:
    server.on("GET", "/v1/functions", document({"items": [], "next": None}))
    result = cli("functions")
    assert (result.code, result.out) == (0, "")
    assert "headrace deploy" in result.err


def test_one_function(server: Server, cli: Cli) -> None:
    server.on("GET", HELLO, document(FUNCTION))
    server.on("GET", f"{HELLO}/aliases", document(ALIASES))
    result = cli("functions", "hello")
    assert result.code == 0
    assert "hash, sticky" in result.out
    assert "2 ready, 0 starting, 0 draining, 1 in_flight" in result.out
    assert "@live" in result.out
    assert "1: 90 %, 2: 10 % (generation 8, " in result.out
    assert cli("functions", "hello", "--json").json == {**FUNCTION, "aliases": ALIASES["items"]}


def test_an_unknown_function(server: Server, cli: Cli) -> None:
    missing = NotFound("function 'hello' does not exist in namespace 'default'.", function="hello")
    server.on("GET", HELLO, problem(missing))
    result = cli("functions", "hello")
    assert result.code == 1
    assert "Not found (the fault of the request).\n  function 'hello' does not exist" in result.err


def versions() -> dict[str, Any]:
    def one(number: int, state: str, reason: str | None = None) -> dict[str, Any]:
        return {
            "number": number,
            "state": state,
            "reason": reason,
            "digest": "9f86d081884c7d65",
            "config": {"runtime": "python"},
            "size_bytes": 2048,
            "created_at": "2026-01-31T12:00:00Z",
        }

    return {"items": [one(3, "failed", "no such package\nmore"), one(2, "ready"), one(1, "ready")], "next": None}


def test_versions(server: Server, cli: Cli) -> None:
    server.on("GET", f"{HELLO}/versions", document(versions()))
    server.on("GET", f"{HELLO}/aliases", document(ALIASES))
    result = cli("versions", "hello")
    assert result.code == 0
    _, third, second, first = result.out.splitlines()
    assert third.split()[:2] == ["3", "failed"]
    assert third.endswith("no such package")
    assert "live 10 %" in second
    assert "live 90 %" in first
    assert "2.0 KiB" in first
    assert cli("versions", "hello", "--json").json == versions()


def test_delete_a_version(server: Server, cli: Cli) -> None:
    server.on("GET", f"{HELLO}/versions/2", document({}))
    server.on("DELETE", f"{HELLO}/versions/2", Answer(status=204))
    result = cli("delete", "hello", "2", "--yes")
    assert (result.code, result.out) == (0, "Deleted version 2 of hello.\n")


def test_delete_a_version_in_use(server: Server, cli: Cli) -> None:
    server.on("GET", f"{HELLO}/versions/2", document({}))
    server.on("DELETE", f"{HELLO}/versions/2", problem(Conflict("live points at it: move it first.")))
    result = cli("delete", "hello", "2", "--yes")
    assert result.code == 1
    assert "live points at it: move it first." in result.err


def test_delete_asks_a_person(server: Server, cli: Cli) -> None:
    server.on("GET", HELLO, document(FUNCTION))
    server.on("DELETE", HELLO, Answer(status=204))
    refused = cli("delete", "hello", terminal=True, stdin=b"\n")
    assert refused.code == 1
    assert "Delete hello with all its versions, logs and records? [y/N]" in refused.err
    assert server.seen("DELETE", HELLO) == []
    assert cli("delete", "hello", terminal=True, stdin=b"y\n").code == 0
    assert len(server.seen("DELETE", HELLO)) == 1


def test_delete_without_a_person_needs_yes(server: Server, cli: Cli) -> None:
    server.on("GET", HELLO, document(FUNCTION))
    result = cli("delete", "hello", stdin=b"y\n")
    assert result.code == 2
    assert "give --yes" in result.err
    assert server.seen("DELETE", HELLO) == []


def test_delete_what_is_not_there_asks_nothing(server: Server, cli: Cli) -> None:
    server.on("GET", HELLO, problem(NotFound("function 'hello' does not exist.")))
    assert cli("delete", "hello", terminal=True).code == 1
