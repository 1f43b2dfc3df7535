"""The image that a version brings: what the engine says of it, kept as a layer of one small file.

The layer pins the image by its id, so that a rollback runs the same bytes, and is named by its own content. The image
has a tag with that name for as long as the layer is there, which keeps the engine from removing it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace.errors import BuildFailed

FILE = "image.json"
_LARGEST_ID = 2**31 - 1
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class GuestImage:
    """`command` is ENTRYPOINT and CMD in one; `user` is `uid:gid`, empty when the image names none, or root."""

    id: str
    command: list[str]
    env: dict[str, str]
    user: str
    workdir: str
    volumes: list[str]

    def write(self, directory: Path) -> str:
        """Put it down as the layer in `directory`; the layer's digest."""
        text = json.dumps(asdict(self), sort_keys=True, indent=1)
        (directory / FILE).write_text(text, encoding="utf-8")
        (directory / FILE).chmod(0o644)
        return layer_of(directory)

    @staticmethod
    def read(directory: Path) -> GuestImage:
        return GuestImage(**json.loads((directory / FILE).read_text(encoding="utf-8")))


def layer_of(directory: Path) -> str:
    """The digest of the layer in `directory`."""
    return hashlib.sha256((directory / FILE).read_bytes()).hexdigest()


def guest_image(found: dict[str, Any], passwd: str = "", group: str = "") -> GuestImage:
    """From what the engine's inspection says, and the image's own `/etc/passwd` and `/etc/group`.

    Raises `BuildFailed` for an image that can't run here.
    """
    machine = _MACHINES.get(platform.machine(), platform.machine())
    if found["Os"] != "linux" or found["Architecture"] != machine:
        raise BuildFailed(
            f"the image is for {found['Os']}/{found['Architecture']} and this machine is linux/{machine}: "
            "use or build one for it."
        )
    config = found["Config"] or {}
    command = [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]
    if not command:
        raise BuildFailed("the image has neither ENTRYPOINT nor CMD: say in its Dockerfile what it runs.")
    pairs = (line.partition("=") for line in config.get("Env") or [])
    return GuestImage(
        id=found["Id"],
        command=command,
        env={name: value for name, _, value in pairs},
        user=_user(config.get("User") or "", passwd, group),
        workdir=config.get("WorkingDir") or "/",
        volumes=sorted(config.get("Volumes") or {}),
    )


def _user(name: str, passwd: str, group: str) -> str:
    """USER as numbers, found as the engine finds them; empty for none and for root, whatever its name is."""
    wanted, _, wanted_group = name.partition(":")
    if not wanted:
        return ""
    entry = _entry(passwd, wanted, 4)
    if entry is not None:
        uid, gid = _number(entry[2]), _number(entry[3])
    elif (uid := _number(wanted)) is not None:
        gid = 0
    else:
        raise BuildFailed(
            f"USER {name[:80]!r} is not in the image's /etc/passwd: add it there, or name it by its number."
        )
    if wanted_group:
        found = _entry(group, wanted_group, 3)
        gid = _number(found[2] if found is not None else wanted_group)
    if uid is None or gid is None:
        raise BuildFailed(
            f"USER {name[:80]!r}: its group is not in the image's /etc/group, or a number is out of range."
        )
    return f"{uid}:{gid}" if uid else ""


def _entry(table: str, wanted: str, fields: int) -> list[str] | None:
    """The line of a passwd or group file with this name or number."""
    lines = (line.split(":") for line in table.splitlines())
    return next((line for line in lines if len(line) >= fields and wanted in (line[0], line[2])), None)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and int(text) <= _LARGEST_ID else None
