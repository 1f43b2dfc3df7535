"""Installing dependencies inside the sandbox.

A build owns its container: whatever ends the build removes it. A build whose process was killed can't, so each
container names the process in a label, and `sweep` removes those of dead processes. Should nobody ever
come back, the installer's own `timeout` ends it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from docker import APIClient

from headrace import runtimes
from headrace.drivers import containers, sandbox
from headrace.drivers.base import BuildSpec
from headrace.drivers.containers import Output
from headrace.drivers.engine import Engine
from headrace.drivers.install import Lines, dependencies_of, package_source, took_too_long
from headrace.drivers.procfs import process_tag
from headrace.drivers.result import settle, too_large
from headrace.errors import BuildFailed
from headrace.runtimes import Dependencies
from headrace.settings import Settings
from headrace.tasks import Tasks

T = TypeVar("T")
_AT_ONCE = 4


class DockerBuilds:
    """Runs builds on one engine, a few at a time."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._home = settings.home_tag
        self._tasks = Tasks()
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._readers = ThreadPoolExecutor(2 * _AT_ONCE, thread_name_prefix="docker-build")

    async def run(self, spec: BuildSpec, on_line: Callable[[str], None]) -> None:
        """As `Driver.build`. The image and the network exist already."""
        runtime = runtimes.get(spec.runtime)
        wanted = dependencies_of(runtime)
        source = await package_source(self._settings, runtime, sandbox.OUT)
        config = sandbox.build_config(
            spec,
            runtime.image_name(self._settings),
            wanted.install,
            self._home,
            owner=process_tag(os.getpid()),
            env=source.env if source.ca_bundle is None else source.trusting(sandbox.CA_BUNDLE),
            ca_bundle=source.ca_bundle,
        )
        name = sandbox.build_name(self._home, spec.id)
        lines = Lines(source.hidden, on_line, wanted.noise, wanted.errors, wanted.vague)
        sandbox.open_for_writing(spec.out_dir)
        async with self._free:
            doing = f"building {spec.id}"
            create = self._engine.call(doing, lambda client: containers.create_attached(client, name, config))
            creating = self._engine.keep(create, f"create build {spec.id}")
            try:
                state = await self._install(spec, name, await asyncio.shield(creating), lines)
            finally:
                await asyncio.shield(self._engine.keep(self._clean_up(creating, name), f"remove build {spec.id}"))
        await asyncio.to_thread(settle, spec.out_dir)
        _judge(spec, wanted, state, lines)

    def sweep(self, client: APIClient) -> None:
        """Remove the containers of builds whose process is dead."""
        labels = [f"{sandbox.LABEL_HOME}={self._home}", f"{sandbox.LABEL_ROLE}={sandbox.ROLE_BUILD}"]
        for item in client.containers(all=True, filters={"label": labels}):
            owner = item["Labels"][sandbox.LABEL_OWNER]
            if process_tag(int(owner.partition("-")[0])) != owner:
                containers.remove(client, item["Id"])

    async def close(self) -> None:
        await self._tasks.aclose()
        self._readers.shutdown(wait=False)

    async def _install(self, spec: BuildSpec, name: str, output: Output, lines: Lines) -> dict[str, Any]:
        why: list[BuildFailed] = []
        measuring = self._tasks.spawn(self._stop_when_too_large(spec, name, why), f"measure build {spec.id}")
        try:
            async with asyncio.timeout(spec.timeout_s):
                while (data := await self._in_thread(output.read)) is not None:
                    lines.feed(data)
            lines.end()
        except TimeoutError:
            raise took_too_long(spec, lines) from None
        finally:
            measuring.cancel()
        if why:
            raise why[0]
        return await self._engine.call(f"building {spec.id}", lambda client: containers.final_state(client, name))

    async def _clean_up(self, creating: asyncio.Task[Output], name: str) -> None:
        """Creating can't be interrupted: what it brings is removed when it has ended."""
        await asyncio.wait([creating])
        await self._engine.call("removing a build", lambda client: containers.remove(client, name))
        if creating.exception() is None:
            await self._in_thread(creating.result().close)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Threads of their own: reading waits for as long as the build is silent."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def _stop_when_too_large(self, spec: BuildSpec, name: str, why: list[BuildFailed]) -> None:
        why.append(await too_large(spec.out_dir))  # before the container ends, and the wait for it
        await self._engine.call("stopping a build", lambda client: containers.kill(client, name))


def _judge(spec: BuildSpec, wanted: Dependencies, state: dict[str, Any], lines: Lines) -> None:
    if state["OOMKilled"]:
        raise BuildFailed(f"installing the dependencies needs more than {spec.memory_mb} MiB. {wanted.memory_advice}")
    if state["ExitCode"] != 0:
        raise BuildFailed(f"the dependencies could not be installed: {lines.reason()}. Correct {wanted.file}.")
