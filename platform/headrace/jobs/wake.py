"""Wakes the sleeping worker when there is something to do, so that it needs to look at the database only rarely.

A wake-up is a hint. None of them may be needed for anything to happen (the sleeper looks by itself after its timeout),
and none that was sent while the worker was busy is lost: the next wait returns at once. The first wait of each kind of
connection returns at once too, for what may have come before it was made.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Protocol

logger = logging.getLogger(__name__)


class Wake(Protocol):
    async def wait(self, timeout_s: float) -> None:
        """Return when poked, or after `timeout_s`. One task waits at a time."""
        ...

    async def poke(self) -> None:
        """Wake whoever waits, or is going to. Never fails and never waits long."""
        ...

    async def close(self) -> None:
        """Let go of everything; a waiting task ends by its timeout."""
        ...


class SocketWake:
    """For the processes of one machine: a datagram on a unix socket, which the waiting process makes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._poked = asyncio.Event()
        self._transport: asyncio.DatagramTransport | None = None
        self._inode = 0

    async def wait(self, timeout_s: float) -> None:
        if self._transport is None:
            await self._listen()
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._poked.wait()
        except TimeoutError:
            pass
        self._poked.clear()

    async def poke(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                sender.sendto(b"\n", str(self._path))
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                pass  # nobody is there, and will look when it starts; or so many pokes wait that one more says nothing
            except OSError as error:
                logger.warning("can't wake the worker at %s: %s", self._path, error)

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            if self._path.exists() and self._path.stat().st_ino == self._inode:
                self._path.unlink()

    async def _listen(self) -> None:
        """Take the place of whoever listened before: it is dead, or about to be."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.setblocking(False)
        listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._inode = self._path.stat().st_ino
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: _Pokes(self._poked), sock=listener)


class _Pokes(asyncio.DatagramProtocol):
    def __init__(self, poked: asyncio.Event) -> None:
        self._poked = poked

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._poked.set()
