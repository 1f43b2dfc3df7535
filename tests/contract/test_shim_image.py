"""The adapter in front of real programs: what an image serves reaches the node, and what it does wrong is said.

As in a container, but without one: the program is a command of this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace import wire
from headrace.resources import share
from shim_kit import PATIENCE_S, Shim, Stream, assemble, logged, running

UNPRIVILEGED = "import os, runpy, sys; os.geteuid = lambda: 65532; runpy.run_path(sys.argv[1], run_name='__main__')"

SERVER = """
import asyncio, json, os, signal, sys
import uvicorn

async def read(receive):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"): return body

async def respond(send, body=b"", status=200, headers=(), more=False):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body, "more_body": more})

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("shut down", flush=True)
        return await send({"type": "lifespan.shutdown.complete"})
    if scope["type"] == "websocket": return await socket(scope, receive, send)
    path = scope["path"]
    if path == "/look":
        seen = {"target": scope["raw_path"].decode() + "?" + scope["query_string"].decode(), "method": scope["method"],
                "headers": [[n.decode(), v.decode("latin-1")] for n, v in scope["headers"]], "env": dict(os.environ)}
        await respond(send, json.dumps(seen).encode(), headers=[(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")])
    elif path == "/echo":
        await respond(send, await read(receive), status=201)
    elif path == "/none":
        await respond(send, status=204)
    elif path == "/log":
        print("said ü of", scope["query_string"].decode(), flush=True)
        print("complained", file=sys.stderr, flush=True)
        await respond(send, b"logged")
    elif path == "/mirror":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            message = await receive()
            await send({"type": "http.response.body", "body": message["body"], "more_body": True})
            if not message["more_body"]: break
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    elif path == "/flood":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(256):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            print("sent", number, flush=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    elif path == "/wait":
        print("waiting", flush=True)
        await read(receive)
        await receive()
        print("caller left", flush=True)
    elif path == "/exit":
        print("last words", flush=True)
        os._exit(7)

def told(scope):
    headers = dict(scope["headers"])
    return headers[b"origin"] + b" " + headers[b"cookie"]

async def socket(scope, receive, send):
    await receive()
    if scope["path"] == "/no":
        await send({"type": "websocket.http.response.start", "status": 403, "headers": [(b"x-why", told(scope))]})
        await send({"type": "websocket.http.response.body", "body": b"not you"})
        return
    await send({"type": "websocket.accept", "subprotocol": (scope["subprotocols"] or [None])[-1]})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            print("left with", message["code"], flush=True)
            return
        if message.get("text") == "bye":
            return await send({"type": "websocket.close", "code": 4001, "reason": "as you say"})
        await send({**message, "type": "websocket.send"})

uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="critical", timeout_graceful_shutdown=3)
"""

RAW = """
import os, socket, sys
def serve(port, answer):
    server = socket.create_server(("127.0.0.1", port))
    while True:
        peer, _ = server.accept()
        data = peer.recv(65536)
        if data: answer(peer, data)
        peer.close()
"""
OK = "b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok'"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def adapter(home: Path) -> Path:
    """The adapter as the node lays it out, beside the shim."""
    assemble(home)
    package = home / "headrace_image"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(share("runtime-images") / "image" / "headrace_image", package, ignore=ignored)
    for name in ("h11", "websockets"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.submodule_search_locations
        shutil.copytree(spec.submodule_search_locations[0], home / name, ignore=ignored)
    return package


class Image:
    """An adapter that has said HELLO, and the port for its program."""

    def __init__(self, shim: Shim, port: int) -> None:
        self.shim = shim
        self.port = port

    async def load(self, seconds: float = 20, ready_path: str | None = None, **fields: Any) -> wire.Frame:
        options = {"port": self.port, "ready_path": ready_path, "start_timeout_s": seconds}
        return await self.shim.load(image=options, **fields)

    async def refused(self, seconds: float = 20, ready_path: str | None = None) -> dict[str, str]:
        frame = await self.load(seconds, ready_path)
        assert frame.type == wire.LOAD_FAILED
        return wire.loads(frame.header)


@contextlib.asynccontextmanager
async def image(home: Path, code: str, *, command: list[str] | None = None, root: bool = False) -> AsyncIterator[Image]:
    """The program is the Python in `code`, or `command`."""
    package = adapter(home)
    (home / "program.py").write_text(f"import os\nopen({str(home / 'pid')!r}, 'w').write(str(os.getpid()))\n{code}")
    trick = [] if root else ["-c", UNPRIVILEGED]
    shim = Shim(home, [sys.executable, "-I", "-S", *trick, str(package)], {})
    (home / "code").mkdir()
    (home / "layer").mkdir()
    what = {"command": command or [sys.executable, str(home / "program.py")], "env": {"OF_IMAGE": "1", "BOTH": "1"}}
    what |= {"id": "sha256:0", "user": "", "workdir": str(home), "volumes": []}
    (home / "layer" / "image.json").write_text(json.dumps(what))
    try:
        async with running(shim):
            yield Image(shim, free_port())
    finally:
        if (home / "pid").exists():  # it outlives a shim that is killed; in a container both end
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((home / "pid").read_text()), signal.SIGKILL)


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Image]:
    async with image(tmp_path, SERVER) as found:
        frame = await found.load(env={"MINE": "2", "BOTH": "2"})
        assert frame.type == wire.LOADED and wire.loads(frame.header)["kind"] == "image"
        yield found


async def test_calls_go_through(serving: Image) -> None:
    shim = serving.shim
    given = [["host", "fn.example"], ["x-mine", "ü"], ["x-forwarded-for", "203.0.113.9"], ["headrace-secret", "1"]]
    answer = await shim.call("/look?a=%20b&a=c", h=given)
    assert answer.status == 200 and answer.frames[-1].type == wire.REPLY
    assert [value for name, value in answer.headers if name == "set-cookie"] == ["a=1", "b=2"]
    seen = answer.json()
    assert (seen["target"], seen["method"]) == ("/look?a=%20b&a=c", "GET")
    headers = dict(seen["headers"])
    assert headers["host"] == "fn.example" and "headrace-secret" not in headers
    assert (headers["x-forwarded-for"], headers["x-forwarded-prefix"]) == ("203.0.113.9", "/fn/case")
    assert headers["headrace-invocation"] == "inv-0"
    env = seen["env"]
    assert (env["PORT"], env["OF_IMAGE"], env["MINE"], env["BOTH"]) == (str(serving.port), "1", "2", "2")
    assert not {"HEADRACE_SOCKET", "HEADRACE_CODE", "HEADRACE_LAYER"} & env.keys()

    body = os.urandom(300_000)
    long = await shim.link.call("/echo", m="POST", h=[["content-length", "300000"]], then=body).answer()
    assert (long.status, long.body) == (201, body)
    chunked = await shim.link.call("/echo", m="POST", h=[], then=body).answer()
    assert chunked.body == body
    assert (await shim.call("/echo", b"short", m="PUT", h=[["content-length", "5"]])).body == b"short"
    assert (await shim.call("/none")).status == 204


async def test_bodies_stream_both_ways(serving: Image) -> None:
    stream = serving.shim.link.open()
    header = {"id": "i", "d": 30_000, "m": "POST", "r": "", "p": "/mirror", "q": "", "h": [], "ip": "", "s": "http"}
    stream.send(wire.CALL, header | {"v": "1.1", "more": True})
    assert (await stream.frame()).type == wire.HEAD  # before any of the body
    for piece in (b"one", b"two"):
        stream.send(wire.BODY, None, piece)
        frame = await stream.frame()
        assert (frame.type, frame.body) == (wire.BODY, piece)
    stream.send(wire.END)
    assert (await stream.frame()).type == wire.END

    flood = serving.shim.link.call("/flood")
    size = 0
    while size < wire.WINDOW_SIZE:  # nothing is granted: the program is held up before long
        size += len((await flood.frame()).body)
    before = len(flood.logs)
    await asyncio.sleep(0.3)
    assert size == wire.WINDOW_SIZE and not flood.waiting and len(flood.logs) - before < 100
    flood.send(wire.WINDOW, {"n": 1 << 30})
    while (frame := await flood.frame()).type == wire.BODY:
        size += len(frame.body)
    assert (frame.type, size) == (wire.END, 256 * 65536)


async def test_what_the_program_writes_is_the_calls_or_nobodys(serving: Image) -> None:
    alone = await serving.shim.call("/log?mine")
    assert alone.lines("stdout") == ["said ü of mine"] and alone.lines("stderr") == ["complained"]
    waiting = serving.shim.link.call("/wait")
    await logged(waiting, "waiting")
    await serving.shim.call("/log?shared")
    await logged(serving.shim.link.instance, "said ü of shared")
    waiting.send(wire.CANCEL, {"why": "client"})
    await logged_by_either(waiting, serving.shim.link.instance, "caller left")


async def logged_by_either(stream: Stream, instance: Stream, text: str) -> None:
    """What a program says when its caller leaves may still be the call's."""
    async with asyncio.timeout(PATIENCE_S):
        while not any(text in log["text"] for log in (*stream.logs, *instance.logs)):
            await asyncio.sleep(0.005)


async def test_web_sockets_go_through(serving: Image) -> None:
    link = serving.shim.link
    given = [["host", "a"], ["origin", "http://b"], ["cookie", "c=d"], ["sec-websocket-protocol", "one, two"]]
    stream = link.call("/chat", ws=True, h=given)
    accepted = await stream.frame()
    assert accepted.type == wire.WS_ACCEPT and wire.loads(accepted.header)["sp"] == "two"
    big = os.urandom(300_000)
    for text, data in ((1, "grüße".encode()), (0, b"\0\xff"), (0, big), (1, b"")):
        for at in range(0, max(len(data), 1), wire.CHUNK):
            more = at + wire.CHUNK < len(data)
            stream.send(wire.WS_MESSAGE, {"t": text} | ({"more": True} if more else {}), data[at : at + wire.CHUNK])
        got, kind = b"", None
        while True:
            frame = await stream.frame()
            if frame.type == wire.WINDOW:
                continue
            stream.send(wire.WINDOW, {"n": len(frame.body)})
            got, kind = got + frame.body, wire.loads(frame.header)
            if not kind.get("more"):
                break
        assert (got, kind["t"]) == (data, text)
    stream.send(wire.WS_MESSAGE, {"t": 1}, b"bye")
    while (frame := await stream.frame()).type == wire.WINDOW:
        pass
    assert (frame.type, wire.loads(frame.header)) == (wire.WS_CLOSE, {"c": 4001, "r": "as you say"})

    leaving = link.call("/chat", ws=True)
    assert (await leaving.frame()).type == wire.WS_ACCEPT
    leaving.send(wire.WS_CLOSE, {"c": 4002, "r": "enough"})
    await logged_by_either(leaving, link.instance, "left with 4002")
    refused = await link.call("/no", ws=True, h=given).answer()
    assert (refused.status, refused.body, refused.header("x-why")) == (403, b"not you", "http://b c=d")


async def test_the_end_of_the_program_is_the_end_of_the_instance(serving: Image) -> None:
    stream = serving.shim.link.call("/exit")
    code, said = await serving.shim.exited()
    assert code == 7 and "last words" in said
    await serving.shim.link.until_ended()
    assert stream.waiting == 0 and any("last words" in log["text"] for log in stream.logs)


async def test_a_drained_instance_lets_the_program_shut_down(serving: Image) -> None:
    instance = serving.shim.link.instance
    serving.shim.link.send(wire.DRAIN)
    assert (await serving.shim.exited())[0] == 0
    assert any("shut down" in log["text"] for log in instance.logs)


async def test_connections_that_the_program_has_closed_are_no_failure(tmp_path: Path) -> None:
    async with image(tmp_path, f"{RAW}\nserve(int(os.environ['PORT']), lambda peer, _: peer.send({OK}))") as found:
        assert (await found.load()).type == wire.LOADED
        answers = [await found.shim.call("/", id=f"inv-{number}") for number in range(20)]
        assert [answer.body for answer in answers] == [b"ok"] * 20


async def test_trailers_are_passed_on_beside_the_answer_and_behind_a_stream(tmp_path: Path) -> None:
    head, tail = (
        "HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n2\\r\\nok\\r\\n",
        "0\\r\\nX-Sum: 1\\r\\n\\r\\n",
    )
    for pause in (0.0, 0.2):
        send = f"(peer.send(b'{head}'), time.sleep({pause}), peer.send(b'{tail}'))"
        program = f"{RAW}\nimport time\nserve(int(os.environ['PORT']), lambda peer, _: {send})"
        async with image(tmp_path / str(pause), program) as found:
            await found.load()
            answer = await found.shim.call("/")
            assert (answer.body, wire.loads(answer.frames[-1].header)) == (b"ok", {"tr": [["x-sum", "1"]]})


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ("b'SSH-2.0-hello\\r\\n\\r\\n'", "the program's answer is not HTTP"),
        ("b''", "closed the connection before its answer was complete"),
        ("b'HTTP/1.1 200 OK\\r\\nContent-Length: 10\\r\\n\\r\\nhalf'", "closed the connection"),
    ],
)
async def test_answers_that_are_none_are_errors(tmp_path: Path, sent: str, told: str) -> None:
    async with image(tmp_path, f"{RAW}\nserve(int(os.environ['PORT']), lambda peer, _: peer.send({sent}))") as found:
        await found.load()
        answer = await found.shim.call("/", m="POST")
        assert answer.error is not None and answer.error["type"] == "BadAnswer" and told in answer.error["message"]
        assert "headrace_image" not in answer.error["stack"]


@pytest.mark.parametrize(
    ("code", "ready_path", "told"),
    [
        (
            "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)",
            None,
            "nothing listens on port {port}",
        ),
        (f"{RAW}\nserve(0, None)", None, "nothing listens on port {port}, but on"),
        (
            f"{RAW}\nserve(int(os.environ['PORT']), lambda peer, _: peer.send(b'HTTP/1.1 500 No\\r\\n\\r\\n'))",
            "/healthz",
            "/healthz on port {port} gives status 500, and 200 to 399 is needed",
        ),
    ],
)
async def test_a_program_that_is_not_ready_is_told_what_was_seen(
    tmp_path: Path, code: str, ready_path: str | None, told: str
) -> None:
    async with image(tmp_path, code) as found:
        error = await found.refused(1.5, ready_path)
        assert error["type"] == "NotReady"
        assert told.format(port=found.port) in error["message"], error["message"]


async def test_a_program_that_ends_at_its_start_says_why(tmp_path: Path) -> None:
    async with image(tmp_path, "print('no database'); raise SystemExit(3)") as found:
        error = await found.refused()
        assert error["type"] == "ExitedAtStart"
        assert "exited with code 3 before it served HTTP" in error["message"] and "no database" in error["message"]


async def test_a_command_that_is_none_is_named(tmp_path: Path) -> None:
    async with image(tmp_path, "", command=["/no/such/program"]) as found:
        error = await found.refused()
        assert error["type"] == "CannotStart" and "'/no/such/program' cannot be started" in error["message"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be root")
async def test_root_is_refused(tmp_path: Path) -> None:
    async with image(tmp_path, SERVER, root=True) as found:
        error = await found.refused()
        assert error["type"] == "RunsAsRoot" and "give it a USER" in error["message"]
