"""Calls of handlers: side by side, cancelled, streaming both ways, misbehaving."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from headrace import wire
from shim_kit import PATIENCE_S, Shim, Stream, loaded_shim


async def wait_for_line(stream: Stream, text: str) -> None:
    """Until the call (or stream 0) has logged `text`."""
    async with asyncio.timeout(PATIENCE_S):
        while not any(text in log["text"] for log in stream.logs):
            await asyncio.sleep(0.005)


async def still_serves(shim: Shim) -> None:
    answer = await shim.call("/fine")
    assert (answer.status, answer.body) == (200, b"fine")


SIDE_BY_SIDE = {
    "threads": """
import threading
barrier = threading.Barrier(8, timeout=10)
def handler(event, context):
    barrier.wait()
    return threading.current_thread() is not threading.main_thread()
""",
    "loop": """
import asyncio
waiting = 0
everybody = asyncio.Event()
async def handler(event, context):
    global waiting
    waiting += 1
    if waiting == 8:
        everybody.set()
    await everybody.wait()
    return asyncio.current_task() is not None
""",
}


@pytest.mark.parametrize("where", SIDE_BY_SIDE)
async def test_calls_run_side_by_side_up_to_concurrency(tmp_path: Path, where: str) -> None:
    async with loaded_shim(tmp_path, SIDE_BY_SIDE[where], concurrency=8) as shim:
        answers = await asyncio.gather(*(shim.call() for _ in range(8)))

        assert [answer.json() for answer in answers] == [True] * 8


async def test_blocking_handler_does_not_keep_the_shim_from_answering_pings(tmp_path: Path) -> None:
    source = "import threading\nhold = threading.Event()\ndef handler(e, c): hold.wait(20); return 1"
    async with loaded_shim(tmp_path, source) as shim:
        shim.link.call()
        shim.link.send(wire.PING)

        assert (await shim.link.instance.frame()).type == wire.PONG


async def test_context_variables_do_not_leak_from_call_to_call(tmp_path: Path) -> None:
    source = """
import contextvars
seen = contextvars.ContextVar("seen", default=0)
def handler(event, context):
    before = seen.get()
    seen.set(before + 1)
    return before
async def async_handler(event, context):
    return handler(event, context)
"""
    for name in ("handler", "async_handler"):
        async with loaded_shim(tmp_path / name, source, handler=f"handler.{name}", concurrency=1) as shim:
            assert [(await shim.call()).json() for _ in range(5)] == [0] * 5


CROSSING = """
import asyncio, functools, threading

async def coroutine():
    await asyncio.sleep(0)
    return threading.current_thread() is threading.main_thread()

async def agen():
    for piece in ("a", "b", "c"):
        await asyncio.sleep(0)
        yield piece

def generator():
    yield "main" if threading.current_thread() is threading.main_thread() else "thread"

def plain_returns_coroutine(event, context): return coroutine()
def plain_returns_async_generator(event, context): return {"statusCode": 201, "body": agen()}
async def async_generator(event, context):
    async for piece in agen():
        yield piece
async def async_returns_generator(event, context): return {"statusCode": 202, "body": generator()}
async def async_returns_async_generator(event, context): return agen()
wrapped = functools.partial(lambda event, context: coroutine())
class Callable:
    async def __call__(self, event, context): return await coroutine()
instance = Callable()
"""

CROSSED = {
    "plain_returns_coroutine": (200, b"true"),
    "plain_returns_async_generator": (201, b"abc"),
    "async_generator": (200, b"abc"),
    "async_returns_generator": (202, b"thread"),
    "async_returns_async_generator": (200, b"abc"),
    "wrapped": (200, b"true"),
    "instance": (200, b"true"),
}


@pytest.mark.parametrize("name", CROSSED)
async def test_handlers_of_every_make(tmp_path: Path, name: str) -> None:
    async with loaded_shim(tmp_path, CROSSING, handler=f"handler.{name}") as shim:
        answer = await shim.call()
        assert (answer.status, answer.body) == CROSSED[name]


CANCELLED = """
import asyncio, time, threading
release = threading.Event()
async def waiting(event, context):
    if event["rawPath"] == "/fine": return "fine"
    try:
        print("waiting")
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("cancelled")
        raise
    finally:
        print("cleaned up")
def blocking(event, context):
    if event["rawPath"] == "/fine":
        release.set()
        return "fine"
    print("waiting")
    release.wait(20)
    print("cleaned up")
    return "nobody wants this"
"""


@pytest.mark.parametrize("why", ["timeout", "client"])
async def test_cancel_reaches_an_async_handler(tmp_path: Path, why: str) -> None:
    async with loaded_shim(tmp_path, CANCELLED, handler="handler.waiting") as shim:
        stream = shim.link.call()
        await wait_for_line(stream, "waiting")
        stream.send(wire.CANCEL, {"why": why})
        await wait_for_line(stream, "cleaned up")

        assert [log["text"] for log in stream.logs] == ["waiting", "cancelled", "cleaned up"]
        await still_serves(shim)
        assert stream.waiting == 0


async def test_answer_of_a_cancelled_thread_is_dropped(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, CANCELLED, handler="handler.blocking", concurrency=1) as shim:
        stream = shim.link.call()
        await wait_for_line(stream, "waiting")
        stream.send(wire.CANCEL, {"why": "client"})
        # Its thread is still held; the node already uses the freed slot.
        await still_serves(shim)
        await wait_for_line(stream, "cleaned up")
        await still_serves(shim)

        assert stream.waiting == 0


async def test_cancel_of_a_request_that_is_still_arriving(tmp_path: Path) -> None:
    source = "def handler(e, c): print('ran'); return 'fine'"
    async with loaded_shim(tmp_path, source) as shim:
        stream = shim.link.open()
        stream.send(wire.CALL, {**HEADER, "more": True}, b"half")
        stream.send(wire.CANCEL, {"why": "client"})
        stream.send(wire.END)
        await still_serves(shim)

        assert stream.logs == []
        assert stream.waiting == 0


async def test_request_that_breaks_off_never_runs(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, "def handler(e, c): print('ran'); return 'fine'") as shim:
        stream = shim.link.open()
        stream.send(wire.CALL, {**HEADER, "more": True}, b"half")
        stream.send(wire.END, {"e": {"type": "ClientGone", "message": "", "stack": ""}})
        await still_serves(shim)

        assert stream.logs == []


HEADER = {"id": "i", "d": 1000, "m": "PUT", "r": "", "p": "/", "q": "", "h": [], "ip": "::1", "s": "http", "v": "2"}

ENDLESS = """
import asyncio
chunk = b"x" * 10_000
def endless():
    try:
        while True: yield chunk
    finally:
        print("closed")
async def async_endless():
    try:
        while True: yield chunk
    finally:
        print("closed")
def handler(event, context):
    return {"/fine": "fine"}.get(event["rawPath"]) or endless()
async def async_handler(event, context):
    return {"/fine": "fine"}.get(event["rawPath"]) or async_endless()
"""


@pytest.mark.parametrize("name", ["handler", "async_handler"])
async def test_stream_stops_at_its_window_and_goes_on_when_granted(tmp_path: Path, name: str) -> None:
    async with loaded_shim(tmp_path, ENDLESS, handler=f"handler.{name}") as shim:
        stream = shim.link.call()
        await stream.frame()
        received = 0
        while received < wire.WINDOW_SIZE:
            received += len((await stream.frame()).body)
        assert received == wire.WINDOW_SIZE
        await still_serves(shim)  # a stalled stream holds up nobody
        assert stream.waiting == 0

        stream.send(wire.WINDOW, {"n": 15_000})
        granted = 0
        while granted < 15_000:
            granted += len((await stream.frame()).body)
        await still_serves(shim)
        assert (granted, stream.waiting) == (15_000, 0)


@pytest.mark.parametrize("name", ["handler", "async_handler"])
async def test_cancelled_stream_is_closed(tmp_path: Path, name: str) -> None:
    async with loaded_shim(tmp_path, ENDLESS, handler=f"handler.{name}") as shim:
        stream = shim.link.call()
        await stream.frame()
        stream.send(wire.CANCEL, {"why": "client"})
        await wait_for_line(stream, "closed")

        await still_serves(shim)
        assert all(frame.type == wire.BODY for frame in [await stream.frame() for _ in range(stream.waiting)])


@pytest.mark.parametrize("name", ["handler", "async_handler"])
async def test_stream_without_a_reader_is_closed_when_the_connection_ends(tmp_path: Path, name: str) -> None:
    async with loaded_shim(tmp_path, ENDLESS, handler=f"handler.{name}") as shim:
        await shim.link.call().frame()
        shim.link.close()
        await shim.dialled()
        # With the stream gone nothing runs any more, so draining ends at once.
        shim.link.send(wire.DRAIN)

        code, output = await shim.exited()
        assert code == 0
        assert "closed" in output


async def test_request_body_beyond_the_window_is_granted(tmp_path: Path) -> None:
    source = "def handler(event, context): return str(len(event['body']))"
    async with loaded_shim(tmp_path, source) as shim:
        stream = shim.link.open()
        stream.send(wire.CALL, {**HEADER, "more": True}, b"a" * 1000)
        window, sent = wire.WINDOW_SIZE, 1000
        while sent < 2_000_000:
            if window < wire.CHUNK:
                frame = await stream.frame()
                assert frame.type == wire.WINDOW
                window += wire.loads(frame.header)["n"]
            else:
                stream.send(wire.BODY, None, b"a" * wire.CHUNK)
                window -= wire.CHUNK
                sent += wire.CHUNK
        stream.send(wire.END)
        while (frame := await stream.frame()).type == wire.WINDOW:
            window += wire.loads(frame.header)["n"]

        assert frame.body == str(sent).encode()
        assert window <= wire.WINDOW_SIZE


MISBEHAVING = """
import asyncio, sys, os
class Broken(Exception):
    def __str__(self): raise RuntimeError("no text either")
class Odd:
    def __getattr__(self, name): raise RuntimeError("no " + name)
def deep(n): return deep(n + 1)
def act(path):
    if path == "/fine": return "fine"
    if path == "/exit": sys.exit(4)
    if path == "/interrupt": raise KeyboardInterrupt
    if path == "/generator-exit": raise GeneratorExit
    if path == "/stop": raise StopIteration
    if path == "/cancelled": raise asyncio.CancelledError
    if path == "/broken": raise Broken
    if path == "/deep": deep(0)
    if path == "/long": raise ValueError("x" * 100_000)
    if path == "/memory": raise MemoryError
    if path == "/odd": return Odd()
    if path == "/group": raise BaseException("bare")
def handler(event, context): return act(event["rawPath"])
async def async_handler(event, context): return act(event["rawPath"])
"""

MISDEEDS = {
    "exit": ("SystemExit", "sys.exit(4)"),
    "interrupt": ("KeyboardInterrupt", ""),
    "generator-exit": ("GeneratorExit", ""),
    "cancelled": ("CancelledError", "cancelled its own task"),
    "broken": ("Broken", "__str__"),
    "deep": ("RecursionError", "recursion"),
    "long": ("ValueError", "xxx"),
    "memory": ("MemoryError", ""),
    "odd": ("BadResponse", "Odd"),
    "group": ("BaseException", "bare"),
}


@pytest.mark.parametrize("name", ["handler", "async_handler"])
async def test_nothing_that_a_handler_raises_ends_the_shim(tmp_path: Path, name: str) -> None:
    async with loaded_shim(tmp_path, MISBEHAVING, handler=f"handler.{name}") as shim:
        for path, (kind, text) in MISDEEDS.items():
            error = (await shim.call(f"/{path}")).error
            assert error is not None
            assert error["type"] == kind
            assert text in error["message"]
            assert kind in error["stack"]
            assert len(error["stack"]) < 20_000
            await still_serves(shim)
        assert (await shim.call("/stop")).error is not None
        assert shim.process.returncode is None


async def test_failure_is_in_the_log_of_its_call(tmp_path: Path) -> None:
    source = "def handler(event, context):\n    print('before')\n    return event['nothing']"
    async with loaded_shim(tmp_path, source) as shim:
        answer = await shim.call()

        assert [(log["s"], log["l"]) for log in answer.logs] == [("stdout", "INFO"), ("log", "ERROR")]
        assert answer.error is not None
        assert answer.logs[1]["text"] == answer.error["stack"]
        assert "File \"handler.py\", line 3, in handler\n    return event['nothing']" in answer.error["stack"]
        assert "headrace_shim" not in answer.error["stack"]


async def test_task_left_behind_that_exits_does_not_end_the_shim(tmp_path: Path) -> None:
    source = """
import asyncio, sys
async def leave(): sys.exit(3)
async def fail(): raise ValueError("left behind")
tasks = []
async def handler(event, context):
    if event["rawPath"] != "/fine":
        tasks.append(asyncio.create_task(leave() if event["rawPath"] == "/exit" else fail()))
        tasks.clear()
    return "fine"
"""
    async with loaded_shim(tmp_path, source) as shim:
        await shim.call("/exit")
        await still_serves(shim)
        await shim.call("/fail")
        await wait_for_line(shim.link.instance, "left behind")
        await still_serves(shim)


async def test_process_exit_in_a_handler_ends_the_connection(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, "import os\ndef handler(e, c): os._exit(9)") as shim:
        shim.link.call()
        await shim.link.until_ended()

        assert (await shim.exited())[0] == 9


async def test_deadline_is_seen_as_it_comes_nearer(tmp_path: Path) -> None:
    source = """
import time
def handler(event, context):
    first = context.get_remaining_time_in_millis()
    time.sleep(0.05)
    return [first, context.get_remaining_time_in_millis()]
"""
    async with loaded_shim(tmp_path, source) as shim:
        first, second = (await shim.call(d=500)).json()

        assert 400 < first <= 500
        assert first - 400 < second <= first - 50


async def test_frames_for_streams_that_are_not_open_are_ignored(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, "def handler(e, c): return 'fine'") as shim:
        done = shim.link.call()
        await done.answer()
        for number in (done.number, 4000):
            for kind in (wire.BODY, wire.END, wire.WINDOW, wire.CANCEL, wire.WS_MESSAGE, wire.WS_CLOSE, 99):
                shim.link.send(kind, number, {"n": 1, "why": "client", "t": 1})
        shim.link.send(200, 0, {"unknown": True}, b"type")

        await still_serves(shim)
        assert done.waiting == 0
