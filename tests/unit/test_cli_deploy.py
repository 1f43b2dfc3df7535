from __future__ import annotations

import email
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_kit import Answer, Cli, Request, Server, document, events, problem
from headrace.cli import deploy
from headrace.errors import BundleRejected, Conflict, Forbidden, NoCapacity, NotFound, Unauthenticated

VERSIONS = "/v1/functions/hello/versions"
LOG = f"{VERSIONS}/3/build-log"
READY = 'event: end\ndata: {"state": "ready", "reason": null}'


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def cli(tmp_path: Path, server: Server) -> Cli:
    return Cli(tmp_path / "home", server.url)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    directory = tmp_path / "hello"
    directory.mkdir()
    (directory / "handler.py").write_text("def handler(event, context): return 1\n")
    return directory


def version(state: str, number: int = 3, reason: str | None = None) -> dict[str, Any]:
    return {"number": number, "state": state, "reason": reason}


def moved(request: Request) -> Answer:
    number = str(request.json["version"])
    return document({"alias": request.json["alias"], "generation": 8, "traffic": {number: 100}, "previous": {"2": 100}})


def builds(server: Server, *, state: str = "ready", reason: str | None = None) -> None:
    server.on("POST", VERSIONS, document(version("pending"), 202))
    server.on("GET", LOG, events("data: Installing Pillow\nid: 1", "data: Loaded in 12 ms\nid: 2", READY))
    server.on("GET", f"{VERSIONS}/3", document(version(state, reason=reason)))
    server.on("POST", "/v1/functions/hello/publish", moved)
    server.on("GET", "/v1/functions/hello", document({"url": "http://127.0.0.1:7780/fn/hello"}))


def form(request: Request) -> dict[str, bytes]:
    head = f"content-type: {request.headers['content-type']}\n\n".encode()
    message = email.message_from_bytes(head + request.body)
    parts = message.get_payload()
    assert isinstance(parts, list)
    found = {}
    for part in parts:
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        found[str(part.get_param("name", header="content-disposition"))] = content
    return found


def test_deploy_uploads_builds_publishes_and_prints_the_url(server: Server, cli: Cli, code: Path) -> None:
    builds(server)
    result = cli("deploy", str(code), "--config", "memory_mb=256", "--env", "A=1", "--namespace", "team")
    assert (result.code, result.out) == (0, "hello@3 is live: http://127.0.0.1:7780/fn/hello\n")
    assert "Installing Pillow\nLoaded in 12 ms\n" in result.err
    (upload,) = server.seen("POST", VERSIONS)
    assert upload.headers["authorization"] == "Bearer hr_of_the_test"
    parts = form(upload)
    assert json.loads(parts["config"]) == {"memory_mb": 256, "env": {"A": "1"}}
    with tarfile.open(fileobj=io.BytesIO(parts["bundle"]), mode="r:gz") as tar:
        assert tar.getnames() == ["handler.py"]
    (publish,) = server.seen("POST", "/v1/functions/hello/publish")
    assert publish.json == {"version": 3, "alias": "live"}
    assert {request.query["namespace"] for request in server.requests} == {"team"}


def test_the_working_directory_is_the_default(
    server: Server, cli: Cli, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds(server)
    monkeypatch.chdir(code)
    assert cli("deploy").code == 0


def test_an_unchanged_directory_is_published_without_a_build(server: Server, cli: Cli, code: Path) -> None:
    builds(server)
    server.on("POST", VERSIONS, document(version("ready"), 200))
    result = cli("deploy", str(code))
    assert result.code == 0
    assert "Nothing has changed: this is version 3 already." in result.err
    assert server.seen("GET", LOG) == []
    assert len(server.seen("POST", "/v1/functions/hello/publish")) == 1


def test_without_publishing(server: Server, cli: Cli, code: Path) -> None:
    builds(server)
    result = cli("deploy", str(code), "--no-publish")
    assert (result.code, result.out) == (0, "hello@3 is ready: http://127.0.0.1:7780/fn/hello@3\n")
    assert "headrace publish hello 3" in result.err
    assert server.seen("POST", "/v1/functions/hello/publish") == []


def test_another_alias_and_json(server: Server, cli: Cli, code: Path) -> None:
    builds(server)
    result = cli("deploy", str(code), "--alias", "beta", "--json")
    assert result.code == 0
    assert result.json == {
        "function": "hello",
        "namespace": "default",
        "version": 3,
        "created": True,
        "url": "http://127.0.0.1:7780/fn/hello@beta",
        "move": {"alias": "beta", "generation": 8, "traffic": {"3": 100}, "previous": {"2": 100}},
    }


def test_a_failed_build_says_why_and_publishes_nothing(server: Server, cli: Cli, code: Path) -> None:
    builds(server, state="failed", reason="no such package: Pilow. Correct requirements.txt.")
    result = cli("deploy", str(code))
    assert result.code == 1
    assert result.out == ""
    assert "Build failed (the fault of the function)" in result.err
    assert "no such package: Pilow. Correct requirements.txt." in result.err
    assert result.err.count("Installing Pillow") == 1
    assert server.seen("POST", "/v1/functions/hello/publish") == []


def test_on_a_terminal_a_failed_build_shows_the_end_of_its_log(server: Server, cli: Cli, code: Path) -> None:
    builds(server, state="failed", reason="it does not load.")
    log = events(*(f"data: line-{number}.\nid: {number}" for number in range(40)), READY)
    server.on("GET", LOG, log)
    result = cli("deploy", str(code), terminal=True)
    failure = result.err[result.err.index("Build failed") :]
    assert "line-39." in failure
    assert "line-10." in failure
    assert "line-9." not in failure


def test_a_broken_stream_goes_on_where_it_was(
    server: Server, cli: Cli, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "_PAUSE_S", 0)
    builds(server)
    server.on(
        "GET",
        LOG,
        events("data: one\nid: 7", cut=True),
        events("data: two\nid: 8", READY),
    )
    result = cli("deploy", str(code))
    assert result.code == 0
    assert [request.headers.get("last-event-id") for request in server.seen("GET", LOG)] == [None, "7"]
    assert "one\ntwo\n" in result.err


def test_a_control_api_that_stays_away_is_given_up(
    server: Server, cli: Cli, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy, "_PAUSE_S", 0)
    monkeypatch.setattr(deploy, "_PATIENCE_S", 0)
    builds(server)
    server.on("GET", LOG, events("data: one\nid: 7", cut=True))
    result = cli("deploy", str(code))
    assert result.code == 1
    assert "Error: Unreachable (the fault of the platform)." in result.err


def test_a_refused_follower_is_told(server: Server, cli: Cli, code: Path) -> None:
    builds(server)
    refusal = NoCapacity("there are 100 followers of logs already; try again in a moment.").problem()
    server.on("GET", LOG, events(f"event: end\ndata: {json.dumps(refusal)}"))
    result = cli("deploy", str(code))
    assert result.code == 1
    assert "there are 100 followers of logs already" in result.err


def test_a_rejected_bundle(server: Server, cli: Cli, code: Path) -> None:
    server.on("POST", VERSIONS, problem(BundleRejected("handler.py, line 3: invalid syntax.")))
    result = cli("deploy", str(code))
    assert result.code == 1
    assert "Bundle rejected (the fault of the request).\n  handler.py, line 3: invalid syntax.\n" in result.err


def test_a_publish_that_is_refused(server: Server, cli: Cli, code: Path) -> None:
    builds(server)
    server.on("POST", "/v1/functions/hello/publish", problem(Conflict("the version does not load.", version=3)))
    result = cli("deploy", str(code))
    assert result.code == 1
    assert "the version does not load." in result.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config", "memry_mb=1"], "did you mean memory_mb?"),
        (["--name", "Hello"], "--name 'Hello' is not valid"),
        (["--name", "a/b"], "--name 'a/b' is not valid"),
        (["--env", "A"], "NAME=value"),
        (["--file", "/nowhere.toml"], "cannot be read"),
    ],
)
def test_wrong_use_is_told_before_anything_is_sent(
    server: Server, cli: Cli, code: Path, arguments: list[str], complaint: str
) -> None:
    result = cli("deploy", str(code), *arguments)
    assert result.code == 2
    assert complaint in result.err
    assert server.requests == []


def test_no_such_directory(server: Server, cli: Cli, tmp_path: Path) -> None:
    result = cli("deploy", str(tmp_path / "none"))
    assert result.code == 2
    assert "does not exist" in result.err


def test_without_a_token_it_says_where_one_comes_from(server: Server, cli: Cli, code: Path) -> None:
    server.on("POST", VERSIONS, problem(Unauthenticated("a token is needed.")))
    result = cli("deploy", str(code), HEADRACE_TOKEN="")
    assert result.code == 1
    assert "authorization" not in server.requests[0].headers
    assert f"set HEADRACE_TOKEN, or HEADRACE_HOME to the home of this Headrace ({cli.home}/admin-token" in result.err


def test_the_admin_token_of_the_home_is_used(server: Server, cli: Cli, code: Path) -> None:
    cli.home.mkdir()
    (cli.home / "admin-token").write_text("hr_of_the_home\n")
    server.on("POST", VERSIONS, problem(Forbidden("this needs the scope 'deploy'.")))
    result = cli("deploy", str(code), HEADRACE_TOKEN="")
    assert result.code == 1
    assert server.requests[0].headers["authorization"] == "Bearer hr_of_the_home"
    assert "this needs the scope 'deploy'" in result.err


def test_something_else_answers(server: Server, cli: Cli, code: Path) -> None:
    server.on("POST", VERSIONS, Answer(b"<html>hi</html>", 200, {"content-type": "text/html"}))
    result = cli("deploy", str(code))
    assert result.code == 1
    assert "check that HEADRACE_CONTROL_URL leads to its control API" in result.err


def test_what_is_published_is_left_alone_when_asked_so(server: Server, cli: Cli, code: Path) -> None:
    live = {"alias": "live", "generation": 8, "traffic": {"2": 90, "3": 10}, "moved_at": "2026-01-31T12:00:00Z"}
    server.on("GET", "/v1/functions/hello/aliases", document({"items": [live], "next": None}))
    result = cli("deploy", str(code), "--unless-published")
    assert result.code == 0
    assert result.out == "hello has a live version already: 2: 90 %, 3: 10 %.\n"
    assert f"headrace deploy {code}" in result.err
    assert cli("deploy", str(code), "--unless-published", "--json").json == live
    assert {request.method for request in server.requests} == {"GET"}


@pytest.mark.parametrize("known", [True, False])
def test_what_is_not_published_is_deployed(server: Server, cli: Cli, code: Path, known: bool) -> None:
    other = {"alias": "test", "generation": 1, "traffic": {"1": 100}, "moved_at": "2026-01-31T12:00:00Z"}
    answer = document({"items": [other], "next": None}) if known else problem(NotFound("there is no function hello."))
    server.on("GET", "/v1/functions/hello/aliases", answer)
    builds(server)
    assert cli("deploy", str(code), "--unless-published").code == 0
    assert len(server.seen("POST", "/v1/functions/hello/publish")) == 1
