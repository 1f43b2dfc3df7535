"""WebSockets on a connection in memory: messages, rules, back-pressure, the end of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from websockets.frames import CloseCode, Opcode
from websockets.protocol import CLIENT, OPEN, Protocol

import virtual_time
from headrace.errors import ClientGone
from headrace.web.exchange import Exchange
from headrace.web.http1 import Http1
from headrace.web.limits import GRACE_S
from headrace.web.websocket import Closed, Message, WebSocket
from pipe import Pipe
from web_kit import piped

UPGRADE = (
    b"GET /chat HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: a, b\r\n\r\n"
)


class Peer:
    """A client, and the server's socket."""

    def __init__(self, early: bytes = b"", limit: int = 1000, *, reads: bool = True) -> None:
        self.exchanges: list[Exchange] = []
        self.pipe: Pipe = piped(Http1, self.exchanges.append)
        self.pipe.say(UPGRADE + early)
        [exchange] = self.exchanges
        assert (exchange.upgrade, exchange.subprotocols) == (True, ("a", "b"))
        self.socket: WebSocket = exchange.accept([(b"x-own", b"1")], "b", limit)
        self.head = bytes(self.pipe.sent)
        self._heard = len(self.head)
        self.pipe.reads = reads
        self.client = Protocol(CLIENT, state=OPEN, max_size=None)

    def flush(self) -> None:
        for data in self.client.data_to_send():
            if data:
                self.pipe.say(data)

    def heard(self) -> list[Any]:
        """The frames that came since the last time."""
        data = bytes(self.pipe.sent[self._heard :])
        self._heard += len(data)
        if data:
            self.client.receive_data(data)
        return self.client.events_received()

    def closed(self) -> tuple[int, bytes]:
        """Code and reason of the close frame, which is the last that came."""
        last = self.heard()[-1]
        assert last.opcode is Opcode.CLOSE
        return int.from_bytes(last.data[:2], "big"), bytes(last.data[2:])


async def test_the_handshake_says_what_is_ours_and_loses_no_early_bytes() -> None:
    client = Protocol(CLIENT, state=OPEN)
    client.send_text(b"early")
    peer = Peer(early=client.data_to_send()[0])
    assert peer.head.startswith(b"HTTP/1.1 101 ")
    for line in (b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", b"sec-websocket-protocol: b", b"x-own: 1"):
        assert line in peer.head
    assert await peer.socket.receive() == Message(True, b"early")


async def test_messages_both_ways_whole_and_in_fragments() -> None:
    peer = Peer()
    peer.client.send_text("grüß".encode())
    peer.client.send_binary(b"\xff\x00")
    peer.client.send_text("gr\xfc".encode()[:3], fin=False)
    peer.client.send_continuation("gr\xfc".encode()[3:], fin=True)
    peer.flush()
    got = [await peer.socket.receive() for _ in range(3)]
    assert got == [Message(True, "grüß".encode()), Message(False, b"\xff\x00"), Message(True, "grü".encode())]
    peer.socket.write(True, b"text")
    peer.socket.write(False, b"\xff")
    peer.socket.write(True, b"no \xff utf-8")
    frames = peer.heard()
    assert [(frame.opcode, bytes(frame.data)) for frame in frames] == [
        (Opcode.TEXT, b"text"),
        (Opcode.BINARY, b"\xff"),
        (Opcode.TEXT, "no \N{REPLACEMENT CHARACTER} utf-8".encode()),
    ]


async def test_a_peer_that_sends_faster_than_it_is_heard_waits() -> None:
    peer = Peer()
    for number in range(5):
        peer.client.send_text(b"%d" % number)
        peer.flush()
    assert peer.pipe.untold == 4
    for number in range(5):
        assert await peer.socket.receive() == Message(True, b"%d" % number)
    assert not peer.pipe.paused


async def test_what_was_sent_before_the_close_is_received() -> None:
    peer = Peer()
    peer.client.send_text(b"last words")
    peer.client.send_close(4001, "bye")
    for data in (b"".join(peer.client.data_to_send()),):
        peer.pipe.say(data)
    assert await peer.socket.receive() == Message(True, b"last words")
    assert await peer.socket.receive() is None
    assert (peer.socket.code, peer.socket.reason) == (4001, "bye")
    assert peer.closed() == (4001, b"bye"), "its own code comes back"
    with pytest.raises(Closed):
        peer.socket.write(True, b"too late")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x01a", CloseCode.PROTOCOL_ERROR),  # without a mask
        (b"\xc1\x80\0\0\0\0", CloseCode.PROTOCOL_ERROR),  # a reserved bit
        (b"\x81\x81\0\0\0\0\xff", CloseCode.INVALID_DATA),
        (b"\x01\x81\0\0\0\0\xff", CloseCode.INVALID_DATA),  # already its first fragment is none
        (b"\x01\x81\0\0\0\0\xce\x80\x80\0\0\0\0", CloseCode.INVALID_DATA),  # half a character at the end
        (b"\x88\x83\0\0\0\0\x03\xe8\xff", CloseCode.INVALID_DATA),  # the reason of a close
        (b"\x82\xfe\x10\0\0\0\0\0", CloseCode.MESSAGE_TOO_BIG),  # announced, not sent
    ],
)
async def test_broken_rules_have_their_codes(data: bytes, code: int) -> None:
    peer = Peer()
    peer.pipe.say(data)
    assert await peer.socket.receive() is None
    assert peer.socket.code == code
    assert peer.closed()[0] == code
    assert peer.pipe.ended


async def test_fragments_count_together() -> None:
    peer = Peer(limit=1000)
    peer.client.send_binary(b"x" * 600, fin=False)
    peer.client.send_continuation(b"x" * 600, fin=True)
    peer.flush()
    assert await peer.socket.receive() is None
    assert peer.socket.code == CloseCode.MESSAGE_TOO_BIG


@pytest.mark.parametrize("leaves", ["close", "hang up", "vanish"])
async def test_a_client_without_a_word_and_one_without_a_reason(leaves: str) -> None:
    peer = Peer()
    waiting = asyncio.ensure_future(peer.socket.receive())
    await asyncio.sleep(0)
    if leaves == "close":
        peer.client.send_close()
        peer.flush()
    elif leaves == "hang up":
        peer.pipe.hang_up()
    else:
        peer.pipe.vanish()
    assert await waiting is None
    assert peer.socket.code == (1005 if leaves == "close" else 1006)


def test_a_peer_that_does_not_agree_to_close_is_cut_off() -> None:
    async def scenario() -> None:
        peer = Peer()
        peer.socket.close(1012, "another version is live")
        assert peer.closed() == (1012, b"another version is live")
        await asyncio.sleep(GRACE_S - 0.1)
        assert not peer.pipe.lost.is_set()
        await asyncio.sleep(0.2)
        assert peer.pipe.lost.is_set()
        agreeing = Peer()
        agreeing.socket.close(1000, "")
        agreeing.heard()
        agreeing.flush()
        assert await agreeing.socket.receive() is None
        assert agreeing.socket.code == 1000
        agreeing.pipe.hang_up()
        await asyncio.sleep(0)
        assert agreeing.pipe.lost.is_set()

    virtual_time.run(scenario())


async def test_who_does_not_read_holds_up_the_one_who_writes() -> None:
    peer = Peer(limit=1 << 20, reads=False)
    assert peer.socket.writable
    peer.socket.write(False, b"x" * 300_000)
    assert not peer.socket.writable
    waiting = asyncio.ensure_future(peer.socket.drain())
    await asyncio.sleep(0)
    assert not waiting.done()
    peer.pipe.read()
    await waiting
    peer.pipe.reads = False
    peer.socket.write(False, b"x" * 300_000)
    waiting = asyncio.ensure_future(peer.socket.drain())
    await asyncio.sleep(0)
    peer.pipe.vanish()
    with pytest.raises(Closed):
        await waiting


async def test_who_pings_and_does_not_read_is_not_heard_any_more() -> None:
    peer = Peer(reads=False)
    for _ in range(20_000):
        peer.client.send_ping(b"x" * 125)
        peer.flush()
    assert peer.pipe.paused
    assert peer.pipe.get_write_buffer_size() < 2 << 20
    peer.pipe.read()
    assert not peer.pipe.paused


async def test_an_interrupted_reader_hears_no_more() -> None:
    peer = Peer()
    waiting = asyncio.ensure_future(peer.socket.receive())
    await asyncio.sleep(0)
    peer.socket.interrupt()
    assert await waiting is None
    peer.client.send_text(b"late")
    peer.flush()
    assert await peer.socket.receive() is None


async def test_a_client_that_is_gone_is_not_accepted() -> None:
    exchanges: list[Exchange] = []
    pipe = piped(Http1, exchanges.append)
    pipe.say(UPGRADE)
    pipe.vanish()
    await asyncio.sleep(0)
    with pytest.raises(ClientGone):
        exchanges[0].accept([], None, 1)


async def test_a_close_amid_a_message_is_a_close() -> None:
    peer = Peer()
    peer.client.send_text(b"half", fin=False)
    peer.client.send_close(1000)
    peer.flush()
    assert await peer.socket.receive() is None
    assert (peer.socket.code, peer.closed()[0]) == (1000, 1000)
