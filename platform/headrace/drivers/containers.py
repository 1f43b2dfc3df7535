"""Requests about one container. Each blocks, and each is idempotent: "already so" and "already gone" are success."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import urllib3
from docker import APIClient
from docker.errors import APIError, DockerException, NotFound

from headrace.drivers import sandbox
from headrace.drivers.base import InstanceStatus
from headrace.errors import EngineUnavailable

_NOT_FOUND = 404
_CONFLICT = 409
_FRAME_HEADER = 8  # stream number, three zeros, length in four bytes
_TAIL_LINES = 100
_TAIL_BYTES = 8192
_REMOVAL_S = 20.0
_REMOVAL_POLL_S = 0.05
_ENDED = {"exited", "dead"}
_KILLED = 137  # exit code of what SIGKILL ended: the kernel's, for memory, or somebody's
_OOM_BEFORE_S = 60.0  # how far back the engine is asked, and for how long it may still tell
_OOM_AFTER_S = 0.25


def ensure_network(client: APIClient) -> None:
    """The bridge of all instances that may dial out. Of several made at the same moment the first by id stays."""
    if not _networks(client):
        try:
            client.create_network(
                sandbox.EGRESS_NETWORK, driver="bridge", options=sandbox.EGRESS_OPTIONS, check_duplicate=True
            )
        except APIError as error:
            if error.status_code != _CONFLICT:
                raise
    network, *surplus = _networks(client)
    for item in surplus:
        with contextlib.suppress(APIError):
            client.remove_network(item["Id"])
    if not sandbox.EGRESS_OPTIONS.items() <= network["Options"].items():
        raise EngineUnavailable(
            f"the network {sandbox.EGRESS_NETWORK} was not made by Headrace and lets instances reach each other. "
            f"Remove it: `docker network rm {sandbox.EGRESS_NETWORK}`."
        )


def create_and_start(client: APIClient, name: str, config: dict[str, Any]) -> bool:
    """False when its image or network is missing. One that has run before is left as it is."""
    try:
        client.create_container_from_config(config, name)
    except NotFound:
        return False
    except APIError as error:
        if error.status_code != _CONFLICT:
            raise
        if client.inspect_container(name)["State"]["Status"] != "created":
            return True
    try:
        client.start(name)
    except BaseException as error:
        with contextlib.suppress(APIError):
            remove(client, name)
        if isinstance(error, NotFound) and "network" in str(error.explanation):
            return False
        raise
    return True


class Output:
    """What a container writes, from its first byte on, read and closed in threads."""

    def __init__(self, client: APIClient, name: str) -> None:
        url = f"{client.base_url}/v{client.api_version}/containers/{name}/attach"
        self._reading = threading.Lock()
        self._answer = client.post(url, params={"stream": 1, "stdout": 1, "stderr": 1}, stream=True)
        if not self._answer.ok:
            raise DockerException(self._answer.text.strip()[:300])

    def read(self) -> bytes | None:
        """The next piece, None at the end. Blocks for as long as the container lives and is silent."""
        with self._reading, contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
            header = self._answer.raw.read(_FRAME_HEADER)
            if len(header) == _FRAME_HEADER:
                data: bytes = self._answer.raw.read(int.from_bytes(header[4:], "big"))
                return data
        return None

    def close(self) -> None:
        """Blocks while another thread reads: end the container first."""
        with self._reading:
            self._answer.close()


def create_attached(client: APIClient, name: str, config: dict[str, Any]) -> Output:
    """Replace what has this name, start it, and return its output."""
    remove(client, name)
    client.create_container_from_config(config, name)
    output = Output(client, name)
    try:
        client.start(name)
    except BaseException:
        output.close()
        raise
    return output


def final_state(client: APIClient, name: str) -> dict[str, Any]:
    """The engine's `State` of a container that has closed its output, once it has ended."""
    client.wait(name)
    state: dict[str, Any] = client.inspect_container(name)["State"]
    return state


def remove(client: APIClient, name: str) -> None:
    """Kill and remove; returns when it is gone."""
    try:
        client.remove_container(name, v=True, force=True)
    except NotFound:
        return
    except APIError as error:
        if error.status_code != _CONFLICT:  # "removal is already in progress"
            raise
        _wait_until_gone(client, name)


def kill(client: APIClient, name: str) -> None:
    """End its processes; it stays to be inspected."""
    try:
        client.kill(name)
    except APIError as error:
        if error.status_code not in {_NOT_FOUND, _CONFLICT}:
            raise


def _wait_until_gone(client: APIClient, name: str) -> None:
    deadline = time.monotonic() + _REMOVAL_S
    with contextlib.suppress(NotFound):
        while client.inspect_container(name) and time.monotonic() < deadline:
            time.sleep(_REMOVAL_POLL_S)
        raise EngineUnavailable(f"the Docker engine does not finish the removal of {name}. Look at its log.")


def freeze(client: APIClient, name: str, *, frozen: bool) -> None:
    """Pause or unpause; nothing to do for one that is so already, or has ended."""
    try:
        if frozen:
            client.pause(name)
        else:
            client.unpause(name)
    except APIError:
        state = client.inspect_container(name)["State"]
        if state["Running"] and state["Paused"] != frozen:
            raise


def status(client: APIClient, name: str, *, tail: bool) -> InstanceStatus | None:
    try:
        found = client.inspect_container(name)
        output = client.logs(name, tail=_TAIL_LINES)[-_TAIL_BYTES:] if tail else b""
    except NotFound:
        return None
    labels, state = found["Config"]["Labels"], found["State"]
    exit_code = int(state["ExitCode"]) if state["Status"] in _ENDED else None
    return InstanceStatus(
        id=labels[sandbox.LABEL_INSTANCE],
        running=bool(state["Running"]),
        exit_code=exit_code,
        out_of_memory=bool(state["OOMKilled"])
        or (tail and exit_code == _KILLED and _ran_out_of_memory(client, found["Id"])),
        labels=sandbox.own_labels_removed(labels),
        tail=output.decode("utf-8", "replace"),
    )


def _ran_out_of_memory(client: APIClient, id: str) -> bool:
    """Whether the engine has told of it: its word may come just after the exit, and the state then lacks it."""
    now = time.time()
    told = client.events(
        since=f"{now - _OOM_BEFORE_S:.3f}",
        until=f"{now + _OOM_AFTER_S:.3f}",
        filters={"container": [id], "event": ["oom"]},
        decode=True,
    )
    with contextlib.closing(told):
        return next(told, None) is not None


def statuses(client: APIClient, home_tag: str) -> list[InstanceStatus]:
    """All instances of one home. Only ended ones are looked at one by one."""
    labels = [f"{sandbox.LABEL_HOME}={home_tag}", f"{sandbox.LABEL_ROLE}={sandbox.ROLE_INSTANCE}"]
    found = []
    for item in client.containers(all=True, filters={"label": labels}):
        if item["State"] in {"running", "paused"}:
            own = sandbox.own_labels_removed(item["Labels"])
            found.append(InstanceStatus(item["Labels"][sandbox.LABEL_INSTANCE], True, None, False, own))
        elif (ended := status(client, item["Id"], tail=False)) is not None:
            found.append(ended)
    return found


def _networks(client: APIClient) -> list[dict[str, Any]]:
    found = client.networks(names=[sandbox.EGRESS_NETWORK])
    return sorted((item for item in found if item["Name"] == sandbox.EGRESS_NETWORK), key=lambda item: str(item["Id"]))
