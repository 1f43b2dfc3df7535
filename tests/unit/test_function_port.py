"""The function port: a taken address is said at once, and the host may name the function."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from headrace.errors import NotFound
from headrace.gateway.access import Gatekeeper
from headrace.gateway.invoke import Invoker
from headrace.gateway.routes import Routes
from headrace.gateway.server import Gateway
from headrace.gateway.sockets import Sockets
from headrace.settings import Settings
from web_kit import Recorded


async def _nothing_new(function_id: int) -> bool:
    return False


def _gateway(**settings: Any) -> Gateway:
    routes = Routes(lambda target, version: pytest.fail("no pool is wanted"))
    sockets = Sockets(1)
    invoker = Invoker(routes, Gatekeeper(), print, "n", max_body=1, look_again=_nothing_new, sockets=sockets)
    return Gateway(invoker, set(), lambda member: None, Settings(**settings))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_taken_port_is_an_error_at_once(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, reuse_port=True) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="ddress already in use"):
            await _gateway(host=host, port=port).start()


@pytest.mark.parametrize(
    ("path", "host", "found"),
    [
        ("/fn/hello", "x", ("hello", "/", False)),
        ("/fn/hello@2/a%20b", "x", ("hello@2", "/a%20b", False)),
        ("/a/b", "Hello.Fn.Example:7780", ("hello", "/a/b", True)),
        ("/fn/other/", "hello.fn.example", ("hello", "/fn/other/", True)),
        ("/fn/hello", "fn.example", ("hello", "/", False)),
    ],
)
async def test_where_a_request_goes(path: str, host: str, found: tuple[str, str, bool]) -> None:
    request = Recorded(path=path, headers=[(b"host", host.encode())])
    assert _gateway(base_domain="fn.example")._where(request) == found


async def test_nothing_is_anywhere_else() -> None:
    with pytest.raises(NotFound):
        _gateway()._where(Recorded(path="/", headers=[]))
    with pytest.raises(NotFound):
        _gateway(base_domain="fn.example")._where(Recorded(path="*", headers=[(b"host", b"a.fn.example")]))
