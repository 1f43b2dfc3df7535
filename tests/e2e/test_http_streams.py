"""Streams through the gateway: who reads slowly, who leaves, what dies, and peers of HTTP/2 that mean harm."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import h2.events
import h2.exceptions
import httpx
import pytest

from raw_http import Failure, Http2, connected, counts, outcomes, rest, settled
from stack import Headrace

MAX_GROWTH_MB = 32
PIECES = 512  # of 64 KiB: more than the kernel holds for a connection
SIZE = PIECES << 16
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def peak(platform: Headrace) -> float:
    """The node's peak of memory from here on is measured anew; what it has now, MiB."""
    Path(f"/proc/{platform._pid('node')}/clear_refs").write_text("5")
    return platform.memory_mb("node")


@pytest.mark.parametrize("how", ["h1 chunked", "h1 length", "h2"])
def test_an_instance_that_dies_breaks_its_streams(edge: Headrace, how: str) -> None:
    path = "/down?l3" if how == "h1 length" else "/down?d3"
    broken = (httpx.RemoteProtocolError, httpx.ReadError)
    second = how == "h2"
    with (
        httpx.Client(base_url=edge.url("edge"), http1=not second, http2=second, timeout=30) as client,
        pytest.raises(broken),
        client.stream("GET", path) as answer,
    ):
        assert answer.status_code == 200
        assert ("content-length" in answer.headers) == (how == "h1 length")
        answer.read()
    edge.until(lambda: outcomes(edge, "/down")[:1], "instance_died")
    settled(edge)
    assert counts(edge)


def test_a_slow_reader_beside_a_fast_one(edge: Headrace) -> None:
    request = f"GET /fn/edge/down?{PIECES} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    counts(edge)
    before = peak(edge)
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(edge)) for _ in range(5)]
        for connection in slow:
            connection.sendall(request)
        second = Http2(stack.enter_context(connected(edge)))
        held = second.request(f"/fn/edge/down?{PIECES}")
        second.until(h2.events.ResponseReceived, held)
        time.sleep(0.5)
        fast = httpx.get(f"{edge.url('edge')}/down?{PIECES}", timeout=30)
        assert len(fast.content) == SIZE
        assert counts(edge)["calls"], "the instance itself is not held up"
        assert edge.memory_mb("node", "VmHWM") - before < MAX_GROWTH_MB
        whole = rest(slow[0])
        assert (len(whole) > SIZE, whole[-5:]) == (True, b"0\r\n\r\n"), "it is not harmed by having been slow"
        assert len(second.body(held)) == SIZE
    settled(edge)


@pytest.mark.parametrize("second", [False, True], ids=["h1", "h2"])
def test_a_large_upload_is_not_held(edge: Headrace, second: bool) -> None:
    """Twice as much as the instance's memory, from a caller who stops for a while in the middle."""
    size, piece = 160 << 20, bytes(1 << 20)

    def pieces():  # type: ignore[no-untyped-def]
        for number in range(size >> 20):
            if number == 80:
                time.sleep(0.5)
            yield piece

    before = peak(edge)
    with httpx.Client(http1=not second, http2=second, timeout=60) as client:
        answer = client.post(f"{edge.url('edge')}/up", content=pieces())
    assert answer.text == str(size)
    assert edge.memory_mb("node", "VmHWM") - before < MAX_GROWTH_MB


def test_who_leaves_in_the_middle_of_an_upload_is_noticed(edge: Headrace) -> None:
    broken = counts(edge)["broken uploads"]
    with connected(edge) as connection:
        head = "POST /fn/edge/up HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        connection.sendall(head.encode() + b"x" * 500_000)
        time.sleep(0.2)
    edge.until(lambda: counts(edge), f'"broken uploads": {broken + 1}')
    with connected(edge) as connection:
        second = Http2(connection)
        stream = second.request("/fn/edge/up", "POST", end=False)
        second.until(h2.events.WindowUpdated)
        for _ in range(8):
            second.h2.send_data(stream, b"x" * 16_384)
        second.flush()
        time.sleep(0.2)
        second.h2.reset_stream(stream)
        second.flush()
        edge.until(lambda: counts(edge), f'"broken uploads": {broken + 2}')
        assert second.body(second.request("/fn/edge/file")) == b"0123456789", "the connection goes on"
    settled(edge)
    edge.until(lambda: outcomes(edge, "/up")[:2], '["client_gone", "client_gone"]')


@pytest.mark.parametrize("path", ["/wait", "/endless"])
def test_who_leaves_before_the_answer_is_complete_cancels_the_handler(edge: Headrace, path: str) -> None:
    cancelled = counts(edge)["cancelled"]
    with connected(edge) as connection:
        connection.sendall(f"GET /fn/edge{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        time.sleep(0.4)
    edge.until(lambda: counts(edge), f'"cancelled": {cancelled + 1}')
    with connected(edge) as connection:
        second = Http2(connection)
        left, kept = second.request(f"/fn/edge{path}"), second.request("/fn/edge/early")
        time.sleep(0.4)
        second.h2.reset_stream(left)
        second.flush()
        edge.until(lambda: counts(edge), f'"cancelled": {cancelled + 2}')
        assert second.body(kept) == b"late", "only the stream that was reset is cancelled"
    settled(edge)
    edge.until(lambda: outcomes(edge, path)[:2], '["client_gone", "client_gone"]')


HANDLERS = """
import asyncio, time
DONE = []
async def waits(event, context):
    try:
        await asyncio.sleep(20)
    except asyncio.CancelledError:
        DONE.append("cancelled")
        raise
def handler(event, context):
    path = event["rawPath"]
    if path == "/await":
        return waits(event, context)
    if path == "/thread":
        time.sleep(1.5)
        DONE.append("thread")
        return "nobody hears this"
    return DONE
"""


def test_a_call_is_cancelled_in_an_await_and_only_forgotten_in_a_thread(edge: Headrace) -> None:
    edge.deploy("threads", {"handler.py": HANDLERS}, {"concurrency": 1, "max_instances": 1})
    url = edge.url("threads")
    assert httpx.get(url, timeout=30).json() == []
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{url}/thread", timeout=0.5)
    began = time.monotonic()
    assert httpx.get(url, timeout=10).json() == [], "its slot was free before the thread was done"
    assert time.monotonic() - began < 1
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{url}/await", timeout=0.5)
    edge.until(lambda: httpx.get(url, timeout=10).text, "thread")
    assert sorted(httpx.get(url, timeout=10).json()) == ["cancelled", "thread"]


def rapid_reset(connection: socket.socket) -> None:
    """CVE-2023-44487: streams that are opened and reset, more than anybody would."""
    second = Http2(connection)
    for _ in range(5_000):
        stream = second.h2.get_next_available_stream_id()
        fields = [(":method", "GET"), (":path", "/fn/edge/wait"), (":scheme", "http"), (":authority", "x")]
        second.h2.send_headers(stream, fields, end_stream=True)
        second.h2.reset_stream(stream)
    second.flush()
    with pytest.raises(Failure, match="the connection ended"):
        second.until(h2.events.StreamEnded)


def endless_headers(connection: socket.socket) -> None:
    """CVE-2024-27316: headers that go on and on in CONTINUATION frames."""
    connection.sendall(PREFACE + frame(4, 0, 0) + frame(1, 0, 1, b"\x82"))
    for _ in range(2_000):
        connection.sendall(frame(9, 0, 1, b"\x40\x01a\x7f\x80\x10" + b"b" * 2175))
    rest(connection)


def header_bomb(connection: socket.socket) -> None:
    """A few bytes of HPACK that stand for many megabytes of headers."""
    entry = b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4000
    block = b"\x82\x84\x86\x41\x01x" + entry + b"\xbe" * 12_000
    connection.sendall(PREFACE + frame(4, 0, 0) + frame(1, 0x5, 1, block[:16_384]))
    answer = b""
    connection.settimeout(1)
    try:
        while data := connection.recv(65_536):
            answer += data
    except TimeoutError:
        pass
    assert b"0123456789" not in answer


def overflowing_window(connection: socket.socket) -> None:
    connection.sendall(PREFACE + frame(4, 0, 0) + frame(8, 0, 0, struct.pack(">I", 0x7FFFFFFF)) * 2)
    rest(connection)


def frames_of_no_sense(connection: socket.socket) -> None:
    """DATA of a stream that was never opened."""
    connection.sendall(PREFACE + frame(4, 0, 0) + frame(0, 0, 7, b"x" * 100))
    rest(connection)


def settings_flood(connection: socket.socket) -> None:
    """Questions whose answers nobody reads."""
    connection.settimeout(3)
    try:
        connection.sendall(PREFACE + frame(4, 0, 0) + frame(6, 0, 0, b"12345678") * 200_000)
    except OSError:  # it takes no more of them, and that is one right answer
        pass


@pytest.mark.parametrize(
    "attack",
    [rapid_reset, endless_headers, header_bomb, overflowing_window, frames_of_no_sense, settings_flood],
    ids=lambda attack: attack.__name__,
)
def test_hostile_peers_of_http_2(edge: Headrace, attack: Callable[[socket.socket], None]) -> None:
    counts(edge)
    before = peak(edge)
    with connected(edge) as connection:
        try:
            attack(connection)
        except (BrokenPipeError, ConnectionResetError):
            pass  # cut off while it was at it
    assert httpx.get(f"{edge.url('edge')}/file", timeout=10).text == "0123456789"
    settled(edge)
    assert edge.memory_mb("node", "VmHWM") - before < MAX_GROWTH_MB


def test_peers_that_never_read_hold_little_and_others_go_on(edge: Headrace) -> None:
    """A hundred streams of one connection, each with a window of nothing or of a whole stream that is never read."""
    counts(edge)
    before = peak(edge)
    with ExitStack() as stack:
        for window in (0, 1 << 30):
            second = Http2(stack.enter_context(connected(edge)))
            second.h2.update_settings({4: window})
            second.flush()
            for _ in range(20):
                second.request(f"/fn/edge/down?{PIECES}")
        time.sleep(1)
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(httpx.get(f"{edge.url('edge')}/file").status_code))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert answers == [200] * 8
        assert edge.memory_mb("node", "VmHWM") - before < 3 * MAX_GROWTH_MB
    settled(edge)
