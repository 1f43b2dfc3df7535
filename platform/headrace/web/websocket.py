"""One open WebSocket: frames are read and made by `websockets`, this moves them between transport and reader.

A message is kept until `receive` takes it, and while one is kept nothing more is read: a peer that sends faster than
it is heard has to wait. What the peer sent before it closed is still received after it has. Its close frame is answered
at once with its own code, RFC 6455's rules are enforced with 1002, UTF-8 with 1007 and the size of messages with 1009.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
from collections import deque
from typing import NamedTuple

from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.protocol import CLOSED, OPEN, SERVER, Protocol

from headrace.web.limits import FLOOD, GRACE_S

LOST = 1006  # the peer vanished

_quiet = logging.Logger(__name__, logging.CRITICAL)  # what a peer breaks is told to it, and is no news for the operator


class Message(NamedTuple):
    text: bool
    data: bytes


class Closed(Exception):
    """The socket is closed, or closing: nothing can be sent any more."""


class _Frames(Protocol):
    """The sans-I/O protocol, which also holds texts to UTF-8: fragment by fragment."""

    def __init__(self, limit: int) -> None:
        super().__init__(SERVER, state=OPEN, max_size=limit, logger=_quiet)
        self._utf8: codecs.IncrementalDecoder | None = None  # of the text that is being read

    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None  # it may come amid a message, which then is none (RFC 6455, 5.4)
        super().recv_frame(frame)
        if frame.opcode is Opcode.TEXT:
            self._utf8 = codecs.getincrementaldecoder("utf-8")()
        if self._utf8 is not None and frame.opcode in (Opcode.TEXT, Opcode.CONT):
            try:
                self._utf8.decode(frame.data, frame.fin)
            except UnicodeDecodeError:
                self.events.pop()
                raise
            if frame.fin:
                self._utf8 = None


class WebSocket(asyncio.Protocol):
    """`code` and `reason` tell how it ended, once `receive` has returned None; code 0: it has not."""

    __slots__ = (
        "_fragments",
        "_frames",
        "_interrupted",
        "_kept",
        "_loop",
        "_open",
        "_paused",
        "_reader",
        "_reading",
        "_room",
        "_text",
        "_timer",
        "_transport",
        "code",
        "reason",
    )

    def __init__(self, open: set[WebSocket], transport: asyncio.Transport, limit: int) -> None:
        """On the connection of an accepted upgrade; a message from the peer may have `limit` bytes.

        It is one of `open` until its connection is closed.
        """
        self._loop = asyncio.get_running_loop()
        self._open = open
        self._transport = transport
        self._frames = _Frames(limit)
        self._fragments: list[bytes] = []  # of a message that is not complete
        self._text = False  # ... which is a text
        self._kept: deque[Message] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._paused = False  # the peer reads too slowly
        self._reading = True
        self._interrupted = False
        self._timer: asyncio.TimerHandle | None = None  # the closing handshake's
        self.code = 0  # until it has ended
        self.reason = ""
        open.add(self)

    # -- receiving

    async def receive(self) -> Message | None:
        """The next message; None when there will be none any more."""
        if self._interrupted:
            return None
        while not self._kept:
            if self.code or self._interrupted:
                return None
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        message = self._kept.popleft()
        if not self._kept:
            self._listen()
        return message

    def interrupt(self) -> None:
        """Nobody wants what it sends any more: `receive` returns None from here on."""
        self._interrupted = True
        self._wake()

    def data_received(self, data: bytes) -> None:
        if not data or self._frames.state is CLOSED:
            return
        self._frames.receive_data(data)
        for frame in self._frames.events_received():
            if isinstance(frame, Frame):
                self._take(frame)
        self._after()
        if self._kept and not self.code:
            self._pause()
        elif self._paused and self._transport.get_write_buffer_size() > FLOOD:
            self._pause()  # it asks and asks (by pings) and reads no answer
        if self._kept:
            self._wake()

    def _take(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CONT or not frame.fin:
            if frame.opcode is not Opcode.CONT:
                self._text = frame.opcode is Opcode.TEXT
            self._fragments.append(bytes(frame.data))
            if len(self._fragments) >= 1_000:
                self._fragments = [b"".join(self._fragments)]
            if frame.fin:
                self._kept.append(Message(self._text, b"".join(self._fragments)))
                self._fragments = []
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._kept.append(Message(frame.opcode is Opcode.TEXT, bytes(frame.data)))

    def _after(self) -> None:
        """Write what the protocol has to say, and notice that it has come to an end."""
        for data in self._frames.data_to_send():
            if data:
                if not self._transport.is_closing():
                    self._transport.write(data)
            else:  # both sides have closed, or the peer broke a rule
                self._end()
                self._finish()

    def _end(self) -> None:
        """There will be no further message."""
        if self.code:
            return
        frames = self._frames
        if frames.close_rcvd is not None:
            self.code, self.reason = frames.close_rcvd.code, frames.close_rcvd.reason
        elif frames.parser_exc is not None and frames.close_sent is not None:
            self.code, self.reason = frames.close_sent.code, frames.close_sent.reason
        else:
            self.code = LOST
        self._fragments = []
        self._wake()

    def _finish(self) -> None:
        """Let the last bytes leave. Who still sends would lose them to a plain close."""
        if self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._listen()
        else:
            self._transport.close()
        self._give_up_later()

    def eof_received(self) -> bool:
        self._frames.receive_eof()
        self._frames.data_to_send()
        self._end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._frames.state is not CLOSED:
            self._frames.receive_eof()
        self._end()
        self.resume_writing()
        self._frames.parser.close()  # it and its error hold what holds them: nobody should have to look for that
        self._frames.parser_exc = None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _pause(self) -> None:
        if self._reading and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _listen(self) -> None:
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    # -- sending

    @property
    def writable(self) -> bool:
        """The peer reads what it is sent."""
        return not self._paused

    def write(self, text: bool, data: bytes) -> None:
        """Send a message. An instance is not trusted to send UTF-8 as a text. Raises `Closed`."""
        try:
            if text:
                self._frames.send_text(data if _is_utf8(data) else data.decode("utf-8", "replace").encode())
            else:
                self._frames.send_binary(data)
        except InvalidState:
            raise Closed from None
        self._after()

    async def drain(self) -> None:
        """Wait until the peer has read enough to send more. Raises `Closed`."""
        while self._paused:
            self._room = self._room or self._loop.create_future()
            await asyncio.shield(self._room)
        if self._transport.is_closing():
            raise Closed

    def close(self, code: int, reason: str) -> None:
        """Begin to close, unless the peer has; it has `GRACE_S` to agree and is cut off then."""
        if self._frames.state is not OPEN:
            return
        self._frames.send_close(code, reason)
        self._after()
        self._listen()
        self._give_up_later()

    def abort(self) -> None:
        self._transport.abort()

    def _give_up_later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(GRACE_S, self._transport.abort)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if not self._kept:
            self._listen()
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
