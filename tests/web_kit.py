"""Exchanges and connections of the function port without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

from headrace.web.connection import Connection, Port
from headrace.web.exchange import Exchange
from headrace.web.head import Headers
from headrace.web.websocket import WebSocket
from pipe import Pipe


class Recorded(Exchange):
    """A request without a connection, and what its caller got. `reads` is set when it reads a streamed body."""

    def __init__(
        self,
        method: str = "GET",
        path: str = "/",
        headers: Headers | None = None,
        *,
        version: str = "1.1",
        scheme: str = "http",
        client: str = "127.0.0.1",
        reads: asyncio.Event | None = None,
    ) -> None:
        super().__init__(
            method,
            path,
            "",
            [(b"host", b"x")] if headers is None else headers,
            version=version,
            scheme=scheme,
            client=client,
        )
        self.status = 0
        self.fields: dict[bytes, bytes] = {}
        self.body = b""
        self.broken = False  # it was cut off after it had begun
        self.taken = 0
        self.over = asyncio.Event()
        self._reads = reads

    @property
    def whole(self) -> bool:
        return self.ended and not self.broken

    @property
    def problem(self) -> dict[str, Any]:
        problem: dict[str, Any] = json.loads(self.body)
        return problem

    def respond(self, status: int, headers: Headers, body: bytes, length: bytes | None = None) -> None:
        self.start(status, headers)
        self.body = body
        self._finish()

    def start(self, status: int, headers: Headers) -> None:
        assert not self.started, "two answers for one request"
        self.started = True
        self.status, self.fields = status, dict(headers)

    def write(self, pieces: Sequence[bytes]) -> None:
        assert self.started
        assert not self.ended
        self.body += b"".join(pieces)

    async def drain(self) -> None:
        if self._reads is not None:
            await self._reads.wait()

    def end(self, trailers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._finish()

    def cut(self) -> None:
        self.broken = True
        self._finish()

    def accept(self, headers: Headers, subprotocol: str | None, limit: int) -> WebSocket:
        raise NotImplementedError

    def _taken(self, size: int) -> None:
        self.taken += size

    def _finish(self) -> None:
        assert not self.ended
        self.ended = True
        self.on_gone = None
        self.over.set()


def piped(kind: Callable[[Port, str], Connection], serve: Callable[[Exchange], None], *, reads: bool = True) -> Pipe:
    """A connection of a kind whose requests `serve` gets."""
    return Pipe(kind(Port(serve, 15.0, 75.0), "127.0.0.1"), reads=reads)
