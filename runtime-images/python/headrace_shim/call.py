"""One call, from its CALL frame to its answer, and the flow of its streamed answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from threading import Condition
from time import monotonic
from typing import TYPE_CHECKING, Any, Callable, Union

from . import wire

if TYPE_CHECKING:
    from .link import Link

LOG_LIMIT = 256 << 10  # bytes of log text of one call
GRANT = wire.WINDOW_SIZE // 2  # consumed bytes worth a WINDOW frame


class Gone(OSError):
    """Nobody takes this answer any more: the caller left, the time is up, or the connection ended."""


class Call:
    """What is known about a running call. `opened`, `answered` and `gone` only ever turn true."""

    __slots__ = (
        "answered",
        "consumed",
        "deadline",
        "exchange",
        "flow",
        "gone",
        "head",
        "link",
        "log_left",
        "opened",
        "partial",
        "pieces",
        "sockets",
        "stream",
        "task",
    )

    def __init__(self, link: Link, stream: int, head: dict[str, Any]) -> None:
        self.link = link
        self.stream = stream
        self.head = head
        self.deadline = monotonic() + head["d"] / 1000
        self.gone = False  # nobody waits for the answer
        self.opened = False  # HEAD was sent
        self.answered = False
        self.log_left = LOG_LIMIT
        self.partial: dict[tuple[str, int], str] | None = None  # unfinished lines by (stream, thread)
        self.pieces: list[bytes] | None = None  # of a request body that is still arriving
        self.consumed = 0  # request bytes not granted yet
        self.flow: Outflow | None = None
        self.exchange: Any = None  # of an ASGI application
        self.sockets: Any = None  # `context.ws`, once the handler has asked for it
        self.task: asyncio.Task[None] | None = None

    def grant(self, size: int) -> None:
        """`size` bytes of the request were taken; lets the node send as many more, in worthwhile steps."""
        self.consumed += size
        if self.consumed >= GRANT:
            self.link.send(wire.encode(wire.WINDOW, self.stream, b'{"n":%d}' % self.consumed))
            self.consumed = 0

    def open(self, head: bytes) -> None:
        """Send the head of a streamed answer; raises `Gone`."""
        if self.gone:
            raise Gone("the caller is gone")
        self.opened = True
        self.link.send(wire.encode(wire.HEAD, self.stream, head))

    def finish(self, kind: int, head: bytes = b"", body: bytes = b"") -> None:
        """Send the last frame of the answer, unless nobody waits for it."""
        if self.answered:
            return
        self.answered = True
        if not self.gone:
            self.link.send_last(wire.encode(kind, self.stream, head, body))

    def fail(self, error: dict[str, str]) -> None:
        """Finish with a failure, in the way that the state of the answer allows."""
        self.finish(wire.END if self.opened else wire.REPLY, wire.dumps({"e": error}))

    def outflow(self) -> Outflow:
        """What sends under the window of this call, its answer and its messages to WebSockets."""
        return self.flow or Outflow(self)

    def leave(self) -> None:
        """Nobody waits any more; who sends an answer gets `Gone`."""
        self.gone = True
        if self.flow is not None:
            self.flow.stop()


def start_task(loop: asyncio.AbstractEventLoop, call: Call, work: Coroutine[Any, Any, None]) -> None:
    """Make `work` the task of `call` and run its first step at once, from a callback of the loop.

    asyncio would run it in the next turn of the loop, one more system call later; most handlers need no second
    step. The step is the newest entry of the queue that every loop of asyncio keeps.
    """
    call.task = asyncio.Task(work, loop=loop)
    loop._ready.pop()._run()


Piece = Union[bytes, bytearray, memoryview]


class Signal:
    """Wakes all the coroutines that wait for it, each time that it fires."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def fire(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class Outflow:
    """Sends a streamed body under the window of its call.

    One sender at a time: a coroutine on the loop (`send`) or a thread (`send_blocking`). The loop grants.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._window = wire.WINDOW_SIZE
        self._wake = Condition()
        self._granted = Signal()
        call.flow = self

    def send_at_once(self, data: Piece, frame: Callable[[bytes, bool], bytes]) -> bool:
        """Send `data` as one frame if the window allows; from any thread."""
        with self._wake:
            if self._window <= 0 or len(data) > wire.CHUNK:
                return False
            self._window -= len(data)
            self._call.link.send(frame(bytes(data), False))
            return True

    def grant(self, size: int) -> None:
        with self._wake:
            self._window += size
            self._wake.notify_all()
        self._granted.fire()

    def stop(self) -> None:
        with self._wake:
            self._wake.notify_all()
        self._granted.fire()

    async def send(self, data: Piece, frame: Callable[[bytes, bool], bytes] | None = None) -> None:
        """Send `data`, which is not empty, as the window allows, in BODY frames or `frame`'s; raises `Gone`."""
        view = memoryview(bytes(data))  # what waits to be sent must not change any more
        while view:
            if self._call.gone:
                raise Gone("the caller is gone")
            if self._window <= 0:
                await self._granted.wait()
            else:
                with self._wake:
                    view = self._advance(view, frame)

    def send_blocking(self, data: Piece) -> None:
        """`send` for a thread."""
        view = memoryview(bytes(data))
        while view:
            with self._wake:
                self._wake.wait_for(lambda: self._call.gone or self._window > 0)
                if self._call.gone:
                    raise Gone("the caller is gone")
                view = self._advance(view, None)

    def _advance(self, view: memoryview, frame: Callable[[bytes, bool], bytes] | None) -> memoryview:
        size = min(self._window, wire.CHUNK, len(view))
        self._window -= size
        piece, rest = view[:size], view[size:]
        if frame is not None:
            self._call.link.send(frame(bytes(piece), bool(rest)))
        else:
            self._put(piece, bool(rest))
        return rest

    def _put(self, piece: memoryview, more: bool) -> None:
        self._call.link.send_body(self._call.stream, piece)
