"""ASGI applications as functions: routing under the function's path, streams, lifespan, WebSocket."""

from __future__ import annotations

import time

import httpx
import pytest

from stack import Headrace

APP = """
import asyncio
started = 0
async def app(scope, receive, send):
    global started
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                started += 1
                await send({"type": "lifespan.startup.complete"})
            else:
                await send({"type": "lifespan.shutdown.complete"})
                return
    path = scope["path"]
    if path.endswith("/drip"):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for n in range(4):
            await send({"type": "http.response.body", "body": f"data: {n}\\n\\n".encode(), "more_body": True})
            await asyncio.sleep(0.4)
        await send({"type": "http.response.body", "body": b""})
    elif path.endswith("/break"):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await asyncio.sleep(0.1)
        raise RuntimeError("broken on purpose")
    else:
        body = f"{scope['root_path']} {path} {started}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
"""


@pytest.fixture(scope="module")
def app(platform: Headrace) -> str:
    platform.deploy("app", {"main.py": APP}, {"handler": "main.app", "max_instances": 1})
    return platform.url("app")


def test_it_answers_under_its_path_and_its_lifespan_ran_once(app: str) -> None:
    answers = {httpx.get(f"{app}/some/where").text for _ in range(5)}
    assert answers == {"/fn/app /fn/app/some/where 1"}


def test_a_stream_arrives_chunk_by_chunk(app: str) -> None:
    with httpx.stream("GET", f"{app}/drip") as answer:
        came = [(time.monotonic(), chunk) for chunk in answer.iter_text()]
    assert "".join(chunk for _, chunk in came) == "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\n"
    assert came[-1][0] - came[0][0] > 0.8, "it was held back until its end"


def test_a_stream_that_breaks_never_looks_complete(app: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError), httpx.stream("GET", f"{app}/break") as answer:
        answer.read()


def test_the_notes_example_with_fastapi(platform: Headrace) -> None:
    platform.cli("deploy", "functions/notes")
    notes = platform.url("notes")
    made = httpx.post(f"{notes}/notes", json={"text": "buy milk"}, timeout=30)
    assert made.status_code in (200, 201), made.text
    assert "buy milk" in httpx.get(f"{notes}/notes").text
