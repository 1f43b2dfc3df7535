"""The function port: who connects is given the protocol that it speaks, and is not kept longer than it is of use."""

from __future__ import annotations

import asyncio
import ssl

from headrace.web.connection import Connection, Port, watch
from headrace.web.exchange import Handler
from headrace.web.http1 import Http1
from headrace.web.http2 import PREFACE, Http2

_BACKLOG = 4096
_MOST_CONNECTIONS = 32_768  # WebSockets among them
_SWEEP_S = 1.0


class Server:
    """Serves `handler` at one address. `header_s`, `idle_s`: see `Port`."""

    def __init__(self, handler: Handler, header_s: float, idle_s: float) -> None:
        self._port = Port(handler, header_s, idle_s)
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int, cert: str = "", key: str = "") -> None:
        """Listen; with TLS when there is a certificate, in PEM. Raises `OSError` when the address can't be had."""
        loop = asyncio.get_running_loop()
        context = _context(cert, key) if cert else None
        if context is not None:
            self._port.scheme = "https"
        self._server = await loop.create_server(
            lambda: _Opening(self._port),
            host,
            port,
            backlog=_BACKLOG,
            ssl=context,
            ssl_handshake_timeout=self._port.header_s if context else None,
            ssl_shutdown_timeout=1.0 if context else None,
        )
        self._sweep()

    def stop_listening(self) -> None:
        """Take no further connection, and no further request of one: what is being answered is answered."""
        self._port.stopping = True
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._port.connections):
            connection.wind_up()

    @property
    def connections(self) -> int:
        return len(self._port.connections) + len(self._port.sockets)

    def close(self) -> None:
        """Cut off who is still there."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in tuple(self._port.connections):
            connection.transport.abort()
        for socket in tuple(self._port.sockets):
            socket.abort()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in tuple(self._port.connections):
            if connection.late(now):
                connection.transport.abort()
        self._sweeping = loop.call_later(_SWEEP_S, self._sweep)


def _context(cert: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.load_cert_chain(cert, key)
    return context


class _Opening(Connection):
    """A connection until it is clear what it speaks: its first bytes say so, whatever it agreed to by TLS."""

    __slots__ = ("_first",)

    def __init__(self, port: Port) -> None:
        super().__init__(port, "")
        self._first = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.client = peer[0] if peer else ""
        watch(transport)
        if len(self.port.connections) + len(self.port.sockets) > _MOST_CONNECTIONS or self.port.stopping:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        self._first += data
        if PREFACE.startswith(self._first[: len(PREFACE)]):
            if len(self._first) >= len(PREFACE):
                self._become(Http2)
        else:
            self._become(Http1)

    def _become(self, kind: type[Http1 | Http2]) -> None:
        self.port.connections.discard(self)
        protocol = kind(self.port, self.client)
        protocol.since = self.since
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        protocol.data_received(self._first)

    def left(self) -> None:
        """Nobody answers it yet."""

    def allowance(self) -> float:
        return self.port.header_s

    def wind_up(self) -> None:
        self.close()
