"""Connections that nobody uses are closed.

The server bounds the time for a request's headers, but only from the first byte that is clearly HTTP/1. Who connects
and says nothing, or only a part of HTTP/2's preface, and who keeps an HTTP/2 connection without a request, would be
kept for good, and enough of them would take every place there is. So now and then the kernel is asked, for each
connection of the function port, how long no byte went either way; those with a call in progress, and WebSockets, are
left alone, and from then on the kernel asks their other end whether it still lives.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection
from pathlib import Path
from struct import Struct

from headrace.gateway.call import Peer

_FDS = Path("/proc/self/fd")  # Linux; elsewhere nothing is closed
_AT_ONCE, _PAUSE_S = 128, 0.005
_PREFACE = 24  # bytes of HTTP/2's preface; shorter than any request that is waited for
_info = Struct("=44xI4xI64xQQ")  # of tcp_info: last_data_sent and last_data_recv in ms, bytes_acked, bytes_received


class Idle:
    """The connections of `port`: which of them are kept."""

    def __init__(self, port: int, idle_s: float, header_s: float) -> None:
        self._port = port
        self._idle_ms = idle_s * 1000
        self._header_ms = header_s * 1000

    def sweep(self, busy: Collection[Peer]) -> int:
        """Close what was quiet for too long and is of none of `busy`; how many. Work for a thread: it asks for each.

        `busy` is from before: a call that began since then brought bytes that show in the kernel's answer.
        """
        closed = 0
        for number, place in enumerate(list(_FDS.iterdir()) if _FDS.is_dir() else ()):
            if number % _AT_ONCE == _AT_ONCE - 1:
                time.sleep(_PAUSE_S)  # the calls' thread comes first
            try:
                held = os.dup(int(place.name))  # from here on it stays the same socket, whatever the server does
            except OSError:  # closed meanwhile
                continue
            closed += self._look_at(held, busy)
        return closed

    def _look_at(self, held: int, busy: Collection[Peer]) -> bool:
        try:
            connection = socket.socket(fileno=held)
        except OSError:  # no socket
            os.close(held)
            return False
        with connection:
            try:
                return self._close_if_idle(connection, busy)
            except OSError:  # not connected, or no longer
                return False

    def _close_if_idle(self, connection: socket.socket, busy: Collection[Peer]) -> bool:
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.getsockname()[1] != self._port:
            return False
        address, port, *_ = connection.getpeername()
        sent, received, acked, got = _info.unpack_from(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192))
        spoke = got >= _PREFACE or acked > 1  # the handshake may count as one
        if min(sent, received) < (self._idle_ms if spoke else self._header_ms):
            return False
        if (address, str(port)) in busy:
            _probe(connection)
            return False
        connection.shutdown(socket.SHUT_RDWR)  # of the connection, not of this copy: the server reads its end
        return True


def _probe(connection: socket.socket) -> None:
    """Let the kernel ask whether the other end is still there: a machine that vanished says no goodbye."""
    if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        for option, value in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 20), (socket.TCP_KEEPCNT, 4)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
