"""The base image of each runtime: taken from a registry when one answers, else made on this machine.

An image is named by its recipe, which stands in the runtime's manifest: same recipe, same name, so it is got once and
found at once ever after. `HEADRACE_BASE_IMAGE_<RUNTIME>` names one that is taken as it is.

Making it: `debootstrap` unpacks a minimal Debian below HOME, in a mount namespace of its own so that nothing stays
mounted whatever ends it, and the engine imports it without documentation and without setuid bits. The name
appears as the last step; what an earlier attempt left is removed by the next.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import requests
from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound

from headrace.drivers.engine import Engine
from headrace.errors import EngineUnavailable
from headrace.runtimes import Image, Runtime, filled
from headrace.settings import Settings

logger = logging.getLogger(__name__)

_REGISTRY_ANSWERS_S = 5  # longer than this for the first word, and the image is made here
_REGISTRY_STALLS_S = 60  # no progress of a download for this long
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SOURCES = (Path("/etc/apt/sources.list"), Path("/etc/apt/sources.list.d"))
_MIRROR = re.compile(r"^(?:URIs:|deb(?:\s+\[[^\]]*\])?)\s+(https?://\S+/debian/?)(?:\s|$)", re.MULTILINE)
_LOCK_POLL_S = 0.2
_STEPS = ("I: Retrieving", "I: Unpacking", "I: Configuring")  # one package each
_PROGRESS_EVERY = 20


class Images:
    """Gets base images into one engine."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._workshop = settings.home / "image"

    async def ensure(self, runtime: Runtime) -> str:
        """Make sure that the image of `runtime` exists; its id. Takes about a minute when it has to be made."""
        image = runtime.image_name(self._settings)
        if id := await self._id(image):
            return id
        async with self._alone():
            if id := await self._id(image):
                return id
            if image == self._settings.runtimes.get(runtime.image_setting):
                await self._fetch_chosen(image, runtime)
            elif not await self._fetch(runtime.image.pull, image):
                await self._make(runtime, image)
        return await self._id(image) or image

    async def _id(self, image: str) -> str:
        """Empty when the engine does not have it."""
        return await self._engine.call("looking for the base image", lambda client: _id(client, image))

    async def _fetch_chosen(self, image: str, runtime: Runtime) -> None:
        if not await self._fetch(image, image):
            raise EngineUnavailable(
                f"the image {image} is neither in the Docker engine nor does its registry give it. Get it with "
                f"`docker pull {image}`, or leave out HEADRACE_{runtime.image_setting}."
            )

    async def _fetch(self, source: str, image: str) -> bool:
        """Pull `source` and name it `image`; False when no registry gives it."""
        logger.info("base image: asking the registry for %s", source)
        abandoned = threading.Event()
        try:
            await self._engine.call("pulling the base image", lambda client: _pull(client, source, image, abandoned))
        except EngineUnavailable as error:
            logger.info("base image: no registry gives it (%s)", _shortly(error))
            return False
        finally:
            abandoned.set()
        return True

    async def _make(self, runtime: Runtime, image: str) -> None:
        self._check_tools(runtime)
        recipe = runtime.image
        logger.info("base image: making %s on this machine, about a minute, once", image)
        root, archive = self._workshop / "root", self._workshop / "root.tar"
        await asyncio.to_thread(shutil.rmtree, self._workshop, ignore_errors=True)
        self._workshop.mkdir(parents=True, mode=0o700)
        try:
            await _run(_debootstrap(recipe, root), "making the base image")
            if recipe.finish:
                logger.info("base image: adding what the distribution does not have")
                places: dict[str, str | Path] = {"self": sys.executable, "runtime": runtime.directory, "root": root}
                await _run(filled(recipe.finish, places), "completing the base image")
            logger.info("base image: packing")
            leave_out = [f"--exclude={pattern}" for pattern in recipe.leave_out]
            pack = ["tar", "-C", str(root), "--numeric-owner", "--mode=a-s", *leave_out, "-cf", str(archive), "."]
            await _run(pack, "packing the base image")
            logger.info("base image: handing it to the engine")
            await self._engine.call("importing the base image", lambda client: _import(client, archive, image))
        finally:
            await asyncio.to_thread(shutil.rmtree, self._workshop, ignore_errors=True)
        logger.info("base image: ready")

    def _check_tools(self, runtime: Runtime) -> None:
        missing = [tool for tool in ("debootstrap", "unshare", "tar") if shutil.which(tool) is None]
        if os.geteuid() == 0 and not missing:
            return
        way = (
            f"`apt-get install {' '.join(missing)}`" if missing else "`sudo ./platform/up` once, which makes it as root"
        )
        recipe = runtime.image
        raise EngineUnavailable(
            f"no registry gave {recipe.pull}, and it can't be made on this machine as it is. One of these helps: "
            f"{way}; `docker pull {recipe.pull}` where a registry is in reach; or HEADRACE_{runtime.image_setting} "
            f"with the name of an image that holds {recipe.holds}."
        )

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Processes of one home get an image one after the other."""
        self._settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._settings.home / "image.lock").open("w") as lock:
            while not _locked(lock.fileno()):  # noqa: ASYNC110 - held by another process, which wakes nobody
                await asyncio.sleep(_LOCK_POLL_S)
            yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _id(client: APIClient, image: str) -> str:
    try:
        return str(client.inspect_image(image)["Id"])
    except ImageNotFound:
        return ""


def _import(client: APIClient, archive: Path, image: str) -> None:
    repository, tag = image.split(":")
    answer = client.import_image_from_file(str(archive), repository, tag)
    if '"error"' in answer:
        raise DockerException(answer.strip()[-300:])


def _pull(client: APIClient, source: str, image: str, abandoned: threading.Event) -> None:
    """The engine sends nothing before its registry answers, so a dead one costs `_REGISTRY_ANSWERS_S`."""
    if not _id(client, source):
        next(_pulling(client, source, _REGISTRY_ANSWERS_S), None)
        for event in _pulling(client, source, _REGISTRY_STALLS_S):
            if abandoned.is_set():
                raise DockerException("given up")
            if event.get("status") == "Pull complete":
                logger.info("base image: pulled %s", event.get("id", ""))
    if source != image:
        repository, tag = image.split(":")
        client.tag(source, repository, tag)


def _pulling(client: APIClient, source: str, silence_s: int) -> Iterator[dict[str, Any]]:
    """The engine's progress events; ends early when not read on."""
    repository, tag = split_name(source)
    url = f"{client.base_url}/v{client.api_version}/images/create"
    params = {"fromImage": repository, "tag": tag}
    with client.post(url, params=params, stream=True, timeout=(_REGISTRY_ANSWERS_S, silence_s)) as answer:
        if not answer.ok:
            raise DockerException(answer.text.strip()[:300])
        for line in answer.iter_lines():
            event = json.loads(line)
            if "error" in event:
                raise DockerException(str(event["error"])[:300])
            yield event


def split_name(image: str) -> tuple[str, str]:
    """Repository, and tag or digest."""
    if "@" in image:
        repository, _, digest = image.partition("@")
        return repository, digest
    repository, separator, tag = image.rpartition(":")
    if not separator or "/" in tag:
        return image, "latest"
    return repository, tag


def _shortly(error: EngineUnavailable) -> str:
    cause = error.__cause__
    if isinstance(cause, requests.Timeout):
        return f"no answer within {_REGISTRY_ANSWERS_S} s"
    return "it was refused" if isinstance(cause, APIError | DockerException) else "it can't be reached"


def _debootstrap(recipe: Image, root: Path) -> list[str]:
    """The command."""
    keyring = [f"--keyring={_KEYRING}"] if _KEYRING.is_file() else []
    mirror = [found] if (found := debian_mirror()) else []
    include = "--include=" + ",".join(recipe.packages)
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase", *keyring, include, recipe.suite, str(root)]
    return [*command, *mirror]


def debian_mirror() -> str | None:
    """The Debian mirror that this machine's own apt uses; None: debootstrap knows one."""
    for place in _SOURCES:
        files = sorted([*place.glob("*.list"), *place.glob("*.sources")]) if place.is_dir() else [place]
        for file in files:
            if file.is_file() and (found := _MIRROR.search(file.read_text(errors="replace"))):
                return found[1]
    return None


async def _run(command: list[str], doing: str) -> None:
    """Run to the end, its progress logged; cancelling kills it with all its children."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    last, steps = "", 0
    try:
        async for raw in process.stdout:
            last = raw.decode(errors="replace").strip() or last
            steps += last.startswith(_STEPS)
            if last.startswith(_STEPS) and steps % _PROGRESS_EVERY == 1:
                logger.info("base image: %s", last.removeprefix("I: ").lower())
        code = await process.wait()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if code:
        raise EngineUnavailable(f"{doing} failed ({last or f'exit code {code}'}). See the requirements in README.md.")
