"""Images that versions bring: found in the engine, pulled, or built out of a Dockerfile by the engine's own builder.

A build gets no secret and no mount of the host. Its steps are bounded in memory, processes, time and in what they
write, take the CPU that calls leave, and sit in the network of instances, where nothing sees anything else. What the
engine remembers of a step serves the next build: the same lines over the same files are not run again.

Every image in use has a tag `headrace-image-<home>:<layer>`; `tidy` removes those whose layer is gone. What a failed
build has got done is kept for a day under a tag of its own, so that the next attempt goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import secrets
import tarfile
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import docker.utils
from docker import APIClient
from docker.errors import APIError, ImageNotFound, NotFound

from headrace import runtimes
from headrace.drivers import containers, dockerfile, sandbox
from headrace.drivers.base import BuildSpec
from headrace.drivers.engine import Engine
from headrace.drivers.engine_stream import events
from headrace.drivers.guest import guest_image
from headrace.drivers.images import Images, split_name
from headrace.drivers.install import Lines, package_source
from headrace.drivers.procfs import process_tag
from headrace.errors import BuildFailed, EngineUnavailable
from headrace.runtimes import Runtime
from headrace.settings import Settings
from headrace.tasks import Tasks

_AT_ONCE = 4
_REGISTRY_ANSWERS_S = 20.0  # for the first word of a pull
_STALLS_S = 120.0  # no progress of a pull for so long
_LARGEST = 4 << 30  # bytes that one step writes
_LARGEST_IMAGE = 8 << 30  # bytes
_MEASURE_S = 2.0
_PROCESSES = 512
_CPU_SHARES = 128  # of 1024: a build takes the CPU that calls leave
_UNFINISHED_S = 86_400.0
_UNUSED_S = 3600.0  # longer than anything takes between tagging an image and keeping its layer
_STEP = re.compile(r"^Step \d+/\d+ : (?P<what>\w+)")
_RUNNING = re.compile(r"^ ---> Running in (?P<id>[0-9a-f]{12,64})")
_DONE = re.compile(r"^ ---> (?P<id>[0-9a-f]{12,64})$")
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_MOST_PIECES = 4  # of two MiB, of a file that is read out of an image
_CA_PLACE = "/etc/ssl/certs/ca-certificates.crt"
_WORDY = re.compile(r"^(Removing intermediate container|Successfully built|\[Warning\] One or more build-args)")


class GuestImages:
    """Gets the images of versions into one engine, and out of it."""

    def __init__(self, engine: Engine, images: Images, settings: Settings) -> None:
        self._engine = engine
        self._images = images
        self._settings = settings
        self._notes = settings.home / "images"
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._used = f"headrace-image-{settings.home_tag}"
        self._unfinished = f"headrace-unfinished-{settings.home_tag}"

    async def make(self, spec: BuildSpec, on_line: Callable[[str], None]) -> None:
        """As `Driver.build`. The network exists already. Raises `BuildFailed`."""
        try:
            async with self._free, asyncio.timeout(spec.timeout_s):
                name = await self._found(spec.image, on_line) if spec.image else await self._built(spec, on_line)
                await self._keep(name, spec.out_dir, on_line)
        except TimeoutError:
            raise BuildFailed(
                f"making the image took longer than {spec.timeout_s:g} s: do less in the {dockerfile.NAME}."
            ) from None

    async def tidy(self) -> None:
        await self._engine.call("removing unused images", self._tidy)

    # -- an image by name

    async def _found(self, reference: str, on_line: Callable[[str], None]) -> str:
        if await self._inspect(reference) is not None:
            on_line(f"The image {reference} is in the engine.")
            return reference
        if reference.startswith("sha256:"):
            raise BuildFailed(f"the image {reference} is not in the engine, and no registry knows an image by its id.")
        on_line(f"Pulling the image {reference}.")
        repository, tag = split_name(reference)
        fault = "its registry does not answer"
        async for event in self._patiently("/images/create", {"fromImage": repository, "tag": tag}):
            if "error" in event:
                fault = str(event["error"])[:300]
                break
            if event.get("status") in ("Pull complete", "Download complete"):
                on_line(f"{event['status']}: {event.get('id', '')}")
        else:
            if await self._inspect(reference) is not None:
                return reference
        raise BuildFailed(
            f"the image {reference} is not in the engine, and no registry gives it ({fault.strip().rstrip('.')}). "
            f"Correct its name, or get it with `docker pull {reference}` or `docker load` and deploy again."
        )

    async def _patiently(self, path: str, params: dict[str, str]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a pull; they end early when nothing comes for too long."""
        patience = _REGISTRY_ANSWERS_S
        async with aclosing(self._events(path, params)) as coming:
            while True:
                try:
                    async with asyncio.timeout(patience):
                        event = await anext(coming, None)
                except TimeoutError:
                    yield {"error": f"its registry said nothing for {patience:g} s"}
                    return
                if event is None:
                    return
                patience = _STALLS_S
                yield event

    # -- a Dockerfile

    async def _built(self, spec: BuildSpec, on_line: Callable[[str], None]) -> str:
        text = await asyncio.to_thread(dockerfile.read, spec.code_dir)
        args: dict[str, str] = {}
        hidden: tuple[str, ...] = ()
        errors: tuple[str, ...] = ()
        for runtime in map(runtimes.get, runtimes.names()):
            if _base_arg(runtime) in text:
                base, own, secret = await self._base(runtime)
                args |= {**own, _base_arg(runtime): base}
                hidden += secret
                errors += runtime.dependencies.errors if runtime.dependencies is not None else ()
        lines = Lines(hidden, on_line, errors=errors)
        with tempfile.TemporaryDirectory(prefix="headrace-") as directory:
            context = Path(directory) / "context.tar"
            await asyncio.to_thread(_pack, spec.code_dir, context)
            return await _Build(self, spec, lines).run(context, args)

    async def _base(self, runtime: Runtime) -> tuple[str, dict[str, str], tuple[str, ...]]:
        """The base image of `runtime` for a Dockerfile, what its installer has to know, and what nobody is to see.

        It trusts the same certificates as this machine, because builds may reach their registries through a proxy that
        has its own.
        """
        await self._images.ensure(runtime)
        base = runtime.image_name(self._settings)
        if runtime.dependencies is None:
            return base, {}, ()
        source = await package_source(self._settings, runtime, "/tmp")  # noqa: S108 - not used for building
        unwanted = runtime.dependencies.env.keys()
        env = {name: value for name, value in source.env.items() if name not in unwanted and "@" not in value}
        if source.ca_bundle is None:
            return base, env, source.hidden
        certificates = await asyncio.to_thread(source.ca_bundle.read_bytes)
        mark = hashlib.sha256(base.encode() + b"\0" + certificates).hexdigest()[:16]
        trusting = f"headrace-base-{runtime.name}:{mark}"
        if await self._inspect(trusting) is None:
            await self._make_trusting(base, trusting, certificates, source.ca_env)
        return trusting, env, source.hidden

    async def _make_trusting(self, base: str, name: str, certificates: bytes, variables: tuple[str, ...]) -> None:
        with tempfile.TemporaryDirectory(prefix="headrace-") as directory:
            root = Path(directory) / "root"
            root.mkdir()
            (root / "ca.pem").write_bytes(certificates)
            lines = [f"FROM {base}", f"COPY ca.pem {_CA_PLACE}", *(f"ENV {name}={_CA_PLACE}" for name in variables)]
            (root / dockerfile.NAME).write_text("\n".join(lines) + "\n")
            context = Path(directory) / "context.tar"
            await asyncio.to_thread(_pack, root, context)
            params = {"t": name, "rm": "1", "forcerm": "1"}
            async with aclosing(self._events("/build", params, context)) as coming:
                async for event in coming:
                    if "error" in event:
                        raise BuildFailed(f"the base image for Dockerfiles could not be made: {event['error']}")

    # -- in the engine

    def events_of_build(self, params: dict[str, str], context: Path) -> AsyncGenerator[dict[str, Any], None]:
        return self._events("/build", params, context)

    async def limit(self, container: str) -> None:
        """Bound the processes of a step that has just begun, and end it when it writes too much."""
        with contextlib.suppress(NotFound, ImageNotFound):
            await self._engine.call("limiting a build", lambda client: _limit(client, container))
        while True:
            if await self._engine.call("measuring a build", lambda client: _too_large(client, container)):
                return
            await asyncio.sleep(_MEASURE_S)

    def keep_unfinished(self, image: str) -> None:
        """What a build has got done that fails or is cut off is its next attempt's."""

        async def keep() -> None:
            with contextlib.suppress(EngineUnavailable):
                work = "keeping what a build got done"
                await self._engine.call(work, lambda client: self._tag(client, image, self._unfinished, image))

        self._engine.keep(keep(), f"keep {image}")

    async def _keep(self, name: str, out_dir: Path, on_line: Callable[[str], None]) -> None:
        found = await self._inspect(name)
        if found is None:
            raise BuildFailed(f"the image {name} was removed from the engine while it was looked at: deploy again.")
        if found["Size"] > _LARGEST_IMAGE:
            raise BuildFailed(
                f"the image takes {found['Size'] >> 20} MiB and may take {_LARGEST_IMAGE >> 20}: leave some out."
            )
        config = found["Config"] or {}
        tables = ["", ""]
        if config.get("User"):
            tables = await self._engine.call("reading the users of an image", lambda client: self._users(client, found))
        image = guest_image(found, *tables)
        if not image.user:
            on_line(
                f"The image names no unprivileged USER: its program runs as user {sandbox.SANDBOX_USER}, in a root "
                "file system that can't be written but for /tmp."
            )
        layer = image.write(out_dir)
        await self._engine.call("keeping an image", lambda client: self._tag(client, image.id, self._used, layer))

    async def _inspect(self, name: str) -> dict[str, Any] | None:
        return await self._engine.call(f"looking for the image {name}", lambda client: _inspect(client, name))

    def _events(
        self, path: str, params: dict[str, str], body: Path | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        return events(self._settings.engine_socket, path, params, body)

    def _users(self, client: APIClient, found: dict[str, Any]) -> list[str]:
        """`/etc/passwd` and `/etc/group` of an image, out of a container that never runs."""
        name = sandbox.build_name(self._settings.home_tag, f"users-{secrets.token_hex(8)}")
        labels = sandbox.build_labels(self._settings.home_tag, process_tag(os.getpid()))
        try:
            config = {"Image": found["Id"], "Entrypoint": ["/nothing"], "Labels": labels, "HostConfig": {}}
            client.create_container_from_config(config, name)
            return [_text_file(client, name, path) for path in ("/etc/passwd", "/etc/group")]
        finally:
            containers.remove(client, name)

    def _tag(self, client: APIClient, image: str, repository: str, tag: str) -> None:
        self._notes.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self._notes / tag).touch()
        client.tag(image, repository, tag)

    def _tidy(self, client: APIClient) -> None:
        for repository, kept_s in ((self._used, _UNUSED_S), (self._unfinished, _UNFINISHED_S)):
            for item in client.images(name=repository):
                for name in item["RepoTags"] or []:
                    ours, _, tag = name.rpartition(":")
                    if ours == repository and not (
                        self._settings.layer_dir(tag).is_dir() or _younger(self._notes / tag, kept_s)
                    ):
                        with contextlib.suppress(NotFound, ImageNotFound, APIError):  # an instance of it is still there
                            client.remove_image(name)
                            (self._notes / tag).unlink(missing_ok=True)


class _Build:
    """One build by the engine, from its first event to the id of its image."""

    def __init__(self, images: GuestImages, spec: BuildSpec, lines: Lines) -> None:
        self._images = images
        self._spec = spec
        self._lines = lines
        self._tasks = Tasks()
        self._limits: asyncio.Task[None] | None = None
        self._done = ""  # the image of the last step that is complete
        self._pulling = False

    async def run(self, context: Path, args: dict[str, str]) -> str:
        memory = self._spec.memory_mb << 20
        params = {
            "buildargs": json.dumps(args),
            "memory": str(memory),
            "memswap": str(memory),
            "cpushares": str(_CPU_SHARES),
            "networkmode": sandbox.EGRESS_NETWORK,
            "rm": "1",
            "forcerm": "1",
        }
        try:
            async with aclosing(self._images.events_of_build(params, context)) as coming:
                while True:
                    async with asyncio.timeout(_REGISTRY_ANSWERS_S if self._pulling else None):
                        event = await anext(coming, None)
                    if event is None:
                        raise BuildFailed("the engine ended the build without an image. Deploy again.")
                    if "error" in event:
                        raise BuildFailed(self._reason(str(event["error"])))
                    if "ID" in (event.get("aux") or {}):
                        return str(event["aux"]["ID"])
                    self._take(event)
        except TimeoutError:
            raise BuildFailed(
                f"an image that the {dockerfile.NAME} starts FROM is not in the engine, and its registry said nothing "
                f"for {_REGISTRY_ANSWERS_S:g} s. Get it with `docker pull`, or start from a base image of Headrace."
            ) from None
        except BaseException:
            if self._done:
                self._images.keep_unfinished(self._done)
            raise
        finally:
            await self._tasks.aclose()

    def _take(self, event: dict[str, Any]) -> None:
        if "stream" not in event:
            self._pulling = False  # it has begun, and the engine says how it goes on
            return
        text = str(event["stream"])
        for line in text.splitlines():
            step = _STEP.match(line)
            if step is not None:
                self._pulling = step["what"].upper() == "FROM"
            elif (running := _RUNNING.match(line)) is not None:
                self._pulling = False
                self._restrain(running["id"])
                continue
            elif (done := _DONE.match(line)) is not None:
                self._pulling = False
                self._done = done["id"]
                continue
            shown = _COLOURS.sub("", line)
            if shown.strip() and not _WORDY.match(shown):
                self._lines.feed(shown.encode() + b"\n")
            if step is not None:
                self._lines.forget()

    def _restrain(self, container: str) -> None:
        if self._limits is not None:
            self._limits.cancel()
        self._limits = self._tasks.spawn(self._images.limit(container), f"limit build {self._spec.id}")

    @property
    def _overgrown(self) -> bool:
        """The running step was ended because it wrote too much."""
        watch = self._limits
        return watch is not None and watch.done() and not watch.cancelled() and watch.exception() is None

    def _reason(self, error: str) -> str:
        if self._overgrown:
            return (
                f"a step of the {dockerfile.NAME} wrote more than {_LARGEST >> 30} GiB: leave out what is not needed."
            )
        text = f"the {dockerfile.NAME} could not be built: {error.strip().rstrip('.')}."
        if "returned a non-zero code: 137" in error:
            text += f" The step needs more than {self._spec.memory_mb} MiB of memory, or was killed."
        elif "returned a non-zero code" in error:
            text += f" It said: {self._lines.reason()}"
        return text


def _base_arg(runtime: Runtime) -> str:
    """The build argument that names the base image of `runtime`."""
    return f"HEADRACE_BASE_{runtime.name.replace('-', '_').upper()}"


def _pack(code_dir: Path, archive: Path) -> None:
    """The bundle as the builder wants it, without what its .dockerignore names."""
    ignored: list[str] = []
    rules = code_dir / ".dockerignore"
    if rules.is_file():
        lines = (line.strip() for line in rules.read_text(encoding="utf-8", errors="replace").splitlines())
        ignored = [line for line in lines if line and not line.startswith("#")]
    with archive.open("wb") as file:
        docker.utils.tar(
            str(code_dir), exclude=[*ignored, f"!{dockerfile.NAME}"], dockerfile=(dockerfile.NAME, None), fileobj=file
        )


def _inspect(client: APIClient, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = client.inspect_image(name)
    except ImageNotFound:
        return None
    return found


def _text_file(client: APIClient, container: str, path: str) -> str:
    """A small file of a container; empty when it is not there, is too large, or is no file."""
    try:
        pieces, _ = client.get_archive(container, path)
        packed = b"".join(itertools.islice(pieces, _MOST_PIECES))
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            file = archive.extractfile(archive.getmembers()[0])
            return file.read().decode("utf-8", "replace") if file is not None else ""
    except (NotFound, tarfile.TarError, KeyError, IndexError):
        return ""


def _limit(client: APIClient, container: str) -> None:
    url = f"{client.base_url}/v{client.api_version}/containers/{container}/update"
    client.post(url, json={"PidsLimit": _PROCESSES})


def _too_large(client: APIClient, container: str) -> bool:
    """Whether the step has written too much; then it is killed. False, too, when it has ended."""
    url = f"{client.base_url}/v{client.api_version}/containers/{container}/json"
    answer = client.get(url, params={"size": "1"})
    if not answer.ok or int(answer.json().get("SizeRw") or 0) <= _LARGEST:
        return False
    with contextlib.suppress(APIError):
        client.kill(container)
    return True


def _younger(path: Path, seconds: float) -> bool:
    try:
        return path.stat().st_mtime > time.time() - seconds
    except FileNotFoundError:
        return False
