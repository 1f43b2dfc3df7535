"""From LOAD to a program that serves: its command and environment, and the wait until it is ready."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from headrace_shim.errors import Plain

from .app import ImageApp
from .guest import Guest
from .ready import wait_until_ready

if TYPE_CHECKING:
    from headrace_shim.logs import Log

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class RunsAsRoot(Plain):
    """The image names a user that is root."""


def load(spec: dict[str, Any], code: str, layer: str | None, instance: str, log: Log) -> ImageApp:
    """The program of the image that `layer` describes, not started yet: `ImageApp.start` does that."""
    if os.geteuid() == 0:
        raise RunsAsRoot("the image's USER is root under another name: give it a USER with an id of its own.")
    if layer is None:
        raise ValueError("this instance was given no image")
    with open(os.path.join(layer, "image.json"), encoding="utf-8") as file:  # noqa: PTH118, PTH123
        image: dict[str, Any] = json.load(file)
    options = spec["image"]
    port = int(options["port"])
    guest = Guest(image["command"], environment(image, spec, port), image["workdir"] or "/", log)

    async def ready() -> None:
        await wait_until_ready(guest, port, options["ready_path"], options["start_timeout_s"])

    return ImageApp(guest, port, ready, log)


def environment(image: dict[str, Any], spec: dict[str, Any], port: int) -> dict[str, str]:
    """The image's own variables, above them the version's, above them the platform's."""
    own = {
        "PORT": str(port),
        "HEADRACE_FUNCTION": spec["function"],
        "HEADRACE_NAMESPACE": spec["namespace"],
        "HEADRACE_VERSION": str(spec["version"]),
    }
    return {"PATH": _PATH, "HOME": "/tmp", **image["env"], **spec["env"], **own}  # noqa: S108
