"""WebSockets of ASGI applications, written by hand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from headrace import wire
from shim_kit import Shim, Stream, http_header, loaded_shim, logged

APP = """
import asyncio, json
async def handler(scope, receive, send):
    if scope["type"] != "websocket": return
    assert (await receive())["type"] == "websocket.connect"
    await globals()["do_" + scope["path"].rpartition("/")[2]](scope, receive, send)
async def do_echo(scope, receive, send):
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            print("left", message["code"], message["reason"])
            assert (await receive()) == message
            try:
                await send({"type": "websocket.send", "text": "late"})
            except OSError as error:
                print("refused", type(error).__name__)
            return
        await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
async def do_scope(scope, receive, send):
    await send({"type": "websocket.accept", "subprotocol": "b", "headers": [(b"X-One", b"1")]})
    del scope["headers"], scope["state"]
    shown = {key: value for key, value in scope.items() if not isinstance(value, bytes)}
    await send({"type": "websocket.send", "text": json.dumps(shown)})
async def do_close(scope, receive, send):
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 4001, "reason": "é" * 100})
async def do_deny(scope, receive, send):
    await send({"type": "websocket.close"})
async def do_refuse(scope, receive, send):
    await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-why", b"token")]})
    await send({"type": "websocket.http.response.body", "body": b"no ", "more_body": True})
    await send({"type": "websocket.http.response.body", "body": b"token"})
async def do_return(scope, receive, send): pass
async def do_raise(scope, receive, send): raise LookupError("before")
async def do_raise_later(scope, receive, send):
    await send({"type": "websocket.accept"})
    raise LookupError("after")
async def do_leave_open(scope, receive, send):
    await send({"type": "websocket.accept"})
async def do_early(scope, receive, send):
    await send({"type": "websocket.send", "text": "too early"})
async def do_flood(scope, receive, send):
    await send({"type": "websocket.accept"})
    try:
        while True: await send({"type": "websocket.send", "bytes": b"x" * 10000})
    finally:
        print("ended")
async def do_mix(scope, receive, send):
    await send({"type": "websocket.accept"})
    await asyncio.gather(*(send({"type": "websocket.send", "text": letter * 300_000}) for letter in "abc"))
async def do_last_words(scope, receive, send):
    await send({"type": "websocket.accept"})
    for _ in range(2):
        await asyncio.sleep(0.1)
        message = await receive()
        print(message["type"], message.get("text"))
async def do_slow(scope, receive, send):
    await send({"type": "websocket.accept"})
    print("accepted")
    await asyncio.sleep(60)
"""


def opened(shim: Shim, path: str, **fields: Any) -> Stream:
    stream = shim.link.open()
    stream.send(wire.CALL, http_header(path, ws=True, **fields))
    return stream


async def accepted(shim: Shim, path: str, **fields: Any) -> Stream:
    stream = opened(shim, path, **fields)
    assert (await stream.frame()).type == wire.WS_ACCEPT
    return stream


async def message(stream: Stream) -> str | bytes:
    """The next message, put together; grants what it takes."""
    data = b""
    while True:
        frame = await stream.frame()
        if frame.type == wire.WINDOW:
            continue
        assert frame.type == wire.WS_MESSAGE, frame
        header = wire.loads(frame.header)
        data += frame.body
        stream.send(wire.WINDOW, {"n": len(frame.body)})
        if not header.get("more"):
            return data.decode() if header["t"] == 1 else data


async def closed(stream: Stream) -> dict[str, Any]:
    while (frame := await stream.frame()).type == wire.WINDOW:
        pass
    assert frame.type == wire.WS_CLOSE, frame
    return wire.loads(frame.header)


def lines(stream: Stream) -> list[str]:
    return [log["text"] for log in stream.logs]


async def test_messages_of_both_kinds_come_back(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, APP) as shim:
        stream = await accepted(shim, "/echo")
        for sent in ["grüß dich", b"\x00\xff", "", b""]:
            is_text = isinstance(sent, str)
            stream.send(wire.WS_MESSAGE, {"t": int(is_text)}, sent.encode() if isinstance(sent, str) else sent)
            assert await message(stream) == sent


async def test_long_messages_travel_in_pieces_both_ways(tmp_path: Path) -> None:
    """Longer than the window, cut inside a character."""
    text = "é" * 400_001
    data = text.encode()
    async with loaded_shim(tmp_path, APP) as shim:
        stream = await accepted(shim, "/echo")
        window = wire.WINDOW_SIZE
        for at in range(0, len(data), 50_001):
            piece = data[at : at + 50_001]
            while window < len(piece):
                frame = await stream.frame()
                assert frame.type == wire.WINDOW
                window += wire.loads(frame.header)["n"]
            window -= len(piece)
            stream.send(wire.WS_MESSAGE, {"t": 1, "more": True} if at + 50_001 < len(data) else {"t": 1}, piece)

        assert await message(stream) == text


async def test_scope_subprotocol_and_headers(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, APP) as shim:
        headers = [["host", "h"], ["sec-websocket-protocol", "a, b"], ["sec-websocket-protocol", "c"]]
        stream = opened(shim, "/scope", h=headers, s="https")
        accept = await stream.frame()

        assert wire.loads(accept.header) == {"sp": "b", "h": [["x-one", "1"]]}
        scope = await message(stream)
        assert isinstance(scope, str)
        for part in ['"scheme": "wss"', '"subprotocols": ["a", "b", "c"]', '"websocket.http.response": {}']:
            assert part in scope
        assert '"method"' not in scope
        assert await closed(stream) == {"c": 1000, "r": ""}  # the application returned


async def test_close_has_code_and_a_reason_that_fits(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, APP) as shim:
        assert await closed(await accepted(shim, "/close")) == {"c": 4001, "r": "é" * 61}


REFUSALS = {
    "/deny": (403, b"", None),
    "/refuse": (401, b"no token", None),
    "/return": (0, b"", "without accepting or closing"),
    "/raise": (0, b"", "before"),
    "/early": (0, b"", "unexpected ASGI message 'websocket.send'"),
}


@pytest.mark.parametrize("path", REFUSALS)
async def test_refusals(tmp_path: Path, path: str) -> None:
    status, body, error = REFUSALS[path]
    async with loaded_shim(tmp_path, APP) as shim:
        answer = await opened(shim, path).answer()

        assert (answer.status, answer.body) == (status, body)
        assert (answer.error is None) == (error is None)
        if answer.error is not None and error is not None:
            assert error in answer.error["message"]
        if path == "/refuse":
            assert answer.headers == [["x-why", "token"]]


async def test_failure_after_accepting_closes_with_1011(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, APP) as shim:
        stream = await accepted(shim, "/raise_later")

        assert (await closed(stream))["c"] == 1011
        assert lines(stream)[-1].endswith("LookupError: after")


@pytest.mark.parametrize("how", ["close", "cancel", "lost"])
async def test_departure_of_the_peer_is_a_disconnect(tmp_path: Path, how: str) -> None:
    async with loaded_shim(tmp_path, APP) as shim:
        stream = await accepted(shim, "/echo")
        if how == "close":
            stream.send(wire.WS_CLOSE, {"c": 4002, "r": "bye"})
        elif how == "cancel":
            stream.send(wire.CANCEL, {"why": "client"})
        else:
            shim.link.close()
            await shim.dialled()
            shim.link.send(wire.DRAIN)
            assert "left 1006 \nrefused Gone\n" in (await shim.exited())[1]
            return
        await logged(stream, "refused")

        assert lines(stream) == ["left 4002 bye" if how == "close" else "left 1006 ", "refused Gone"]
        assert stream.waiting == 0


async def test_message_before_a_close_is_still_received(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, APP) as shim:
        stream = await accepted(shim, "/last_words")
        stream.send(wire.WS_MESSAGE, {"t": 1}, b"last words")
        stream.send(wire.WS_CLOSE, {"c": 1000, "r": ""})
        await logged(stream, "websocket.disconnect")

        assert lines(stream) == ["websocket.receive last words", "websocket.disconnect None"]


async def test_application_that_does_not_listen_is_cancelled(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, APP) as shim:
        stream = await accepted(shim, "/slow")
        stream.send(wire.CANCEL, {"why": "client"})
        await asyncio.sleep(0.1)
        shim.link.send(wire.DRAIN)  # ends only when nothing runs any more

        assert (await shim.exited())[0] == 0


async def test_sender_waits_for_its_window(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, APP) as shim:
        stream = await accepted(shim, "/flood")
        received = 0
        while received < wire.WINDOW_SIZE:
            received += len((await stream.frame()).body)
        assert received == wire.WINDOW_SIZE
        await asyncio.sleep(0.1)
        assert stream.waiting == 0

        stream.send(wire.CANCEL, {"why": "client"})
        await logged(stream, "ended")


async def test_messages_of_several_tasks_do_not_mix(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, APP) as shim:
        stream = await accepted(shim, "/mix")

        assert [await message(stream) for _ in "abc"] == [letter * 300_000 for letter in "abc"]


async def test_messages_are_granted_as_they_are_received(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, APP) as shim:
        stream = await accepted(shim, "/slow")
        for _ in range(4):
            stream.send(wire.WS_MESSAGE, {"t": 0}, b"x" * wire.CHUNK)
        await logged(stream, "accepted")
        await asyncio.sleep(0.1)
        assert stream.waiting == 0  # nobody received them: nothing is granted


ABUSES = {
    "text that is not UTF-8": ([({"t": 1}, b"\xff")], 1007),
    "an endless message": ([({"t": 0, "more": True}, b"x" * wire.CHUNK)] * 257, 1009),
    "endless empty messages": ([({"t": 0}, b"")] * 10_001, 1008),
}


@pytest.mark.parametrize("name", ABUSES)
async def test_abuse_closes_the_connection(tmp_path: Path, name: str) -> None:
    frames, code = ABUSES[name]
    async with loaded_shim(tmp_path, APP) as shim:
        stream = await accepted(shim, "/slow")
        for header, data in frames:
            stream.send(wire.WS_MESSAGE, header, data)

        assert (await closed(stream))["c"] == code
