"""Instances as plain processes of this user: no isolation at all, for development and CI.

Each instance is a session of its own, led by a shell that outlives the platform: it keeps the end of the output
and writes the exit code when the interpreter ends, so a restarted node knows both. What is known of an instance lies
in a directory of its own; a pid counts only together with the start time of its process, because pids are used
again. An ended leader stays a zombie until `stop`, so that its process group can't be anybody else's.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import json
import logging
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace import runtimes
from headrace.drivers.base import BuildSpec, EngineInfo, InstanceSpec, InstanceStatus
from headrace.drivers.install import (
    Lines,
    dependencies_of,
    package_source,
    show_layer,
    took_too_long,
)
from headrace.drivers.procfs import start_time
from headrace.drivers.result import settle, too_large
from headrace.errors import BuildFailed, EngineUnavailable, Invalid, SettingsError
from headrace.runtimes import Runtime
from headrace.settings import Settings
from headrace.tasks import Tasks

logger = logging.getLogger(__name__)

_SHELL = "/bin/sh"
_TAIL_BYTES = 8192
_DEATH_S = 5.0
_DEATH_POLL_S = 0.01
_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp"}  # noqa: S108
# $0: the instance's directory; the arguments: what to run. `tail` writes when the output has ended.
_LEADER = f'cd / && {{ "$@" </dev/null; echo $? >"$0/exit"; }} 2>&1 | tail -c {_TAIL_BYTES} >"$0/output"'
_NO_ISOLATION = "functions run as plain processes of this user, without isolation: for development only"


@dataclass(frozen=True, slots=True)
class _Record:
    """What is kept of an instance: its leader and the labels of its spec."""

    pid: int
    start: int
    labels: dict[str, str]

    def alive(self) -> bool:
        return start_time(self.pid) == self.start

    def exists(self) -> bool:
        """The pid is still this process's own, be it a zombie."""
        return start_time(self.pid, zombie=True) == self.start


class ProcessDriver:
    """`Driver` without an engine. Raises `SettingsError` unless the platform listens on loopback alone."""

    def __init__(self, settings: Settings) -> None:
        if not settings.loopback:
            raise SettingsError(
                f"HEADRACE_DRIVER is process, which has no isolation, and HEADRACE_HOST is {settings.host}: use the "
                "docker driver, or listen on 127.0.0.1."
            )
        logger.warning("HEADRACE_DRIVER is process: %s.", _NO_ISOLATION)
        self._settings = settings
        self._root = settings.run_dir / "process"
        self._tasks = Tasks()

    async def check(self) -> EngineInfo:
        return EngineInfo("process", platform.python_version(), False, _NO_ISOLATION)

    async def prepare(self, runtime: str) -> str:
        """The programs of this machine, too, are other ones after an update."""
        found = runtimes.get(runtime)
        program = Path(_command(found, found.shim.process, {})[0]).resolve()
        _make_root(self._root)
        return f"{program} {program.stat().st_mtime_ns}"

    async def start(self, spec: InstanceSpec) -> None:
        await self.prepare(spec.runtime)
        if _read(self._root / spec.id) is None:
            _spawn(self._root / spec.id, spec)

    async def stop(self, id: str) -> None:
        directory = self._root / id
        record = _read(directory)
        if record is not None:
            await asyncio.to_thread(_end, record)
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def adjust(
        self, id: str, *, memory_mb: int | None = None, cpus: float | None = None, frozen: bool | None = None
    ) -> None:
        """Freezes and thaws. Limits are for engines that can set them."""
        record = _read(self._root / id)
        if frozen is not None and record is not None and record.alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(record.pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    async def inspect(self, id: str) -> InstanceStatus | None:
        return _status(self._root / id, tail=True)

    async def list(self) -> builtins.list[InstanceStatus]:
        return _statuses(self._root)

    async def build(self, spec: BuildSpec, on_line: Callable[[str], None]) -> None:
        runtime = runtimes.get(spec.runtime)
        wanted = dependencies_of(runtime)
        source = await package_source(self._settings, runtime, str(spec.out_dir))
        env = source.env if source.ca_bundle is None else source.trusting(str(source.ca_bundle))
        lines = Lines(source.hidden, on_line, wanted.noise, wanted.errors, wanted.vague)
        installer = await asyncio.create_subprocess_exec(
            *_command(runtime, wanted.process or wanted.install, {"out": spec.out_dir}),
            cwd=spec.code_dir,
            env=_ENV | env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        why: list[BuildFailed] = []
        measuring = self._tasks.spawn(
            _kill_when_too_large(installer.pid, spec.out_dir, why), f"measure build {spec.id}"
        )
        try:
            async with asyncio.timeout(spec.timeout_s):
                await _read_out(installer, lines)
        except TimeoutError:
            raise took_too_long(spec, lines) from None
        finally:
            measuring.cancel()
            if installer.returncode is None:
                _kill_group(installer.pid)
            await asyncio.shield(self._tasks.spawn(_reap(installer), f"end build {spec.id}"))
        if why:
            raise why[0]
        await asyncio.to_thread(settle, spec.out_dir)
        if installer.returncode:
            raise BuildFailed(f"the dependencies could not be installed: {lines.reason()}. Correct {wanted.file}.")

    async def tidy(self) -> None:
        """Builds end with their process, and there are no images."""

    async def close(self) -> None:
        await self._tasks.aclose()


def _make_root(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True, mode=0o700)


def _spawn(directory: Path, spec: InstanceSpec) -> None:
    env = _ENV | {
        "HEADRACE_SOCKET": str(spec.socket_dir / "s"),
        "HEADRACE_INSTANCE": spec.id,
        "HEADRACE_CODE": str(spec.code_dir or spec.socket_dir / "code"),
    }
    if spec.layer_dir is not None:
        env["HEADRACE_LAYER"] = str(spec.layer_dir)
    runtime = runtimes.get(spec.runtime)
    show_layer(spec, str(spec.layer_dir))
    directory.mkdir(mode=0o700, exist_ok=True)
    command = [_SHELL, "-c", _LEADER, str(directory), *_command(runtime, runtime.shim.process, {"shim": spec.shim_dir})]
    nowhere = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in (0, 1, 2)]
    try:
        pid = os.posix_spawn(_SHELL, command, env, file_actions=nowhere, setsid=True)
    except OSError as error:
        raise EngineUnavailable(f"instance {spec.id} could not be started: {error}.") from error
    record = {"pid": pid, "start": start_time(pid, zombie=True), "labels": spec.labels}
    partial = directory / "record.partial"
    partial.write_text(json.dumps(record))
    partial.rename(directory / "record")


def _command(runtime: Runtime, command: Sequence[str], places: Mapping[str, Path]) -> list[str]:
    """`command` of `runtime` on this machine. Raises `Invalid` for a runtime that needs a container."""
    if not command:
        raise Invalid(f"the runtime {runtime.name} needs the docker driver.")
    program, *arguments = runtimes.filled(command, {**places, "self": sys.executable})
    if (found := shutil.which(program, path=_ENV["PATH"])) is None:
        raise EngineUnavailable(
            f"the runtime {runtime.name} needs {program}, which is not on this machine: install it."
        )
    return [found, *arguments]


def _read(directory: Path) -> _Record | None:
    try:
        record: dict[str, Any] = json.loads((directory / "record").read_text())
    except FileNotFoundError:
        return None
    return _Record(**record)


def _status(directory: Path, *, tail: bool) -> InstanceStatus | None:
    record = _read(directory)
    if record is None:
        return None
    code = _text(directory / "exit").strip()
    return InstanceStatus(
        id=directory.name,
        running=not code and record.alive(),
        exit_code=int(code) if code else None,
        out_of_memory=False,
        labels=record.labels,
        tail=_text(directory / "output") if tail else "",
    )


def _statuses(root: Path) -> list[InstanceStatus]:
    directories = sorted(root.iterdir()) if root.is_dir() else []
    return [found for directory in directories if (found := _status(directory, tail=False)) is not None]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _end(record: _Record) -> None:
    """Kill the whole group and wait until its leader is gone. One of an earlier node is not our child any more."""
    if not record.exists():
        return
    _kill_group(record.pid)
    try:
        os.waitpid(record.pid, 0)
    except ChildProcessError:
        deadline = time.monotonic() + _DEATH_S
        while record.alive() and time.monotonic() < deadline:
            time.sleep(_DEATH_POLL_S)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


async def _kill_when_too_large(pid: int, directory: Path, why: list[BuildFailed]) -> None:
    why.append(await too_large(directory))
    _kill_group(pid)


async def _read_out(process: asyncio.subprocess.Process, lines: Lines) -> None:
    assert process.stdout is not None
    while data := await process.stdout.read(1 << 16):
        lines.feed(data)
    lines.end()
    await process.wait()


async def _reap(process: asyncio.subprocess.Process) -> None:
    """Take its exit code and what is left in the pipe, so that nothing stays open."""
    await process.communicate()
