"""Calls over HTTP: headers, bodies, limits, private functions, and what hostile clients send."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import httpx
import pytest

from stack import Headrace

ECHO = """
import base64, json
def handler(event, context):
    return {
        "statusCode": 201,
        "headers": {"X-One": "1", "content-type": "application/json"},
        "cookies": ["a=1; Path=/", "b=2"],
        "body": json.dumps(
            {"event": event, "id": context.invocation_id, "left": context.get_remaining_time_in_millis()}
        ),
    }
"""


@pytest.fixture(scope="module")
def echo(platform: Headrace) -> str:
    platform.deploy("echo", {"handler.py": ECHO}, {"timeout_s": 20})
    return platform.url("echo")


def _raw(platform: Headrace, request: bytes, half_close: bool = False) -> bytes:
    """Send bytes as they are; what comes back until the server closes or is silent for three seconds."""
    host, port = platform.functions.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=3) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while data := connection.recv(65536):
                answer += data
        except (TimeoutError, ConnectionResetError):
            pass
        return answer


def test_the_event_has_the_shape_of_http_payload_2(echo: str) -> None:
    answer = httpx.post(
        f"{echo}/a%20b/c?x=1&x=2&y=%26",
        content=json.dumps({"k": "v"}),
        headers={"content-type": "application/json", "x-multi": "1", "cookie": "s=1", "traceparent": "00-abc-def-01"},
    )
    assert answer.status_code == 201
    assert answer.headers["x-one"] == "1"
    assert answer.headers.get_list("set-cookie") == ["a=1; Path=/", "b=2"]
    event = answer.json()["event"]
    assert event["version"] == "2.0"
    assert event["rawPath"].endswith("/c")
    assert event["rawQueryString"] == "x=1&x=2&y=%26"
    assert event["queryStringParameters"] == {"x": "1,2", "y": "&"}
    assert event["requestContext"]["http"]["method"] == "POST"
    assert event["headers"]["traceparent"] == "00-abc-def-01"
    assert (event["body"], event["isBase64Encoded"]) == ('{"k": "v"}', False)
    assert answer.json()["id"] == answer.headers["headrace-invocation"]
    assert 15_000 < answer.json()["left"] <= 20_000
    assert "run;dur=" in answer.headers["server-timing"]


def test_binary_bodies_arrive_as_base64(echo: str) -> None:
    answer = httpx.put(echo, content=b"\xff\x00\xfe", headers={"content-type": "image/png"})
    assert (answer.json()["event"]["body"], answer.json()["event"]["isBase64Encoded"]) == ("/wD+", True)


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 3_000_000])
def test_bodies_of_any_size_arrive_whole(platform: Headrace, size: int) -> None:
    code = "import base64\ndef handler(event, context):\n"
    code += "    body = event.get('body') or ''\n"
    code += "    raw = base64.b64decode(body) if event['isBase64Encoded'] else body.encode()\n"
    code += "    return raw[::-1]\n"
    platform.deploy("mirror", {"handler.py": code}, {})
    body = bytes(n % 251 for n in range(size))
    for content in (body, iter([body[: size // 2], body[size // 2 :]])):
        answer = httpx.post(platform.url("mirror"), content=content, timeout=30)
        assert answer.status_code == 200, answer.text
        assert answer.content == body[::-1]


def test_head_has_no_body(echo: str) -> None:
    answer = httpx.head(echo)
    assert (answer.status_code, answer.content) == (201, b"")


def test_private_functions_need_a_token_with_invoke(platform: Headrace) -> None:
    platform.deploy("secret", {"handler.py": "def handler(event, context):\n    return 'in'\n"}, {})
    platform.ask("PUT", "/functions/secret", {"access": "private"})
    url = platform.url("secret")
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"authorization": "Bearer nonsense"}).status_code == 401
    reader = platform.ask("POST", "/tokens", {"name": "e2e-reader", "scopes": ["read"]})
    caller = platform.ask("POST", "/tokens", {"name": "e2e-caller", "scopes": ["invoke"]})
    elsewhere = platform.ask("POST", "/tokens", {"name": "e2e-elsewhere", "scopes": ["invoke"], "namespaces": ["team"]})
    answers = [
        httpx.get(url, headers={"authorization": f"Bearer {token['secret']}"}).status_code
        for token in (reader, caller, elsewhere)
    ]
    assert answers == [403, 200, 403]
    platform.ask("DELETE", f"/tokens/{caller['id']}")
    assert httpx.get(url, headers={"authorization": f"Bearer {caller['secret']}"}).status_code == 401


@pytest.mark.parametrize("name", ["nobody", "echo@99", "echo@beta", "echo.team", "%C3%A9", "echo@", ".."])
def test_what_is_not_there_is_404(platform: Headrace, echo: str, name: str) -> None:
    answer = httpx.get(f"{platform.functions}/fn/{name}")
    assert (answer.status_code, answer.headers["headrace-error"]) == (404, "caller")
    assert answer.json()["detail"]


def test_a_huge_content_length_is_refused_at_once(platform: Headrace, echo: str) -> None:
    request = b"POST /fn/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10737418240\r\n\r\nabc"
    assert _raw(platform, request).startswith(b"HTTP/1.1 413 ")


def test_a_body_over_the_limit_is_refused_while_it_comes(platform: Headrace, echo: str) -> None:
    answer = httpx.post(echo, content=iter([b"x" * (1 << 20)] * 40), timeout=30)
    assert answer.status_code == 413
    assert "HEADRACE_MAX_BODY_MB" in answer.json()["detail"]


def test_a_body_that_stops_halfway_reaches_no_function(platform: Headrace, echo: str) -> None:
    request = b"POST /fn/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc"
    answer = _raw(platform, request, half_close=True)
    assert b" 201 " not in answer


def test_a_header_of_a_megabyte_is_refused(platform: Headrace, echo: str) -> None:
    answer = _raw(platform, b"GET /fn/echo HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * (1 << 20) + b"\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")) or answer == b""
    assert httpx.get(echo).status_code == 201


@pytest.mark.parametrize(
    ("code", "status", "fault"),
    [
        ("def handler(e, c):\n    return object()\n", 500, "function"),
        ("def handler(e, c):\n    return {'statusCode': 'no'}\n", 500, "function"),
        (
            "def handler(e, c):\n    return {'statusCode': 200, 'headers': {'a': 'b\\r\\nc: d'}, 'body': ''}\n",
            500,
            "function",
        ),
        ("import os\ndef handler(e, c):\n    os._exit(3)\n", 502, "function"),
        ("import sys\ndef handler(e, c):\n    sys.exit(1)\n", 500, "function"),
        ("import os\ndef handler(e, c):\n    os.kill(os.getpid(), 9)\n", 502, "function"),
        ("def handler(e, c):\n    x = bytearray(600 << 20)\n    return len(x)\n", 502, "function"),
        ("import time\ndef handler(e, c):\n    time.sleep(60)\n", 504, "function"),
        ("def handler(e, c):\n    def f(): return f()\n    return f()\n", 500, "function"),
    ],
    ids=["object", "status", "header injection", "exit", "sys.exit", "kill -9", "memory", "timeout", "recursion"],
)
def test_what_functions_do_wrong_is_said_and_the_next_call_works(
    platform: Headrace, request: pytest.FixtureRequest, code: str, status: int, fault: str
) -> None:
    name = "wrong-" + "".join(c for c in request.node.callspec.id if c.isalnum()).lower()
    body = code.replace("def handler(e, c):\n", "def handler(e, c):\n    if e['rawPath'] == '/fine': return 'fine'\n")
    platform.deploy(name, {"handler.py": body}, {"timeout_s": 2})
    answer = httpx.get(platform.url(name), timeout=30)
    assert (answer.status_code, answer.headers["headrace-error"]) == (status, fault), answer.text
    assert "Traceback" not in answer.text
    assert httpx.get(f"{platform.url(name)}/fine", timeout=30).text == "fine"


def test_out_of_memory_has_its_own_error(platform: Headrace) -> None:
    platform.deploy("hog", {"handler.py": "def handler(e, c):\n    return len(bytearray(900 << 20))\n"}, {})
    answer = httpx.get(platform.url("hog"), timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (502, "out_of_memory")
    assert "memory_mb" in answer.json()["detail"]


def test_a_flood_of_log_is_bounded_and_says_so(platform: Headrace) -> None:
    code = "def handler(e, c):\n    for n in range(100):\n        print('x' * (1 << 20))\n    return 'done'\n"
    platform.deploy("flood", {"handler.py": code}, {})
    answer = httpx.get(platform.url("flood"), timeout=60)
    assert answer.text == "done"
    id = answer.headers["headrace-invocation"]
    lines: Any = platform.until(lambda: platform.ask("GET", f"/invocations/{id}")["lines"], "log")
    assert sum(len(line["text"]) for line in lines) < 400_000
    assert "dropped" in lines[-1]["text"]


BOMB = """
import os, time
def handler(event, context):
    children = 0
    try:
        while True:
            if os.fork() == 0:
                time.sleep(30)
                os._exit(0)
            children += 1
    except OSError:
        return children
"""

FILL = """
def handler(event, context):
    try:
        with open("/tmp/f", "wb") as file:
            while True:
                file.write(b"x" * (1 << 20))
    except OSError as error:
        return str(error)
"""


def test_forks_and_a_full_tmp_harm_only_the_function(platform: Headrace, echo: str) -> None:
    platform.deploy("bomb", {"handler.py": BOMB}, {"timeout_s": 10})
    assert httpx.get(platform.url("bomb"), timeout=30).status_code in (200, 502, 504)
    platform.deploy("fill", {"handler.py": FILL}, {"timeout_s": 10})
    answer = httpx.get(platform.url("fill"), timeout=30)
    assert answer.status_code == 502 or "space" in answer.text.lower() or "memory" in answer.text.lower()
    assert httpx.get(echo).status_code == 201


def test_a_full_queue_says_when_to_come_back(platform: Headrace) -> None:
    code = "import asyncio\nasync def handler(e, c):\n    await asyncio.sleep(2)\n    return 'ok'\n"
    platform.deploy("narrow", {"handler.py": code}, {"concurrency": 1, "max_instances": 1, "queue": 1})
    httpx.get(platform.url("narrow"), timeout=30)
    statuses: list[tuple[int, str | None]] = []

    def call() -> None:
        answer = httpx.get(platform.url("narrow"), timeout=30)
        statuses.append((answer.status_code, answer.headers.get("retry-after")))

    threads = [threading.Thread(target=call) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses, key=str) == [(200, None), (200, None), (429, "1"), (429, "1"), (429, "1")]


def test_a_caller_who_leaves_cancels_the_call(platform: Headrace) -> None:
    code = "import asyncio\nasync def handler(e, c):\n    try:\n        await asyncio.sleep(20)\n"
    code += "    except asyncio.CancelledError:\n        print('cancelled in time')\n        raise\n"
    platform.deploy("patient", {"handler.py": code}, {})
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(platform.url("patient"), timeout=1)
    seen = platform.until(lambda: platform.ask("GET", "/functions/patient/invocations")["items"], "client_gone")
    assert seen[0]["outcome"] == "client_gone"
    platform.until(lambda: platform.ask("GET", f"/invocations/{seen[0]['id']}")["lines"], "cancelled in time")
