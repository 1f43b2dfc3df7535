"""ASGI applications: lifespan once, then calls, each a task with an exchange (`Http`, `WebSocket`) of its own."""

from __future__ import annotations

import asyncio
from typing import Any, Callable
from urllib.parse import unquote

from . import wire
from .asgi_http import Http
from .asgi_websocket import WebSocket
from .call import Call, start_task
from .errors import describe
from .lifespan import SPEC, Lifespan
from .link import Link
from .logs import Log, current

GRACE_S = 2.0  # an application whose caller left may react to the disconnect for so long, then its task is cancelled


class AsgiApp:
    """Runs one ASGI application."""

    kind = "asgi"

    def __init__(self, app: Callable[..., Any], root: str, log: Log) -> None:
        self._app = app
        self._root = root
        self._log = log
        self._lifespan: Lifespan
        self._loop: asyncio.AbstractEventLoop

    async def start(self) -> None:
        """The lifespan startup; raises what the application raised, or `LifespanFailed`."""
        self._loop = asyncio.get_running_loop()
        self._lifespan = Lifespan(self._app)
        await self._lifespan.start()

    async def stop(self) -> None:
        """The lifespan shutdown; a failure is logged."""
        try:
            await self._lifespan.stop()
        except BaseException as error:  # noqa: BLE001 - user code may raise anything, the instance ends all the same
            self._log.stack(describe(error, self._root)["stack"])

    def call(self, link: Link, frame: wire.Frame) -> None:
        """A CALL frame."""
        call = Call(link, frame.stream, wire.loads(frame.header))
        scope = make_scope(call.head, self._lifespan.state)
        if call.head.get("ws"):
            call.exchange = WebSocket(call, scope, self._log)
        else:
            call.exchange = Http(call, scope, self._log, frame.body)
        link.calls[frame.stream] = call
        start_task(self._loop, call, self._run(call, call.exchange))

    def body(self, call: Call, data: bytes) -> None:
        """A BODY frame."""
        call.exchange.body(data)

    def end(self, call: Call, broken: bool) -> None:
        """An END frame: the request is complete, or its caller stopped halfway."""
        if broken:
            self.lost(call)
        else:
            call.exchange.end()

    def cancel(self, call: Call, why: str) -> None:
        """Nobody waits any more: the application hears of it, and has a moment to react when the caller left."""
        self.lost(call)
        if why == "timeout":
            call.task.cancel()
        else:
            self._loop.call_later(GRACE_S, call.task.cancel)

    def lost(self, call: Call) -> None:
        """The connection ended, or the caller has left."""
        call.leave()
        call.exchange.disconnect()

    def message(self, call: Call, frame: wire.Frame) -> None:
        """A WS_MESSAGE or WS_CLOSE frame."""
        if isinstance(call.exchange, WebSocket):
            call.exchange.frame(frame)

    async def _run(self, call: Call, exchange: Any) -> None:
        current.set(call)
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
            exchange.returned()
        except BaseException as error:  # noqa: BLE001 - whatever user code raises is its answer
            if not (call.gone and _is_departure(error)):
                failure = describe(error, self._root)
                self._log.stack(failure["stack"])
                self._log.finish(call)
                exchange.failed(failure)
        finally:
            self._log.finish(call)
            call.link.done(call.stream)


def _is_departure(error: BaseException) -> bool:
    """True for how applications end when their caller has left: cancelled, `Gone`, a framework's own word for it."""
    return isinstance(error, (asyncio.CancelledError, OSError)) or "Disconnect" in type(error).__name__


def make_scope(head: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """The scope of a call, but for its type."""
    root, path = head["r"], head["r"] + head["p"]
    secure = head["s"] == "https"
    headers = [(_bytes(name), _bytes(value)) for name, value in head["h"]]
    return {
        "asgi": SPEC,
        "http_version": head["v"],
        "scheme": head["s"],
        "path": unquote(path) if "%" in path else path,
        "raw_path": path.encode("utf-8", "replace"),
        "root_path": unquote(root) if "%" in root else root,
        "query_string": _bytes(head["q"]),
        "headers": headers,
        "client": (head["ip"], 0),
        "server": _server(headers, 443 if secure else 80),
        "state": state.copy(),
    }


def _bytes(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def _server(headers: list[tuple[bytes, bytes]], port: int) -> tuple[str, int]:
    host = next((value.decode("latin-1") for name, value in headers if name == b"host"), "localhost")
    name, colon, digits = host.rpartition(":")
    if colon and digits.isdecimal():
        host, port = name, int(digits)
    return host.strip("[]"), port
