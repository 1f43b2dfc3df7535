"""WebSockets to ASGI applications through the gateway."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import wsproto
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from stack import Headrace, example

APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"VERSION"})
        return
    await receive()
    if scope["path"].endswith("/refuse"):
        await send({"type": "websocket.close", "code": 1008})
        return
    offered = scope["subprotocols"]
    await send({"type": "websocket.accept", "subprotocol": offered[0] if offered else None})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            print("closed with", message["code"])
            return
        if message.get("text") == "close":
            await send({"type": "websocket.close", "code": 4001, "reason": "as you wish"})
            return
        if message.get("text") == "version":
            message = {"text": "VERSION"}
        if message.get("text") == "raise":
            raise RuntimeError("on purpose")
        if message.get("text") is not None:
            await send({"type": "websocket.send", "text": message["text"]})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})
"""


@pytest.fixture(scope="module")
def socket_url(platform: Headrace) -> str:
    platform.deploy("sockets", {"main.py": APP.replace("VERSION", "one")}, {"handler": "main.app", "timeout_s": 3})
    return platform.url("sockets").replace("http://", "ws://")


@pytest.mark.parametrize("message", ["hello", "ünïcode ✓", "", b"\x00\xff", b"", "x" * 65_537, b"y" * (1 << 20)])
def test_messages_come_back_as_they_went(socket_url: str, message: str | bytes) -> None:
    with connect(f"{socket_url}/echo", max_size=2 << 20) as socket:
        socket.send(message)
        assert socket.recv(timeout=10) == message


def test_the_answer_to_an_upgrade_names_the_invocation_and_the_version(platform: Headrace, socket_url: str) -> None:
    with connect(f"{socket_url}/echo") as opened:
        assert opened.response is not None
        told = opened.response.headers
    assert told["headrace-version"] == "1"
    platform.until(lambda: platform.ask("GET", f"/invocations/{told['headrace-invocation']}"), '"status": 101')


def test_another_implementation_of_the_protocol(platform: Headrace, socket_url: str) -> None:
    """wsproto frames what the gateway reads and reads what it frames."""
    place = urlsplit(socket_url)
    peer = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    with socket.create_connection((place.hostname or "", place.port or 0), 10) as connection:

        def heard() -> list[Any]:
            peer.receive_data(connection.recv(65_536) or None)
            return list(peer.events())

        connection.sendall(peer.send(wsproto.events.Request(host=place.netloc, target=f"{place.path}/echo")))
        assert isinstance(heard()[0], wsproto.events.AcceptConnection)
        for message in (wsproto.events.TextMessage("grüß dich"), wsproto.events.BytesMessage(b"\x00\xff")):
            connection.sendall(peer.send(message))
            assert [event.data for event in heard()] == [message.data]
        connection.sendall(peer.send(wsproto.events.Ping(b"p")))
        assert isinstance(heard()[0], wsproto.events.Pong)
        connection.sendall(peer.send(wsproto.events.CloseConnection(4003, "done")))
        closed = heard()[0]
        assert (closed.code, closed.reason) == (4003, "done")


def test_a_subprotocol_is_agreed_on(socket_url: str) -> None:
    with connect(f"{socket_url}/echo", subprotocols=["chat.v2", "chat.v1"]) as socket:  # type: ignore[list-item]
        assert socket.subprotocol == "chat.v2"


def test_a_socket_outlives_timeout_s(socket_url: str) -> None:
    with connect(f"{socket_url}/echo") as socket:
        with pytest.raises(TimeoutError):
            socket.recv(timeout=4)
        socket.send("still here")
        assert socket.recv(timeout=10) == "still here"


def test_close_codes_travel_both_ways(platform: Headrace, socket_url: str) -> None:
    with connect(f"{socket_url}/echo") as socket:
        socket.send("close")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as you wish")
    with connect(f"{socket_url}/echo") as socket:
        socket.close(4002)
    platform.until(lambda: platform.cli("logs", "sockets"), "closed with 4002")


def test_an_application_that_fails_closes_with_1011(socket_url: str) -> None:
    with connect(f"{socket_url}/echo") as socket:
        socket.send("raise")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011


def test_a_refused_upgrade_is_an_http_answer(platform: Headrace, socket_url: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(f"{socket_url}/refuse")
    assert refused.value.response.status_code == 403
    with pytest.raises(InvalidStatus) as missing:
        connect(f"{platform.functions.replace('http', 'ws')}/fn/nobody")
    assert missing.value.response.status_code == 404


def test_open_sockets_stay_with_their_version_when_another_is_published(platform: Headrace, socket_url: str) -> None:
    with connect(f"{socket_url}/echo") as before:
        platform.deploy("sockets", {"main.py": APP.replace("VERSION", "two")}, {"handler": "main.app", "timeout_s": 3})
        assert httpx.get(platform.url("sockets")).text == "two"
        before.send("version")
        assert before.recv(timeout=10) == "one"
        with connect(f"{socket_url}/echo") as after:
            after.send("version")
            assert after.recv(timeout=10) == "two"


def test_a_chat_of_a_plain_handler_holds_no_instance(platform: Headrace) -> None:
    files, config = example("chat")
    platform.deploy("chat", files, config)
    url = platform.url("chat").replace("http://", "ws://")
    with pytest.raises(InvalidStatus) as nameless:
        connect(f"{url}?room=tea")
    assert nameless.value.response.status_code == 400
    with connect(f"{url}?room=tea&name=ann") as ann, connect(f"{url}?room=other&name=eve") as eve:
        assert json.loads(ann.recv(timeout=10)) == {"from": "chat", "text": "ann is here"}
        assert json.loads(eve.recv(timeout=10))["text"] == "eve is here"
        platform.until(lambda: platform.ask("GET", "/functions/chat")["instances"], '"in_flight": 0')
        with connect(f"{url}?room=tea&name=bob") as bob:
            assert json.loads(ann.recv(timeout=10)) == json.loads(bob.recv(timeout=10))
            bob.send("no json")
            assert "error" in json.loads(bob.recv(timeout=10))
            bob.send('{"room": "tea", "from": "bob", "text": "grüß dich"}')
            for socket in (ann, bob):
                assert json.loads(socket.recv(timeout=10)) == {"from": "bob", "text": "grüß dich"}
            bob.send('{"room": "tea", "from": "bob", "text": "/bye"}')
            with pytest.raises(ConnectionClosed) as closed:
                bob.recv(timeout=10)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1000, "bye")
        assert httpx.post(f"{platform.url('chat')}?room=tea", content="news").status_code == 202
        assert json.loads(ann.recv(timeout=10)) == {"from": "outside", "text": "news"}
        platform.ask("DELETE", "/functions/chat")
        with pytest.raises(ConnectionClosed) as deleted:
            ann.recv(timeout=10)
        assert deleted.value.rcvd is not None
        assert deleted.value.rcvd.code == 1012
        with pytest.raises(ConnectionClosed):
            eve.recv(timeout=10)  # nothing of the other room came here
