"""Everything that is done to one instance through the engine: launch, load, stop, ask why it died.

Each action makes its moves in order and leaves nothing half done: whatever goes wrong on the way, also a
cancellation, the sandbox is removed before the error goes on. Launches are few at a time, so that a burst of them
does not starve the calls that are running.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from headrace import errors, runtimes, wire
from headrace.drivers.base import Driver, InstanceSpec
from headrace.fleet.instance import Instance, Kind
from headrace.fleet.ports import Link, Switchboard
from headrace.model import DEFAULT_PORT, DEFAULT_RUNTIME, IMAGE_RUNTIME, InstanceState, Runtime, Version, VersionConfig
from headrace.runtimes import filled
from headrace.settings import Settings
from headrace.tasks import Tasks

logger = logging.getLogger(__name__)

_LAUNCHES = 4  # sandboxes that may be starting at once
_ENGINE_S = 60.0  # one request to the engine
_HELLO_S = 30.0
_IMAGE_S = 30.0  # until the program of an image is ready, unless its version says otherwise
_LOAD_S = 45.0  # less than anybody waits for an instance, so that who waits learns the reason
_SHUTDOWN_S = 10.0  # an application's own shutdown may take this long
_INSPECT_S = 2.0
DEFAULTS = VersionConfig.model_construct()
WAITING_MB = 48  # what a generic instance of any runtime holds at most, before there is code in it

T = TypeVar("T")
LogOf = Callable[[Version, str], Callable[[str, dict[str, object], bytes], None]]


class Yard:
    def __init__(self, driver: Driver, switchboard: Switchboard, settings: Settings, log_of: LogOf) -> None:
        self._driver = driver
        self._switchboard = switchboard
        self._settings = settings
        self._log_of = log_of
        self._launches = asyncio.Semaphore(_LAUNCHES)
        self._shims: dict[Runtime, Path] = {}
        self._tasks = Tasks()
        self.running: dict[str, Instance] = {}  # every instance that is not at its end
        self._urgent = 0  # launches and loads that calls wait for
        self.calm = asyncio.Event()  # there are none
        self.calm.set()

    async def launch(self, kind: Kind, config: VersionConfig, on_lost: Callable[[Instance], None]) -> Instance:
        """A sandbox with the limits of `config` that has dialled in and waits for LOAD, for a call that waits for it.

        Raises `EngineUnavailable`, `InstanceDied`.
        """
        with self._hurry():
            instance = await self._launch(kind, config, config.memory_mb, on_lost)
        instance.steps["launch"] = instance.start_ms
        return instance

    async def launch_ahead(self, kind: Kind, on_lost: Callable[[Instance], None]) -> Instance:
        """The same for nobody yet: it reserves `WAITING_MB`."""
        return await self._launch(kind, DEFAULTS, WAITING_MB, on_lost)

    @contextmanager
    def _hurry(self) -> Iterator[None]:
        self._urgent += 1
        self.calm.clear()
        try:
            yield
        finally:
            self._urgent -= 1
            if not self._urgent:
                self.calm.set()

    async def _launch(
        self, kind: Kind, config: VersionConfig, reserved_mb: int, on_lost: Callable[[Instance], None]
    ) -> Instance:
        instance = Instance(kind, config.memory_mb, config.cpus, self._settings.run_dir)
        instance.memory_mb = reserved_mb
        self.running[instance.id] = instance
        began = asyncio.get_running_loop().time()
        try:
            async with self._launches:
                instance.become(InstanceState.CREATING)
                instance.remember()
                link = instance.link = self._switchboard.link(instance.id, lambda: on_lost(instance))
                async with self._switchboard.listen(instance.directory / "s", link):
                    await self._ask(self._driver.start(self._spec(instance, config)))
                    instance.become(InstanceState.STARTING)
                    await self._hello(instance, link)
                    instance.become(InstanceState.WAITING)
        except BaseException:
            await self._scrap(instance, InstanceState.FAILED)
            raise
        instance.start_ms = (asyncio.get_running_loop().time() - began) * 1000
        return instance

    async def adopt(self, instance: Instance, on_lost: Callable[[Instance], None], patience_s: float) -> bool:
        """Wait for a running sandbox of an earlier node to dial in again; False (and removed) when it does not."""
        self.running[instance.id] = instance
        instance.become(InstanceState.STARTING)
        link = instance.link = self._switchboard.link(instance.id, lambda: on_lost(instance))
        try:
            async with self._switchboard.listen(instance.directory / "s", link), asyncio.timeout(patience_s):
                await self.thaw(instance)
                await link.connected
            instance.become(InstanceState.WAITING)
            return True
        except (TimeoutError, OSError, errors.HeadraceError):
            await self._scrap(instance, InstanceState.LOST)
            return False

    def resume(self, instance: Instance, version: Version) -> None:
        """An adopted instance runs `version` already."""
        assert instance.link is not None
        instance.version = version
        instance.handler_kind = str(instance.link.hello.get("kind", "handler"))
        instance.link.log = self._log_of(version, instance.id)
        self._switchboard.loaded(instance.link, version)
        instance.become(InstanceState.READY)

    async def load(self, instance: Instance, version: Version) -> None:
        """Make `instance` run `version`. The instance is removed when that fails.

        Raises `LoadFailed`, `InstanceDied`, `OutOfMemory`, `EngineUnavailable`.
        """
        began = asyncio.get_running_loop().time()
        instance.become(InstanceState.LOADING)
        try:
            with self._hurry():
                header = await self._load(instance, version)
        except errors.InstanceDied:
            error = await self.diagnose(instance)
            await self._scrap(instance, InstanceState.FAILED)
            raise error from None
        except BaseException:
            await self._scrap(instance, InstanceState.FAILED)
            raise
        instance.become(InstanceState.READY)
        instance.start_ms += (asyncio.get_running_loop().time() - began) * 1000
        instance.handler_kind = str(header.get("kind", "handler"))

    async def _load(self, instance: Instance, version: Version) -> dict[str, Any]:
        """What LOADED says."""
        link, config, steps = instance.link, version.config, _Steps(instance.steps)
        assert link is not None
        instance.version = version
        instance.memory_mb = config.memory_mb
        if instance.limits != (config.memory_mb, config.cpus):
            await self._ask(self._driver.adjust(instance.id, memory_mb=config.memory_mb, cpus=config.cpus))
            instance.limits = (config.memory_mb, config.cpus)
            steps.done("limits")
        await asyncio.to_thread(self._lay_out, instance, version)
        steps.done("code")
        link.log = self._log_of(version, instance.id)
        self._switchboard.loaded(link, version)
        loaded = await link.load(load_header(version), _LOAD_S)
        steps.done("load")
        return loaded

    def _lay_out(self, instance: Instance, version: Version) -> None:
        """What is to be found on disk before LOAD: what the instance is from now on, then the code."""
        instance.remember()
        if runtimes.get(version.config.runtime).code.shown:
            copy_tree(self._settings.code_dir(version.digest), instance.directory / "code")

    async def freeze(self, instance: Instance) -> None:
        """No CPU until it is thawed. An instance that is being stopped is left alone."""
        if instance.state is InstanceState.READY:
            await self._ask(self._driver.adjust(instance.id, frozen=True))

    async def thaw(self, instance: Instance) -> None:
        if not instance.ended:
            await self._ask(self._driver.adjust(instance.id, frozen=False))

    async def stop(self, instance: Instance, shutdown_s: float = _SHUTDOWN_S) -> None:
        """Let the instance shut down by itself for `shutdown_s` seconds at most, then remove it."""
        if instance.state in (InstanceState.WAITING, InstanceState.READY):
            instance.become(InstanceState.DRAINING)
        link = instance.link
        if link is not None and not link.lost and shutdown_s > 0 and await self._listens(instance):
            link.drain()
            await asyncio.wait((link.gone,), timeout=shutdown_s)
        await self._scrap(instance, InstanceState.STOPPED)

    async def _listens(self, instance: Instance) -> bool:
        """True when the instance runs and so can shut down by itself: a frozen one is thawed."""
        if instance.member is not None and instance.member.frozen:
            async with instance.pausing:
                try:
                    await self.thaw(instance)
                except errors.EngineUnavailable as error:
                    logger.warning("instance %s stays paused and is removed as it is: %s", instance.id, error.detail)
                    return False
        return True

    async def bury(self, instance: Instance) -> errors.InstanceDied:
        """A sandbox has died: find out why, tell the calls that it was running, remove it."""
        error = await self.diagnose(instance)
        if instance.link is not None:
            instance.link.abandon(error)
        await self._scrap(instance, InstanceState.LOST)
        return error

    async def diagnose(self, instance: Instance) -> errors.InstanceDied:
        """Why the instance is not there any more, as the engine knows it."""
        try:
            async with asyncio.timeout(_INSPECT_S):
                status = await self._ask(self._driver.inspect(instance.id))
                while status is not None and status.running:  # the connection ends a moment before the process
                    await asyncio.sleep(0.02)
                    status = await self._ask(self._driver.inspect(instance.id))
        except (TimeoutError, errors.EngineUnavailable):
            return errors.InstanceDied("the instance's connection broke off.", instance=instance.id)
        if status is None:
            return errors.InstanceDied("the instance was removed from outside.", instance=instance.id)
        if status.out_of_memory:
            return errors.OutOfMemory(
                f"the instance needed more than its memory_mb of {instance.memory_mb}: raise it, or use less.",
                instance=instance.id,
            )
        tail = status.tail.strip()[-2000:]
        return errors.InstanceDied(
            f"the instance exited with code {status.exit_code}.",
            instance=instance.id,
            error={"type": "InstanceDied", "message": f"exit code {status.exit_code}", "stack": tail},
        )

    async def sweep(self) -> int:
        """Remove what runs or lies around for this home without being in `running`."""
        strays = {status.id for status in await self._ask(self._driver.list())} | Instance.remembered(
            self._settings.run_dir
        )
        removed = 0
        for id in strays - self.running.keys():
            await self._ask(self._driver.stop(id))
            if id not in self.running:
                await asyncio.to_thread(
                    Instance(Kind(DEFAULT_RUNTIME, "egress", None), 0, 0, self._settings.run_dir, id).forget
                )
                removed += 1
        return removed

    async def listed(self) -> set[str]:
        """Ids of the sandboxes that the engine says are running."""
        return {status.id for status in await self._ask(self._driver.list()) if status.running}

    async def close(self) -> None:
        """Wait for removals that are under way: who asked for them may have been cancelled."""
        await self._tasks.settle(_ENGINE_S)
        await self._tasks.aclose()

    async def _scrap(self, instance: Instance, end: InstanceState) -> None:
        """Remove the sandbox and reach `end`. A cancellation waits until that is done."""
        if instance.ended:
            return
        instance.finish(end)
        await asyncio.shield(self._tasks.spawn(self._remove(instance), f"remove {instance.id}"))

    async def _remove(self, instance: Instance) -> None:
        if instance.link is not None:
            instance.link.close()
            instance.link.abandon(errors.InstanceDied("the instance was stopped before the call had ended."))
        try:
            await self._ask(self._driver.stop(instance.id))
            await asyncio.to_thread(instance.forget)
        except errors.EngineUnavailable as error:
            logger.warning("instance %s could not be removed yet: %s", instance.id, error.detail)
        finally:
            self.running.pop(instance.id, None)

    async def _ask(self, work: Coroutine[Any, Any, T]) -> T:
        """An answer of the engine, bounded in time. A hung or cut-off one counts as an engine that is not there."""
        try:
            async with asyncio.timeout(_ENGINE_S):
                return await work
        except TimeoutError:
            raise errors.EngineUnavailable(f"the engine did not answer within {_ENGINE_S:g} s.") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise errors.EngineUnavailable("the engine's answer was cut off.") from None

    async def _hello(self, instance: Instance, link: Link) -> None:
        """Wait until the instance has dialled in, or say why it did not."""
        deadline = asyncio.get_running_loop().time() + _HELLO_S
        while True:
            done, _ = await asyncio.wait((link.connected,), timeout=1.0)
            if done:
                return link.connected.result()
            status = await self._ask(self._driver.inspect(instance.id))
            if status is None or not status.running or asyncio.get_running_loop().time() > deadline:
                tail = status.tail.strip()[-2000:] if status is not None else "it is gone"
                logger.warning("instance %s did not report; it said: %s", instance.id, tail or "nothing")
                raise errors.EngineUnavailable("an instance started and did not report; the node's log has its words.")

    def _spec(self, instance: Instance, config: VersionConfig) -> InstanceSpec:
        kind = instance.kind
        return InstanceSpec(
            id=instance.id,
            runtime=kind.runtime,
            memory_mb=config.memory_mb,
            cpus=config.cpus,
            network=kind.network,
            socket_dir=instance.directory,
            shim_dir=self._shim(kind.runtime),
            code_dir=None,
            layer_dir=self._settings.layer_dir(kind.layer) if kind.layer else None,
        )

    def _shim(self, runtime: Runtime) -> Path:
        if runtime not in self._shims:
            self._shims[runtime] = assemble_shim(runtime, self._settings.home / "shims")
        return self._shims[runtime]


class _Steps:
    """Notes how long each step took: milliseconds since the one before it."""

    def __init__(self, steps: dict[str, float]) -> None:
        self._steps = steps
        self._since = time.perf_counter()  # the loop's time is whole milliseconds

    def done(self, name: str) -> None:
        since, self._since = self._since, time.perf_counter()
        self._steps[name] = (self._since - since) * 1000


def load_header(version: Version) -> dict[str, object]:
    """The header of LOAD, see PROTOCOL.md."""
    config = version.config
    header: dict[str, object] = {
        "namespace": version.namespace,
        "function": version.function,
        "version": version.number,
        "handler": config.handler,
        "kind": config.kind,
        "env": config.env,
        "memory_mb": config.memory_mb,
        "timeout_s": config.timeout_s,
        "concurrency": config.concurrency,
    }
    if config.runtime == IMAGE_RUNTIME:
        header["image"] = {
            "port": config.port or DEFAULT_PORT,
            "ready_path": config.ready_path,
            "start_timeout_s": config.start_timeout_s or _IMAGE_S,
        }
    return header


def copy_tree(source: Path, target: Path) -> None:
    """`source` again at `target`: files as hard links where the file system allows (the copy is mounted read-only)."""
    link = os.link
    try:
        shutil.copytree(source, target, symlinks=True, copy_function=link)
    except (shutil.Error, OSError):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, symlinks=True)


def assemble_shim(runtime: Runtime, shims: Path) -> Path:
    """The directory that is mounted as the shim of `runtime`, made once per content: its files and the codec."""
    found = runtimes.get(runtime)
    layout, maker = _layout(found), found if found.shim.finish else found.base
    digest = hashlib.sha256(f"{maker.shim.finish} {sys.version}".encode() + maker.programs(maker.shim.finish))
    for place, source in layout.items():
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{place}/{path.relative_to(source)}".encode() + b"\0" + path.read_bytes())
    target = shims / f"{runtime}-{digest.hexdigest()[:16]}"
    if not target.is_dir():
        shims.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        for place, source in layout.items():
            if source.is_dir():
                shutil.copytree(source, fresh / place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, fresh / place)
        places: dict[str, str | Path] = {"self": sys.executable, "runtime": maker.directory, "shim": fresh}
        if maker.shim.finish:
            subprocess.run(filled(maker.shim.finish, places), stdin=subprocess.DEVNULL, check=True)
        _readable(fresh)
        fresh.replace(target)
    return target


def _layout(runtime: runtimes.Runtime) -> dict[str, Path]:
    """What goes where in the shim's directory. A shim that is carried into images has that of its base beside it."""
    layout = {} if runtime.carried is None else _layout(runtime.base)
    layout |= {name: runtime.directory / name for name in runtime.shim.files}
    for name in runtime.shim.packages:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise errors.SettingsError(f"the package {name} is missing from this installation: install Headrace again.")
        layout[name] = Path(spec.submodule_search_locations[0])
    if runtime.shim.codec:
        layout[runtime.shim.codec] = Path(wire.__file__)
    return layout


def _readable(root: Path) -> None:
    """The sandbox's user reads it, whatever the umask was."""
    root.chmod(0o755)
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
