"""HTTP/1 on a connection in memory: what is parsed, what is answered, what is refused, who is waited for."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest
from websockets.protocol import Protocol

from headrace.errors import CallerError, ClientGone, FunctionError
from headrace.web.exchange import Exchange
from headrace.web.http1 import Http1
from headrace.web.limits import GRACE_S, HELD_BYTES
from headrace.web.websocket import WebSocket
from pipe import Pipe
from web_kit import piped

CHUNKED = b"POST /up HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
_HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


class Seen:
    """A server that answers 200 with what it saw, or leaves that to the test."""

    def __init__(self, *, answers: bool = True, reads: bool = True) -> None:
        self.exchanges: list[Exchange] = []
        self.answers = answers
        self.pipe: Pipe = piped(Http1, self._serve, reads=reads)

    def _serve(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        if self.answers:
            exchange.respond(200, [(b"x", b"y")], exchange.path.encode())

    @property
    def statuses(self) -> list[int]:
        return [int(part[:3]) for part in bytes(self.pipe.sent).split(b"HTTP/1.1 ")[1:]]


def get(path: str = "/", *headers: str, version: str = "1.1") -> bytes:
    return "\r\n".join((f"GET {path} HTTP/{version}", "Host: x", *headers, "", "")).encode()


async def test_a_request_and_its_answer_whatever_the_pieces() -> None:
    request = get("/a%20b?c=d", "X-Many: 1", "X-Many: \xe9".encode("latin-1").decode("latin-1"))
    for at in range(1, len(request)):
        seen = Seen()
        seen.pipe.say(request[:at])
        assert seen.exchanges == []
        seen.pipe.say(request[at:])
        [exchange] = seen.exchanges
        assert (exchange.method, exchange.path, exchange.query, exchange.empty) == ("GET", "/a%20b", "c=d", True)
        assert exchange.headers[:2] == [(b"host", b"x"), (b"x-many", b"1")]
        head, _, body = bytes(seen.pipe.sent).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\ndate: ")
        assert head.endswith(b"x: y\r\ncontent-length: 6")
        assert (body, seen.pipe.is_closing()) == (b"/a%20b", False)


async def test_requests_in_a_row_are_answered_in_order_one_at_a_time() -> None:
    seen = Seen(answers=False)
    seen.pipe.say(get("/1") + get("/2") + get("/3"))
    seen.pipe.say(get("/4"))
    assert (len(seen.exchanges), seen.pipe.untold) == (1, 1), "no more is read while requests wait"
    for number in range(1, 5):
        exchange = seen.exchanges[-1]
        assert exchange.path == f"/{number}"
        exchange.respond(200, [], b"")
    assert (seen.statuses, len(seen.exchanges)) == ([200] * 4, 4)


async def test_a_row_without_end_ends_the_connection() -> None:
    seen = Seen(answers=False)
    seen.pipe.say(get() * 1000)
    while len(seen.exchanges) < 1000 and not seen.exchanges[-1].ended:
        seen.exchanges[-1].respond(200, [], b"")
    assert seen.statuses[-1] == 400
    assert 200 < len(seen.statuses) < 300


@pytest.mark.parametrize(
    ("request_", "kept"),
    [
        (get(), True),
        (get("/", "Connection: close"), False),
        (get("/", version="1.0"), False),
        (get("/", "Connection: keep-alive", version="1.0"), True),
    ],
)
async def test_how_long_a_connection_is_kept(request_: bytes, kept: bool) -> None:
    seen = Seen()
    seen.pipe.say(request_)
    await asyncio.sleep(0)
    assert seen.pipe.lost.is_set() != kept
    assert (b"connection: close" in seen.pipe.sent) != kept


async def test_a_body_is_there_when_it_came_with_its_head_and_waited_for_otherwise() -> None:
    seen = Seen(answers=False)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
    seen.pipe.say(head + b"hello")
    [exchange] = seen.exchanges
    assert (exchange.complete, exchange.announced, exchange.take()) == (True, 5, b"hello")
    exchange.respond(200, [], b"")
    seen.pipe.say(head + b"he")
    exchange = seen.exchanges[-1]
    assert (exchange.complete, exchange.take()) == (False, b"he")
    waiting = asyncio.ensure_future(exchange.more())
    await asyncio.sleep(0)
    assert not waiting.done()
    seen.pipe.say(b"llo")
    await waiting
    assert (exchange.complete, exchange.take()) == (True, b"llo")


async def test_who_sends_faster_than_it_is_taken_has_to_wait() -> None:
    seen = Seen(answers=False)
    seen.pipe.say(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n")
    [exchange] = seen.exchanges
    piece = b"x" * 100_000
    for _ in range(10):
        seen.pipe.say(piece)
    assert exchange._held <= HELD_BYTES + len(piece)
    assert seen.pipe.untold
    taken = 0
    while data := exchange.take():
        taken += len(data)
    assert taken == 10 * len(piece)


@pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
async def test_a_long_body_of_known_length_and_what_follows_it(size: int) -> None:
    seen = Seen(answers=False)
    body = bytes(range(256)) * 40
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body + get("/next")
    got = b""
    for at in range(0, len(request), size):
        seen.pipe.say(request[at : at + size])
        if seen.exchanges and not seen.exchanges[0].ended:
            got += seen.exchanges[0].take()
            if seen.exchanges[0].complete:
                seen.exchanges[0].respond(200, [], b"")
    assert (got, seen.exchanges[-1].path, seen.statuses) == (body, "/next", [200])


async def test_chunks_and_their_trailers() -> None:
    seen = Seen(answers=False)
    seen.pipe.say(CHUNKED + b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Late: 1\r\n\r\n" + get("/next"))
    [exchange] = seen.exchanges
    assert (exchange.empty, exchange.announced, exchange.take()) == (False, None, b"abcde")
    assert b"x-late" not in dict(exchange.headers)
    exchange.respond(200, [], b"")
    assert seen.exchanges[-1].path == "/next"


async def test_streamed_answers() -> None:
    seen = Seen(answers=False)
    seen.pipe.say(get() * 2 + get(version="1.0"))
    exchange = seen.exchanges[-1]
    exchange.start(200, [])
    assert seen.pipe.sent.endswith(b"transfer-encoding: chunked\r\n\r\n"), "the head does not wait"
    exchange.write([b"hello"])
    exchange.write([b""])
    await exchange.drain()
    exchange.end([(b"x-sum", b"1")])
    assert seen.pipe.sent.endswith(b"\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n")
    exchange = seen.exchanges[-1]
    exchange.start(200, [(b"content-length", b"5")])
    exchange.write([b"hel"])
    with pytest.raises(FunctionError, match="more bytes"):
        exchange.write([b"lo!"])
    exchange = seen.exchanges[-1]
    exchange.cut()
    await asyncio.sleep(0)
    assert seen.pipe.lost.is_set()


async def test_an_answer_shorter_than_its_length_is_cut() -> None:
    seen = Seen(answers=False)
    seen.pipe.say(get())
    [exchange] = seen.exchanges
    exchange.start(200, [(b"content-length", b"5")])
    exchange.write([b"hel"])
    with pytest.raises(FunctionError, match="2 bytes before the end"):
        exchange.end()
    exchange.cut()
    assert seen.pipe.is_closing()


async def test_http_1_0_gets_a_stream_until_the_end_of_the_connection() -> None:
    seen = Seen(answers=False)
    seen.pipe.say(get("/", "Connection: keep-alive", version="1.0"))
    [exchange] = seen.exchanges
    exchange.start(200, [])
    exchange.write([b"hello"])
    exchange.end([(b"x-sum", b"1")])
    await asyncio.sleep(0)
    assert seen.pipe.lost.is_set()
    assert seen.pipe.sent.endswith(b"connection: close\r\n\r\nhello")


@pytest.mark.parametrize(
    ("status", "method", "length", "said"),
    [(204, "GET", None, None), (304, "GET", None, None), (200, "HEAD", None, b"5"), (200, "HEAD", b"10", b"10")],
)
async def test_answers_that_end_with_their_head(
    status: int, method: str, length: bytes | None, said: bytes | None
) -> None:
    seen = Seen(answers=False)
    seen.pipe.say(f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    seen.exchanges[0].respond(status, [], b"hello" if length is None else b"", length)
    head, _, body = bytes(seen.pipe.sent).partition(b"\r\n\r\n")
    assert body == b""
    assert (b"content-length: %b" % said in head) if said else (b"content-length" not in head)


async def test_expect_is_answered_when_the_body_is_wanted() -> None:
    seen = Seen(answers=False)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    seen.pipe.say(head)
    assert seen.pipe.sent == b""
    waiting = asyncio.ensure_future(seen.exchanges[0].more())
    await asyncio.sleep(0)
    assert seen.pipe.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    seen.pipe.say(b"ok")
    await waiting
    seen.exchanges[0].respond(200, [], b"")
    seen.pipe.say(head)
    seen.exchanges[1].respond(413, [], b"no")
    assert seen.statuses == [100, 200, 413]
    assert seen.pipe.ended, "the body is not wanted"


REFUSED: dict[str, tuple[bytes, int]] = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    "101 headers": (get("/", *(f"X-{n}: 1" for n in range(101))), 431),
    "a head of 65 KiB": (get("/", "X: " + "a" * (65 << 10)), 431),
    "half a head of 65 KiB": (get("/", "X: " + "a" * (65 << 10))[:-4], 431),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "chunks and a length": (CHUNKED.replace(b"Host: x", b"Content-Length: 3") + b"0\r\n\r\n", 400),
    "a coding that is not undone": (CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n", 400),
    "an extension of 20 KB": (CHUNKED + b"1;" + b"a" * 20_000 + b"\r\na\r\n0\r\n\r\n", 400),
    "1,000 trailers": (CHUNKED + b"0\r\n" + b"X: 1\r\n" * 1000 + b"\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "a tunnel": (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("size", [1 << 20, 1000], ids=["whole", "in pieces"])
async def test_what_is_no_request_is_refused_in_its_turn(name: str, size: int) -> None:
    request, status = REFUSED[name]
    seen = Seen()
    request = get() + request
    for at in range(0, len(request), size):
        seen.pipe.say(request[at : at + size])
    if size < len(request) and len(seen.exchanges) == 2:
        assert seen.statuses == [200, 200], "it was answered before it went wrong"
    else:
        assert seen.statuses == [200, status]
        assert b'"fault":"caller"' in seen.pipe.sent
    assert seen.pipe.ended or seen.pipe.is_closing(), "nothing further is read"
    seen.pipe.say(get("/smuggled"))
    assert len(seen.exchanges) <= 2
    assert "/smuggled" not in [exchange.path for exchange in seen.exchanges]


async def test_a_body_that_turns_out_broken_is_told_to_who_reads_it() -> None:
    seen = Seen(answers=False)
    seen.pipe.say(CHUNKED + b"1\r\na\r\n")
    [exchange] = seen.exchanges
    assert exchange.take() == b"a"
    waiting = asyncio.ensure_future(exchange.more())
    await asyncio.sleep(0)
    seen.pipe.say(b"zz\r\n")
    with pytest.raises(CallerError):
        await waiting
    exchange.respond(400, [], b"")
    assert (seen.statuses, seen.pipe.ended) == ([400], True)


def _half_close(pipe: Pipe) -> None:
    pipe.hang_up()


def _vanish(pipe: Pipe) -> None:
    pipe.vanish()


@pytest.mark.parametrize("leaves", [_half_close, _vanish])
async def test_who_leaves_is_told_of_once(leaves: Callable[[Pipe], None]) -> None:
    seen = Seen(answers=False)
    seen.pipe.say(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
    [exchange] = seen.exchanges
    told: list[int] = []
    exchange.on_gone = lambda: told.append(1)
    assert exchange.take() == b"ab"
    waiting = asyncio.ensure_future(exchange.more())
    await asyncio.sleep(0)
    leaves(seen.pipe)
    with pytest.raises(ClientGone):
        await waiting
    exchange.respond(400, [], b"")
    await asyncio.sleep(0)
    assert told == [1]
    assert seen.statuses == ([400] if leaves is _half_close else [])
    assert seen.pipe.lost.is_set() or seen.pipe.ended


async def test_half_a_head_and_a_goodbye_is_nothing() -> None:
    seen = Seen()
    seen.pipe.say(get()[:10])
    seen.pipe.hang_up()
    await asyncio.sleep(0)
    assert (seen.exchanges, bytes(seen.pipe.sent), seen.pipe.lost.is_set()) == ([], b"", True)


async def test_who_asks_and_asks_and_reads_no_answer_is_not_heard_any_more() -> None:
    seen = Seen(answers=False, reads=False)
    answered = 0
    for _ in range(50):
        seen.pipe.say(get() * 20)
        while seen.exchanges[answered:]:
            seen.exchanges[answered].respond(200, [], b"x" * 60_000)
            answered += 1
    assert answered < 10
    assert seen.pipe.paused
    assert seen.pipe.get_write_buffer_size() < 400_000
    seen.pipe.read()
    while seen.exchanges[answered:]:
        seen.exchanges[answered].respond(200, [], b"x" * 60_000)
        answered += 1
    assert answered == 1000


async def test_a_slow_reader_holds_up_the_one_who_writes_to_it() -> None:
    seen = Seen(answers=False, reads=False)
    seen.pipe.say(get())
    [exchange] = seen.exchanges
    exchange.start(200, [])
    exchange.write([b"x" * 300_000])
    waiting = asyncio.ensure_future(exchange.drain())
    await asyncio.sleep(0)
    assert not waiting.done()
    seen.pipe.read()
    await waiting
    seen.pipe.reads = False
    exchange.write([b"x" * 300_000])
    waiting = asyncio.ensure_future(exchange.drain())
    await asyncio.sleep(0)
    seen.pipe.vanish()
    with pytest.raises(ClientGone):
        await waiting


async def test_patience() -> None:
    seen = Seen(answers=False)
    connection = seen.pipe.get_protocol()
    assert isinstance(connection, Http1)
    assert connection.allowance() == 15.0, "it has said nothing"
    seen.pipe.say(get()[:10])
    assert connection.allowance() == 15.0, "it has to end its head"
    seen.pipe.say(get()[10:])
    assert connection.allowance() == float("inf"), "it waits for its answer"
    seen.exchanges[0].respond(200, [], b"")
    assert connection.allowance() == 75.0
    seen.pipe.say(b"nonsense\r\n\r\n")
    assert connection.allowance() == GRACE_S


async def test_an_upgrade_to_anything_but_a_websocket_is_a_request() -> None:
    seen = Seen()
    seen.pipe.say(get("/1", "Connection: Upgrade", "Upgrade: h2c") * 300 + get("/2"))
    assert (seen.statuses[:3], seen.exchanges[0].upgrade) == ([200] * 3, False)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("Sec-WebSocket-Version: 12", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), 426),
        (("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA"), 400),
        (("Sec-WebSocket-Version: 13",), 400),
    ],
)
async def test_a_handshake_that_is_none(headers: tuple[str, ...], status: int) -> None:
    seen = Seen()
    seen.pipe.say(get("/", "Connection: Upgrade", "Upgrade: websocket", *headers))
    assert (seen.statuses, seen.exchanges) == ([status], [])
    assert (b"sec-websocket-version: 13" in seen.pipe.sent) == (status == 426)


async def test_nothing_of_a_connection_waits_for_the_garbage_collector() -> None:
    def kept() -> int:
        return sum(isinstance(thing, Http1 | WebSocket | Protocol) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = kept()
        for _ in range(10):
            exchanges: list[Exchange] = []
            pipe = piped(Http1, exchanges.append)
            pipe.say(get())
            exchanges[0].respond(200, [], b"")
            pipe.say(get("/", *_HANDSHAKE))
            socket = exchanges[1].accept([], None, 100)
            pipe.vanish()
            await asyncio.sleep(0)
            assert await socket.receive() is None
            other = piped(Http1, exchanges.append)
            other.say(get()[:10])
            other.vanish()
            await asyncio.sleep(0)
            exchanges.clear()
        del pipe, other, socket
        assert kept() == before
    finally:
        gc.enable()
