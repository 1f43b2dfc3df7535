"""The function port: Granian's ASGI server inside the node's own event loop, and the one ticker of the gateway.

Granian's ASGI interface, not RSGI: it waits for slow readers, tells a broken answer from a finished one and keeps
header bytes as they came; RSGI (2.8) does none of the three and is about 7 % faster (ADR 0002).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from granian.constants import HTTPModes, Interfaces, SSLProtocols
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server

from headrace import errors, tls
from headrace.gateway import websocket
from headrace.gateway.answer import problem
from headrace.gateway.call import PATIENCE_S, Receive, Scope, Send, gone
from headrace.gateway.idle import Idle
from headrace.gateway.invoke import Invoker
from headrace.gateway.link import Stream
from headrace.gateway.pool import Member, Pool
from headrace.gateway.proxies import Proxies
from headrace.gateway.sockets import CLOSE_S
from headrace.settings import Settings
from headrace.tasks import Tasks

logger = logging.getLogger(__name__)

_TICK_S = 0.02
_CONNECTIONS = 16_384
_HTTP2_HEADERS = 64 << 10  # bytes; HTTP/1 has a bound of the server's own
_SWEEP_S = 5.0


class Gateway:
    """The function port. `active` holds the pools with calls; `on_late` hears of members with a late call."""

    def __init__(
        self,
        invoker: Invoker,
        active: set[Pool],
        on_late: Callable[[Member], None],
        settings: Settings,
    ) -> None:
        self._invoker = invoker
        self._active = active
        self._on_late = on_late
        self._settings = settings
        self._suffix = f".{settings.base_domain}" if settings.base_domain else ""
        self._proxies = Proxies(settings.proxies)
        self._idle = Idle(settings.port, settings.idle_timeout_s, settings.header_timeout_s)
        self._tasks = Tasks()
        self._server: Server | None = None
        self._serving: asyncio.Task[None] | None = None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """The ASGI application. No coroutine of its own stands between the server and the call."""
        http = scope["type"] == "http"
        peer = scope["client"]
        try:
            self._proxies.admit(scope)
            spelling, rest, by_host = self._where(scope)
        except errors.HeadraceError as error:
            return problem(send, error) if http else websocket.refuse(send, error)
        if http:
            return self._invoker.http(scope, receive, send, spelling=spelling, rest=rest, by_host=by_host, peer=peer)
        call = self._invoker.begin("GET", rest, peer)
        return websocket.serve(self._invoker, call, scope, receive, send, spelling=spelling, by_host=by_host)

    def _where(self, scope: Scope) -> tuple[str, str, bool]:
        """The function's spelling, the path behind it as sent, and whether the host named it (its root is `/` then)."""
        path = scope["raw_path"].decode("latin-1")
        if self._suffix and path.startswith("/"):  # neither `*` nor what CONNECT asks for
            host = next((v.decode("latin-1") for n, v in scope["headers"] if n == b"host"), "")
            name = host.partition(":")[0].lower().removesuffix(self._suffix)
            if name and len(name) < len(host.partition(":")[0]):
                return name, path, True
        if path.startswith("/fn/"):
            end = path.find("/", 4)
            return (path[4:], "/", False) if end < 0 else (path[4:end], path[end:], False)
        raise errors.NotFound("nothing is here: functions are at /fn/<name>.")

    async def start(self) -> None:
        """Listen. Raises `OSError` when the address is taken, `SettingsError` when the certificate can't be served."""
        settings = self._settings
        if settings.tls_cert:
            tls.check(settings.tls_cert, settings.tls_key)
        await _check_free(settings.host, settings.port)
        self._server = Server(
            self,
            address=settings.host,
            port=settings.port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.auto,
            websockets=True,
            backlog=4096,
            backpressure=_CONNECTIONS,
            http1_settings=HTTP1Settings(header_read_timeout=int(settings.header_timeout_s * 1000)),
            http2_settings=HTTP2Settings(max_headers_size=_HTTP2_HEADERS),
            log_enabled=False,
            ssl_cert=Path(settings.tls_cert) if settings.tls_cert else None,
            ssl_key=Path(settings.tls_key) if settings.tls_key else None,
            ssl_protocol_min=SSLProtocols.tls12,
        )
        self._serving = asyncio.get_running_loop().create_task(self._server.serve(), name="function port")
        self._tasks.spawn(self._ticks(), "gateway ticker")
        self._tasks.spawn(self._sweeps(), "idle connections")

    async def ended(self) -> None:
        """Return when the port is served no more, which only `stop` should bring about."""
        assert self._serving is not None
        await asyncio.wait((self._serving,))

    async def stop(self, drain_s: float) -> None:
        """Take no further connection and give running calls up to `drain_s` seconds."""
        if self._server is not None and self._serving is not None:
            ends = asyncio.get_running_loop().time() + drain_s
            await self._hang_up(min(drain_s, 2 * CLOSE_S))
            self._server.stop()  # type: ignore[no-untyped-call]
            try:
                async with asyncio.timeout_at(ends):
                    while self._invoker.in_flight:  # noqa: ASYNC110 - the hot path only counts
                        await asyncio.sleep(_TICK_S)
                    await self._serving
            except TimeoutError:
                logger.warning("%d calls were cut off after %g s", self._invoker.in_flight, drain_s)
        await self._tasks.aclose()

    async def _hang_up(self, patience_s: float) -> None:
        """Close every WebSocket while the server still sends: what is open when it stops it drops without a word."""
        try:
            async with asyncio.timeout(patience_s):
                while len(self._invoker.sockets):  # also those that are opened meanwhile
                    self._invoker.sockets.end_all("the node stops")
                    await asyncio.sleep(_TICK_S)
        except TimeoutError:
            logger.warning("%d WebSockets were cut off", len(self._invoker.sockets))

    async def _ticks(self) -> None:
        monotonic = self._invoker.monotonic
        now = monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            before, now = now, monotonic()
            try:
                self.tick(now, now - before)
            except Exception:  # the next turn looks again; without a ticker no call would ever time out
                logger.exception("a turn of the gateway's ticker failed")

    async def _sweeps(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                busy = self._invoker.sockets.peers().union(call.peer for call in self._invoker.calls)
                await asyncio.to_thread(self._idle.sweep, busy)
            except OSError:
                logger.warning("idle connections cannot be looked for", exc_info=True)

    def tick(self, now: float, seconds: float) -> None:
        """Deadlines, queue timeouts and callers who left, for all calls at once; `seconds` since the last time."""
        for pool in list(self._active):
            pool.sample(seconds)
            pool.expire(now)
            if pool.rest():
                continue
            for member in list(pool.members.values()):
                if member.in_flight:
                    self._look_after(member, now)

    def _look_after(self, member: Member, now: float) -> None:
        late = False
        for stream in member.link.overdue(now):
            if stream.caller_slow:
                slow = "the caller sent or read its bytes too slowly to be done within timeout_s."
                stream.close("client", errors.ClientGone(slow))
            else:
                stream.close("timeout", errors.TimedOut("the call took longer than the version's timeout_s."))
                late = True
        if late:
            self._on_late(member)
        for stream in member.link.unwatched(now - PATIENCE_S):
            self._tasks.spawn(_watch(stream), "caller watch")


async def _check_free(host: str, port: int) -> None:
    """Raise `OSError` when the address can't be listened on: the server itself shares ports, and says nothing."""
    (family, kind, protocol, _, address), *_ = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


async def _watch(stream: Stream) -> None:
    """End the call when its caller goes away."""
    receive, stream.receive = stream.receive, None
    assert receive is not None
    watching = asyncio.ensure_future(gone(receive))
    over = stream.over()
    try:
        await asyncio.wait((watching, over), return_when=asyncio.FIRST_COMPLETED)
        if watching.done() and not over.done():
            stream.close("client", errors.ClientGone("the caller went away before the answer was complete."))
    finally:
        watching.cancel()
