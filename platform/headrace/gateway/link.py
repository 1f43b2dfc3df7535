"""The framed connection to one instance: many calls at once, each a stream of its own.

One asyncio protocol per instance. A small call is one frame out and one frame in; whoever made it is told the REPLY or
HEAD frame, or the error, by one call of its `settle`, in the very step that the frame arrives in. Larger bodies flow
under a window per stream and direction: what the reader has consumed is granted back, so a slow client holds at most a
window of memory and never its neighbours' frames.

All calls of a link run under the same time limit, so streams run out of time in the order in which they began, and
`overdue` stops at the first that has not: no timer per call.

When the connection is lost the streams stay open until `abandon` says why: the fleet first asks the engine what
happened to the instance, so that the caller learns "out of memory" and not "connection lost". Only calls of which
nothing was written yet end at once, with `NotSent`: they may go to another instance.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any, cast

import orjson

from headrace import errors, wire

_GRANT = wire.WINDOW_SIZE // 2  # consumed bytes are granted back in pieces of at least this
_APART = 16 << 10  # bytes of a body that cost less as an entry of their own than as a copy
_MANY_FRAMES = 1_000  # frames of one stream that wait for its reader
_MOST_MESSAGES = 10_000
_ANSWERS = frozenset((wire.REPLY, wire.HEAD, wire.WS_ACCEPT))  # an answer, or the start of one
_REMEMBERED = 64  # ended streams, at most, whose late log lines still find their invocation

Settle = Callable[["wire.Frame | errors.HeadraceError"], None]
LogSink = Callable[[str, dict[str, Any], bytes], None]  # invocation or "", header of LOG, text
CommandSink = Callable[["Stream", wire.Frame], None]

_COMMANDS = (wire.WS_MESSAGE, wire.WS_CLOSE, wire.WS_GROUP)


def _no_commands(stream: Stream, frame: wire.Frame) -> None:
    """A link whose instance runs no version yet."""


class Stream:
    """One call on a link. Exactly one of the frames REPLY, END or an error ends it; `close` ends it from here."""

    __slots__ = (
        "_chunks",
        "_consumed",
        "_ended",
        "_held",
        "_link",
        "_more",
        "_room",
        "_settle",
        "_window",
        "caller_slow",
        "deadline",
        "failure",
        "id",
        "invocation",
        "parts",
        "relayed",
        "trailers",
    )

    def __init__(self, link: Link, id: int, invocation: str, deadline: float, settle: Settle) -> None:
        self._link = link
        self.id = id
        self.invocation = invocation
        self.deadline = deadline  # monotonic
        self.caller_slow = False  # true while its time goes by waiting for the caller, not for the function
        self.failure: errors.FunctionError | None = None  # of the function, after its complete streamed answer
        self.relayed = False  # a WebSocket that an application holds: its messages are relayed, and are no commands
        self.parts: bytearray | None = None  # of a message that a command sends, while it arrives
        self.trailers: Any = ()  # fields after its streamed answer, as the instance says them
        self._settle: Settle | None = settle  # until there is an answer, or none will come
        self._chunks: deque[wire.Frame] = deque()
        self._held = 0  # bytes in _chunks, headers too
        self._consumed = 0  # bytes the reader is done with and the instance was not granted yet
        self._ended: errors.HeadraceError | bool = False
        self._more: asyncio.Future[None] | None = None  # the reader waits for a frame
        self._window = wire.WINDOW_SIZE  # bytes that may still be sent
        self._room: asyncio.Future[None] | None = None  # the sender waits for a window

    async def frames(self) -> AsyncIterator[wire.Frame]:
        """WS frames as they come, until the stream ends. Raises what broke it off."""
        while await self._come():
            frame = self._chunks.popleft()
            self._held -= len(frame.header) + len(frame.body)
            yield frame
            self.grant(len(frame.body))

    async def pieces(self) -> AsyncIterator[list[bytes]]:
        """What has come of the body since the last time, until the stream ends. Raises what broke it off."""
        while await self._come():
            pieces = [frame.body for frame in self._chunks]
            self._chunks.clear()
            size, self._held = self._held, 0
            yield pieces
            self.grant(size)

    async def _come(self) -> bool:
        """Wait for a frame; False at the end of the stream. Raises what broke it off."""
        while not self._chunks:
            if self._ended:
                if isinstance(self._ended, errors.HeadraceError):
                    raise self._ended
                return False
            self._more = self._link.loop.create_future()
            try:
                await self._more
            finally:
                self._more = None
        return True

    def grant(self, size: int) -> None:
        """`size` bytes are consumed: the instance may send as many more."""
        self._consumed += size
        if self._consumed >= _GRANT and not self._ended:
            self._link.send(wire.WINDOW, self.id, b'{"n":%d}' % self._consumed)
            self._consumed = 0

    async def send(self, type: int, header: bytes, body: bytes) -> None:
        """Send a piece of a body of any length, as the window allows. Returns at once when the stream has ended."""
        view: Any = body if len(body) <= wire.CHUNK else memoryview(body)
        while True:
            while self._window <= 0 and not self._ended:
                self._room = self._link.loop.create_future()
                try:
                    await self._room
                finally:
                    self._room = None
            if self._ended:
                return
            piece = view[: min(wire.CHUNK, self._window)]
            view = view[len(piece) :]
            self._window -= len(piece)
            goes_on = type == wire.WS_MESSAGE and len(view)
            self._link.send(type, self.id, header[:-1] + b',"more":true}' if goes_on else header, piece)
            if not len(view):
                return

    def end(self) -> None:
        """The request body is complete."""
        if not self._ended:
            self._link.send(wire.END, self.id)

    def hang_up(self, code: int, reason: str) -> None:
        """The client closed its WebSocket."""
        if not self._ended:
            self._link.send(wire.WS_CLOSE, self.id, wire.dumps({"c": code, "r": reason}))
            self.finish(True)

    def close(self, why: str, how: errors.HeadraceError | bool = True) -> None:
        """Nobody waits for this call any more: tell the instance `why` and finish, unless it has ended already."""
        if not self._ended:
            self._link.send(wire.CANCEL, self.id, b'{"why":"%s"}' % why.encode())
            self.finish(how)

    def take(self, frame: wire.Frame) -> None:
        """A frame of this stream has arrived (the link calls this)."""
        kind = frame.type
        if kind in _ANSWERS:
            settle, self._settle = self._settle, None
            if settle is not None:
                if kind == wire.REPLY:
                    self.finish(True)
                elif kind == wire.WS_ACCEPT:
                    self._accepted(frame)
                settle(frame)
        elif kind == wire.WINDOW:
            granted = wire.loads(frame.header).get("n")
            if isinstance(granted, int) and granted > 0:
                self._window = min(self._window + granted, wire.WINDOW_SIZE)  # more was never asked for
                _wake(self._room)
        elif kind in _COMMANDS and not self.relayed:
            self._link.commands(self, frame)
        elif kind in (wire.BODY, wire.WS_MESSAGE):
            self._keep(frame)
        elif kind == wire.WS_CLOSE:
            self._chunks.append(frame)
            self.finish(True)
        elif kind == wire.END:
            header = wire.loads(frame.header)
            if header.get("x"):
                self.failure = function_error(header["x"])
            self.trailers = header.get("tr") or ()
            self.finish(function_error(header["e"]) if header.get("e") else True)

    def _keep(self, frame: wire.Frame) -> None:
        if frame.type == wire.BODY and frame.header:
            frame = frame._replace(header=b"")
        self._held += len(frame.header) + len(frame.body)
        if self._held > 2 * wire.WINDOW_SIZE:
            raise wire.ProtocolError("more bytes than the window allows")
        self._chunks.append(frame)
        if len(self._chunks) >= _MANY_FRAMES:
            self._make_room()
        _wake(self._more)

    def _accepted(self, frame: wire.Frame) -> None:
        """An application holds the socket from here on, without a deadline; a handler has done its call."""
        if "ev" in wire.loads(frame.header):
            self.finish(True)
        else:
            self.relayed, self.deadline = True, float("inf")

    def _make_room(self) -> None:
        """Many tiny frames wait for a slow reader: pieces of a body are joined, too many messages end the stream."""
        if self._chunks[0].type == wire.BODY:
            body = b"".join(chunk.body for chunk in self._chunks)
            self._chunks = deque((wire.Frame(wire.BODY, self.id, b"", body),))
        elif len(self._chunks) >= _MOST_MESSAGES:
            slow = f"{_MOST_MESSAGES} messages wait for a client that does not read them."
            self._chunks.clear()
            self.close("client", errors.FunctionError(slow))

    def finish(self, how: errors.HeadraceError | bool) -> None:
        """The stream is over: `True`, or the error that broke it off."""
        if self._ended:
            return
        self._ended = how
        self._link.ended(self)
        _wake(self._more)
        _wake(self._room)
        settle, self._settle = self._settle, None
        if settle is not None:
            silent = errors.FunctionError("the instance ended the call without an answer.")
            settle(how if isinstance(how, errors.HeadraceError) else silent)


class Link(asyncio.Protocol):
    """The node's side of one instance's connection."""

    def __init__(self, instance: str, on_lost: Callable[[], None]) -> None:
        self.instance = instance
        self.hello: dict[str, Any] = {}
        self.loop = asyncio.get_running_loop()
        self.connected: asyncio.Future[None] = self.loop.create_future()
        self.gone: asyncio.Future[None] = self.loop.create_future()
        self.lost = False
        self._closed = False
        self._abandoned: errors.HeadraceError | None = None
        self.log: LogSink | None = None
        self.commands: CommandSink = _no_commands  # frames of a handler about sockets of its function
        self._on_lost = on_lost
        self._decoder = wire.Decoder(apart=True)
        self._transport: asyncio.WriteTransport | None = None
        self._out: list[bytes | memoryview] = []  # frames of this turn of the loop
        self._apart = False  # long bodies are among them, beside their prefixes
        self._next = 0  # number of the newest stream
        self._next_unsent = 0  # while frames gather in _out: the first stream of which nothing is written, or later
        self._streams: dict[int, Stream] = {}
        self._ended: list[tuple[int, str]] = [(0, "")] * _REMEMBERED  # streams and their invocations
        self._loaded: asyncio.Future[dict[str, Any]] | None = None

    # -- the life of the connection

    def dialled(self) -> asyncio.Protocol:
        """The protocol of a connection that was just accepted: this link for the first one, a refusal after it."""
        return self if self._transport is None and not self.lost else _Refusal()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(SOL_SOCKET, SO_SNDBUF, wire.WINDOW_SIZE)  # the system gives what it allows
        if self._closed:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        unsent = self._next_unsent if self._out else self._next + 1
        for stream in [stream for number, stream in self._streams.items() if number >= unsent]:
            self.loop.call_soon(stream.finish, self._not_sent())  # once the instance is known to be lost
        _wake(self.gone)
        died = errors.InstanceDied("the instance ended before it was ready.", instance=self.instance)
        for waiting in (self.connected, self._loaded):
            if waiting is not None and not waiting.done():
                _fail(waiting, died)
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                if frame.type == wire.LOG:
                    self._logged(frame)
                elif frame.stream:
                    stream = self._streams.get(frame.stream)
                    if stream is not None:
                        stream.take(frame)
                else:
                    self._own(frame)
        except wire.ProtocolError:
            self.close()

    def _own(self, frame: wire.Frame) -> None:
        if frame.type == wire.HELLO:
            self.hello = wire.loads(frame.header)
            if self.hello.get("protocol") != wire.PROTOCOL:
                raise wire.ProtocolError("another protocol version")
            if not self.connected.done():
                self.connected.set_result(None)
        elif frame.type in (wire.LOADED, wire.LOAD_FAILED) and self._loaded is not None and not self._loaded.done():
            header = wire.loads(frame.header)
            if frame.type == wire.LOADED:
                self._loaded.set_result(header)
            else:
                _fail(self._loaded, load_failed(header))

    def _logged(self, frame: wire.Frame) -> None:
        if self.log is not None:
            self.log(self._invocation(frame.stream), wire.loads(frame.header), frame.body)

    def _invocation(self, number: int) -> str:
        """The invocation of a stream that is open or has ended lately; "" for any other."""
        stream = self._streams.get(number)
        if stream is not None:
            return stream.invocation
        remembered, invocation = self._ended[number % _REMEMBERED]
        return invocation if remembered == number else ""

    # -- what the fleet asks

    async def load(self, header: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Hand the instance its version; the LOADED header. Raises `LoadFailed`, `InstanceDied`."""
        self._loaded = self.loop.create_future()
        if self.lost:
            raise errors.InstanceDied("the instance ended before it was ready.", instance=self.instance)
        self.send(wire.LOAD, 0, wire.dumps(header))
        try:
            async with asyncio.timeout(timeout_s):
                return await self._loaded
        except TimeoutError:
            raise errors.LoadFailed(
                f"loading took longer than {timeout_s:g} s: do slow work in the first call, not at import."
            ) from None

    def drain(self) -> None:
        """Ask the instance to finish and exit."""
        self.send(wire.DRAIN, 0)

    def abandon(self, error: errors.HeadraceError) -> None:
        """End every call that is still open with `error`, and one that had its slot but was not opened yet."""
        self._abandoned = self._abandoned or error
        for stream in list(self._streams.values()):
            stream.finish(error)

    def close(self) -> None:
        self._closed = True  # also for a connection that is just being accepted
        if self._transport is not None:
            self._transport.abort()

    # -- calls

    @property
    def in_flight(self) -> int:
        return len(self._streams)

    def call(self, invocation: str, header: bytes, body: bytes, deadline: float, settle: Settle) -> Stream:
        """Open a stream with a CALL frame. `settle` hears once of its answer, or why there is none, perhaps at once.

        The deadline is monotonic. Nothing is written when the link is lost.
        """
        self._next += 1
        stream = self._streams[self._next] = Stream(self, self._next, invocation, deadline, settle)
        self.send(wire.CALL, self._next, header, body)
        if self._abandoned is not None:
            stream.finish(self._abandoned)
        elif self.lost:
            self.loop.call_soon(stream.finish, self._not_sent())
        return stream

    def _not_sent(self) -> errors.NotSent:
        return errors.NotSent("the instance ended before the call was written to it.", instance=self.instance)

    def send(self, type: int, stream: int, header: bytes = b"", body: bytes = b"") -> None:
        if self._transport is not None and not self.lost:
            if not self._out:
                self._next_unsent = self._next + (type != wire.CALL)
                self.loop.call_soon(self._flush if len(self._streams) < 2 else self._flush_soon)
            if len(body) < _APART:
                self._out.append(wire.encode(type, stream, header, body))
            else:
                self._out += (wire.prefix(type, stream, header, len(body)), body)
                self._apart = True

    def _flush_soon(self) -> None:
        """A busy link waits for one more turn of the loop: a write and a wake-up of the instance cost many frames."""
        self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """One write for all frames that have gathered."""
        out, self._out = self._out, []
        if self._transport is not None and not self.lost:
            if self._apart:
                self._transport.writelines(out)
            else:
                self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        self._apart = False

    def ended(self, stream: Stream) -> None:
        if self._streams.pop(stream.id, None) is not None:
            self._ended[stream.id % _REMEMBERED] = stream.id, stream.invocation

    def overdue(self, now: float) -> list[Stream]:
        """The calls whose deadline has passed. A WebSocket that an application holds has none."""
        late = []
        for stream in self._streams.values():
            if stream.deadline <= now:
                late.append(stream)
            elif stream.deadline != float("inf"):
                break
        return late


class _Refusal(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.WriteTransport, transport).abort()


@contextlib.asynccontextmanager
async def listen(path: Path, link: Link) -> AsyncIterator[None]:
    """Let the instance of `link` dial in on the unix socket `path` while the context is open."""
    path.unlink(missing_ok=True)
    server = await link.loop.create_unix_server(link.dialled, str(path), start_serving=False)
    try:
        await server.start_serving()  # in here: cancelled at this point, the socket is closed too
        path.chmod(0o666)  # the sandbox's user dials it; the directory is mounted into that one sandbox only
        yield
    finally:
        server.close()


def load_failed(header: dict[str, Any]) -> errors.LoadFailed:
    error = _error(header)
    return errors.LoadFailed(f"{error['type']}: {error['message']}", error=error)


def function_error(failure: Any) -> errors.FunctionError:
    """The error that the `e` of a REPLY or END, or the `x` of an END, stands for."""
    error = _error(failure if isinstance(failure, dict) else {})
    return errors.FunctionError(f"{error['type']}: {error['message']}", error=error)


def _error(header: dict[str, Any]) -> dict[str, str]:
    """What an instance says of a failure, cut to size and free of what UTF-8 can't carry."""

    def clean(name: str, longest: int) -> str:
        return str(header.get(name) or "")[:longest].encode("utf-8", "replace").decode()

    return {"type": clean("type", 200) or "Error", "message": clean("message", 4000), "stack": clean("stack", 64_000)}


def _fail(waiting: asyncio.Future[Any], error: errors.HeadraceError) -> None:
    waiting.set_exception(error)
    waiting.exception()  # seen: the one who waited may be gone already, and that is no news for the log


def resolve(future: asyncio.Future[wire.Frame]) -> Settle:
    """A `settle` for who waits for the answer: `future` gets the frame, or raises the error."""

    def settle(outcome: wire.Frame | errors.HeadraceError) -> None:
        if future.done():
            return
        if isinstance(outcome, errors.HeadraceError):
            _fail(future, outcome)
        else:
            future.set_result(outcome)

    return settle


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def parse(header: bytes) -> dict[str, Any]:
    """The header of an answer, fast. Raises `ProtocolError` for anything but a JSON object."""
    try:
        value = orjson.loads(header or b"{}")
    except orjson.JSONDecodeError as error:
        raise wire.ProtocolError(f"frame header is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise wire.ProtocolError("frame header is not a JSON object")
    return value
