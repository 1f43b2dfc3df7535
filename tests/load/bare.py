"""The reference of the load harness: Granian alone, answering prepared bytes, with nothing behind it.

    python tests/load/bare.py --port 17710 [--embedded] [--task-impl rust] [--body '{"message": "hello"}']

The plain form is Granian as a user starts it (its own process, single-threaded runtime, uvloop). `--embedded` runs
the same application in Granian's embedded server, on a uvloop event loop that other tasks can share. `--sockets` is an
ASGI application there that echoes what WebSockets send.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
from typing import Any

import uvloop
from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes, TaskImpl
from granian.server import Server as Granian
from granian.server.embed import Server as Embedded

BODY = "HEADRACE_BARE_BODY"  # how the body reaches the worker process of Granian
CONTENT_TYPE = "HEADRACE_BARE_TYPE"
DEFAULT_BODY = '{"message": "hello"}'
BACKLOG = 1024


class Bare:
    """An RSGI application: the same answer to every request."""

    def __init__(self, body: bytes, content_type: str) -> None:
        self._body = body
        self._headers = [("content-type", content_type)]

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        protocol.response_bytes(200, self._headers, self._body)


def make() -> Bare:
    """The application, from the environment that `main` prepared."""
    return Bare(os.environ[BODY].encode(), os.environ[CONTENT_TYPE])


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that sends back what its WebSockets receive."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": message.get("bytes"), "text": message.get("text")})


async def sockets(port: int) -> None:
    await _until_ended(
        Embedded(
            echo,
            address="127.0.0.1",
            port=port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.auto,
            backlog=BACKLOG,
            backpressure=1 << 15,
            log_enabled=False,
        )
    )


async def embedded(port: int, task_impl: TaskImpl) -> None:
    server = Embedded(
        make(),
        address="127.0.0.1",
        port=port,
        interface=Interfaces.RSGI,
        http=HTTPModes.auto,
        task_impl=task_impl,
        backlog=BACKLOG,
        backpressure=BACKLOG,
        log_enabled=False,
    )
    await _until_ended(server)


async def _until_ended(server: Embedded) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    await server.serve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--embedded", action="store_true")
    parser.add_argument("--sockets", action="store_true", help="WebSockets that echo, embedded")
    parser.add_argument("--task-impl", type=TaskImpl, default=TaskImpl.asyncio, choices=list(TaskImpl))
    parser.add_argument("--runtime", type=RuntimeModes, default=RuntimeModes.st, choices=list(RuntimeModes))
    parser.add_argument("--body", default=DEFAULT_BODY)
    parser.add_argument("--content-type", default="application/json")
    options = parser.parse_args()
    os.environ[BODY], os.environ[CONTENT_TYPE] = options.body, options.content_type
    if options.sockets:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        uvloop.run(sockets(options.port))
        return
    if options.embedded:
        uvloop.run(embedded(options.port, options.task_impl))
        return
    Granian(
        "bare:make",
        factory=True,
        address="127.0.0.1",
        port=options.port,
        interface=Interfaces.RSGI,
        http=HTTPModes.auto,
        loop=Loops.uvloop,
        runtime_mode=options.runtime,
        task_impl=options.task_impl,
        backlog=BACKLOG,
        log_enabled=False,
    ).serve()


if __name__ == "__main__":
    main()
