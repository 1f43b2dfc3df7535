"""When the image's program is ready: it takes connections on its port and, if a path is given, answers it well.

When it is not, what was seen instead is told: its end, the ports that it listens on, the status that it gave.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from headrace_shim.errors import Plain

from .http1 import BadAnswer, Connection, Unreachable

if TYPE_CHECKING:
    from .guest import Guest

FIRST_S, LONGEST_S = 0.005, 0.1  # between two looks
MOST_PORTS = 5  # that are named
PROBE_S = 5.0  # one answer of the ready path
LISTENING = "0A"  # the state in /proc/net/tcp
ENGINES_OWN = "127.0.0.11"  # where the engine's resolver listens in the container


class NotReady(Plain):
    """The program runs and does not serve."""


class ExitedAtStart(Plain):
    """The program ended before it served."""


async def wait_until_ready(guest: Guest, port: int, path: str | None, seconds: float) -> None:
    """Raises `NotReady` or `ExitedAtStart` with what was seen."""
    seen: list[int | None] = [None]
    probing = asyncio.get_running_loop().create_task(_probe(port, path, seen))
    try:
        await asyncio.wait({probing, guest.ended}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if guest.ended.done():
            raise ExitedAtStart(_exited(guest, port))
        if not probing.done():
            raise NotReady(_unready(guest, port, path, seconds, seen[0]))
        probing.result()
    finally:
        probing.cancel()


async def _probe(port: int, path: str | None, seen: list[int | None]) -> None:
    """Return when it looks ready; the status that was seen last is in `seen`."""
    pause = FIRST_S
    while True:
        status = seen[0] = await _status(port, path)
        if status is not None and status < 400:
            return
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LONGEST_S)


async def _status(port: int, path: str | None) -> int | None:
    """What the ready path answers, 200 without one; None when there is no answer."""
    try:
        connection = await asyncio.wait_for(Connection.open(port), PROBE_S)
    except (Unreachable, asyncio.TimeoutError):
        return None
    try:
        if path is None:
            return 200
        return await asyncio.wait_for(connection.probe(path), PROBE_S)
    except (BadAnswer, asyncio.TimeoutError):
        return None
    finally:
        connection.close()


def _exited(guest: Guest, port: int) -> str:
    code = guest.ended.result()
    how = f"was killed by signal {code - 128}" if code > 128 else f"exited with code {code}"
    words = f" Its last words: {guest.last_words}" if guest.last_words else " It wrote nothing."
    return f"the image's program {how} before it served HTTP on port {port}.{words}"


def _unready(guest: Guest, port: int, path: str | None, seconds: float, status: int | None) -> str:
    words = f" Its last words: {guest.last_words}" if guest.last_words else ""
    listening = listeners()
    if path is not None and port in {number for _, number in listening}:
        seen = "no answer" if status is None else f"status {status}"
        return f"after {seconds:g} s {path} on port {port} gives {seen}, and 200 to 399 is needed.{words}"
    others = sorted({number for _, number in listening if number != port})
    if port in {number for _, number in listening}:
        where = ", ".join(sorted({address for address, number in listening if number == port}))
        fault = f"it takes no connection on port {port} of 127.0.0.1, only of {where}: listen on 0.0.0.0"
    elif others:
        ports = ", ".join(map(str, others[:MOST_PORTS]))
        fault = f"nothing listens on port {port}, but on {ports}: listen on $PORT, or set `port` in the config"
    else:
        fault = f"nothing listens on port {port}: serve HTTP on 0.0.0.0:$PORT, or raise `start_timeout_s`"
    return f"the image's program was not ready within {seconds:g} s: {fault}.{words}"


def listeners() -> set[tuple[str, int]]:
    """Address and port of every TCP socket that listens in this network namespace."""
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as table:  # noqa: PTH123
                lines = table.read().splitlines()[1:]
        except OSError:
            continue
        for fields in (line.split() for line in lines):
            if fields[3] == LISTENING:
                address, _, port = fields[1].partition(":")
                found.add((_address(address), int(port, 16)))
    return {item for item in found if item[0] != ENGINES_OWN}


def _address(text: str) -> str:
    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]
    raw = b"".join(words)
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)
