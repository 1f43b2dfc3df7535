"""10,000 idle WebSockets of a plain handler: what each costs the node, and how messages travel among them.

The clients live in this process and keep nothing but a protocol object each. First the sockets are opened and rest:
the node's resident memory says what one costs. Then messages are sent at a steady rate over sockets taken in turn and
the handler sends each back, as an event and an answer; what counts is the time from send to echo. Beside it stands bare
Granian with an application that echoes.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop
from measure import Options, Report, Unavailable, quantile

from stack import Failure, Headrace, end, free_port, headrace

SOCKETS = 10_000
RATE = 1_000  # messages a second, over all sockets
SOCKET_KB = 12.0
P99_MS = 20.0

_SPARE_FILES = 500
_FRAME = 22  # bytes of an echo, head and text
_OPENING = 64  # handshakes at once
_TRIAL = 500  # sockets that were open before: what the node keeps anyway is not counted
_REST_S = 3.0
_LIMIT_S = 120.0
_HANDLER = "async def handler(event, context):\n    return event['body'] or None\n"
_CONFIG = {"concurrency": 100, "idle_s": 3600, "queue": 1000}


def run(options: Options) -> Report:
    count = _files_for(SOCKETS)
    report = Report("sockets", ("subject", "sockets", "KB each", "messages/s", "p50 ms", "p99 ms", "lost"))
    with headrace() as platform:
        platform.deploy("echo", {"handler.py": _HANDLER}, _CONFIG)
        found = uvloop.run(_measure(platform, platform.url("echo"), count, options))
    with _bare() as (url, process):
        bare = uvloop.run(_measure(process, url, count, options))
    for subject, seen in (("headrace", found), ("bare Granian", bare)):
        lost = seen.sent - len(seen.times_ms)
        rate = seen.sent / seen.seconds
        report.rows.append((subject, count, seen.kb, rate, *(quantile(seen.times_ms, q) for q in (0.5, 0.99)), lost))
    if found.sent > len(found.times_ms):
        report.failures.append(f"{found.sent - len(found.times_ms)} messages did not come back.")
    if count < SOCKETS:
        report.notes.append(f"this machine's limit of open files allows {count:,} sockets, not {SOCKETS:,}.")
    report.at_most("node memory of an idle socket, KB", found.kb, SOCKET_KB)
    report.at_most("p99 of an echo, ms", quantile(found.times_ms, 0.99), P99_MS)
    return report


class Seen:
    """What one subject showed."""

    def __init__(self) -> None:
        self.kb = 0.0  # resident memory of one idle socket
        self.sent = 0
        self.seconds = 0.0
        self.times_ms: list[float] = []


class Client(asyncio.Protocol):
    """One WebSocket client: opens, sends the time, reads it back."""

    __slots__ = ("_data", "_seen", "opened", "transport")

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._data = b""
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(Failure(f"a socket was cut while it was opened: {exc}"))

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self.opened.done():
            head, found, rest = self._data.partition(b"\r\n\r\n")
            if found:
                self._data = rest
                if b" 101 " in head.partition(b"\r\n")[0]:
                    self.opened.set_result(None)
                else:
                    self.opened.set_exception(Failure(f"a socket was refused: {head[:200]!r}"))
        while len(self._data) >= _FRAME:
            sent = float(self._data[2:_FRAME])
            self._data = self._data[_FRAME:]
            self._seen.times_ms.append((time.monotonic() - sent) * 1000)

    def send(self) -> None:
        self._seen.sent += 1
        self.transport.write(b"\x81\x94\0\0\0\0%020.9f" % time.monotonic())


async def _measure(server: Headrace | subprocess.Popen[bytes], url: str, count: int, options: Options) -> Seen:
    seen = Seen()
    async with asyncio.timeout(_LIMIT_S):
        for client in await _opened(url, _TRIAL, seen):
            client.send()
            client.transport.close()
        await asyncio.sleep(_REST_S)
        before = _memory_kb(server)
        clients = await _opened(url, count, seen)
        await asyncio.sleep(_REST_S)
        seen.kb = (_memory_kb(server) - before) / count
        options.say(f"{count:,} sockets are open and rest: {seen.kb:.1f} KB each")
        seen.sent, seen.times_ms = 0, []
        await _talk(clients, seen, 5 * options.seconds)
        for client in clients:
            client.transport.abort()
    return seen


async def _opened(url: str, count: int, seen: Seen) -> list[Client]:
    place = urlsplit(url)
    head = (
        f"GET {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()
    gate = asyncio.Semaphore(_OPENING)

    async def one() -> Client:
        async with gate:
            loop = asyncio.get_running_loop()
            transport, client = await loop.create_connection(lambda: Client(seen), place.hostname, place.port)
            transport.write(head)
            await client.opened
            return client

    return await asyncio.gather(*(one() for _ in range(count)))


async def _talk(clients: list[Client], seen: Seen, seconds: float) -> None:
    """Send at the steady rate over all sockets in turn, whatever comes back; then wait for what is on its way."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        while seen.sent < passed * RATE:
            clients[seen.sent * 7919 % len(clients)].send()
        await asyncio.sleep(0.001)
    seen.seconds = passed
    for _ in range(100):
        if len(seen.times_ms) >= seen.sent:
            return
        await asyncio.sleep(0.05)


def _memory_kb(server: Headrace | subprocess.Popen[bytes]) -> float:
    if isinstance(server, Headrace):
        return server.memory_mb("node") * 1024
    return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1024


def _files_for(count: int) -> int:
    """Raise this process's limit of open files as far as it goes; how many sockets it allows of `count`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return min(count, most - _SPARE_FILES)


@contextmanager
def _bare() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    program = Path(__file__).with_name("bare.py")
    process = subprocess.Popen([sys.executable, str(program), "--port", str(port), "--sockets"])
    try:
        time.sleep(_REST_S)
        if process.poll() is not None:
            raise Unavailable("the bare server did not start.")
        yield f"http://127.0.0.1:{port}/", process
    finally:
        end(process)
