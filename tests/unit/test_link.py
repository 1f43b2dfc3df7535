"""The link, with a transport driven by hand: frames in, frames out, and what a hostile instance sends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace import errors, wire
from headrace.gateway.link import Link, Stream, resolve

FAR = 1e9


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = wire.Decoder()
        self.frames: list[wire.Frame] = []
        self.aborted = False

    def write(self, data: Any) -> None:
        self.frames += self.decoder.feed(bytes(data))

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.abort()


class Wire:
    """A connected link; `say` is the instance speaking, `heard` what it was sent since the last look."""

    def __init__(self) -> None:
        self.lost = 0
        self.answers: dict[Stream, asyncio.Future[wire.Frame]] = {}
        self.link = Link("i1", self._lost)
        self.transport = Transport()
        self.link.dialled()
        self.link.connection_made(self.transport)

    def _lost(self) -> None:
        self.lost += 1

    def say(self, type: int, stream: int = 0, header: bytes = b"", body: bytes = b"") -> None:
        self.link.data_received(wire.encode(type, stream, header, body))

    async def heard(self) -> list[wire.Frame]:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        frames, self.transport.frames = self.transport.frames, []
        return frames

    def call(self, deadline: float = FAR) -> Stream:
        answer: asyncio.Future[wire.Frame] = self.link.loop.create_future()
        stream = self.link.call("inv", b"{}", b"", deadline, resolve(answer))
        self.answers[stream] = answer
        return stream


async def _read(stream: Stream) -> bytes:
    return b"".join([b"".join(pieces) async for pieces in stream.pieces()])


async def test_a_call_is_one_frame_each_way() -> None:
    w = Wire()
    stream = w.call()
    assert [(f.type, f.stream) for f in await w.heard()] == [(wire.CALL, stream.id)]
    w.say(wire.REPLY, stream.id, b'{"s":200}', b"hi")
    assert (await w.answers[stream]).body == b"hi"
    assert w.link.in_flight == 0
    stream.close("client")
    assert await w.heard() == [], "an answered call is not cancelled"


async def test_frames_of_one_turn_are_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    w = Wire()
    writes: list[bytes] = []
    monkeypatch.setattr(w.transport, "write", writes.append)
    for _ in range(5):
        w.call()
    await asyncio.sleep(0)
    assert len(writes) == 1
    assert len(wire.Decoder().feed(writes[0])) == 5


async def test_a_streamed_answer_is_granted_as_it_is_read() -> None:
    w = Wire()
    stream = w.call()
    w.say(wire.HEAD, stream.id, b'{"s":200}')
    await w.answers[stream]
    piece = b"x" * wire.CHUNK
    for _ in range(4):
        w.say(wire.BODY, stream.id, b"", piece)
    await w.heard()
    reader = stream.pieces()
    assert await anext(reader) == [piece] * 4
    assert await w.heard() == [], "it is not read before more is asked for"
    w.say(wire.BODY, stream.id, b"", b"rest")
    assert await anext(reader) == [b"rest"]
    granted = [wire.loads(f.header)["n"] for f in await w.heard() if f.type == wire.WINDOW]
    assert sum(granted) == 4 * wire.CHUNK
    w.say(wire.END, stream.id)
    assert [pieces async for pieces in reader] == []


async def test_more_than_the_window_ends_the_connection() -> None:
    w = Wire()
    stream = w.call()
    w.say(wire.HEAD, stream.id, b'{"s":200}')
    for _ in range(2 * wire.WINDOW_SIZE // wire.CHUNK + 1):
        w.say(wire.BODY, stream.id, b"", b"x" * wire.CHUNK)
    assert w.transport.aborted


async def test_many_tiny_pieces_for_a_slow_reader_are_joined() -> None:
    w = Wire()
    stream = w.call()
    w.say(wire.HEAD, stream.id, b'{"s":200}')
    for _ in range(50_000):
        w.say(wire.BODY, stream.id, b"", b"x")
    w.say(wire.END, stream.id)
    assert not w.transport.aborted
    assert len(stream._chunks) <= 1000
    assert await _read(stream) == b"x" * 50_000


async def test_endless_tiny_messages_for_a_client_that_does_not_read_end_that_stream_only() -> None:
    w = Wire()
    socket, other = w.call(), w.call()
    w.say(wire.WS_ACCEPT, socket.id, b"{}")
    for _ in range(20_000):
        w.say(wire.WS_MESSAGE, socket.id, b'{"t":1}', b"")
    assert not w.transport.aborted
    with pytest.raises(errors.FunctionError, match="does not read"):
        await _read(socket)
    w.say(wire.REPLY, other.id, b'{"s":200}')
    assert (await w.answers[other]).type == wire.REPLY


async def test_uploads_wait_for_the_window() -> None:
    w = Wire()
    stream = w.call()
    sending = asyncio.ensure_future(stream.send(wire.BODY, b"", b"y" * (wire.WINDOW_SIZE + 10)))
    sent = sum(len(f.body) for f in await w.heard())
    assert sent == wire.WINDOW_SIZE
    assert not sending.done()
    w.say(wire.WINDOW, stream.id, b'{"n":10}')
    await sending
    assert sum(len(f.body) for f in await w.heard()) == 10


async def test_a_message_longer_than_a_frame_goes_on_in_the_next() -> None:
    w = Wire()
    stream = w.call()
    await w.heard()
    await stream.send(wire.WS_MESSAGE, b'{"t":1}', b"z" * (wire.CHUNK + 1))
    assert [wire.loads(f.header) for f in await w.heard()] == [{"t": 1, "more": True}, {"t": 1}]


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 64, wire.encode(wire.HELLO, 0, b"[1]"), wire.encode(wire.HELLO, 0, b'{"protocol":99}')],
    ids=["noise", "header is no object", "another protocol"],
)
async def test_an_instance_that_does_not_speak_the_protocol_is_cut_off(garbage: bytes) -> None:
    w = Wire()
    w.link.data_received(garbage)
    assert w.transport.aborted


async def test_frames_for_streams_that_are_not_open_are_ignored() -> None:
    w = Wire()
    stream = w.call()
    w.say(wire.REPLY, 999, b'{"s":200}')
    w.say(wire.BODY, 999, b"", b"x")
    stream.close("timeout", errors.TimedOut("late"))
    assert [f.type for f in await w.heard()] == [wire.CALL, wire.CANCEL]
    w.say(wire.REPLY, stream.id, b'{"s":200}')
    with pytest.raises(errors.TimedOut):
        await w.answers[stream]


async def test_log_lines_after_the_end_still_find_their_invocation() -> None:
    w = Wire()
    logged: list[str] = []
    w.link.log = lambda invocation, header, text: logged.append(invocation)
    stream = w.call()
    stream.close("timeout")
    w.say(wire.LOG, stream.id, b'{"s":"stdout"}', b"late words")
    w.say(wire.LOG, 0, b'{"s":"stdout"}', b"of nobody")
    assert logged == ["inv", ""]


async def test_calls_wait_for_the_reason_when_the_connection_is_lost() -> None:
    w = Wire()
    stream = w.call()
    await w.heard()
    w.link.connection_lost(None)
    assert (w.lost, w.answers[stream].done()) == (1, False)
    w.link.abandon(errors.OutOfMemory("too much"))
    with pytest.raises(errors.OutOfMemory):
        await w.answers[stream]
    assert w.link.in_flight == 0


async def test_a_call_that_comes_after_the_reason_gets_it_at_once() -> None:
    w = Wire()
    w.link.connection_lost(None)
    w.link.abandon(errors.OutOfMemory("too much"))
    w.link.abandon(errors.InstanceDied("removed"))
    with pytest.raises(errors.OutOfMemory):
        await w.answers[w.call()]
    assert w.link.in_flight == 0


async def test_overdue_is_the_oldest_first_and_a_socket_has_no_deadline() -> None:
    w = Wire()
    socket, first, second = w.call(float("inf")), w.call(1.0), w.call(2.0)
    assert w.link.overdue(0.5) == []
    assert w.link.overdue(1.5) == [first]
    assert w.link.overdue(3.0) == [first, second]
    assert not w.answers[socket].done()


async def test_load_tells_why_it_failed() -> None:
    w = Wire()
    loading = asyncio.ensure_future(w.link.load({}, 5.0))
    await w.heard()
    w.say(wire.LOAD_FAILED, 0, b'{"type":"ImportError","message":"no","stack":"..."}')
    with pytest.raises(errors.LoadFailed, match="ImportError: no") as caught:
        await loading
    assert caught.value.ids["error"]["stack"] == "..."
    dying = asyncio.ensure_future(w.link.load({}, 5.0))
    await w.heard()
    w.link.connection_lost(None)
    with pytest.raises(errors.InstanceDied):
        await dying


async def test_a_second_dial_is_refused() -> None:
    w = Wire()
    second = Transport()
    refusal = w.link.dialled()
    refusal.connection_made(second)
    assert second.aborted
    assert w.link.dialled() is not w.link


async def test_headers_count_against_the_window_too() -> None:
    w = Wire()
    socket = w.call()
    w.say(wire.WS_ACCEPT, socket.id, b"{}")
    for _ in range(3):
        w.say(wire.WS_MESSAGE, socket.id, b'{"t":1,"x":"' + b"y" * 1_000_000 + b'"}')
    assert w.transport.aborted


async def test_an_instance_cannot_grant_itself_more_than_the_window() -> None:
    w = Wire()
    stream = w.call()
    w.say(wire.WINDOW, stream.id, b'{"n":1000000000000}')
    sending = asyncio.ensure_future(stream.send(wire.BODY, b"", b"y" * (4 << 20)))
    assert sum(len(f.body) for f in await w.heard()) == wire.WINDOW_SIZE
    sending.cancel()


async def test_what_an_instance_says_of_a_failure_is_cut_and_cleaned() -> None:
    w = Wire()
    stream = w.call()
    failure = b'{"e":{"type":"E","message":"\\ud800' + b"m" * 100_000 + b'","stack":7}}'
    w.say(wire.HEAD, stream.id, b'{"s":200}')
    w.say(wire.END, stream.id, failure)
    with pytest.raises(errors.FunctionError) as caught:
        await _read(stream)
    assert len(caught.value.detail) < 5000
    caught.value.detail.encode()


async def test_what_failed_after_a_complete_stream_is_remembered_and_cut_like_every_failure() -> None:
    w = Wire()
    stream = w.call()
    w.say(wire.HEAD, stream.id, b'{"s":200}')
    w.say(wire.BODY, stream.id, b"", b"all")
    w.say(wire.END, stream.id, b'{"x":{"type":"E","message":"' + b"m" * 100_000 + b'"}}')
    assert await _read(stream) == b"all", "the stream is complete"
    assert stream.failure is not None
    assert stream.failure.ids["error"] == {"type": "E", "message": "m" * 4000, "stack": ""}


async def test_calls_of_which_nothing_was_written_end_as_not_sent() -> None:
    w = Wire()
    told = w.call()
    await w.heard()
    untold = [w.call(), w.call()]
    w.link.connection_lost(None)
    for stream in (*untold, w.call()):
        with pytest.raises(errors.NotSent):
            await w.answers[stream]
    assert not w.answers[told].done(), "it may have run: the fleet asks first what happened"
    assert w.link.in_flight == 1
    w.link.abandon(errors.OutOfMemory("too much"))
    with pytest.raises(errors.OutOfMemory):
        await w.answers[told]


async def test_a_call_that_was_written_before_other_frames_gathered_is_not_taken_for_unsent() -> None:
    w = Wire()
    told = w.call()
    await w.heard()
    w.link.send(wire.PING, 0)
    w.link.connection_lost(None)
    assert not w.answers[told].done()
    told.close("client")
