"""ASGI applications over HTTP, written by hand so that each message is in sight."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from headrace import wire
from shim_kit import Shim, http_header, loaded_shim, logged, waiting_shim

APP = """
import asyncio, json
started = []
async def lifespan(scope, receive, send):
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            started.append(1)
            scope["state"]["from_lifespan"] = [1, 2]
            print("starting up")
            await send({"type": "lifespan.startup.complete"})
        else:
            print("shutting down")
            await send({"type": "lifespan.shutdown.complete"})
            return

async def read(receive):
    body, messages = b"", 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect": return body, messages, True
        body += message.get("body", b""); messages += 1
        if not message.get("more_body"): return body, messages, False

async def respond(send, body=b"", status=200, headers=(), more=False):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body, "more_body": more})

def plain(value):
    if isinstance(value, bytes): return "b:" + value.decode("latin-1")
    if isinstance(value, dict): return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)): return [plain(item) for item in value]
    return value

async def handler(scope, receive, send):
    if scope["type"] == "lifespan": return await lifespan(scope, receive, send)
    path = scope["path"][len(scope["root_path"]):]
    await globals()["do_" + path[1:].partition("/")[0]](scope, receive, send)
"""


def app(**paths: str) -> str:
    """The application with a coroutine for each path."""
    return APP + "".join(
        f"\nasync def do_{name}(scope, receive, send):\n    {body.strip()}\n" for name, body in paths.items()
    )


FINE = "await respond(send, b'fine')"


def instance_lines(shim: Shim) -> list[str]:
    return [log["text"] for log in shim.link.instance.logs]


async def test_scope_has_everything(tmp_path: Path) -> None:
    source = app(scope="await respond(send, json.dumps(plain(scope)).encode())")
    async with loaded_shim(tmp_path, source) as shim:
        headers = [["host", "h.example:8080"], ["x-a", "1"], ["x-a", "\u00e4"], ["x-wide", "\u65e5"]]
        answer = await shim.call(
            "/scope/a%20%C3%A4?x=%20y", m="PUT", r="/fn/c%20d", s="https", v="2", h=headers, ip="::1"
        )

        assert answer.json() == {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "2",
            "method": "PUT",
            "scheme": "https",
            "path": "/fn/c d/scope/a ä",
            "raw_path": "b:/fn/c%20d/scope/a%20%C3%A4",
            "root_path": "/fn/c d",
            "query_string": "b:x=%20y",
            "headers": [["b:host", "b:h.example:8080"], ["b:x-a", "b:1"], ["b:x-a", "b:ä"], ["b:x-wide", "b:æ\x97¥"]],
            "client": ["::1", 0],
            "server": ["h.example", 8080],
            "state": {"from_lifespan": [1, 2]},
            "extensions": {"http.response.trailers": {}},
        }


@pytest.mark.parametrize(
    ("host", "server"),
    [("h", ["h", 80]), ("[::1]:81", ["::1", 81]), ("[::1]", ["::1", 80]), (None, ["localhost", 80])],
)
async def test_server_comes_from_the_host_header(tmp_path: Path, host: str | None, server: list[Any]) -> None:
    source = app(server="await respond(send, json.dumps(scope['server']).encode())")
    async with loaded_shim(tmp_path, source) as shim:
        assert (await shim.call("/server", h=[["host", host]] if host else [])).json() == server


async def test_small_answer_is_one_frame(tmp_path: Path) -> None:
    source = app(small="await respond(send, b'x' * 65536, 201, [(b'X-One', b'1'), (b'content-length', b'65536')])")
    async with loaded_shim(tmp_path, source) as shim:
        answer = await shim.call("/small")

        assert (answer.status, answer.headers, len(answer.body)) == (201, [["x-one", "1"]], 65536)
        assert len(answer.frames) == 1


async def test_large_answer_streams_with_its_length(tmp_path: Path) -> None:
    source = app(large="await respond(send, b'x' * 1_000_000, 200, [(b'content-length', b'1000000')])")
    async with loaded_shim(tmp_path, source) as shim:
        answer = await shim.call("/large")

        assert answer.frames[0].type == wire.HEAD
        assert (answer.header("content-length"), len(answer.body)) == ("1000000", 1_000_000)


async def test_answer_streams_piece_by_piece_as_it_is_made(tmp_path: Path) -> None:
    source = app(
        pieces="""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for number in range(3):
        message = await receive() if number == 0 else None
        await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
        await asyncio.sleep(0.01)
    await send({"type": "http.response.body"})
"""
    )
    async with loaded_shim(tmp_path, source) as shim:
        frames = (await shim.call("/pieces")).frames

        assert [(frame.type, frame.body) for frame in frames] == [
            (wire.HEAD, b""),
            (wire.BODY, b"0"),
            (wire.BODY, b"1"),
            (wire.BODY, b"2"),
            (wire.END, b""),
        ]


async def test_head_does_not_wait_for_the_first_piece(tmp_path: Path) -> None:
    source = app(
        slow="""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await asyncio.sleep(60)
"""
    )
    async with loaded_shim(tmp_path, source) as shim:
        assert (await shim.link.call("/slow").frame()).type == wire.HEAD


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_answers_without_body_keep_their_announced_length(tmp_path: Path, method: str, status: int) -> None:
    source = app(bare=f"await respond(send, b'', {status}, [(b'content-length', b'500')])")
    async with loaded_shim(tmp_path, source) as shim:
        answer = await shim.call("/bare", m=method)

        assert (answer.error, answer.body, answer.header("content-length")) == (None, b"", "500")


async def test_request_body_arrives_as_it_comes(tmp_path: Path) -> None:
    source = app(
        read="""
    first = await receive()
    print("first", first["body"], first["more_body"])
    body, messages, gone = await read(receive)
    await respond(send, json.dumps([len(first["body"]) + len(body), gone]).encode())
"""
    )
    async with loaded_shim(tmp_path, source) as shim:
        stream = shim.link.open()
        stream.send(wire.CALL, http_header("/read", m="POST", more=True), b"begin")
        await logged(stream, "first b'begin' True")
        stream.send(wire.BODY, None, b"x" * 1000)
        stream.send(wire.END)

        assert (await stream.answer()).json() == [1005, False]


async def test_request_body_is_granted_only_as_it_is_taken(tmp_path: Path) -> None:
    source = app(
        lazy="""
    await receive()
    print("took the first")
    while not release: await asyncio.sleep(0.01)
    body, messages, gone = await read(receive)
    await respond(send, str(len(body)).encode())
""",
        release="release.append(1); await respond(send)",
    )
    async with loaded_shim(tmp_path, "release = []\n" + source) as shim:
        stream = shim.link.open()
        stream.send(wire.CALL, http_header("/lazy", m="POST", more=True), b"begin")
        await logged(stream, "took")
        for _ in range(4):
            stream.send(wire.BODY, None, b"x" * wire.CHUNK)
        await asyncio.sleep(0.1)
        assert stream.waiting == 0  # a full window, and not a byte granted

        await shim.call("/release")
        granted = 0
        while granted < 4 * wire.CHUNK:
            frame = await stream.frame()
            assert frame.type == wire.WINDOW
            granted += wire.loads(frame.header)["n"]
        stream.send(wire.END)
        assert (await stream.answer()).body == str(4 * wire.CHUNK).encode()
        assert granted == 4 * wire.CHUNK  # what came inside CALL does not count


async def test_receive_after_the_answer_is_a_disconnect(tmp_path: Path) -> None:
    source = app(
        after="""
    await read(receive)
    await respond(send, b"answered")
    print("then", (await receive())["type"])
"""
    )
    async with loaded_shim(tmp_path, source) as shim:
        assert (await shim.call("/after")).lines() == ["then http.disconnect"]


CANCELLED = app(
    fine=FINE,
    polite="""
    print("waiting")
    await read(receive)
    print("heard", (await receive())["type"])
    try:
        await respond(send)
    except OSError as error:
        print("refused", type(error).__name__)
""",
    stubborn="""
    print("waiting")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("cancelled")
        raise
""",
    streaming="""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    try:
        while True: await send({"type": "http.response.body", "body": b"x" * 10000, "more_body": True})
    finally:
        print("ended")
""",
)


async def test_client_that_leaves_is_a_disconnect_first(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, CANCELLED) as shim:
        stream = shim.link.call("/polite")
        await logged(stream, "waiting")
        stream.send(wire.CANCEL, {"why": "client"})
        await logged(stream, "refused Gone")

        assert [log["text"] for log in stream.logs] == ["waiting", "heard http.disconnect", "refused Gone"]
        assert stream.waiting == 0


@pytest.mark.parametrize("why", ["client", "timeout"])
async def test_application_that_does_not_listen_is_cancelled(tmp_path: Path, why: str) -> None:
    async with loaded_shim(tmp_path, CANCELLED) as shim:
        stream = shim.link.call("/stubborn")
        await logged(stream, "waiting")
        stream.send(wire.CANCEL, {"why": why})
        await logged(stream, "cancelled")

        assert (await shim.call("/fine")).body == b"fine"
        assert (stream.waiting, len(stream.logs)) == (0, 2)


async def test_stream_under_a_full_window_ends_when_the_client_leaves(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, CANCELLED) as shim:
        stream = shim.link.call("/streaming")
        received = 0
        while received < wire.WINDOW_SIZE:
            received += len((await stream.frame()).body)
        assert (await shim.call("/fine")).body == b"fine"
        stream.send(wire.CANCEL, {"why": "client"})
        await logged(stream, "ended")

        assert [log["text"] for log in stream.logs] == ["ended"]
        assert stream.waiting == 0


BREACHES = {
    "nothing": ("pass", "without a complete response"),
    "start_only": ("await send({'type': 'http.response.start', 'status': 200})", "without a complete response"),
    "body_first": ("await send({'type': 'http.response.body', 'body': b'x'})", "expected 'http.response.start'"),
    "no_type": ("await send({'type': 'http.nonsense'})", "expected 'http.response.start'"),
    "status": ("await respond(send, b'', 101)", "200 to 599"),
    "injection": ("await respond(send, b'', 200, [(b'x', b'a\\r\\nb: c')])", "line breaks"),
    "short": ("await respond(send, b'abc', 200, [(b'content-length', b'5')])", "announced 5 bytes of body and sent 3"),
    "long": ("await respond(send, b'abc', 200, [(b'content-length', b'2')])", "announced 2 bytes of body and sent 3"),
    "raises": ("raise LookupError('no such luck')", "no such luck"),
    "raises_late": ("await respond(send, b'x', more=True); raise LookupError('late')", "late"),
}


async def test_breach_of_the_protocol_is_a_failure_of_the_function(tmp_path: Path) -> None:
    paths = {name: body for name, (body, _) in BREACHES.items()}
    async with loaded_shim(tmp_path, app(fine=FINE, **paths)) as shim:
        for name in paths:
            answer = await shim.call(f"/{name}")
            assert answer.error is not None, name
            assert BREACHES[name][1] in answer.error["message"]
            assert answer.lines("log") == answer.error["stack"].split("\n")
            assert (await shim.call("/fine")).body == b"fine"


AFTER = {
    "page": ("await respond(send, b'my own page', 500)\n    raise LookupError('the cause')", 500, "the cause"),
    "later": ("await respond(send, b'fine')\n    raise LookupError('after all')", 200, "after all"),
    "twice": ("await respond(send, b'fine'); await respond(send)", 200, "the response is complete"),
    "bare": ("await respond(send, b'', 204)\n    raise LookupError('after none')", 204, "after none"),
}


async def test_failure_after_a_complete_answer_travels_with_it(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, app(**{name: body for name, (body, _, _) in AFTER.items()})) as shim:
        for name, (_, status, message) in AFTER.items():
            answer = await shim.call(f"/{name}")
            assert [frame.type for frame in answer.frames] == [wire.REPLY], name
            assert answer.status == status
            assert answer.error is not None
            assert message in answer.error["message"]
            assert answer.lines("log") == answer.error["stack"].split("\n")
        assert (await shim.call("/page")).body == b"my own page"


async def test_failure_after_the_last_piece_ends_a_complete_stream(tmp_path: Path) -> None:
    source = app(
        stream="""
    await respond(send, b"one", more=True)
    await asyncio.sleep(0.01)
    await send({"type": "http.response.body", "body": b"two"})
    raise LookupError("after the last piece")
"""
    )
    async with loaded_shim(tmp_path, source) as shim:
        answer = await shim.call("/stream")

        assert ([frame.type for frame in answer.frames][-1], answer.body) == (wire.END, b"onetwo")
        assert answer.error is None
        assert answer.after is not None
        assert (answer.after["type"], answer.after["message"]) == ("LookupError", "after the last piece")
        assert answer.lines("log") == answer.after["stack"].split("\n")


STILL_RUNNING = """
    await release.wait()
    raise LookupError("in the background")
"""


async def test_work_after_the_answer_does_not_delay_it(tmp_path: Path) -> None:
    source = app(
        whole="await respond(send, b'whole')" + STILL_RUNNING,
        page="await respond(send, b'page', 500)" + STILL_RUNNING,
        stream="await respond(send, b'stre', more=True); await send({'type': 'http.response.body', 'body': b'am'})"
        + STILL_RUNNING,
        release="release.set(); await respond(send)",
    )
    async with loaded_shim(tmp_path, "import asyncio\nrelease = asyncio.Event()\n" + source) as shim:
        for name in ("whole", "page", "stream"):
            answer = await shim.call(f"/{name}")
            assert (answer.body, answer.error, answer.after) == (name.encode(), None, None)
            assert answer.logs == []
        await shim.call("/release")
        await logged(shim.link.instance, "LookupError: in the background")


async def test_lifespan_runs_once_and_is_shut_down_by_drain(tmp_path: Path) -> None:
    source = app(
        count="await respond(send, b'%d' % len(started))",
        long="""
    print("running")
    await asyncio.sleep(0.3)
    await respond(send, b"done")
    await asyncio.sleep(0.1)
    print("background")
""",
    )
    async with loaded_shim(tmp_path, source) as shim:
        assert [(await shim.call("/count")).body for _ in range(3)] == [b"1"] * 3
        stream = shim.link.call("/long")
        await logged(stream, "running")
        shim.link.send(wire.DRAIN)

        assert (await stream.answer()).body == b"done"
        assert (await shim.exited())[0] == 0
        await shim.link.until_ended()
        assert instance_lines(shim) == ["starting up", "background", "shutting down"]


async def test_trailers_come_after_the_body(tmp_path: Path) -> None:
    source = """
async def handler(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    assert "http.response.trailers" in scope["extensions"]
    await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
    await send({"type": "http.response.body", "body": b"all"})
    for name, more in ((b"x-one", True), (b"x-two", scope["path"].endswith("/more"))):
        await send({"type": "http.response.trailers", "headers": [(name, b"1")], "more_trailers": more})
    if scope["path"].endswith("/raise"):
        raise ValueError("after all")
"""
    async with loaded_shim(tmp_path, source) as shim:
        answer = await shim.call("/")
        assert (answer.body, answer.after) == (b"all", None)
        last = {"tr": [["x-one", "1"], ["x-two", "1"]]}
        assert wire.loads(answer.frames[-1].header) == last
        failed = await shim.call("/raise")
        assert wire.loads(failed.frames[-1].header)["tr"] == last["tr"]
        assert failed.after is not None
        assert failed.after["message"] == "after all"
        promised = await shim.call("/more")
        assert promised.error is not None, "it promised more trailers and returned"


FAILED = "await receive(); await send({'type': 'lifespan.startup.failed', 'message': 'no database'})"
LIFESPANS = {
    "unknown": ("assert scope['type'] == 'http'", None),
    "returns": ("return", None),
    "reports": (FAILED, "no database"),
    "raises": ("await receive(); raise LookupError('no database')", "no database"),
    "reports and raises": (f"{FAILED}; raise LookupError('the cause')", "the cause"),
    "exits": ("import sys; sys.exit('no database')", "no database"),
}


@pytest.mark.parametrize("name", LIFESPANS)
async def test_startup_that_fails_is_a_failure_to_load(tmp_path: Path, name: str) -> None:
    body, message = LIFESPANS[name]
    source = f"""
async def handler(scope, receive, send):
    if scope["type"] == "lifespan":
        {body}
        return
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"fine"}})
"""
    async with waiting_shim(tmp_path, {"handler.py": source}) as shim:
        frame = await shim.load()
        if message is None:
            assert (await shim.call()).body == b"fine"
        else:
            assert frame.type == wire.LOAD_FAILED
            assert message in wire.loads(frame.header)["message"]


async def test_asgi_calls_do_not_mix_their_logs(tmp_path: Path) -> None:
    source = app(
        say="print(scope['path'][-1]); await asyncio.sleep(0.02); print(scope['path'][-1]); await respond(send)"
    )
    async with loaded_shim(tmp_path, source) as shim:
        answers = await asyncio.gather(*(shim.call(f"/say/{letter}") for letter in "abcdef"))

        assert [answer.lines() for answer in answers] == [[letter] * 2 for letter in "abcdef"]
