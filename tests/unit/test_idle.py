"""Connections that nobody uses are closed; those with a call, those that speak and those of others are not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from headrace.gateway.idle import Idle

FOREVER = 3600.0


@contextmanager
def connected(host: str = "127.0.0.1") -> Iterator[tuple[int, socket.socket, socket.socket]]:
    """A port, and both ends of a connection to it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server((host, 0), family=family))
        port = server.getsockname()[1]
        client = stack.enter_context(socket.create_connection((host, port)))
        accepted, _ = server.accept()
        stack.enter_context(accepted)
        yield port, client, accepted


def _peer(client: socket.socket) -> tuple[str, str]:
    address, port, *_ = client.getsockname()
    return address, str(port)


def _closed(client: socket.socket) -> bool:
    client.settimeout(0.0)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


def test_who_says_nothing_has_as_long_as_for_headers() -> None:
    for host in ("127.0.0.1", "::1"):
        with connected(host) as (port, client, accepted):
            client.sendall(b"PRI * HTTP/2.0\r\n")
            assert accepted.recv(100)
            assert Idle(port, FOREVER, FOREVER).sweep(frozenset()) == 0
            assert Idle(port, FOREVER, 0).sweep(frozenset({_peer(client)})) == 0, "its call is in progress"
            assert not _closed(client)
            assert Idle(port, FOREVER, 0).sweep(frozenset()) == 1
            assert _closed(client)


def test_who_spoke_has_longer() -> None:
    with connected() as (port, client, accepted):
        client.sendall(b"GET /fn/hello HTTP/1.1\r\nHost: x\r\n\r\n")
        assert accepted.recv(100)
        assert Idle(port, FOREVER, 0).sweep(frozenset()) == 0
        assert Idle(port + 1, 0, 0).sweep(frozenset()) == 0, "the connection of another port"
        assert Idle(port, 0, 0).sweep(frozenset()) == 1
        assert _closed(client)
