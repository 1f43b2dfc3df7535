"""HTTP as callers use and misuse it: what travels through unchanged, what is refused, who waits for how long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import h2.events
import httpx
import pytest

from raw_http import (
    BODY_S,
    HEADER_S,
    IDLE_S,
    PROXY,
    Http2,
    connected,
    counts,
    exchange,
    in_flight,
    rest,
    settled,
    statuses,
)
from stack import Headrace

MAX_GROWTH_MB = 48


def get(path: str, *headers: str, version: str = "1.1") -> bytes:
    return "\r\n".join((f"GET /fn/edge{path} HTTP/{version}", "Host: x", *headers, "", "")).encode()


def post(*headers: str, body: bytes = b"", path: str = "/echo") -> bytes:
    return "\r\n".join((f"POST /fn/edge{path} HTTP/1.1", "Host: x", *headers, "", "")).encode() + body


CHUNKED = "Transfer-Encoding: chunked"
REFUSED: dict[str, tuple[bytes, list[int]]] = {
    "two lengths": (post("Content-Length: 4", "Content-Length: 5", body=b"abcde"), [400]),
    "a list of lengths": (post("Content-Length: 4, 4", body=b"abcd"), [400]),
    "a negative length": (post("Content-Length: -4", body=b"abcd"), [400]),
    "a signed length": (post("Content-Length: +4", body=b"abcd"), [400]),
    "a length beyond any number": (post("Content-Length: 99999999999999999999999", body=b"abcd"), [400]),
    "a length beyond the limit": (post("Content-Length: 1073741824", body=b"abcd"), [413]),
    "a space before the colon": (post("Content-Length : 4", body=b"abcd"), [400]),
    "a body longer than its length": (post("Content-Length: 4", body=b"abcdSMUGGLED\r\n\r\n"), [200, 400]),
    "chunked is not last": (post("Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"), [400]),
    "an unknown coding": (post("Transfer-Encoding: xchunked", body=b"0\r\n\r\n"), [400]),
    "a coding that is not undone": (post("Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), [400]),
    "chunks that are none": (post(CHUNKED, body=b"zz\r\nabc\r\n0\r\n\r\n"), [400]),
    "a negative chunk": (post(CHUNKED, body=b"-3\r\nabc\r\n0\r\n\r\n"), [400]),
    "a chunk beyond any number": (post(CHUNKED, body=b"1ffffffffffffffff\r\nabc\r\n0\r\n\r\n"), [400]),
    "a chunk longer than it says": (post(CHUNKED, body=b"2\r\nabc\r\n0\r\n\r\n"), [400]),
    "chunks without carriage returns": (post(CHUNKED, body=b"3\nabc\n0\n\n"), [400]),
    "a chunk extension of 40 KB": (post(CHUNKED, body=b"3;" + b"a" * 40_000 + b"\r\nabc\r\n0\r\n\r\n"), [400]),
    "5,000 trailers": (post(CHUNKED, body=b"3\r\nabc\r\n0\r\n" + b"X-T: 1\r\n" * 5000 + b"\r\n"), [400]),
    "10,000 headers": (get("/", *(f"X-{n}: 1" for n in range(10_000))), [431]),
    "a header of a megabyte": (get("/", "X-Big: " + "a" * (1 << 20)), [431]),
    "a path of a megabyte": (get("/" + "a" * (1 << 20)), [431]),
    "NUL in a value": (get("/", "X: a\0b"), [400]),
    "NUL in a name": (get("/", "X\0: a"), [400]),
    "NUL in the path": (get("/a\0b"), [400]),
    "a carriage return alone": (get("/", "X: a\rY: b"), [400]),
    "a folded header": (get("/", "X: a\r\n b"), [400]),
    "no host": (b"GET /fn/edge HTTP/1.1\r\nConnection: close\r\n\r\n", [400]),
    "two hosts": (get("/", "Host: y", "Connection: close"), [400]),
    "any resource": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [404]),
    "a tunnel": (b"CONNECT edge:443 HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n", [400]),
    "HTTP of the future": (get("/", version="3.0"), [400]),
    "HTTP of the past": (b"GET /fn/edge\r\n\r\n", [400]),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", [400]),
}


def test_what_is_no_request_is_refused_and_reaches_no_function(edge: Headrace) -> None:
    calls = counts(edge)["calls"]
    before = edge.memory_mb("node")
    said = {name: statuses(exchange(edge, request)) for name, (request, _) in REFUSED.items()}
    assert said == {name: expected for name, (_, expected) in REFUSED.items()}
    reached = counts(edge)["calls"] - calls
    assert reached <= sum(200 in expected for _, expected in REFUSED.values()) + 9, "bodies that break off are heard of"
    settled(edge)
    assert edge.memory_mb("node") - before < MAX_GROWTH_MB


def test_a_length_beside_chunks_smuggles_nothing(edge: Headrace) -> None:
    """RFC 9112, 6.1: it ought to be handled as an error."""
    calls = counts(edge)["calls"]
    inner = get("/smuggled")
    request = post(f"Content-Length: {5 + len(inner)}", CHUNKED, body=b"0\r\n\r\n" + inner)
    assert statuses(exchange(edge, request)) == [400]
    assert counts(edge)["calls"] == calls


def test_half_a_request_reaches_no_function(edge: Headrace) -> None:
    calls = counts(edge)["calls"]
    assert exchange(edge, b"GET /fn/edge HTTP/1.1\r\nHos", half_close=True) == b""
    assert statuses(exchange(edge, post("Content-Length: 100", body=b"abc"), half_close=True)) == [400]
    assert counts(edge)["calls"] == calls


def test_who_dawdles_is_cut_off_and_others_go_on(edge: Headrace) -> None:
    """Headers drop by drop, silence, half of a preface, an HTTP/2 connection without a request, a body that stops."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings = b"\0\0\0\4\0\0\0\0\0"
    stalled = post("Content-Length: 200000", body=b"x" * 100_000, path="/up")
    cases: dict[str, tuple[bytes, bytes, float]] = {
        "dripping header": (b"GET /fn/edge HTTP/1.1\r\nX: ", b"a", HEADER_S),
        "silence": (b"", b"", HEADER_S + 6),
        "half a preface": (preface[:16], b"", HEADER_S + 6),
        "idle": (preface + settings, b"", IDLE_S + 6),
        "stalled small body": (post("Content-Length: 10", body=b"abc"), b"", BODY_S),
        "stalled upload": (stalled, b"", BODY_S),
    }
    found: dict[str, tuple[float, bytes]] = {}

    def dawdle(name: str, start: bytes, drop: bytes, limit: float) -> None:
        with connected(edge, timeout=0.5) as connection:
            began, said = time.monotonic(), b""
            connection.sendall(start)
            while time.monotonic() < began + limit + 15:
                try:
                    data = connection.recv(65_536)
                except TimeoutError:
                    with suppress(OSError):  # the next look sees what has become of it
                        connection.sendall(drop)
                    continue
                except ConnectionResetError:
                    data = b""
                if not data:
                    found[name] = time.monotonic() - began, said
                    return
                said += data

    threads = [threading.Thread(target=dawdle, args=(name, *case)) for name, case in cases.items()]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        assert httpx.get(f"{edge.url('edge')}/file", timeout=20).status_code == 200
        assert time.monotonic() < began + 60
        time.sleep(0.2)
    assert found.keys() == cases.keys(), "some were never cut off"
    assert b"HTTP/1.1" not in found["dripping header"][1]
    assert found["idle"][0] >= IDLE_S
    for name in ("stalled small body", "stalled upload"):
        assert statuses(found[name][1]) == [408], found[name]
        assert b'"code":"request_timeout"' in found[name][1]
    settled(edge)


def test_a_body_may_be_slow_as_long_as_it_moves(edge: Headrace) -> None:
    with connected(edge) as connection:
        connection.sendall(post("Content-Length: 4", "Connection: close"))
        for _ in range(4):
            time.sleep(BODY_S / 2)
            connection.sendall(b"x")
        assert statuses(rest(connection)) == [200]


def test_a_body_is_asked_for_only_when_it_will_be_read(edge: Headrace) -> None:
    with connected(edge) as connection:
        connection.sendall(post("Content-Length: 4", "Expect: 100-continue", "Connection: close"))
        assert connection.recv(65_536).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sendall(b"abcd")
        assert b'"body": "abcd"' in rest(connection)
    refused = exchange(edge, post("Content-Length: 1073741824", "Expect: 100-continue"))
    assert statuses(refused) == [413]


@pytest.fixture(params=["1.1", "2"])
def client(request: pytest.FixtureRequest, edge: Headrace) -> Iterator[httpx.Client]:
    second = request.param == "2"
    with httpx.Client(base_url=edge.url("edge"), http1=not second, http2=second, timeout=30) as made:
        yield made


def test_methods_ranges_and_answers_without_body(client: httpx.Client) -> None:
    whole = client.get("/file")
    assert (whole.status_code, whole.text, whole.headers["content-length"]) == (200, "0123456789", "10")
    head = client.head("/file")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10")
    part = client.get("/file", headers={"range": "bytes=2-4"})
    assert (part.status_code, part.text, part.headers["content-range"]) == (206, "234", "bytes 2-4/10")
    assert client.get("/file", headers={"range": "bytes=2-4", "if-range": '"v1"'}).status_code == 206
    assert client.get("/file", headers={"range": "bytes=2-4", "if-range": '"v0"'}).text == "0123456789"
    same = client.get("/file", headers={"if-none-match": '"v1"'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", '"v1"')
    none = client.get("/nothing")
    assert (none.status_code, none.content) == (204, b"")
    assert "transfer-encoding" not in none.headers
    assert client.options("/echo").json()["method"] == "OPTIONS"
    for method in ("PATCH", "DELETE", "PROPFIND"):
        told = client.request(method, "/echo", content=b"abc").json()
        assert (told["method"], told["body"]) == (method, "abc")


def test_headers_travel_as_they_are_and_those_of_a_hop_do_not(client: httpx.Client) -> None:
    sent = [
        ("x-many", "1"),
        ("x-many", "2"),
        ("traceparent", "00-ab-cd-01"),
        ("x-request-id", "r1"),
        ("te", "trailers"),
    ]
    told = client.get("/echo", headers=sent).json()
    headers: list[list[str]] = told["headers"]
    for pair in sent[:-1]:
        assert list(pair) in headers
    assert not {name for name, _ in headers} & {"connection", "te", "transfer-encoding", "upgrade", "keep-alive"}
    answer = client.get("/many")
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert answer.headers.get_list("x-many") == ["1", "2"]
    assert not {"trailer", "te", "keep-alive"} & set(answer.headers)


def test_the_headers_of_a_stream_do_not_wait_for_its_first_bytes(client: httpx.Client) -> None:
    began = time.monotonic()
    with client.stream("GET", "/early") as answer:
        headers_at = time.monotonic() - began
        assert answer.read() == b"late"
    assert time.monotonic() - began - headers_at > 0.6


def test_trailers_of_an_answer(edge: Headrace) -> None:
    def last(version: str) -> bytes:
        return exchange(edge, get("/trailers", "Connection: close", "TE: trailers", version=version))

    answer = last("1.1")
    assert b"\r\ntransfer-encoding: chunked\r\n" in answer
    assert answer.endswith(b"\r\n\r\n4\r\nbody\r\n0\r\nx-sum: b33f\r\n\r\n")
    assert last("1.0").endswith(b"\r\n\r\nbody"), "there is no place for them"
    with connected(edge) as connection:
        second = Http2(connection)
        stream = second.request("/fn/edge/trailers")
        assert second.body(stream) == b"body"
        assert second.until(h2.events.TrailersReceived, stream).headers == [("x-sum", "b33f")]


def test_trailers_of_a_request_are_read_and_dropped(edge: Headrace) -> None:
    body = b"3\r\nabc\r\n0\r\nX-Late: 1\r\n\r\n"
    answer = exchange(edge, post(CHUNKED, "Trailer: X-Late", "Connection: close", body=body))
    assert b'"body": "abc"' in answer
    assert b"late" not in answer.lower()


def test_a_hop_keeps_what_connection_names(edge: Headrace) -> None:
    answer = exchange(edge, get("/echo", "Connection: close, X-Secret", "X-Secret: 1", "X-Open: 2"))
    assert b"x-open" in answer
    assert b"x-secret" not in answer


def test_forwarded_headers_are_believed_from_the_proxy_alone(edge: Headrace) -> None:
    told = "X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: https", "X-Forwarded-Host: shop.example"

    def seen(source: str) -> tuple[Any, ...]:
        answer = exchange(edge, get("/echo", *told, "Connection: close"), source=source)
        scope = httpx.Response(200, content=answer.partition(b"\r\n\r\n")[2]).json()
        headers = dict(scope["headers"])
        names = ("host", "x-forwarded-for", "x-forwarded-proto")
        return scope["client"][0], scope["scheme"], *(headers[name] for name in names), "x-forwarded-host" in headers

    assert seen("127.0.0.1") == ("127.0.0.1", "http", "x", "127.0.0.1", "http", False)
    forwarded = f"203.0.113.9, {PROXY}"
    assert seen(PROXY) == ("203.0.113.9", "https", "shop.example", forwarded, "https", False)


def test_idle_connections_are_cheap_and_end(edge: Headrace) -> None:
    before = edge.memory_mb("node")
    idle = [socket.create_connection(_address(edge), 10) for _ in range(1500)]
    try:
        for connection in idle[::2]:
            connection.sendall(b"GET /fn/edge/file HTTP/1.1\r\nHo")
        assert httpx.get(f"{edge.url('edge')}/file", timeout=10).status_code == 200
        assert edge.memory_mb("node") - before < MAX_GROWTH_MB
        deadline = time.monotonic() + HEADER_S + 15
        for connection in idle:
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            assert connection.recv(1) == b""
    finally:
        for connection in idle:
            connection.close()
    assert in_flight(edge) == 0


def _address(platform: Headrace) -> tuple[str, int]:
    place = httpx.URL(platform.functions)
    return place.host, place.port or 0


def test_a_malformed_request_to_the_control_port_is_told_so(edge: Headrace) -> None:
    place = httpx.URL(edge.control)

    def said(request: bytes) -> bytes:
        with socket.create_connection((place.host, place.port or 0), 10) as connection:
            connection.sendall(request)
            return rest(connection)

    cases: dict[bytes, int] = {
        b"GET / HTTP/1.1\r\nX Y: 1\r\n\r\n": 400,
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * (1 << 17) + b"\r\n\r\n": 431,
    }
    for request, status in cases.items():
        answer = said(request)
        assert statuses(answer) == [status], answer[:200]
        assert b"application/problem+json" in answer
        assert b'"fault":"caller"' in answer
