"""What the driver suites share: one tiny program that behaves as its code directory says, as a shim and as a fake.

As process 1 of a container it reaps as the real shim does, with the real shim's own code.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

from fakes import FakeDriver, FakeEngine, FakeInstance
from headrace.drivers.base import BuildSpec, Driver, InstanceSpec, InstanceStatus
from headrace.drivers.docker_engine import DockerDriver
from headrace.drivers.process import ProcessDriver
from headrace.errors import BuildFailed
from headrace.model import Network
from headrace.resources import share
from headrace.settings import Settings

Kind = Literal["fake", "process", "docker"]
PATIENCE_S = 60.0  # for a busy machine; nothing waits that long when it works
REQUIREMENT = "idna==3.10"
NO_SUCH_REQUIREMENT = "idna==99.0"

SHIM = """
import os, socket, sys, time
code = os.environ["HEADRACE_CODE"]
behaviour = open(code + "/behaviour").read()
if behaviour == "crash":
    print("last words")
    os._exit(3)
if behaviour == "environment":
    print(sorted(os.environ))
    sys.exit(0)
if behaviour == "hog":
    hoard = []
    while True:
        hoard.append(bytearray(os.urandom(1 << 20)))
link = socket.socket(socket.AF_UNIX)
link.connect(os.environ["HEADRACE_SOCKET"])
if behaviour == "probe":
    exec(compile(open(code + "/probe.py").read(), "probe.py", "exec"), {"link": link})
    link.close()
    time.sleep(1000)
link.sendall(os.environ["HEADRACE_INSTANCE"].encode() + b"\\n")
while True:
    link.sendall(b".")
    time.sleep(0.01)
"""


class Listener:
    """The node's end of one instance: a unix socket `s` in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._server: asyncio.Server | None = None
        self._dialled: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)
        self._server = await asyncio.start_unix_server(self._accept, str(self.directory / "s"))
        (self.directory / "s").chmod(0o666)

    async def dialled(self) -> asyncio.StreamReader:
        async with asyncio.timeout(PATIENCE_S):
            reader, _ = await self._dialled.get()
            return reader

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._dialled.put_nowait((reader, writer))


class Kit:
    """One kind of driver in a home of its own, with the means to start instances that behave as told."""

    def __init__(self, kind: Kind, engine: FakeEngine | None = None) -> None:
        self.kind = kind
        self.home = Path(tempfile.mkdtemp(prefix="hr-"))
        self.home.chmod(0o755)
        self.settings = Settings(home=self.home, driver="process" if kind == "process" else "docker")
        self.engine = engine or FakeEngine(fake_program, fake_installer)
        self._drivers: list[Driver] = []
        self._listeners: list[Listener] = []
        self._ids = (f"i{number}" for number in itertools.count(1))
        shim = self.home / "shim" / "headrace_shim"
        shim.mkdir(parents=True)
        (shim / "__main__.py").write_text(SHIM)
        shutil.copy(share("runtime-images") / "python" / "start.sh", shim.parent)

    def driver(self) -> Driver:
        """A new driver object on the same engine and home."""
        made: Driver
        if self.kind == "fake":
            made = FakeDriver(self.engine, str(self.home))
        else:
            made = ProcessDriver(self.settings) if self.kind == "process" else DockerDriver(self.settings)
        self._drivers.append(made)
        return made

    async def spec(self, behaviour: str, *, probe: str = "", generic: bool = False, **changes: Any) -> InstanceSpec:
        """Its listener listens already. `generic`: the code lies in the socket's directory."""
        id = next(self._ids)
        listener = Listener(self.home / "i" / id)
        self._listeners.append(listener)
        await listener.open()
        code = listener.directory / "code" if generic else self.home / "code" / id
        code.mkdir(parents=True)
        (code / "behaviour").write_text(behaviour)
        (code / "probe.py").write_text(probe)
        network: Network = "none"
        values: dict[str, Any] = {
            "id": id,
            "runtime": "python",
            "memory_mb": 128,
            "cpus": 1.0,
            "network": network,
            "socket_dir": listener.directory,
            "shim_dir": self.home / "shim",
            "code_dir": None if generic else code,
            "layer_dir": None,
            "labels": {"headrace.test": id},
        }
        return InstanceSpec(**(values | changes))

    def listener(self, spec: InstanceSpec) -> Listener:
        return next(listener for listener in self._listeners if listener.directory == spec.socket_dir)

    def build_spec(self, requirement: str, **changes: Any) -> BuildSpec:
        id = next(self._ids)
        code, out = self.home / "code" / id, self.home / "out" / id
        code.mkdir(parents=True)
        out.mkdir(parents=True)
        (code / "requirements.txt").write_text(requirement + "\n")
        return BuildSpec(id, "python", code, out, **changes)

    async def close(self) -> None:
        sweeper = self.driver()
        for status in await sweeper.list():
            await sweeper.stop(status.id)
        for driver in self._drivers:
            await driver.close()
        for listener in self._listeners:
            await listener.close()
        shutil.rmtree(self.home)
        shutil.rmtree(self.settings.run_dir, ignore_errors=True)


@contextlib.asynccontextmanager
async def kit_of(kind: Kind) -> AsyncIterator[Kit]:
    kit = Kit(kind)
    try:
        yield kit
    finally:
        await kit.close()


async def until(driver: Driver, id: str, fits: Callable[[InstanceStatus], bool]) -> InstanceStatus:
    """The status of `id`, once it fits."""
    async with asyncio.timeout(PATIENCE_S):
        while (status := await driver.inspect(id)) is None or not fits(status):
            await asyncio.sleep(0.01)
        return status


async def fake_program(instance: FakeInstance) -> int:
    """What `SHIM` does, inside the test's own loop."""
    spec = instance.spec
    behaviour = ((spec.code_dir or spec.socket_dir / "code") / "behaviour").read_text()
    if behaviour == "crash":
        instance.say("last words")
        return 3
    if behaviour == "environment":
        instance.say(str(["HEADRACE_CODE", "HEADRACE_INSTANCE", "HEADRACE_SOCKET"]))
        return 0
    if behaviour == "hog":
        raise MemoryError
    _, writer = await asyncio.open_unix_connection(str(spec.socket_dir / "s"))
    try:
        writer.write(f"{spec.id}\n".encode())
        while True:
            await instance.thawed.wait()
            writer.write(b".")
            await asyncio.sleep(0.01)
    finally:
        writer.close()


async def fake_installer(spec: BuildSpec, on_line: Callable[[str], None]) -> None:
    requirement = (spec.code_dir / "requirements.txt").read_text().strip()
    on_line(f"Collecting {requirement}")
    if requirement == NO_SUCH_REQUIREMENT:
        raise BuildFailed(f"the dependencies could not be installed: no matching distribution for {requirement}.")
    await asyncio.sleep(0.05)
    (spec.out_dir / requirement.partition("==")[0]).mkdir()
