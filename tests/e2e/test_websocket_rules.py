"""RFC 6455 through the gateway, frame by frame, to an application and to a plain handler that both echo.

Each case opens a socket by hand, sends bytes and sees the frames that come back until the connection ends. The Autobahn
fuzzing client asks more of the same (`test_autobahn`).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from websockets.sync.client import connect

from stack import Headrace

APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
"""
HANDLER = """
import base64
def handler(event, context):
    if event["requestContext"]["eventType"] == "MESSAGE":
        return base64.b64decode(event["body"]) if event["isBase64Encoded"] else event["body"]
"""
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
RULES = 1002
UTF8 = 1007
TOO_BIG = 1009
WORD = "κόσμε ✓ 𝄞".encode()


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, bits: int = 0, masked: bool = True) -> bytes:
    size = len(data)
    flag = 0x80 if masked else 0
    head = bytes([fin << 7 | bits << 4 | opcode])
    if size < 126:
        head += bytes([flag | size])
    elif size < 65_536:
        head += bytes([flag | 126]) + struct.pack(">H", size)
    else:
        head += bytes([flag | 127]) + struct.pack(">Q", size)
    if not masked:
        return head + data
    mask = b"\x37\xfa\x21\x3d"
    keys = (mask * (size // 4 + 1))[:size]
    return head + mask + (int.from_bytes(data, "big") ^ int.from_bytes(keys, "big")).to_bytes(size, "big")


def pieces(opcode: int, data: bytes, size: int, between: bytes = b"") -> bytes:
    """`data` as one message in fragments of `size` bytes, with `between` after each but the last."""
    parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    kinds = [opcode] + [CONT] * (len(parts) - 1)
    last = len(parts) - 1
    sent = (frame(kind, part, fin=n == last) for n, (kind, part) in enumerate(zip(kinds, parts, strict=True)))
    return between.join(sent)


def closing(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack(">H", code) + reason)


class Peer:
    """A socket opened by hand."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._data = b""

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def read(self) -> tuple[int, bytes] | None:
        """The next frame; None when the connection has ended."""
        while (found := self._parse()) is None:
            try:
                more = self.connection.recv(1 << 20)
            except ConnectionError:
                return None
            if not more:
                return None
            self._data += more
        return found

    def _parse(self) -> tuple[int, bytes] | None:
        if len(self._data) < 2:
            return None
        at, size = 2, self._data[1] & 0x7F
        if size > 125:
            wide = 2 if size == 126 else 8
            if len(self._data) < 2 + wide:
                return None
            at, size = 2 + wide, int.from_bytes(self._data[2 : 2 + wide], "big")
        if len(self._data) < at + size:
            return None
        first, body = self._data[0], self._data[at : at + size]
        assert first & 0x80, "the server sends messages whole"
        self._data = self._data[at + size :]
        return first & 0x0F, body

    def rest(self) -> list[tuple[int, bytes]]:
        """All frames until the connection ends."""
        return list(iter(self.read, None))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["application", "handler"])
def place(platform: Headrace, request: pytest.FixtureRequest) -> str:
    name = f"rules-{request.param}"
    if request.param == "application":
        platform.deploy(name, {"main.py": APP}, {"handler": "main.app"})
    else:
        platform.deploy(name, {"handler.py": HANDLER}, {})
    return platform.url(name)


@contextmanager
def opened(place: str) -> Iterator[Peer]:
    url = urlsplit(place)
    assert url.hostname
    with socket.create_connection((url.hostname, url.port or 80), timeout=20) as connection:
        connection.sendall(
            f"GET {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(1)
        assert head.startswith(b"HTTP/1.1 101 "), head
        yield Peer(connection)


def test_messages_of_all_sizes_whole_and_in_fragments_of_all_sizes(place: str) -> None:
    with opened(place) as peer:
        for opcode in (TEXT, BINARY):
            for size in (0, 1, 125, 126, 127, 128, 65_535, 65_536, 300_000):
                data = b"*" * size if opcode == TEXT else os.urandom(size)
                for fragment in (size or 1, 997, 65_536):
                    peer.send(pieces(opcode, data, fragment))
                    assert peer.read() == (opcode, data)
            peer.send(pieces(opcode, b"tiny", 1, between=frame(PING, b"p")))
            got = [peer.read() for _ in range(4)]
            assert [seen for seen in got if seen != (PONG, b"p")] == [(opcode, b"tiny")]
            assert len([seen for seen in got if seen == (PONG, b"p")]) == 3
        for at in range(1, len(WORD)):
            peer.send(frame(TEXT, WORD[:at], fin=False) + frame(CONT, WORD[at:]))
            assert peer.read() == (TEXT, WORD)
        peer.send(frame(TEXT, b"", fin=False) + frame(CONT, b"", fin=False) + frame(CONT, b""))
        assert peer.read() == (TEXT, b"")
        for byte in (data := frame(TEXT, b"byte by byte")):
            peer.send(bytes([byte]))
        assert (data != b"", peer.read()) == (True, (TEXT, b"byte by byte"))


def test_pings_are_answered_and_pongs_passed_over(place: str) -> None:
    with opened(place) as peer:
        for data in (b"", b"hello", bytes(range(125))):
            peer.send(frame(PONG, b"unasked") + frame(PING, data))
            assert peer.read() == (PONG, data)
        peer.send(b"".join(frame(PING, b"%d" % n) for n in range(10)))
        assert [peer.read() for _ in range(10)][-1] == (PONG, b"9")


BROKEN = {
    "a reserved bit": frame(TEXT, b"x", bits=4),
    "another reserved bit": frame(BINARY, b"x", bits=1),
    "a reserved bit of a ping": frame(PING, b"x", bits=2),
    **{f"opcode {opcode}": frame(opcode, b"x") for opcode in (3, 7, 11, 15)},
    "no mask": frame(TEXT, b"x", masked=False),
    "an oversized ping": frame(PING, b"x" * 126),
    "an oversized close": closing(1000, b"x" * 124),
    "a fragmented ping": frame(PING, b"x", fin=False) + frame(CONT, b"y"),
    "a fragmented close": frame(CLOSE, b"", fin=False),
    "a continuation of nothing": frame(CONT, b"x"),
    "a message inside a message": frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"),
    "a length beyond 63 bits": b"\x82\xff" + b"\xff" * 8 + b"\0\0\0\0",
    "a close of one byte": frame(CLOSE, b"\x03"),
    "a close reason that is no UTF-8": closing(1000, b"\xce\xba\xff"),
    **{f"close code {code}": closing(code) for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535)},
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rules_are_answered_with_their_code(place: str, name: str) -> None:
    with opened(place) as peer:
        peer.send(frame(TEXT, b"before") + BROKEN[name])
        *echo, (opcode, body) = peer.rest()
        assert echo in ([(TEXT, b"before")], []), "nothing of what was wrong comes back"
        code = {"a length beyond 63 bits": TOO_BIG, "a close reason that is no UTF-8": UTF8}.get(name, RULES)
        assert (opcode, body[:2]) == (CLOSE, struct.pack(">H", code))


WRONG_TEXTS = (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"ok \xce\xba\xe1\xbd\xb9 \x80")


@pytest.mark.parametrize("data", WRONG_TEXTS, ids=lambda data: data.hex())
def test_invalid_utf8_is_refused_wherever_it_is_split(place: str, data: bytes) -> None:
    for at in range(len(data)):
        with opened(place) as peer:
            peer.send(frame(TEXT, data[:at], fin=False) + frame(CONT, data[at:]) if at else frame(TEXT, data))
            [(opcode, body)] = peer.rest()
            assert (opcode, body[:2]) == (CLOSE, struct.pack(">H", UTF8))


def test_close_codes_of_a_client_come_back(place: str) -> None:
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
        with opened(place) as peer:
            peer.send(closing(code, b"why") + frame(TEXT, b"after"))
            assert [(kind, body[:2]) for kind, body in peer.rest()] == [(CLOSE, struct.pack(">H", code))]
    with opened(place) as peer:
        peer.send(frame(CLOSE))
        assert peer.rest() == [(CLOSE, b"")]


def test_a_frame_that_announces_too_much_is_refused_before_it_comes(place: str) -> None:
    with opened(place) as peer:
        peer.send(b"\x82\xff" + struct.pack(">Q", 1 << 30) + b"\0\0\0\0")
        assert [(kind, body[:2]) for kind, body in peer.rest()] == [(CLOSE, struct.pack(">H", TOO_BIG))]


def test_a_message_over_the_limit_is_closed_with_1009(place: str) -> None:
    """1 MiB to a handler, 16 MiB to an application."""
    limit = 16 << 20 if "application" in place else 1 << 20
    with connect(place.replace("http", "ws"), max_size=None, ping_interval=None) as peer:
        peer.send(b"x" * (1 << 20))
        assert len(peer.recv(timeout=20)) == 1 << 20
        with pytest.raises(Exception, match="1009"):  # it may come before all of it is sent
            peer.send([b"y" * (1 << 20)] * (limit >> 20) + [b"y"])
            peer.recv(timeout=20)
