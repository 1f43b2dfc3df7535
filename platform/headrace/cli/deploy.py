"""`headrace deploy`: pack a directory, upload it, follow its build, publish it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.cli import project
from headrace.cli.client import Control, Unreachable
from headrace.cli.output import Output, Work, bytes_text, traffic_text
from headrace.errors import BuildFailed, NotFound
from headrace.model import LIVE

_ENDED = ("ready", "failed", "retired")
_TAIL = 30
_PATIENCE_S = 60.0  # a control API that is gone for longer while a version is built is given up
_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Deployment:
    """What to deploy, and how. `alias` None: build it and do not publish."""

    directory: Path
    name: str
    namespace: str
    config: dict[str, Any]
    alias: str | None

    @property
    def path(self) -> str:
        return f"/functions/{self.name}"


def read(
    directory: Path,
    *,
    name: str | None,
    namespace: str,
    file: Path | None,
    pairs: Sequence[str],
    env: Sequence[str],
    alias: str | None,
) -> Deployment:
    """The deployment that the options of the command line describe; raises `Invalid` when they make none."""
    directory = project.check_directory(directory)
    function = project.function_name(directory, name)
    config = project.read_config(directory, file, pairs, env)
    return Deployment(directory, function, namespace, config, alias)


def deploy(out: Output, control: Control, deployment: Deployment) -> dict[str, Any]:
    """Deploy and publish; what came of it: `function`, `namespace`, `version`, `created`, `url`, and the `move`.

    Raises `BuildFailed` with the reason and the end of the build log.
    """
    with out.working(f"Packing {deployment.directory}") as work:
        version, created = _upload(control, deployment, work)
        number = version["number"]
        if not created:
            work.note(f"Nothing has changed: this is version {number} already.")
        _build(control, deployment, version, work)
        move = None
        if deployment.alias is not None:
            work.step(f"Publishing version {number} as {deployment.alias}")
            body = {"version": number, "alias": deployment.alias}
            move = control.send("POST", f"{deployment.path}/publish", body, namespace=deployment.namespace)
    function = control.get(deployment.path, namespace=deployment.namespace)
    place = {None: f"@{number}", LIVE: ""}.get(deployment.alias, f"@{deployment.alias}")
    return {
        "function": deployment.name,
        "namespace": deployment.namespace,
        "version": number,
        "created": created,
        "url": function["url"] + place,
        "move": move,
    }


def _upload(control: Control, deployment: Deployment, work: Work) -> tuple[dict[str, Any], bool]:
    if deployment.config.get("image") is not None:
        return control.upload(f"{deployment.path}/versions", None, deployment.config, namespace=deployment.namespace)
    with project.pack(deployment.directory) as bundle:
        size = bundle.seek(0, 2)
        bundle.seek(0)
        work.step(f"Uploading {bytes_text(size)}")
        return control.upload(f"{deployment.path}/versions", bundle, deployment.config, namespace=deployment.namespace)


def _build(control: Control, deployment: Deployment, version: dict[str, Any], work: Work) -> None:
    """Follow the build until the version is ready, even when the control API restarts meanwhile."""
    number = version["number"]
    path = f"{deployment.path}/versions/{number}"
    tail: deque[str] = deque(maxlen=_TAIL)
    after = ""
    answered = time.monotonic()
    if version["state"] not in _ENDED:
        work.step(f"Building version {number}")
    while version["state"] not in _ENDED:
        try:
            for event in control.events(f"{path}/build-log", after, namespace=deployment.namespace):
                answered = time.monotonic()
                after = event.id
                if event.kind == "message":
                    tail.append(event.data)
                    work.step(event.data)
            version = control.get(path, namespace=deployment.namespace)
        except Unreachable:
            if time.monotonic() - answered > _PATIENCE_S:
                raise
            time.sleep(_PAUSE_S)
    if version["state"] != "ready":
        reason = version["reason"] or "somebody has deleted it."
        log = "" if work.kept else "\n".join(line for line in tail if reason not in line)
        raise BuildFailed(f"version {number} of {deployment.name} has not become ready: {reason}", log=log)


def published(control: Control, deployment: Deployment) -> dict[str, Any] | None:
    """The alias that the deployment would move, None when it leads nowhere yet."""
    try:
        aliases = control.get(f"{deployment.path}/aliases", namespace=deployment.namespace)["items"]
    except NotFound:
        return None
    return next((alias for alias in aliases if alias["alias"] == deployment.alias), None)


def report_published(out: Output, deployment: Deployment, alias: dict[str, Any], *, json: bool) -> None:
    """Say that the deployment was left out, and where its alias leads."""
    if json:
        out.document(alias)
        return
    out.line(f"{deployment.name} has a {alias['alias']} version already: {traffic_text(alias['traffic'])}.")
    out.note(f"It stays as it is. Move it with: headrace deploy {deployment.directory}")


def report(out: Output, result: dict[str, Any]) -> None:
    """Say where the deployed version answers."""
    name = f"{result['function']}@{result['version']}"
    if result["move"] is None:
        out.line(f"{name} is ready: {result['url']}", "bold green")
        out.note(f"Publish it with: headrace publish {result['function']} {result['version']}")
    else:
        out.line(f"{name} is {result['move']['alias']}: {result['url']}", "bold green")
