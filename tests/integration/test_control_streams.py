"""Following logs, and bodies that misbehave, over a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_control_records import LINE, record

from control_kit import HANDLER, World, served, world, zipped
from headrace.control import reading
from headrace.control.services import Following
from headrace.model import VersionState

QUICK = Following(poll_s=0.01, heartbeat_s=0.05, longest_s=30.0)
BUILD_LOG = "/v1/functions/hello/versions/1/build-log"
LOGS = "/v1/functions/hello/logs"


class Client:
    """A world behind a real server, and a client of it."""

    def __init__(self, world: World, base: str) -> None:
        self.world = world
        self.base = base
        self.headers = {"Authorization": f"Bearer {world.admin}"}
        self.http = httpx.AsyncClient(base_url=base, headers=self.headers, trust_env=False, timeout=10)


@pytest.fixture
async def c(tmp_path: Path) -> AsyncIterator[Client]:
    async with world(tmp_path, QUICK) as made, served(made.app) as base:
        client = Client(made, base)
        async with client.http:
            yield client


async def events(answer: httpx.Response) -> AsyncIterator[dict[str, str]]:
    """Server-sent events; a comment comes as `{"": text}`."""
    event: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif event:
            yield event
            event = {}


async def next_of(stream: AsyncIterator[dict[str, str]], name: str) -> dict[str, str]:
    async for event in stream:
        if name in event:
            return event
    raise AssertionError(f"the stream ended without {name}")


async def until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


async def test_a_build_is_followed_to_its_end(c: Client) -> None:
    await c.world.upload()
    job = await c.world.services.queue.claim(["build"], 30)
    assert job is not None
    versions, id = c.world.services.versions, job.payload["version_id"]
    async with c.http.stream("GET", BUILD_LOG, params={"follow": "true"}) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        stream = events(answer)
        await versions.append_log(id, ["one", "two"])
        assert (await next_of(stream, "data"))["data"] == "one"
        assert await next_of(stream, "data") == {"data": "two", "id": "2"}
        assert (await next_of(stream, ""))[""] == "still here"
        await versions.append_log(id, ["three"])
        assert await next_of(stream, "data") == {"data": "three", "id": "3"}
        await versions.advance(id, VersionState.FAILED, job.lease, reason="no such package")
        end = await next_of(stream, "event")
        assert (end["event"], json.loads(end["data"])) == ("end", {"state": "failed", "reason": "no such package"})
        assert [rest async for rest in stream] == [], "the server closes the stream"


async def test_the_log_of_a_finished_build_ends_at_once(c: Client) -> None:
    await c.world.ready()
    async with c.http.stream("GET", BUILD_LOG, params={"follow": "true"}, headers={"Last-Event-ID": "1"}) as answer:
        found = [event async for event in events(answer)]
    assert [event["data"] for event in found if "data" in event] == [
        "Loaded in 3 ms.",
        '{"state": "ready", "reason": null}',
    ]


async def test_log_lines_arrive_as_they_are_written_and_none_is_lost(c: Client) -> None:
    await c.world.live()
    async with c.http.stream("GET", LOGS, params={"follow": "true"}) as answer:
        stream = events(answer)
        await next_of(stream, "retry")
        await record(c.world, lines=tuple(replace(LINE, at=float(n), text=str(n)) for n in range(1500)))
        first = [json.loads((await next_of(stream, "data"))["data"]) for _ in range(1500)]
        assert [line["text"] for line in first] == [str(n) for n in range(1500)], "more than one read takes"
        await record(c.world, lines=(replace(LINE, text="more\nthan one line"),))
        last = await next_of(stream, "data")
        assert json.loads(last["data"])["text"] == "more\nthan one line"
    await record(c.world, lines=(replace(LINE, text="while away"),))
    async with c.http.stream("GET", LOGS, params={"follow": "true"}, headers={"Last-Event-ID": last["id"]}) as answer:
        event = await next_of(events(answer), "data")
        assert json.loads(event["data"])["text"] == "while away"


async def test_a_follower_far_behind_catches_up_without_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`limit` is about the first lines; the poll never comes to pass here."""
    async with world(tmp_path, Following(poll_s=3600.0)) as made, served(made.app) as base:
        await made.live()
        await record(made, lines=tuple(replace(LINE, text=str(n)) for n in range(2100)))
        asked, real = [], made.services.records.logs

        async def noted(*args: Any, **options: Any) -> Any:
            asked.append(options["limit"])
            return await real(*args, **options)

        monkeypatch.setattr(made.services.records, "logs", noted)
        client, params = Client(made, base), {"follow": "1", "limit": 10, "since": "1970-01-01T00:00:00Z"}
        async with client.http, client.http.stream("GET", LOGS, params=params) as answer:
            stream = events(answer)
            texts = [json.loads((await next_of(stream, "data"))["data"])["text"] for _ in range(2100)]
    assert texts == [str(n) for n in range(2100)]
    assert asked == [10, 1000, 1000, 1000]


async def test_nobody_reads_the_store_for_a_follower_who_left(c: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    await c.world.live()
    records = c.world.services.records
    reads, real = 0, records.logs

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        return await real(*args, **options)

    monkeypatch.setattr(records, "logs", counted)
    followers = c.world.services.followers
    async with c.http.stream("GET", LOGS, params={"follow": "true"}):
        await until(lambda: reads > 3)
        assert "(1 of 100" in repr(followers)
    await until(lambda: "(0 of 100" in repr(followers))
    before = reads
    await asyncio.sleep(10 * QUICK.poll_s)
    assert reads == before


async def test_a_deleted_token_and_a_deleted_function_end_their_streams(c: Client) -> None:
    await c.world.live()
    made = (await c.http.post("/v1/tokens", json={"name": "ci", "scopes": ["read"]})).json()
    headers = {"Authorization": f"Bearer {made['secret']}"}
    async with c.http.stream("GET", LOGS, params={"follow": "true"}, headers=headers) as answer:
        stream = events(answer)
        await next_of(stream, "retry")
        await c.http.delete(f"/v1/tokens/{made['id']}")
        end = await next_of(stream, "event")
        assert (end["event"], json.loads(end["data"])["code"]) == ("end", "unauthenticated")
    async with c.http.stream("GET", LOGS, params={"follow": "true"}) as answer:
        stream = events(answer)
        await next_of(stream, "retry")
        await c.http.delete("/v1/functions/hello")
        end = await next_of(stream, "event")
        assert (end["event"], json.loads(end["data"])["code"]) == ("end", "not_found")


async def test_too_many_followers_are_refused(c: Client) -> None:
    await c.world.live()
    followers = c.world.services.followers
    places = [followers.enter() for _ in range(100)]
    for place in places:
        place.__enter__()
    answer = await c.http.get(LOGS, params={"follow": "true"})
    assert (answer.status_code, answer.json()["code"]) == (503, "no_capacity")
    for place in places:
        place.__exit__(None, None, None)


async def test_followers_are_sent_away_after_a_while(tmp_path: Path) -> None:
    following = Following(poll_s=0.01, heartbeat_s=10.0, longest_s=0.05)
    async with world(tmp_path, following) as made, served(made.app) as base:
        await made.live()
        headers = {"Authorization": f"Bearer {made.admin}"}
        async with httpx.AsyncClient(base_url=base, headers=headers, trust_env=False) as http:
            answer = await http.get(LOGS, params={"follow": "true"})
    assert answer.text == "retry: 1000\n\n", "no end event: the follower dials again"


async def raw(c: Client, head: list[str], body: bytes, leave: asyncio.Event | None = None) -> bytes:
    """Send a request as bytes; what comes back until the server closes the connection."""
    host, _, port = c.base.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [*head, f"Host: {host}", f"Authorization: Bearer {c.world.admin}"]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    await writer.drain()
    if leave is not None:
        await leave.wait()
        writer.close()
        await writer.wait_closed()
        return b""
    try:
        async with asyncio.timeout(10):
            return await reader.read(1 << 20)
    finally:
        writer.close()


async def test_ten_gigabytes_are_refused_before_they_are_sent(c: Client) -> None:
    for path, kind in (
        ("PUT /v1/functions/hello", "application/json"),
        ("POST /v1/functions/hello/versions", "application/json"),
        ("POST /v1/functions/hello/versions", "multipart/form-data; boundary=x"),
    ):
        head = [f"{path} HTTP/1.1", f"Content-Type: {kind}", "Content-Length: 10737418240"]
        answer = await raw(c, head, b"x" * 1000)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer.lower()
    assert c.world.leftovers() == []


async def test_a_big_body_without_a_token_is_not_read(c: Client) -> None:
    head = ["PUT /v1/functions/x HTTP/1.1", "Content-Type: application/json", "Content-Length: 99999999"]
    host, _, port = c.base.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(("\r\n".join([*head, f"Host: {host}"]) + "\r\n\r\n").encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_an_upload_that_stops_halfway_leaves_nothing(c: Client) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="bundle"; filename="b"\r\n\r\n' + b"z" * (3 << 20)
    head = [
        "POST /v1/functions/hello/versions HTTP/1.1",
        "Content-Type: multipart/form-data; boundary=x",
        "Content-Length: 9000000",
    ]
    left = asyncio.Event()
    sending = asyncio.create_task(raw(c, head, part, leave=left))
    await until(lambda: any(path.stat().st_size > 0 for path in c.world.leftovers()))
    left.set()
    await sending
    await until(lambda: c.world.leftovers() == [])
    await until(lambda: "(0 of 8" in repr(c.world.services.uploads))
    assert (await c.http.get("/v1/functions")).json()["items"] == []


async def test_a_body_that_stalls_is_given_up(c: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "STALL_S", 0.05)
    head = ["PUT /v1/functions/hello HTTP/1.1", "Content-Type: application/json", "Content-Length: 100"]
    answer = await raw(c, head, b'{"a"')
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"client_gone"' in answer


async def test_a_real_upload_in_pieces(c: Client) -> None:
    bundle = zipped({"handler.py": HANDLER, "data.bin": bytes(range(256)) * (3 << 12)})
    answer = await c.http.post("/v1/functions/hello/versions", files={"bundle": ("b.zip", bundle)})
    assert answer.status_code == 202, answer.text
    stored = c.world.settings.code_dir(answer.json()["digest"])
    assert (stored / "data.bin").read_bytes() == bytes(range(256)) * (3 << 12)
    assert c.world.leftovers() == []


async def test_what_a_killed_process_left_is_swept_at_the_start(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        left = made.settings.home / "tmp" / "upload-abc"
        other = made.settings.home / "tmp" / "build-abc"
        left.parent.mkdir(parents=True)
        for path in (left, other):
            path.write_bytes(b"half")
        async with served(made.app):
            assert made.leftovers() == [other]
