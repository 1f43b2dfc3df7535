"""A gibibyte each way: how fast beside Granian with the same application alone, and in how much memory."""

from __future__ import annotations

import socket
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from measure import Options, Report
from references import Answer, served

from stack import Failure, Headrace, free_port, headrace

ROUNDS = 3
OF_GRANIAN = 0.5
GROWTH_MB = 32.0  # of a process's peak, while a gibibyte goes through it

_MIB, _LESS_MIB = 1024, 64  # how much; in the short form
_PIECE = bytes(1 << 20)
_LIMIT_S = 300.0
_HERE = Path(__file__).resolve().parent


def run(options: Options) -> Report:
    mib = _MIB if options.seconds >= 3 else _LESS_MIB
    report = Report("stream", ("way", "Headrace MiB/s", "Granian MiB/s", "ratio"))
    with headrace(max_body_mb=str(_MIB)) as platform, _granian() as reference:
        files = {"flood.py": (_HERE / "flood.py").read_text()}
        platform.deploy("flood", files, {"handler": "flood.app", "max_instances": 1, "timeout_s": _LIMIT_S})
        subjects = (platform.url("flood"), reference)
        for url in subjects:
            _down(url, 8), _up(url, 8)
        before = _peaks(platform)
        rates: dict[str, list[tuple[float, float]]] = {"down": [], "up": []}
        for turn in range(1, ROUNDS + 1):
            for way, transfer in (("down", _down), ("up", _up)):
                ours, theirs = (mib / transfer(url, mib) for url in subjects)
                rates[way].append((ours, theirs))
                options.say(f"round {turn} of {ROUNDS}: {way} {ours:,.0f} MiB/s, Granian {theirs:,.0f} MiB/s")
        after = _peaks(platform)
    for way, pairs in rates.items():
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        report.rows.append((way, *(statistics.median(column) for column in zip(*pairs, strict=True)), ratio))
        report.at_least(f"{mib} MiB {way}, of Granian", ratio, OF_GRANIAN)
    for name, peak in after.items():
        report.at_most(f"growth of the {name}'s peak, MiB", peak - before[name], GROWTH_MB)
        report.notes.append(f"the {name} had {peak:.0f} MiB at most")
    return report


def _peaks(platform: Headrace) -> dict[str, float]:
    """The most memory that node and instance ever had, MiB."""
    instance = int(httpx.get(f"{platform.url('flood')}/peak", timeout=30).text) / 1024
    return {"node": platform.memory_mb("node", "VmHWM"), "instance": instance}


@contextmanager
def _granian() -> Iterator[str]:
    port = free_port()
    command = [str(Path(sys.executable).with_name("granian")), "--interface", "asgi", "--loop", "uvloop"]
    command += ["--port", str(port), "--working-dir", str(_HERE), "flood:app"]
    with served(command, port, Answer("", "")):
        yield f"http://127.0.0.1:{port}/fn/flood"


def _down(url: str, mib: int) -> float:
    """Seconds for a download of so much."""
    with _connected(url) as connection:
        began = time.perf_counter()
        path = urlsplit(url).path
        connection.sendall(f"GET {path}/down?{mib} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        taken, end, buffer = 0, b"", bytearray(1 << 20)
        while size := connection.recv_into(buffer):
            taken += size
            end = (end + buffer[max(0, size - 5) : size])[-5:]
        if taken < mib << 20 or end != b"0\r\n\r\n":
            raise Failure(f"{url} sent {taken} bytes and not {mib} MiB.")
        return time.perf_counter() - began


def _up(url: str, mib: int) -> float:
    """Seconds for an upload of so much."""
    with _connected(url) as connection:
        began = time.perf_counter()
        head = f"POST {urlsplit(url).path}/up HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        head += f"Content-Length: {mib << 20}\r\n\r\n"
        connection.sendall(head.encode())
        for _ in range(mib):
            connection.sendall(_PIECE)
        answer = b""
        while data := connection.recv(65_536):
            answer += data
        if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(b"%d" % (mib << 20)):
            raise Failure(f"{url} answered an upload with {answer[:300]!r}.")
        return time.perf_counter() - began


@contextmanager
def _connected(url: str) -> Iterator[socket.socket]:
    place = urlsplit(url)
    assert place.hostname is not None
    assert place.port is not None
    with socket.create_connection((place.hostname, place.port), timeout=_LIMIT_S) as connection:
        yield connection
