"""The function port: each request to its function, and the one ticker of the gateway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from headrace import errors, tls
from headrace.gateway import websocket
from headrace.gateway.invoke import Invoker
from headrace.gateway.pool import Member, Pool
from headrace.gateway.proxies import Proxies
from headrace.gateway.request import Request
from headrace.gateway.sockets import CLOSE_S
from headrace.settings import Settings
from headrace.tasks import Tasks
from headrace.web.exchange import Exchange
from headrace.web.problem import answer_of
from headrace.web.server import Server

logger = logging.getLogger(__name__)

_TICK_S = 0.02


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
        self._tasks = Tasks()
        self._server = Server(self.serve, settings.header_timeout_s, settings.idle_timeout_s)

    def serve(self, exchange: Exchange) -> None:
        """Answer one request. Returns at once."""
        try:
            self._proxies.admit(exchange)
            spelling, path, by_host = self._where(exchange)
        except errors.HeadraceError as error:
            exchange.respond(*answer_of(error))
            return
        if exchange.upgrade:
            upgrade = websocket.serve(
                self._invoker, self._tasks, exchange, spelling=spelling, path=path, by_host=by_host
            )
            self._tasks.spawn(upgrade, "upgrade")
        else:
            Request(self._invoker, exchange, spelling, path, by_host).serve()

    def _where(self, exchange: Exchange) -> tuple[str, str, bool]:
        """The function's spelling, the path behind it as sent, and whether the host named it (its root is `/` then)."""
        path = exchange.path
        if self._suffix and path.startswith("/"):  # and not `*`
            host = next((v.decode("latin-1") for n, v in exchange.headers if n == b"host"), "")
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
        await self._server.start(settings.host, settings.port, settings.tls_cert, settings.tls_key)
        self._tasks.spawn(self._ticks(), "gateway ticker")

    async def stop(self, drain_s: float) -> None:
        """Take no further request and give running calls up to `drain_s` seconds."""
        ends = asyncio.get_running_loop().time() + drain_s
        self._server.stop_listening()
        await self._hang_up(min(drain_s, 2 * CLOSE_S))
        try:
            async with asyncio.timeout_at(ends):
                while self._invoker.in_flight or self._server.connections:  # noqa: ASYNC110 - the hot path only counts
                    await asyncio.sleep(_TICK_S)
        except TimeoutError:
            if self._invoker.in_flight:
                logger.warning("%d calls were cut off after %g s", self._invoker.in_flight, drain_s)
        self._server.close()
        await asyncio.sleep(0)  # whose callers are cut off now are recorded
        await self._tasks.aclose()

    async def _hang_up(self, patience_s: float) -> None:
        """Close every WebSocket."""
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

    def tick(self, now: float, seconds: float) -> None:
        """Deadlines and queue timeouts, for all calls at once; `seconds` since the last time."""
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
