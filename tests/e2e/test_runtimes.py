"""One behaviour: the same table of cases, once per runtime, through the gateway and real containers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from headrace import runtimes
from headrace.drivers.docker_engine import DockerDriver
from headrace.settings import Settings
from stack import ROOT, Failure, Headrace

CODE = Path(__file__).parent / "runtimes"
CASES = {
    "python": ("handler.py", CODE / "python.py"),
    "node": ("handler.js", CODE / "node.js"),
    "shell": ("handler.sh", CODE / "shell.sh"),
}
BROKEN = {
    "python": ("handler.py", "def handler(event, context:\n"),
    "node": ("handler.js", "exports.handler = (\n"),
    "shell": ("handler.sh", 'if [ "$1" ]; then\n'),
}
MISSING: dict[str, tuple[dict[str, str], str]] = {
    "python": (
        {"handler.py": "def handler(e, c): return 1", "requirements.txt": "headrace-has-no-such-package==1"},
        "No matching distribution found for headrace-has-no-such-package==1",
    ),
    "node": (
        {
            "handler.js": "exports.handler = () => 1;",
            "package.json": '{"dependencies": {"@headrace/has-no-such-package": "1"}}',
        },
        "404",
    ),
    "shell": (
        {"handler.sh": "echo 1", "apt.txt": "headrace-has-no-such-package"},
        "Unable to locate package headrace-has-no-such-package",
    ),
}
DEPENDING: dict[str, tuple[str, str, dict[str, str], dict[str, str]]] = {  # file, code, what is asked for, other code
    "python": (
        "handler.py",
        "import idna\ndef handler(event, context): return idna.encode('grüße').decode()\n",
        {"requirements.txt": "idna==3.10\n"},
        {"more.py": "x = 1\n"},
    ),
    "node": (
        "handler.js",
        "const punycode = require('punycode/');\nexports.handler = () => punycode.toASCII('grüße');\n",
        {"package.json": '{"dependencies": {"punycode": "2.3.1"}}'},
        {"more.js": "exports.x = 1;\n"},
    ),
    "shell": ("handler.sh", "idn2 grüße\n", {"apt.txt": "idn2\n"}, {"more.sh": "x=1\n"}),
}
# Where a language forces another answer, with the reason; its README says so, too.
DIFFERS: dict[tuple[str, str], Any] = {
    ("shell", "unholdable"): None,  # text holds anything
    ("shell", "bad-status"): "`Status`",  # headers are lines, and this is the line's name
    ("shell", "exits"): (500, "function_error", "exit code 3"),  # a program of its own for each call, which fails alone
    ("shell", "talks"): {"said": ("stderr", "INFO"), "warned": ("stderr", "ERROR")},  # standard output is the answer
}


@pytest.fixture(scope="module", params=sorted(CASES))
def runtime(platform: Headrace, request: pytest.FixtureRequest) -> str:
    """A runtime whose image exists: the first build of all would wait for it to be made."""
    name: str = request.param
    if platform.environment.get("HEADRACE_DRIVER") != "process":
        asyncio.run(_prepare(Settings(home=platform.home), name))
    return name


async def _prepare(settings: Settings, runtime: str) -> None:
    driver = DockerDriver(settings)
    try:
        await driver.prepare(runtime)
    finally:
        await driver.close()


@pytest.fixture(scope="module")
def url(platform: Headrace, runtime: str) -> str:
    file, source = CASES[runtime]
    config = {"runtime": runtime, "timeout_s": 3, "memory_mb": 128, "env": {"GREETING": "grüß dich"}}
    platform.deploy(f"cases-{runtime}", {file: source.read_text()}, config)
    return platform.url(f"cases-{runtime}")


def record(platform: Headrace, answer: httpx.Response) -> Any:
    """The record of a call, once it has arrived in the store."""
    id = answer.headers["headrace-invocation"]
    return platform.until(lambda: platform.ask("GET", f"/invocations/{id}"), id)


def test_every_runtime_has_its_column() -> None:
    assert set(runtimes.names()) == set(CASES) == set(BROKEN) == set(MISSING) == set(DEPENDING)


def test_values(url: str) -> None:
    answer = httpx.get(f"{url}/json")
    assert (answer.headers["content-type"], answer.json()) == (
        "application/json",
        {"a": [1, 2.5, None, True], "ü": "é"},
    )
    answer = httpx.get(f"{url}/text")
    assert (answer.headers["content-type"], answer.text) == ("text/plain; charset=utf-8", "grüß dich")
    answer = httpx.get(f"{url}/bytes")
    assert (answer.headers["content-type"], answer.content) == ("application/octet-stream", bytes(range(256)))
    answer = httpx.get(f"{url}/empty")
    assert (answer.status_code, answer.content) == (204, b"")
    assert httpx.get(f"{url}/large").text == "x" * 3_000_000


def test_headers_in_several_values_and_cookies(url: str) -> None:
    answer = httpx.get(f"{url}/headers")
    assert (answer.status_code, answer.text, answer.headers["x-one"]) == (201, "made", "1")
    assert answer.headers.get_list("x-two") == ["a", "b"]
    assert answer.headers.get_list("set-cookie") == ["a=1; Path=/", "b=2"]


def test_bodies(url: str) -> None:
    for content, media, expected in (
        ("grüße", "text/plain", ["grüße", False]),
        ('{"a": 1}', "application/json", ['{"a": 1}', False]),
        (b"\xff\x00\xfe", "image/png", ["/wD+", True]),
        (b"", "text/plain", ["", False]),
    ):
        answer = httpx.post(f"{url}/echo?a=1&b=%20", content=content, headers={"content-type": media}).json()
        assert [answer["body"], answer["isBase64Encoded"]] == expected
        assert answer["rawQueryString"] == "a=1&b=%20"
    body = "x" * 2_000_000
    assert httpx.post(f"{url}/echo", content=body, headers={"content-type": "text/plain"}).json()["body"] == body


def test_a_stream_arrives_piece_by_piece(url: str) -> None:
    began = time.monotonic()
    with httpx.stream("GET", f"{url}/pieces") as answer:
        pieces = answer.iter_bytes()
        assert next(pieces) == b"first\n"
        assert time.monotonic() - began < 1.4
        assert b"".join(pieces) == b"second\n"


def test_a_stream_that_breaks_off_is_not_taken_for_whole(platform: Headrace, url: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError), httpx.stream("GET", f"{url}/breaks-off") as answer:
        answer.read()
    found = record(platform, answer)
    assert (found["outcome"], found["error"]["message"]) == ("function_error", "broke off")


def test_errors_name_their_place_in_the_code(platform: Headrace, runtime: str, url: str) -> None:
    answer = httpx.get(f"{url}/fails")
    assert (answer.status_code, answer.headers["headrace-error"]) == (500, "function")
    assert "no such luck" not in answer.text  # what the code said is for those who may read its records
    error = record(platform, answer)["error"]
    assert error["message"] == "no such luck"
    assert CASES[runtime][0] in error["stack"] and "shim" not in error["stack"]
    for path, usual in (("unholdable", "['deep']"), ("bad-status", "statusCode")):
        if (told := DIFFERS.get((runtime, path), usual)) is None:
            continue
        answer = httpx.get(f"{url}/{path}")
        assert (answer.status_code, answer.headers["headrace-error"]) == (500, "function")
        assert told in record(platform, answer)["error"]["message"]


@pytest.mark.parametrize(
    ("path", "status", "code", "told"),
    [
        ("waits", 504, "timeout", "timeout_s"),
        ("exits", 502, "instance_died", "exit code 3"),
        ("hogs", 502, "out_of_memory", "memory_mb of 128"),
    ],
)
def test_what_ends_an_instance(
    platform: Headrace, runtime: str, url: str, path: str, status: int, code: str, told: str
) -> None:
    status, code, told = DIFFERS.get((runtime, path), (status, code, told))
    answer = httpx.get(f"{url}/{path}", timeout=30)
    assert (answer.status_code, answer.headers["headrace-error"]) == (status, "function"), answer.text
    assert answer.json()["code"] == code
    found = record(platform, answer)
    assert (found["outcome"], told in f"{answer.json()['detail']} {found['error']}") == (code, True), found
    assert httpx.get(f"{url}/text", timeout=30).text == "grüß dich"


def test_logs_belong_to_their_call(platform: Headrace, runtime: str, url: str) -> None:
    answer = httpx.get(f"{url}/talks")
    id = answer.headers["headrace-invocation"]
    found = platform.until(lambda: platform.ask("GET", f"/invocations/{id}"), "warned")
    lines = {line["text"]: (line["stream"], line["level"]) for line in found["lines"]}
    assert lines == DIFFERS.get((runtime, "talks"), {"said": ("stdout", "INFO"), "warned": ("stderr", "ERROR")})


def test_environment_context_and_sandbox(runtime: str, url: str) -> None:
    assert httpx.get(f"{url}/environment").json() == ["grüß dich", False]
    answer = httpx.get(f"{url}/context")
    assert answer.json() == [answer.headers["headrace-invocation"], f"cases-{runtime}", "1", 128, True]
    uid, root, tmp = httpx.get(f"{url}/place").json()
    assert (uid != 0, root, tmp) == (True, False, True)


def test_what_a_function_leaves_behind_is_reaped(url: str) -> None:
    assert httpx.get(f"{url}/orphans").json() == 0


def test_a_websocket_is_events_of_the_handler(url: str) -> None:
    socket = url.replace("http", "ws", 1)
    with connect(f"{socket}/open") as client:
        for text in ("hello", "grün"):
            client.send(text)
            assert client.recv(10) == text.upper()
        client.send("leave")
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(10)
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "bye")  # type: ignore[union-attr]
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{socket}/closed")
    assert refused.value.response.status_code == 403


def test_secrets_are_refused_and_nothing_is_deployed(platform: Headrace, runtime: str) -> None:
    file, source = CASES[runtime]
    body = {"files": {file: source.read_text()}, "config": {"runtime": runtime, "secrets": ["key"]}}
    answer = platform.api.post(f"/functions/secretive-{runtime}/versions", json=body)
    assert (answer.status_code, "keeps no secrets yet" in answer.text) == (422, True), answer.text
    assert platform.api.get(f"/functions/secretive-{runtime}").status_code == 404


def test_a_syntax_error_is_refused_with_its_line(platform: Headrace, runtime: str) -> None:
    file, source = BROKEN[runtime]
    body = {"files": {file: source}, "config": {"runtime": runtime}}
    answer = platform.api.post("/functions/broken/versions", json=body)
    assert answer.status_code == 422, answer.text
    assert f"{file}, line " in answer.json()["detail"]


def test_dependencies_are_installed_once_for_all_versions_that_ask_for_the_same(
    platform: Headrace, runtime: str
) -> None:
    file, source, asked, other = DEPENDING[runtime]
    name = f"depends-{runtime}"
    for number, files in enumerate(({}, other), 1):
        platform.deploy(name, {file: source, **asked, **files}, {"runtime": runtime})
        assert httpx.get(platform.url(name)).text.strip() == "xn--gre-6ka8l"
        log = platform.api.get(f"/functions/{name}/versions/{number}/build-log").text
        assert ("installed already" in log) == (number == 2), log


def test_a_failing_install_says_what_the_tool_said(platform: Headrace, runtime: str) -> None:
    files, told = MISSING[runtime]
    name = f"missing-{runtime}"
    with pytest.raises(Failure, match="is failed"):
        platform.deploy(name, files, {"runtime": runtime})
    reason = platform.ask("GET", f"/functions/{name}/versions/1")["reason"]
    assert told in reason and f"Correct {runtimes.get(runtime).dependencies.file}" in reason  # type: ignore[union-attr]
    assert told in platform.api.get(f"/functions/{name}/versions/1/build-log").text


def test_the_examples_run_as_their_pages_say(platform: Headrace) -> None:
    platform.cli("deploy", str(ROOT / "functions" / "hello-node"))
    assert httpx.get(f"{platform.url('hello-node')}?name=Ada").text == "Hello, Ada! hello-node is running.\n"
    assert "added" in platform.cli("deploy", str(ROOT / "functions" / "qr-node"))
    answer = httpx.get(f"{platform.url('qr-node')}?text=headrace")
    assert (answer.status_code, answer.content[:8]) == (200, b"\x89PNG\r\n\x1a\n")
    assert httpx.get(platform.url("qr-node")).status_code == 400
    platform.cli("deploy", str(ROOT / "functions" / "hello-shell"))
    answer = httpx.get(f"{platform.url('hello-shell')}/Ada%20L", headers={"accept-language": "fr"})
    assert answer.text == "Bonjour, Ada L! hello-shell is running.\n"
    platform.cli("deploy", str(ROOT / "functions" / "jq"))
    answer = httpx.post(f"{platform.url('jq')}?.a%5B%5D%2B1", json={"a": [1, 2]})
    assert (answer.headers["content-type"], answer.text) == ("application/json", "2\n3\n")
    answer = httpx.post(f"{platform.url('jq')}?nonsense(", json={})
    assert (answer.status_code, "error" in answer.text) == (422, True)
