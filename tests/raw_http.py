"""HTTP by hand: sockets that say exactly what they are told, for requests that no client would make."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events
import httpx

from stack import Failure, Headrace

# What the platform under these tests is told, seconds; and whom it trusts: every address of 127/8 is this machine's.
HEADER_S, BODY_S, IDLE_S = 2, 2, 6
PROXY = "127.0.0.2"


@contextmanager
def connected(platform: Headrace, source: str = "127.0.0.1", timeout: float = 10.0) -> Iterator[socket.socket]:
    """A connection to the function port, from the address `source` of this machine."""
    place = urlsplit(platform.functions)
    address = (place.hostname or "", place.port or 0)
    with socket.create_connection(address, timeout, source_address=(source, 0)) as connection:
        yield connection


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection. Raises `Failure` when it does not."""
    parts: list[bytes] = []
    while True:
        try:
            data = connection.recv(1 << 20)
        except ConnectionResetError:
            break
        except TimeoutError:
            raise Failure(f"the server keeps the connection; so far it said {b''.join(parts)[:300]!r}") from None
        if not data:
            break
        parts.append(data)
    return b"".join(parts)


def exchange(platform: Headrace, request: bytes, *, half_close: bool = False, source: str = "127.0.0.1") -> bytes:
    """Say `request`, and hear all until the server ends the connection."""
    with connected(platform, source) as connection:
        try:
            connection.sendall(request)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all of it was said
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return rest(connection)


def statuses(answer: bytes) -> list[int]:
    """The status of each answer in it."""
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


class Http2:
    """A connection that speaks HTTP/2 without TLS; `h2` frames what it is asked to, or bytes are sent as they are."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.events: list[Any] = []
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def request(self, path: str, method: str = "GET", end: bool = True, **headers: str) -> int:
        """Begin a request; its stream."""
        stream: int = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "x"), *headers.items()]
        self.h2.send_headers(stream, fields, end_stream=end)
        self.flush()
        return stream

    def until(self, kind: type[Any], stream: int | None = None, seconds: float = 10.0) -> Any:
        """The first event of a kind, of `stream` if given; what came before it stays in `events`."""
        deadline = time.monotonic() + seconds
        looked = 0
        while True:
            for event in self.events[looked:]:
                looked += 1
                if isinstance(event, kind) and stream in (None, event.stream_id):
                    return event
            if time.monotonic() > deadline:
                raise Failure(f"no {kind.__name__} came within {seconds:g} s: {self.events[-5:]}")
            data = self.socket.recv(65_536)
            if not data:
                raise Failure(f"the connection ended before {kind.__name__}: {self.events[-5:]}")
            for event in self.h2.receive_data(data):
                self.events.append(event)
                if isinstance(event, h2.events.DataReceived):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.flush()

    def body(self, stream: int) -> bytes:
        """The whole body of an answer."""
        self.until(h2.events.StreamEnded, stream)
        mine = [e.data for e in self.events if isinstance(e, h2.events.DataReceived) and e.stream_id == stream]
        return b"".join(mine)


def in_flight(platform: Headrace) -> int:
    """Calls that the node counts as running, in itself and in its instances."""
    total: int = 0
    for node in platform.ask("GET", "/system")["nodes"]:
        total += node["in_flight"] + sum(instance["in_flight"] for instance in node["instances"])
    return total


def settled(platform: Headrace) -> None:
    """Wait until no call runs any more."""
    platform.until(lambda: json.dumps({"calls": in_flight(platform)}), '{"calls": 0}')


def counts(platform: Headrace) -> dict[str, int]:
    """What the function `edge` has counted."""
    found: dict[str, int] = httpx.get(f"{platform.url('edge')}/counts", timeout=30).json()
    return found


def outcomes(platform: Headrace, path: str) -> list[str]:
    """How the calls of `edge` to `path` ended, the newest first."""
    items = platform.ask("GET", "/functions/edge/invocations?limit=50")["items"]
    return [item["outcome"] for item in items if item["path"].partition("?")[0] == path]
