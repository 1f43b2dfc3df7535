"""kill -9 of any process: what was accepted is kept, warm calls go on, nothing is orphaned."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from stack import Headrace

HELLO = "def handler(event, context):\n    return {'v': context.function_version}\n"
SLOW_BUILD = "import time\ntime.sleep(3)\ndef handler(event, context):\n    return 'late'\n"


@pytest.fixture(scope="module")
def hello(platform: Headrace) -> str:
    platform.deploy("hello", {"handler.py": HELLO}, {})
    return platform.url("hello")


@contextmanager
def calling(url: str) -> Iterator[list[str]]:
    """Call `url` all the time from two threads; what went wrong is collected."""
    wrong: list[str] = []
    over = threading.Event()

    def call() -> None:
        with httpx.Client(timeout=10) as client:
            while not over.is_set():
                try:
                    answer = client.get(url)
                except httpx.HTTPError as error:
                    wrong.append(repr(error))
                else:
                    if answer.status_code != 200:
                        wrong.append(f"{answer.status_code} {answer.text}")

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("role", ["control", "worker"])
def test_warm_calls_go_on_while_control_or_worker_is_dead(platform: Headrace, hello: str, role: str) -> None:
    with calling(hello) as wrong:
        time.sleep(0.5)
        platform.kill(role)
        platform.wait_ready()
        time.sleep(1)
    assert wrong == []
    assert platform.ask("GET", "/functions/hello/aliases")["items"][0]["traffic"] == {"1": 100}


def test_a_killed_node_takes_its_instances_back(platform: Headrace, hello: str) -> None:
    assert httpx.get(hello).status_code == 200
    before = platform.containers()
    node = platform.ask("GET", "/system")["nodes"][0]
    serving = {i["id"] for i in node["instances"] if i["function"] == "hello"}
    platform.kill("node")
    platform.wait_ready()
    platform.until(lambda: str(httpx.get(hello).status_code), "200")
    assert serving <= {name.rpartition("-")[2] for name in platform.containers() & before}

    def adopted() -> bool:
        node = platform.ask("GET", "/system")["nodes"][0]
        return serving <= {i["id"] for i in node["instances"]} and node["recovery"]["adopted"] >= len(serving)

    platform.until(lambda: str(adopted()), "True")


def test_a_killed_worker_leaves_no_build_behind(platform: Headrace) -> None:
    number = platform.ask("POST", "/functions/late/versions", {"files": {"handler.py": SLOW_BUILD}})["number"]
    platform.until(lambda: platform.ask("GET", f"/functions/late/versions/{number}")["state"], "probing")
    platform.kill("worker")
    platform.until(lambda: platform.ask("GET", f"/functions/late/versions/{number}")["state"], "ready", 90)


def test_a_node_that_dies_during_a_probe_does_not_fail_the_version(platform: Headrace) -> None:
    code = SLOW_BUILD.replace("late", "later")
    number = platform.ask("POST", "/functions/later/versions", {"files": {"handler.py": code}})["number"]
    platform.until(lambda: platform.ask("GET", f"/functions/later/versions/{number}")["state"], "probing")
    platform.kill("node")
    platform.until(lambda: platform.ask("GET", f"/functions/later/versions/{number}")["state"], "ready", 90)


def test_containers_that_belong_to_nobody_are_gone_within_a_minute(platform: Headrace, hello: str) -> None:
    stray = platform.start_stray()
    assert stray in platform.containers()
    platform.until(lambda: str(stray in platform.containers()), "False", 60)
    assert httpx.get(hello).status_code == 200


def test_the_supervisor_killed_and_started_again(platform: Headrace, hello: str) -> None:
    assert httpx.get(hello).status_code == 200
    before = platform.containers()
    platform.crash()
    platform.start()
    assert httpx.get(hello).json() == {"v": "1"}
    assert platform.containers() & before, "no container was taken over"


ECHO = """
async def app(scope, receive, send):
    if scope["type"] != "websocket":
        raise NotImplementedError
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass
"""


def test_a_clean_stop_drains_closes_sockets_and_leaves_no_container(platform: Headrace) -> None:
    platform.deploy("sockets", {"main.py": ECHO}, {"handler": "main.app", "kind": "asgi"})
    platform.deploy("events", {"handler.py": "def handler(event, context):\n    return None\n"}, {})
    code = "import time\ndef handler(event, context):\n    time.sleep(2)\n    return 'finished'\n"
    platform.deploy("slow", {"handler.py": code}, {})
    answers: list[str] = []
    calling = threading.Thread(target=lambda: answers.append(httpx.get(platform.url("slow"), timeout=30).text))
    calling.start()
    time.sleep(0.7)
    held, events = (platform.url(name).replace("http://", "ws://") for name in ("sockets", "events"))
    with connect(held) as of_application, connect(events) as of_handler:
        platform.stop()
        for socket in (of_application, of_handler):
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=10)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012, "the client is told to come back"
    calling.join()
    assert answers == ["finished"]
    assert platform.containers() == set()
    platform.start()
