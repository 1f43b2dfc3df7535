"""An engine that is away, locked, full, silent or robbed of its images: every trouble says what to do.

A small HTTP server on a unix socket plays the engine where the real one can't be made to fail.
"""

from __future__ import annotations

import errno
import gc
import json
import socket
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests

from driver_kit import Kit
from headrace import runtimes
from headrace.drivers import engine, images
from headrace.drivers.docker_engine import DockerDriver
from headrace.errors import EngineUnavailable
from headrace.settings import Settings

# The docker package leaves the socket of a failed connect to the garbage collector, which then complains.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

Answer = tuple[int, Any]
IMAGE_MISSING = (404, {"message": "No such image: headrace-python"})
DISK_FULL = (500, {"message": "mkdir /var/lib/docker/overlay2/x: no space left on device"})


def network(id: str, icc: str = "false") -> dict[str, Any]:
    return {"Id": id, "Name": "headrace-egress", "Options": {"com.docker.network.bridge.enable_icc": icc}}


class PlayedEngine(socketserver.ThreadingUnixStreamServer):
    """Answers `VERB path` as scripted; the last answer of a script repeats. `None` instead of one: silence."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, PlayedHandler)
        self.scripts: dict[str, list[Answer | None]] = {}
        self.asked: list[str] = []
        self.closing = threading.Event()

    def script(self, request: str, *answers: Answer | None) -> None:
        self.scripts[request] = list(answers)

    def answer(self, request: str) -> Answer | None:
        self.asked.append(request)
        answers = self.scripts.get(request, [(404, {"message": f"not scripted: {request}"})])
        return answers.pop(0) if len(answers) > 1 else answers[0]


class PlayedHandler(BaseHTTPRequestHandler):
    server: PlayedEngine
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.server.answer(f"{self.command} {path.removeprefix('/v1.41')}")
        if answer is None:
            self.server.closing.wait()
            self.close_connection = True
            return
        status, body = answer
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_DELETE = do_GET

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture(autouse=True)
def sockets_collected() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hr-") as path:
        yield Path(path)


@pytest.fixture
def played(home: Path) -> Iterator[PlayedEngine]:
    with PlayedEngine(str(home / "engine.sock")) as server:
        server.script("GET /version", (200, {"ApiVersion": "1.41"}))
        server.script("GET /networks", (200, [network("n1")]))
        server.script("GET /containers/json", (200, []))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home, engine_socket=str(home / "engine.sock"))


async def refusal(settings: Settings, ask: Callable[[DockerDriver], Any]) -> str:
    driver = DockerDriver(settings)
    try:
        with pytest.raises(EngineUnavailable) as caught:
            await ask(driver)
        return caught.value.detail
    finally:
        await driver.close()


async def test_no_engine_is_there(settings: Settings) -> None:
    detail = await refusal(settings, lambda driver: driver.check())
    assert "no Docker engine" in detail
    assert "apt-get install docker.io" in detail


async def test_the_engine_is_stopped(settings: Settings, home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(settings.engine_socket)
    detail = await refusal(settings, lambda driver: driver.list())
    assert "is stopped" in detail
    assert "systemctl start docker" in detail


async def test_a_driver_works_again_when_the_engine_is_back(settings: Settings, request: pytest.FixtureRequest) -> None:
    driver = DockerDriver(settings)
    with pytest.raises(EngineUnavailable):
        await driver.list()
    request.getfixturevalue("played")
    assert await driver.list() == []
    await driver.close()


def test_no_permission_on_the_socket() -> None:
    wrapped = requests.ConnectionError("Connection aborted.", PermissionError(errno.EACCES, "Permission denied"))
    assert "usermod -aG docker" in engine.explain(wrapped, "/var/run/docker.sock")


async def test_the_engine_is_silent(settings: Settings, played: PlayedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_TIMEOUT_S", 0.2)
    played.script("GET /containers/json", None)
    assert "did not answer within" in await refusal(settings, lambda driver: driver.list())


async def test_the_disk_of_the_engine_is_full(settings: Settings, played: PlayedEngine) -> None:
    played.script("POST /containers/create", DISK_FULL)
    kit = Kit("fake")
    spec = await kit.spec("serve")
    assert "docker system prune" in await refusal(settings, lambda driver: driver.start(spec))
    await kit.close()


async def test_an_engine_that_can_not_limit_is_refused(settings: Settings, played: PlayedEngine) -> None:
    played.script("GET /info", (200, {"MemoryLimit": False, "PidsLimit": True, "CpuCfsQuota": True}))
    assert "can't enforce memory limits" in await refusal(settings, lambda driver: driver.check())


async def test_a_network_that_joins_instances_is_refused(settings: Settings, played: PlayedEngine) -> None:
    played.script("GET /networks", (200, [network("n1", icc="true")]))
    assert "docker network rm headrace-egress" in await refusal(settings, lambda driver: driver.prepare("python"))


async def test_of_networks_made_at_the_same_moment_one_stays(settings: Settings, played: PlayedEngine) -> None:
    played.script("GET /networks", (200, []), (200, [network("n2"), network("n1")]))
    played.script("POST /networks/create", (201, {"Id": "n2"}))
    played.script("DELETE /networks/n2", (204, ""))
    played.script(f"GET /images/{runtimes.get('python').image_name(settings)}/json", (200, {"Id": "x"}))
    driver = DockerDriver(settings)
    await driver.prepare("python")
    await driver.close()
    assert "DELETE /networks/n2" in played.asked
    assert "DELETE /networks/n1" not in played.asked


async def test_a_container_that_can_not_start_is_removed(settings: Settings, played: PlayedEngine) -> None:
    kit = Kit("fake")
    spec = await kit.spec("serve")
    name = f"headrace-{settings.home_tag}-{spec.id}"
    played.script("POST /containers/create", (201, {"Id": "c1"}))
    played.script(f"POST /containers/{name}/start", (400, {"message": 'exec: "python3": executable file not found'}))
    played.script(f"DELETE /containers/{name}", (204, ""))
    assert "HEADRACE_BASE_IMAGE_" in await refusal(settings, lambda driver: driver.start(spec))
    assert f"DELETE /containers/{name}" in played.asked
    await kit.close()


async def test_an_image_that_was_removed_is_got_again(settings: Settings, played: PlayedEngine) -> None:
    kit = Kit("fake")
    spec = await kit.spec("serve")
    image = runtimes.get("python").image_name(settings)
    played.script("POST /containers/create", IMAGE_MISSING, (201, {"Id": "c1"}))
    played.script(f"POST /containers/headrace-{settings.home_tag}-{spec.id}/start", (204, ""))
    played.script(f"GET /images/{image}/json", IMAGE_MISSING)
    played.script("GET /images/python:3.11-slim/json", IMAGE_MISSING)
    events = [{"status": "Pulling from library/python"}, {"status": "Pull complete", "id": "a1"}]
    played.script("POST /images/create", (200, "".join(json.dumps(event) + "\r\n" for event in events)))
    played.script("POST /images/python:3.11-slim/tag", (201, ""))
    driver = DockerDriver(settings)
    await driver.start(spec)
    await driver.close()
    assert "POST /images/python:3.11-slim/tag" in played.asked
    assert played.asked[-1].endswith("/start")
    await kit.close()


@pytest.mark.parametrize(
    "registry",
    [
        pytest.param(None, id="silent"),
        pytest.param((500, {"message": "dial tcp: lookup registry: no such host"}), id="unknown"),
        pytest.param((200, '{"error": "toomanyrequests"}\n'), id="refusing"),
    ],
)
async def test_a_registry_that_gives_nothing_is_given_up(
    settings: Settings, played: PlayedEngine, monkeypatch: pytest.MonkeyPatch, registry: Answer | None
) -> None:
    monkeypatch.setattr(images, "_REGISTRY_ANSWERS_S", 0.2)
    chosen = settings.model_copy(update={"runtimes": {"BASE_IMAGE_PYTHON": "registry.example/python:mine"}})
    played.script("GET /images/registry.example/python:mine/json", IMAGE_MISSING)
    played.script("POST /images/create", registry)
    detail = await refusal(chosen, lambda driver: driver.prepare("python"))
    assert "docker pull registry.example/python:mine" in detail


async def test_without_registry_and_without_root_the_ways_out_are_named(
    settings: Settings, played: PlayedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images.os, "geteuid", lambda: 1000)
    for image in (runtimes.get("python").image_name(settings), "python:3.11-slim"):
        played.script(f"GET /images/{image}/json", IMAGE_MISSING)
    detail = await refusal(settings, lambda driver: driver.prepare("python"))
    for way in ("sudo ./platform/up", "docker pull python:3.11-slim", "HEADRACE_BASE_IMAGE_PYTHON"):
        assert way in detail


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("python", ("python", "latest")),
        ("python:3.11-slim", ("python", "3.11-slim")),
        ("registry.example:5000/team/python", ("registry.example:5000/team/python", "latest")),
        ("registry.example:5000/python:mine", ("registry.example:5000/python", "mine")),
        ("python@sha256:ab", ("python", "sha256:ab")),
    ],
)
def test_image_names_are_split_as_the_engine_does(image: str, parts: tuple[str, str]) -> None:
    assert images.split_name(image) == parts


@pytest.mark.parametrize(
    ("name", "content", "mirror"),
    [
        ("debian.sources", "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\n", True),
        ("debian.list", "deb [signed-by=/k.gpg] http://mirror.example/debian bookworm main\n", True),
        ("other.list", "deb http://mirror.example/ubuntu noble main\n", False),
    ],
)
def test_the_mirror_is_the_one_that_apt_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, mirror: bool
) -> None:
    (tmp_path / name).write_text(content)
    monkeypatch.setattr(images, "_SOURCES", (tmp_path / "missing", tmp_path))
    assert images.debian_mirror() == ("http://mirror.example/debian" if mirror else None)
