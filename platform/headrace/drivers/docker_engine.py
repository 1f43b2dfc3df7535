"""Instances as Docker containers.

Nothing is remembered but what is under way: the engine knows the rest, by names and labels that carry the home.
Requests to it can't be interrupted, so a start whose caller was cancelled is undone when it ends; `stop` of the same
instance waits for that start first, and so never misses what it would bring.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
from collections.abc import Callable
from typing import Any

from docker import APIClient
from docker.errors import NotFound

from headrace import runtimes
from headrace.drivers import containers, sandbox
from headrace.drivers.base import BuildSpec, EngineInfo, InstanceSpec, InstanceStatus
from headrace.drivers.carried import Carrier
from headrace.drivers.docker_build import DockerBuilds
from headrace.drivers.engine import Engine
from headrace.drivers.guest import GuestImage
from headrace.drivers.image_build import GuestImages
from headrace.drivers.images import Images
from headrace.drivers.install import show_layer
from headrace.errors import EngineUnavailable
from headrace.model import Runtime
from headrace.settings import Settings

_NEEDED = {"MemoryLimit": "memory limits", "PidsLimit": "process limits", "CpuCfsQuota": "CPU limits"}


class DockerDriver:
    """`Driver` on the Docker engine behind `settings.engine_socket`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._home = settings.home_tag
        self._engine = Engine(settings.engine_socket)
        self._images = Images(self._engine, settings)
        self._builds = DockerBuilds(self._engine, settings)
        self._guests = GuestImages(self._engine, self._images, settings)
        self._carrier = Carrier(self._engine, settings)
        self._starting: dict[str, asyncio.Task[None]] = {}

    async def check(self) -> EngineInfo:
        info = await self._engine.call("looking at the Docker engine", lambda client: client.info())
        missing = [what for name, what in _NEEDED.items() if not info.get(name)]
        if missing:
            raise EngineUnavailable(
                f"the Docker engine can't enforce {', '.join(missing)}, and without them a function could harm others. "
                "Enable the memory, pids and cpu cgroup controllers; a rootless engine needs them delegated."
            )
        detail = (
            f"{info['OperatingSystem']}, {info['NCPU']} CPUs, {info['MemTotal'] >> 20} MiB, "
            f"cgroup v{info['CgroupVersion']}, {info['DefaultRuntime']}, {info['Driver']}"
        )
        return EngineInfo("docker", info["ServerVersion"], True, detail)

    async def prepare(self, runtime: Runtime) -> str:
        await self._engine.call("making the network of instances", containers.ensure_network)
        found = runtimes.get(runtime)
        image = await self._images.ensure(found)
        await self._carrier.ensure(found)
        await self._engine.call("removing abandoned builds", self._builds.sweep)
        return image

    async def start(self, spec: InstanceSpec) -> None:
        starting = self._engine.keep(self._start(spec), f"start instance {spec.id}")
        self._starting[spec.id] = starting
        starting.add_done_callback(lambda _: self._starting.pop(spec.id))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._engine.keep(self.stop(spec.id), f"undo the start of instance {spec.id}")
            raise

    async def _start(self, spec: InstanceSpec) -> None:
        name = sandbox.container_name(self._home, spec.id)
        if not self._carrier.there(runtimes.get(spec.runtime)):
            await self.prepare(spec.runtime)
        config = self._config(spec)
        doing = f"starting instance {spec.id}"
        if not await self._engine.call(doing, lambda client: containers.create_and_start(client, name, config)):
            await self.prepare(spec.runtime)  # somebody has removed the image or the network
            if not await self._engine.call(doing, lambda client: containers.create_and_start(client, name, config)):
                raise EngineUnavailable(f"{doing} failed: {self._what_is_missing(spec, config)}")

    def _config(self, spec: InstanceSpec) -> dict[str, Any]:
        runtime = runtimes.get(spec.runtime)
        if runtime.carried is not None:
            if spec.layer_dir is None:
                raise EngineUnavailable(f"instance {spec.id} names no image to start.")
            image, carried = GuestImage.read(spec.layer_dir), self._carrier.directory(runtime)
            return sandbox.guest_config(spec, image, runtime.shim.command, self._home, carried)
        show_layer(spec, sandbox.LAYER)
        return sandbox.instance_config(spec, runtime.image_name(self._settings), runtime.shim.command, self._home)

    def _what_is_missing(self, spec: InstanceSpec, config: dict[str, Any]) -> str:
        if runtimes.get(spec.runtime).carried is not None:
            return (
                f"the image {config['Image']} of this version is not in the engine any more. Deploy it again, or bring "
                "the image back (`docker pull`, `docker load`)."
            )
        return "its image or network vanishes. Look at the engine's log."

    async def stop(self, id: str) -> None:
        if (starting := self._starting.get(id)) is not None:
            await asyncio.wait([starting])
        name = sandbox.container_name(self._home, id)
        removal = self._engine.call(f"stopping instance {id}", lambda client: containers.remove(client, name))
        await asyncio.shield(self._engine.keep(removal, f"stop instance {id}"))

    async def adjust(
        self, id: str, *, memory_mb: int | None = None, cpus: float | None = None, frozen: bool | None = None
    ) -> None:
        name = sandbox.container_name(self._home, id)
        limits = {} if memory_mb is None else sandbox.memory_limits(memory_mb)
        limits |= {} if cpus is None else sandbox.cpu_limits(cpus)

        def work(client: APIClient) -> None:
            with contextlib.suppress(NotFound):
                if frozen is False:
                    containers.freeze(client, name, frozen=False)
                if limits:
                    client.update_container(name, **limits)
                if frozen:
                    containers.freeze(client, name, frozen=True)

        await self._engine.call(f"adjusting instance {id}", work)

    async def inspect(self, id: str) -> InstanceStatus | None:
        name = sandbox.container_name(self._home, id)
        doing = f"inspecting instance {id}"
        return await self._engine.call(doing, lambda client: containers.status(client, name, tail=True))

    async def list(self) -> builtins.list[InstanceStatus]:
        return await self._engine.call("listing instances", lambda client: containers.statuses(client, self._home))

    async def build(self, spec: BuildSpec, on_line: Callable[[str], None]) -> None:
        await self.prepare(spec.runtime)
        if runtimes.get(spec.runtime).carried is not None:
            await self._guests.make(spec, on_line)
        else:
            await self._builds.run(spec, on_line)

    async def tidy(self) -> None:
        await self._engine.call("removing abandoned builds", self._builds.sweep)
        await self._guests.tidy()
        await asyncio.to_thread(self._carrier.tidy)

    async def close(self) -> None:
        await self._engine.close()
        await self._builds.close()
