"""Versions that bring an image: served, limited, logged, published and rolled back as any other; bad ones explained."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from headrace.settings import Settings
from stack import Failure, Headrace

SERVER = (Path(__file__).parent / "image_server.py").read_text()
START = "ARG HEADRACE_BASE_PYTHON\nFROM ${HEADRACE_BASE_PYTHON}\n"
RUN = 'CMD ["python3", "-u", "/srv/server.py"]\n'
DOCKERFILE = f"{START}RUN echo built {os.getpid()} by user $(id -u)\nCOPY server.py /srv/\nVOLUME /data\n{RUN}"
SECRET = "swordfish-4711"
TAG = f"headrace-test-{os.getpid()}:1"


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def files(server: str = SERVER, dockerfile: str = DOCKERFILE) -> dict[str, str]:
    return {"Dockerfile": dockerfile, "server.py": server}


@pytest.fixture(scope="module")
def images(platform: Headrace) -> Iterator[Headrace]:
    if platform.environment.get("HEADRACE_DRIVER") == "process":
        pytest.skip("images need containers")
    config = {"runtime": "image", "env": {"SECRET": SECRET}, "memory_mb": 96}
    platform.deploy("own", files(), config)
    yield platform
    for name in ("own", "named", *(case[0] for case in BAD)):
        platform.api.delete(f"/functions/{name}")


def test_a_dockerfile_is_built_and_served(images: Headrace) -> None:
    url = images.url("own")
    answer = httpx.get(f"{url}/hello?a=b")
    assert (answer.status_code, answer.text) == (200, "one")
    images.until(lambda: images.cli("logs", "own"), f"{answer.headers['headrace-invocation']} asked for /hello")
    assert httpx.get(f"{url}/env").text == SECRET
    assert httpx.get(f"{url}/user").text == "65532"
    log = images.api.get("/functions/own/versions/1/build-log").text
    assert f"built {os.getpid()} by user 0" in log and "The image names no unprivileged USER" in log

    def body() -> Iterator[bytes]:
        for number in range(40):
            yield bytes([number]) * 65_536

    with httpx.stream("POST", f"{url}/mirror", content=body()) as streamed:
        assert b"".join(streamed.iter_bytes()) == b"".join(body())
    with connect(f"{url}/chat".replace("http", "ws", 1)) as socket:
        for message in ("grüße", b"\0\xff", "x" * 60_000):
            socket.send(message)
            assert socket.recv(timeout=10) == message


def test_it_is_locked_up_as_any_other(images: Headrace) -> None:
    httpx.get(images.url("own"))
    [item] = containers_of(images, "own")
    host = item["HostConfig"]
    assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and "no-new-privileges" in host["SecurityOpt"]
    assert item["Config"]["User"] == "65532:65532" and not host["PortBindings"]
    assert SECRET not in json.dumps(item) and not any(mount["Type"] == "volume" for mount in item["Mounts"])
    address = next(iter(item["NetworkSettings"]["Networks"].values()))["IPAddress"]
    images.deploy("other", files(), {"runtime": "image"})  # the same layer, a function of its own
    assert httpx.get(f"{images.url('other')}/lookup?{address}", timeout=20).text == "unreachable"
    images.ask("DELETE", "/functions/other")


def containers_of(images: Headrace, function: str) -> list[dict[str, Any]]:
    """What the engine says of the instances of a function."""
    [node] = images.ask("GET", "/system")["nodes"]
    ids = [item["id"] for item in node["instances"] if item["function"] == function and item["state"] == "ready"]
    return [json.loads(docker("inspect", f"headrace-{Settings(home=images.home).home_tag}-{id}"))[0] for id in ids]


def test_versions_are_published_and_rolled_back(images: Headrace) -> None:
    changed = SERVER.replace('NAME = "one"', 'NAME = "two"')
    number = images.deploy("own", files(changed), {"runtime": "image", "memory_mb": 96, "network": "none"})
    assert httpx.get(images.url("own")).text == "two"
    assert "Using cache" in images.api.get(f"/functions/own/versions/{number}/build-log").text
    again = {"files": files(changed), "config": {"runtime": "image", "memory_mb": 96, "network": "none"}}
    assert images.ask("POST", "/functions/own/versions", again)["number"] == number
    images.cli("rollback", "own")
    assert httpx.get(images.url("own")).text == "one"


def test_a_node_that_comes_back_takes_it_over(images: Headrace) -> None:
    httpx.get(images.url("own"))
    before = {item["Id"] for item in containers_of(images, "own")}
    images.kill("node")
    images.until(lambda: httpx.get(images.url("own")).text, "one", 40)
    assert before == {item["Id"] for item in containers_of(images, "own")}


def test_ends_are_explained(images: Headrace) -> None:
    hog = httpx.get(f"{images.url('own')}/hog", timeout=40)
    assert hog.status_code == 502 and hog.json()["code"] == "out_of_memory", hog.text
    ended = images.until(lambda: httpx.get(f"{images.url('own')}/exit", timeout=40).text, "instance_died", 40)
    invocation = json.loads(ended)["invocation"]
    record = images.until(lambda: images.ask("GET", f"/invocations/{invocation}"), "exit code 7")
    assert "going" in record["error"]["stack"]


def test_an_image_by_name_is_pinned(images: Headrace) -> None:
    tag = Settings(home=images.home).home_tag
    id = docker("images", "--no-trunc", "--format", "{{.ID}}", f"headrace-image-{tag}").splitlines()[-1]
    docker("tag", id, TAG)
    first = images.deploy("named", {}, {"image": TAG, "ready_path": "/"})
    docker("rmi", TAG)
    was = httpx.get(images.url("named")).text
    assert was in ("one", "two")
    pinned = images.deploy("named", {}, {"image": id})
    assert images.ask("POST", "/functions/named/versions", {"config": {"image": id}})["number"] == pinned
    docker("tag", id, TAG)
    assert images.deploy("named", {}, {"image": TAG, "ready_path": "/"}, publish=False) > pinned > first
    docker("rmi", TAG)


NO_IMAGE = "headrace.invalid/no/such:image"
BAD: list[tuple[str, dict[str, str], dict[str, Any], str]] = [
    ("never", files(dockerfile=f'{START}CMD ["sleep", "60"]'), {}, "nothing listens on port 8080: serve HTTP"),
    ("beside", files(), {"env": {"BESIDE": "1"}}, "nothing listens on port 8080, but on 8081: listen on $PORT"),
    ("ends", files(dockerfile=f'{DOCKERFILE[:-2]}, "ends"]'), {}, "exited with code 3 before it served"),
    ("status", files(), {"ready_path": "/exit"}, "exited with code 7 before it served"),
    (
        "nobody",
        files(dockerfile=f"{START}COPY server.py /srv/\nUSER somebody\n{RUN}"),
        {},
        "USER 'somebody' is not in the image's /etc/passwd",
    ),
    ("nothing", files(dockerfile=f"{START}CMD []"), {}, "neither ENTRYPOINT nor CMD"),
    ("fails", files(dockerfile=f"{START}RUN echo no such compiler >&2; exit 4"), {}, "It said: no such compiler"),
    ("remote", files(dockerfile=f"{START}ADD http://127.0.0.1:7700/ /x\n{RUN}"), {}, "line 3: ADD of an address"),
    ("unknown", files(dockerfile=f"FROM {NO_IMAGE}\n{RUN}"), {}, "could not be built"),
    ("unnamed", {}, {"image": NO_IMAGE}, "is not in the engine, and no registry gives it"),
    ("program", files(dockerfile=f'{START}CMD ["/no/such"]'), {}, "'/no/such' cannot be started"),
]


@pytest.mark.parametrize(("name", "content", "config", "told"), BAD, ids=[case[0] for case in BAD])
def test_a_bad_image_is_explained(
    images: Headrace, name: str, content: dict[str, str], config: dict[str, Any], told: str
) -> None:
    defaults = {"runtime": "image", "start_timeout_s": 3.0}
    with pytest.raises(Failure) as failure:
        images.deploy(name, content, defaults | config)
    assert told in str(failure.value)
