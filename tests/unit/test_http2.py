"""HTTP/2 on a connection in memory, against h2 as a client."""

from __future__ import annotations

import asyncio
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest

from headrace.errors import ClientGone, FunctionError
from headrace.web.exchange import Exchange
from headrace.web.http2 import Http2
from web_kit import piped


class Peer:
    """A client. `events` is all that it heard."""

    def __init__(self, *, answers: bool = False, window: int | None = None) -> None:
        self.exchanges: list[Exchange] = []
        self.answers = answers
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        if window is not None:
            self.h2.update_settings({4: window})
        self.pipe = piped(Http2, self._serve)
        self.events: list[Any] = []
        self._heard = 0
        self.flush()

    def _serve(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        if self.answers:
            exchange.respond(200, [(b"x", b"y")], exchange.path.encode())

    def flush(self) -> None:
        """Say what the client has to say, hear what the server said."""
        for _ in range(3):
            data = self.h2.data_to_send()
            if data:
                self.pipe.say(data)
            heard = bytes(self.pipe.sent[self._heard :])
            self._heard += len(heard)
            if heard:
                self.events += self.h2.receive_data(heard)

    def request(self, path: str = "/", method: str = "GET", *headers: tuple[str, str], end: bool = True) -> int:
        stream: int = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "x"), *headers]
        self.h2.send_headers(stream, fields, end_stream=end)
        self.flush()
        return stream

    def of(self, kind: type[Any], stream: int) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind) and event.stream_id == stream]

    def body(self, stream: int) -> bytes:
        return b"".join(event.data for event in self.of(h2.events.DataReceived, stream))


async def test_a_request_and_its_answer() -> None:
    peer = Peer(answers=True)
    stream = peer.request("/a%20b?c=d", "GET", ("cookie", "a=1"), ("cookie", "b=2"))
    [exchange] = peer.exchanges
    assert (exchange.path, exchange.query, exchange.version, exchange.empty) == ("/a%20b", "c=d", "2", True)
    assert exchange.headers == [(b"host", b"x"), (b"cookie", b"a=1; b=2")]
    [answer] = peer.of(h2.events.ResponseReceived, stream)
    told = dict(answer.headers)
    assert (told[":status"], told["x"], told["content-length"]) == ("200", "y", "6")
    assert peer.body(stream) == b"/a%20b"
    assert peer.of(h2.events.StreamEnded, stream)


async def test_a_streamed_answer_with_trailers_flows_under_the_windows() -> None:
    peer = Peer(window=10)
    stream = peer.request()
    [exchange] = peer.exchanges
    exchange.start(200, [])
    exchange.write([b"x" * 200_000])
    exchange.write([b"y"])
    peer.flush()
    assert peer.body(stream) == b"x" * 10
    waiting = asyncio.ensure_future(exchange.drain())
    await asyncio.sleep(0)
    assert not waiting.done()
    peer.h2.increment_flow_control_window(300_000, stream)
    peer.h2.increment_flow_control_window(300_000)
    peer.flush()
    await waiting
    exchange.end([(b"x-sum", b"1")])
    peer.flush()
    assert peer.body(stream) == b"x" * 200_000 + b"y"
    [trailers] = peer.of(h2.events.TrailersReceived, stream)
    assert trailers.headers == [("x-sum", "1")]


async def test_an_answer_is_broken_visibly() -> None:
    peer = Peer()
    short, cut, kept = peer.request("/1"), peer.request("/2"), peer.request("/3")
    first, second, third = peer.exchanges
    first.start(200, [(b"content-length", b"5")])
    with pytest.raises(FunctionError):
        first.end()
    first.cut()
    second.cut()
    third.respond(200, [], b"here")
    peer.flush()
    for stream in (short, cut):
        [reset] = peer.of(h2.events.StreamReset, stream)
        assert reset.error_code == h2.errors.ErrorCodes.INTERNAL_ERROR
    assert peer.body(kept) == b"here"


async def test_an_upload_that_nobody_takes_waits_and_holds_up_no_other() -> None:
    peer = Peer()
    slow, fast = peer.request("/1", "POST", end=False), peer.request("/2", "POST", end=False)
    one, two = peer.exchanges
    sent = 0
    while peer.h2.local_flow_control_window(slow) >= 16_384:
        peer.h2.send_data(slow, b"x" * 16_384)
        sent += 16_384
        peer.flush()
    assert one._held == sent <= 256 << 10
    for _ in range(400):
        peer.h2.send_data(fast, b"y" * 16_384)
        peer.flush()
        assert two.take() == b"y" * 16_384
    while taken := one.take():
        sent -= len(taken)
    peer.flush()
    assert sent == 0
    assert peer.h2.local_flow_control_window(slow) >= 128 << 10
    peer.h2.end_stream(fast)
    peer.flush()
    assert two.complete


async def test_an_answer_before_the_end_of_the_body_ends_the_stream() -> None:
    peer = Peer()
    stream = peer.request("/", "POST", end=False)
    peer.exchanges[0].respond(413, [], b"no")
    peer.flush()
    assert peer.body(stream) == b"no"
    [reset] = peer.of(h2.events.StreamReset, stream)
    assert reset.error_code == h2.errors.ErrorCodes.NO_ERROR


async def test_who_leaves_is_told_of_and_only_the_stream_that_was_reset() -> None:
    peer = Peer()
    left = peer.request("/1", "POST", end=False)
    peer.request("/2")
    one, two = peer.exchanges
    told: list[int] = []
    one.on_gone, two.on_gone = lambda: told.append(1), lambda: told.append(2)
    waiting = asyncio.ensure_future(one.more())
    await asyncio.sleep(0)
    peer.h2.reset_stream(left)
    peer.flush()
    with pytest.raises(ClientGone):
        await waiting
    assert told == [1]
    one.respond(400, [], b"")  # nobody hears it
    peer.pipe.vanish()
    await asyncio.sleep(0)
    assert told == [1, 2]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(f"x-{n}", "1") for n in range(101)], "431"),
        ([("x", "a" * 40_000), ("y", "a" * 40_000)], "431"),
    ],
)
async def test_heads_that_are_not_served(headers: list[tuple[str, str]], status: str) -> None:
    peer = Peer(answers=True)
    peer.h2.config.validate_outbound_headers = False
    stream = peer.request("/", "GET", *headers)
    answers = peer.of(h2.events.ResponseReceived, stream)
    if answers:
        assert dict(answers[0].headers)[":status"] == status
    else:
        assert peer.pipe.is_closing(), "h2 refuses what it would not keep"


async def test_who_resets_again_and_again_is_cut_off() -> None:
    peer = Peer()
    for _ in range(300):
        if peer.pipe.is_closing():
            break
        peer.h2.reset_stream(peer.request())
        peer.flush()
    assert peer.pipe.is_closing()
    assert len(peer.exchanges) < 250
    calm = [event for event in peer.events if isinstance(event, h2.events.ConnectionTerminated)]
    assert calm[0].error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM


async def test_who_sends_nothing_again_and_again_is_cut_off() -> None:
    peer = Peer()
    stream = peer.request("/", "POST", end=False)
    for _ in range(1_200):
        if peer.pipe.is_closing():
            break
        peer.h2.send_data(stream, b"")
        peer.flush()
    assert peer.pipe.is_closing()


@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize("garbage", [b"\xff" * 9, b"\0\x40\x01" + bytes(6), b"\0\0\4\x08" + bytes(9)])
async def test_garbage_ends_the_connection(garbage: bytes, size: int) -> None:
    """Among it a frame longer than was agreed, of which only the head is sent."""
    peer = Peer(answers=True)
    told: list[int] = []
    for _ in range(3):
        assert peer.body(peer.request("/kept")) == b"/kept"
    peer.answers = False
    peer.request()
    peer.exchanges[-1].on_gone = lambda: told.append(1)
    for at in range(0, len(garbage), size):
        peer.pipe.say(garbage[at : at + size])
    assert (peer.pipe.is_closing(), told) == (True, [1])
