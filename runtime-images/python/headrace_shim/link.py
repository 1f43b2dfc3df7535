"""The connection to the node.

One socket, written from the event loop and from the threads that run calls, under one lock:

- The loop coalesces: what it sends in one tick leaves in one system call at the end of the tick.
- A thread writes its frame itself, so an answered call does not have to wake the loop.
- When the socket is full the rest waits in `_out` and the loop sends it when there is room. What can pile up there is
  bounded by the windows of the streams and, for log lines, by `LOG_BACKLOG`: threads wait for room, the loop,
  which cannot wait, drops the line and says later how many it dropped.

Until `attach` the socket is blocking and there is no loop: that is how LOAD arrives and how user code is
imported, in the main thread without a running loop, as it would be in any script.
"""

from __future__ import annotations

import socket
from _thread import get_ident
from collections import deque
from threading import Condition, RLock
from time import monotonic
from typing import TYPE_CHECKING, Callable

from . import wire

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from .call import Call

RECEIVE = 256 << 10  # bytes asked of the socket at once
EAGER = wire.CHUNK  # bytes gathered in one tick that are worth a system call before its end
GATHERED = 16 << 10  # bytes up to which a copy costs less than telling the system of each part
SMALL = 8 << 10  # bytes of a piece that is copied to others instead of being kept beside them
MOST_PARTS = 512  # for one system call, which takes 1024
LOG_BACKLOG = 1 << 20  # unsent bytes beyond which log lines have to wait
LOG_PATIENCE_S = 10.0  # a thread that waited this long for room drops its line


class Link:
    """One connection, from dialled to lost; the calls that arrived on it stay with it."""

    def __init__(self, sock: socket.socket) -> None:
        self.calls: dict[int, Call] = {}
        self.closed = False
        self.lost_lines = 0
        self._sock = sock
        self._decoder = wire.Decoder()
        self._unread: deque[wire.Frame] = deque()  # came with LOAD
        self._loop: AbstractEventLoop | None = None
        self._loop_thread = 0
        self._on_frame: Callable[[Link, wire.Frame], None]
        self._on_lost: Callable[[Link], None]
        self._on_idle: Callable[[], None] | None = None
        self._lock = RLock()  # again by the same thread: garbage collected in between may print
        self._room = Condition(self._lock)
        self._out: list[bytes | bytearray | memoryview] = []
        self._size = 0  # bytes not yet given to the socket
        self._body: tuple[int, int, int] | None = None  # BODY at the end of `_out` that may grow: stream, place, size
        self._flushing = False  # a flush is due at the end of this tick
        self._reading = False  # the loop goes through received frames and flushes at their end
        self._stalled = False  # the socket is full, the loop watches it

    def read(self) -> wire.Frame | None:
        """The next frame, blocking; None when the peer has ended the connection. For the time before `attach`."""
        while not self._unread:
            try:
                data = self._sock.recv(RECEIVE)
            except OSError:
                data = b""
            if not data:
                return None
            self._unread.extend(self._decoder.feed(data))
        return self._unread.popleft()

    def wait_for_end(self, seconds: float) -> None:
        """Read on, without looking, until the peer ends the connection or time is up."""
        deadline = monotonic() + seconds
        try:
            while (left := deadline - monotonic()) > 0:
                self._sock.settimeout(left)
                if not self._sock.recv(RECEIVE):
                    return
        except OSError:
            return

    def attach(
        self,
        loop: AbstractEventLoop,
        on_frame: Callable[[Link, wire.Frame], None],
        on_lost: Callable[[Link], None],
    ) -> None:
        """From here on the loop, of the calling thread, owns the connection."""
        self._on_frame, self._on_lost = on_frame, on_lost
        with self._lock:
            self._loop, self._loop_thread = loop, get_ident()
            self._sock.setblocking(False)
        loop.add_reader(self._sock.fileno(), self._readable)
        while self._unread:
            self._on_frame(self, self._unread.popleft())

    def send(self, data: bytes, now: bool = False) -> None:
        """Send, from any thread, without waiting. The loop's own frames leave at the end of the tick unless `now`."""
        if self.closed:
            return  # before the lock: a forked child must not touch it
        with self._lock:
            if self.closed:
                return
            self._body = None
            self._out.append(data)
            self._size += len(data)
            self._leave(now)

    def send_body(self, stream: int, piece: memoryview) -> None:
        """Send a piece of a body, of immutable bytes, like `send`; pieces that leave together are one frame."""
        if self.closed:
            return
        with self._lock:
            if self.closed:
                return
            self._size += len(piece)
            place, size = len(self._out), len(piece)
            if self._body is not None and self._body[0] == stream and self._body[2] + size <= wire.CHUNK:
                _, place, before = self._body
                size += before
            else:
                self._out.append(b"")
                self._size += wire.PREFIX_SIZE
            self._out[place] = wire.prefix(wire.BODY, stream, b"", size)
            self._body = stream, place, size
            self._gather(piece)
            self._leave(False)

    def _gather(self, piece: memoryview) -> None:
        """Add a piece to `_out`; small ones into one, for a program that sends byte after byte. The lock is held."""
        last = self._out[-1]
        if len(piece) > SMALL:
            self._out.append(piece)
        elif isinstance(last, bytearray):
            last += piece
        else:
            self._out.append(bytearray(piece))

    def _leave(self, now: bool) -> None:
        """See that what waits leaves: now, or at the end of the tick. The lock is held."""
        if self._stalled:
            return
        if now or self._size >= EAGER or get_ident() != self._loop_thread:
            self._push()
        elif not (self._flushing or self._reading):
            self._flushing = True
            self._loop.call_soon(self._flush)

    def send_last(self, data: bytes) -> None:
        """Send the last frame of a call: at once when no other call runs that could answer in this tick."""
        self.send(data, len(self.calls) < 2 and not self._reading)

    def log(self, data: bytes) -> None:
        """Send log lines, in the order of everything else; or count them as lost when there is no room for them.

        They leave at once: who prints and then blocks the loop may be killed for it, and the line says why.
        """
        if self._size > LOG_BACKLOG and not self._make_room():
            self.lost_lines += 1
        else:
            self.send(data, True)

    def done(self, stream: int) -> None:
        """The call on `stream` has ended; from any thread."""
        self.calls.pop(stream, None)
        if self._on_idle is not None and not self.calls:
            self._loop.call_soon_threadsafe(self._on_idle)

    def watch_idle(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the loop each time that the last running call has ended."""
        self._on_idle = callback

    def close(self) -> None:
        """End the connection; what is unsent is dropped and who waits for room goes on."""
        with self._room:
            if self.closed:
                return
            self.closed = True
            self._out.clear()
            self._size = 0
            self._room.notify_all()
        if self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()

    def forget(self) -> None:
        """In a forked child: the socket is the parent's. No lock is taken, a lost thread may hold it."""
        self.closed = True

    def flush(self, seconds: float) -> None:
        """At the end: send what waits, blocking for at most so long."""
        with self._lock:
            if not self.closed:
                self._sock.settimeout(seconds)
                try:
                    self._sock.sendall(b"".join(self._out))
                except OSError:
                    pass  # the node is gone, or takes nothing more

    def _make_room(self) -> bool:
        if get_ident() == self._loop_thread:
            return False
        with self._room:
            return self._room.wait_for(lambda: self.closed or self._size <= LOG_BACKLOG, LOG_PATIENCE_S)

    def _flush(self) -> None:
        with self._lock:
            self._flushing = False
            if self._out and not self._stalled and not self.closed:
                self._push()

    def _push(self) -> None:
        """Give the socket what waits. The lock is held."""
        out, self._out, self._body = self._out, [], None
        try:
            if self._loop is None:
                self._sock.sendall(b"".join(out))
                sent = self._size
            elif len(out) == 1:
                sent = self._sock.send(out[0])
            elif self._size > GATHERED:
                sent = self._sock.sendmsg(out[:MOST_PARTS])
            else:
                out = [b"".join(out)]
                sent = self._sock.send(out[0])
        except BlockingIOError:
            sent = 0
        except OSError:
            sent = self._size
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._lose)
        self._size -= sent
        if self._size:
            self._out = _after(out, sent)
            if not self._stalled:
                self._stalled = True
                self._loop.call_soon_threadsafe(self._watch)

    def _watch(self) -> None:
        if not self.closed:
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        with self._lock:
            self._push()
            if not self._size:
                self._stalled = False
                self._loop.remove_writer(self._sock.fileno())
            if self._size <= LOG_BACKLOG:
                self._room.notify_all()

    def _readable(self) -> None:
        try:
            data = self._sock.recv(RECEIVE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        self._reading = True
        try:
            for frame in self._decoder.feed(data):
                self._on_frame(self, frame)
        except (wire.ProtocolError, ValueError, TypeError, KeyError, AttributeError):
            self._lose()  # whoever is there does not speak the protocol
        finally:
            self._reading = False
            self._flush()

    def _lose(self) -> None:
        if not self.closed:
            self.close()
            self._on_lost(self)


def _after(parts: list[bytes | bytearray | memoryview], sent: int) -> list[bytes | bytearray | memoryview]:
    """What is left of `parts` when their first `sent` bytes are gone."""
    for place, part in enumerate(parts):
        if sent < len(part):
            return [memoryview(part)[sent:], *parts[place + 1 :]]
        sent -= len(part)
    return []


def dial(path: str) -> Link | None:
    """A connection to the node that listens at `path`; None when nobody does, or not yet."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wire.WINDOW_SIZE)  # the system gives what it allows
    sock.setblocking(False)  # a full backlog would block
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        return None
    sock.setblocking(True)
    return Link(sock)
