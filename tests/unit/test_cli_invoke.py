from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_kit import Answer, Cli, Server, document, problem
from headrace.errors import FunctionError, NotFound, QueueFull

CALL = "/fn/hello"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def cli(tmp_path: Path, server: Server) -> Cli:
    server.on("GET", "/v1/functions/hello", document({"url": f"{server.url}/fn/hello", "access": "public"}))
    return Cli(tmp_path, server.url)


def test_get_prints_the_body_as_it_is(server: Server, cli: Cli) -> None:
    server.on("GET", CALL, Answer(b"\x00raw\xff", 200, {"content-type": "image/png"}))
    result = cli("invoke", "hello")
    assert (result.code, result.data, result.err) == (0, b"\x00raw\xff", "")
    assert "authorization" not in server.seen("GET", CALL)[0].headers


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ('{"name": "Ada"}', "application/json"),
        ("just text", "text/plain; charset=utf-8"),
    ],
)
def test_data_is_posted(server: Server, cli: Cli, data: str, kind: str) -> None:
    server.on("POST", CALL, document({}))
    assert cli("invoke", "hello", "--data", data).code == 0
    (request,) = server.seen("POST", CALL)
    assert request.body == data.encode()
    assert request.headers["content-type"] == kind


def test_data_from_a_file(server: Server, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8" * 100_000)
    server.on("POST", CALL, document({}))
    assert cli("invoke", "hello", "-d", f"@{tmp_path / 'photo.jpg'}").code == 0
    (request,) = server.seen("POST", CALL)
    assert request.body == b"\xff\xd8" * 100_000
    assert request.headers["content-type"] == "image/jpeg"


def test_data_from_standard_input(server: Server, cli: Cli) -> None:
    server.on("PUT", CALL, document({}))
    assert cli("invoke", "hello", "-d", "-", "-X", "put", stdin=b"\xff\x00").code == 0
    (request,) = server.seen("PUT", CALL)
    assert (request.body, request.headers["content-type"]) == (b"\xff\x00", "application/octet-stream")


def test_path_query_and_headers(server: Server, cli: Cli) -> None:
    server.on("POST", f"{CALL}/a/b", document({}))
    result = cli("invoke", "hello", "--path", "a/b?x=1", "-H", "X-One: 1", "-H", "Content-Type: text/csv", "-d", "a,b")
    assert result.code == 0
    (request,) = server.seen("POST", f"{CALL}/a/b")
    assert request.query == {"x": "1"}
    assert (request.headers["x-one"], request.headers["content-type"]) == ("1", "text/csv")


@pytest.mark.parametrize("which", ["2", "beta"])
def test_a_version_or_alias(server: Server, cli: Cli, which: str) -> None:
    server.on("GET", f"{CALL}@{which}", Answer(b"old"))
    assert cli("invoke", f"hello@{which}").data == b"old"


def test_a_private_function_gets_the_token(server: Server, cli: Cli) -> None:
    server.on("GET", "/v1/functions/hello", document({"url": f"{server.url}/fn/hello", "access": "private"}))
    server.on("GET", CALL, Answer(b"secret"))
    assert cli("invoke", "hello").data == b"secret"
    assert cli("invoke", "hello", "-H", "Authorization: Bearer other").data == b"secret"
    sent = [request.headers["authorization"] for request in server.seen("GET", CALL)]
    assert sent == ["Bearer hr_of_the_test", "Bearer other"]


def test_verbose_tells_id_version_and_timings(server: Server, cli: Cli) -> None:
    headers = {
        "headrace-invocation": "019a",
        "headrace-version": "3",
        "server-timing": "queue;dur=0.10, start;dur=3.20, run;dur=1.25",
    }
    server.on("GET", CALL, Answer(b"hi", 200, headers))
    result = cli("invoke", "hello", "-v")
    assert result.out == "hi"
    assert result.err == "status 200, invocation 019a, version 3, queue 0.10 ms, start 3.20 ms, run 1.25 ms\n"


def test_what_the_platform_answers_is_explained(server: Server, cli: Cli) -> None:
    error = FunctionError(
        "the function raised KeyError: 'name'.",
        error={"type": "KeyError", "message": "'name'", "stack": "Traceback\n  handler.py"},
    )
    server.on("GET", CALL, problem(error, **{"headrace-error": "function", "headrace-invocation": "019a"}))
    result = cli("invoke", "hello")
    assert (result.code, result.out) == (1, "")
    assert "The function raised an error (the fault of the function)." in result.err
    assert "      handler.py\n" in result.err
    assert "headrace invocations 019a" in result.err


def test_overload_is_exit_code_1(server: Server, cli: Cli) -> None:
    server.on("GET", CALL, problem(QueueFull("100 calls wait already."), **{"headrace-error": "caller"}))
    result = cli("invoke", "hello")
    assert result.code == 1
    assert "100 calls wait already." in result.err


def test_what_the_function_itself_answers_is_printed(server: Server, cli: Cli) -> None:
    server.on("GET", CALL, Answer(b"no such page", 404))
    result = cli("invoke", "hello")
    assert (result.code, result.out) == (1, "no such page")
    assert "The function answered 404 Not Found." in result.err


def test_an_unknown_function(server: Server, cli: Cli) -> None:
    server.on("GET", "/v1/functions/helo", problem(NotFound("function 'helo' does not exist.")))
    result = cli("invoke", "helo")
    assert result.code == 1
    assert "function 'helo' does not exist." in result.err


def test_functions_are_called_even_when_the_control_api_is_gone(server: Server, cli: Cli) -> None:
    server.on("GET", "/fn/hello.team@2", Answer(b"alive"))
    port = server.url.rpartition(":")[2]
    result = cli("invoke", "hello@2", "-n", "team", HEADRACE_CONTROL_URL="http://127.0.0.1:9", HEADRACE_PORT=port)
    assert (result.code, result.data) == (0, b"alive")


def test_no_node(server: Server, cli: Cli) -> None:
    server.on("GET", "/v1/functions/hello", document({"url": "http://127.0.0.1:9/fn/hello", "access": "public"}))
    result = cli("invoke", "hello")
    assert result.code == 1
    assert "nothing answers at http://127.0.0.1:9/fn/hello" in result.err


def test_an_answer_that_breaks_off(server: Server, cli: Cli) -> None:
    server.on("GET", CALL, Answer(b"half", cut=True))
    result = cli("invoke", "hello")
    assert (result.code, result.data) == (1, b"half")
    assert "broke before the whole answer came" in result.err


def test_a_terminal_gets_json_to_read(server: Server, cli: Cli) -> None:
    server.on("GET", CALL, document({"é": [1, "\x1b[31m"]}))
    shown = cli("invoke", "hello", terminal=True).out
    assert '{\n  "é": [\n    1,\n' in shown
    assert "\x1b[31m" not in shown


def test_a_terminal_gets_text_without_its_control_characters(server: Server, cli: Cli) -> None:
    server.on("GET", CALL, Answer(b"a\tb\n\x1b[2J", 200, {"content-type": "text/plain"}))
    assert cli("invoke", "hello", terminal=True).out == "a\tb\n\\x1b[2J\n"


def test_a_terminal_gets_no_binary(server: Server, cli: Cli) -> None:
    server.on("GET", CALL, Answer(b"\x89PNG" * 512, 200, {"content-type": "image/png"}))
    result = cli("invoke", "hello", terminal=True)
    assert (result.code, result.data) == (0, b"")
    assert "2.0 KiB of image/png: redirect the output to a file" in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["hello@"],
        ["hello@-1"],
        ["hello@2/x"],
        ["hello", "-H", "no colon"],
        ["hello", "-H", "X-Bad: a\nb"],
        ["hello", "-X", "GET IT"],
        ["hello", "-d", "@/no/such/file"],
    ],
)
def test_wrong_use(server: Server, cli: Cli, arguments: list[str]) -> None:
    assert cli("invoke", *arguments).code == 2
    assert [request for request in server.requests if request.path.startswith("/fn")] == []
