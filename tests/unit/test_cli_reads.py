"""Logs, invocations, metrics and tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cli_kit import Answer, Cli, Server, document, events, problem
from headrace.cli import logs as logs_module
from headrace.errors import Conflict, NotFound, Unauthenticated

LOGS = "/v1/functions/hello/logs"
CALLS = "/v1/functions/hello/invocations"
NOTHING = {"items": [], "next": None}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def cli(tmp_path: Path, server: Server) -> Cli:
    return Cli(tmp_path, server.url)


def line(text: str, seq: int = 1, stream: str = "stdout", level: str = "INFO", invocation: str = "0a1b") -> Any:
    return {
        "seq": seq,
        "at": "2026-01-31T12:00:00.125Z",
        "function": "hello",
        "namespace": "default",
        "version": 2,
        "invocation": invocation,
        "instance": "i1",
        "stream": stream,
        "level": level,
        "text": text,
    }


def event(text: str, seq: int) -> str:
    return f"data: {json.dumps(line(text, seq))}\nid: {seq}"


def ended(error: Exception) -> str:
    return f"event: end\ndata: {json.dumps(error.problem())}"  # type: ignore[attr-defined]


def test_logs(server: Server, cli: Cli) -> None:
    items = [line("hi"), line("loading", stream="platform", invocation="")]
    server.on("GET", LOGS, document({"items": items, "next": "1"}))
    result = cli("logs", "hello", "--level", "warning", "--version", "2", "--last", "5")
    assert result.code == 0
    first, second = result.out.splitlines()
    assert first.endswith(":00.125 v2 0a1b hi")
    assert second.endswith(":00.125 v2 - [platform] loading")
    assert server.requests[0].query == {"namespace": "default", "level": "WARNING", "version": "2", "limit": "5"}


def test_logs_as_json(server: Server, cli: Cli) -> None:
    server.on("GET", LOGS, document({"items": [line("hi")], "next": "1"}))
    assert cli("logs", "hello", "--json").json == {"items": [line("hi")]}


def test_a_terminal_never_gets_what_a_function_would_do_to_it(server: Server, cli: Cli) -> None:
    server.on("GET", LOGS, document({"items": [line("\x1b[2Jgone\x07 [bold]as it is[/bold]")], "next": "1"}))
    shown = cli("logs", "hello", terminal=True).out
    assert "\\x1b[2Jgone\\x07 [bold]as it is[/bold]" in shown
    assert "\x07" not in shown
    assert "\x1b[2J" not in shown


def test_logs_since_reads_every_page(server: Server, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "_PAGE", 2)
    server.on(
        "GET",
        LOGS,
        document({"items": [line("a"), line("b")], "next": "2"}),
        document({"items": [line("c")], "next": "3"}),
    )
    result = cli("logs", "hello", "--since", "10m")
    assert [text[-1] for text in result.out.splitlines()] == ["a", "b", "c"]
    assert [request.query.get("cursor") for request in server.requests] == [None, "2"]
    since = datetime.fromisoformat(server.requests[0].query["since"])
    assert timedelta(minutes=9) < datetime.now(UTC) - since < timedelta(minutes=11)


@pytest.mark.parametrize("since", ["yesterday", "10", "10 parsecs", ""])
def test_bad_since(server: Server, cli: Cli, since: str) -> None:
    result = cli("logs", "hello", "--since", since)
    assert result.code == 2
    assert "such as 10m or 2h" in result.err
    assert server.requests == []


def test_following_goes_on_where_a_broken_stream_was(server: Server, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(logs_module.time, "sleep", pauses.append)
    server.on(
        "GET",
        LOGS,
        document(NOTHING),
        events(event("one", 7), cut=True),
        events(cut=True),
        events(event("two", 9), ended(Unauthenticated("the token was deleted."))),
    )
    result = cli("logs", "hello", "--follow", "--json")
    assert result.code == 1
    assert [json.loads(text)["text"] for text in result.out.splitlines()] == ["one", "two"]
    streams = server.requests[1:]
    assert [request.headers.get("last-event-id") for request in streams] == [None, "7", "7"]
    assert {request.query["follow"] for request in streams} == {"true"}
    assert pauses == [0.5, 1.0]
    assert "the token was deleted." in result.err


def test_following_an_unknown_function_ends_at_once(server: Server, cli: Cli) -> None:
    server.on("GET", LOGS, problem(NotFound("function 'hello' does not exist.")))
    result = cli("logs", "hello", "-f")
    assert result.code == 1
    assert "does not exist" in result.err


def call(**changes: Any) -> dict[str, Any]:
    return {
        "id": "019ab2c3d4e5f60718293a4b",
        "namespace": "default",
        "function": "hello",
        "version": 2,
        "instance": "i1",
        "node": "n1",
        "started_at": "2026-01-31T12:00:00.125Z",
        "queue_ms": 0.0,
        "start_ms": 3.1,
        "run_ms": 120.4,
        "duration_ms": 123.5,
        "status": 500,
        "outcome": "function_error",
        "method": "GET",
        "path": "/a",
        "bytes_in": 0,
        "bytes_out": 181,
        "error": {"type": "KeyError", "message": "'name'"},
        **changes,
    }


def test_invocations(server: Server, cli: Cli) -> None:
    server.on("GET", CALLS, document({"items": [call(), call(error=None, start_ms=0.0)], "next": "c"}))
    result = cli(
        "invocations",
        "hello",
        "--status=500",
        "--version=2",
        "--since=1h",
        "--until=2026-01-31T12:00:00+01:00",
        "--min-ms=5",
        "--error=KeyError",
        "--outcome=function_error",
        "--limit=2",
    )
    assert result.code == 0
    _, first, second = result.out.splitlines()
    assert first.split()[0] == "019ab2c3d4e5f60718293a4b"
    assert "124 ms     3.10 ms  GET /a   KeyError" in first
    assert second.endswith("-")
    assert "There are more" in result.err
    query = server.requests[0].query
    assert query["until"] == "2026-01-31T11:00:00.000Z"
    assert {name: query[name] for name in ("status", "version", "min_duration_ms", "error", "outcome", "limit")} == {
        "status": "500",
        "version": "2",
        "min_duration_ms": "5.0",
        "error": "KeyError",
        "outcome": "function_error",
        "limit": "2",
    }


def test_invocations_as_json(server: Server, cli: Cli) -> None:
    server.on("GET", CALLS, document({"items": [call()], "next": None}))
    assert cli("invocations", "hello", "--json").json == {"items": [call()], "next": None}


def detail() -> dict[str, Any]:
    stack = "Traceback (most recent call last):\n  File \"handler.py\", line 2, in handler\nKeyError: 'name'\n"
    error = {"type": "KeyError", "message": "'name'", "stack": stack}
    return {**call(error=error), "lines": [line("looking")]}


def test_one_invocation_shows_lines_and_stack(server: Server, cli: Cli) -> None:
    server.on("GET", "/v1/invocations/019ab2c3d4e5f60718293a4b", document(detail()))
    result = cli("invocations", "019ab2c3d4e5f60718293a4b")
    assert result.code == 0
    assert "hello@2 in default" in result.out
    assert "124 ms (queue 0.00 ms, start 3.10 ms, run 120 ms)" in result.out
    assert "v2 0a1b looking\n" in result.out
    assert '    File "handler.py", line 2, in handler\n' in result.out
    assert len(server.requests) == 1
    assert cli("invocations", "019ab2c3d4e5f60718293a4b", "--json").json == detail()


def test_an_id_that_could_be_a_name(server: Server, cli: Cli) -> None:
    server.on("GET", "/v1/functions/abc/invocations", problem(NotFound("function 'abc' does not exist.")))
    server.on("GET", "/v1/invocations/abc", document(detail()))
    assert "handler.py" in cli("invocations", "abc").out


def test_neither_name_nor_id(server: Server, cli: Cli) -> None:
    server.on("GET", "/v1/functions/abc/invocations", problem(NotFound("function 'abc' does not exist.")))
    server.on("GET", "/v1/invocations/abc", problem(NotFound("invocation 'abc' does not exist.")))
    result = cli("invocations", "abc")
    assert result.code == 1
    assert "'abc' is neither a function in namespace 'default' nor the id" in result.err


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "invocations": 1200,
        "errors": {"function_error": 3},
        "cold_starts": 2,
        "throttled": 0,
        "p50_ms": 1.1,
        "p95_ms": 2.4,
        "p99_ms": 9.8,
        "max_ms": 41.5,
        "concurrency": 4,
        "instances": 1,
        **changes,
    }


def test_metrics(server: Server, cli: Cli) -> None:
    empty = summary(invocations=0, p99_ms=None)
    found = {
        "function": "hello",
        "step_s": 60,
        "totals": summary(),
        "series": [summary(invocations=4), empty, summary(invocations=8)],
        "versions": {"2": {"totals": empty, "series": []}},
    }
    server.on("GET", "/v1/functions/hello/metrics", document(found))
    result = cli("metrics", "hello", "--window", "1h", "--by-version")
    assert result.code == 0
    assert server.requests[0].query == {"namespace": "default", "window": "1h", "step_s": "60", "by": "version"}
    assert result.out.splitlines()[0].split("  ")[0] == "last 1h"
    assert "1,200" in result.out
    assert "3 function_error" in result.out
    assert "invocations  ▅▁█  up to 8 in 60 s" in result.out
    assert "p99          █▁█  up to 9.80 ms" in result.out
    assert cli("metrics", "hello", "--json").json == found


@pytest.mark.parametrize(("window", "step_s"), [("30s", "10"), ("10m", "10"), ("1d", "1440"), ("7d", "10080")])
def test_metrics_ask_for_steps_that_fit_a_line(server: Server, cli: Cli, window: str, step_s: str) -> None:
    found = {"step_s": 10, "totals": summary(), "series": [], "versions": None}
    server.on("GET", "/v1/functions/hello/metrics", document(found))
    assert cli("metrics", "hello", "-w", window).code == 0
    assert server.requests[0].query["step_s"] == step_s


def test_metrics_with_a_bad_window(server: Server, cli: Cli) -> None:
    result = cli("metrics", "hello", "--window", "soon")
    assert result.code == 2
    assert "90s, 10m, 2h or 7d" in result.err


TOKEN = {
    "id": 2,
    "name": "ci",
    "scopes": ["deploy", "read"],
    "namespaces": [],
    "created_at": "2026-01-31T12:00:00Z",
    "expires_at": None,
}


def test_create_token_prints_the_secret_alone(server: Server, cli: Cli) -> None:
    server.on("POST", "/v1/tokens", document({**TOKEN, "secret": "hr_secret"}, 201))
    result = cli("token", "create", "ci", "-s", "deploy", "-s", "read", "--expires", "90d", "--namespace", "team")
    assert (result.code, result.out) == (0, "hr_secret\n")
    assert "shown only this once" in result.err
    assert server.requests[0].json == {
        "name": "ci",
        "scopes": ["deploy", "read"],
        "namespaces": ["team"],
        "expires_in_s": 7_776_000,
    }


def test_create_token_as_json(server: Server, cli: Cli) -> None:
    server.on("POST", "/v1/tokens", document({**TOKEN, "secret": "hr_secret"}, 201))
    assert cli("token", "create", "ci", "-s", "read", "--json").json["secret"] == "hr_secret"
    assert "expires_in_s" not in server.requests[0].json


def test_a_used_token_name(server: Server, cli: Cli) -> None:
    server.on("POST", "/v1/tokens", problem(Conflict("there is a token 'ci' already.")))
    result = cli("token", "create", "ci", "-s", "read")
    assert result.code == 1
    assert "there is a token 'ci' already." in result.err


def test_list_tokens(server: Server, cli: Cli) -> None:
    server.on("GET", "/v1/tokens", document({"items": [TOKEN], "next": None}))
    result = cli("token", "list")
    assert result.code == 0
    assert "deploy, read" in result.out
    assert "never" in result.out
    assert cli("token", "list", "--json").json == {"items": [TOKEN], "next": None}


@pytest.mark.parametrize("which", ["ci", "2"])
def test_delete_token_by_name_or_id(server: Server, cli: Cli, which: str) -> None:
    server.on("GET", "/v1/tokens", document({"items": [TOKEN], "next": None}))
    server.on("DELETE", "/v1/tokens/2", Answer(status=204))
    result = cli("token", "delete", which)
    assert (result.code, result.out) == (0, "Token ci is deleted: it is refused from now on.\n")
    assert len(server.seen("DELETE", "/v1/tokens/2")) == 1


def test_delete_an_unknown_token(server: Server, cli: Cli) -> None:
    server.on("GET", "/v1/tokens", document({"items": [TOKEN], "next": None}))
    result = cli("token", "delete", "other")
    assert result.code == 1
    assert "headrace token list" in result.err
