"""Fakes that pass the same contract suites as the real things, with faults scripted by the test, never random."""

from __future__ import annotations

import asyncio
import builtins
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from headrace import runtimes
from headrace.drivers.base import BuildSpec, EngineInfo, InstanceSpec, InstanceStatus
from headrace.errors import BuildFailed, EngineUnavailable, HeadraceError
from headrace.model import Runtime

Verb = Literal["check", "prepare", "start", "stop", "adjust", "inspect", "list", "build", "tidy"]
FaultKind = Literal["fail", "hang", "cancel"]


@dataclass(slots=True)
class FakeInstance:
    """What the fake engine knows of an instance; `program` may write to it with `say` and wait while frozen."""

    spec: InstanceSpec
    memory_mb: int
    cpus: float
    exit_code: int | None = None
    out_of_memory: bool = False
    thawed: asyncio.Event = field(default_factory=asyncio.Event)
    words: deque[str] = field(default_factory=lambda: deque(maxlen=100))
    task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self.exit_code is None

    @property
    def frozen(self) -> bool:
        return not self.thawed.is_set()

    def say(self, line: str) -> None:
        self.words.append(line)


Program = Callable[[FakeInstance], Awaitable[int]]  # what runs as the instance: its exit code; MemoryError: killed
Installer = Callable[[BuildSpec, Callable[[str], None]], Awaitable[None]]


async def run_for_ever(_: FakeInstance) -> int:
    await asyncio.Event().wait()
    return 0


async def install_nothing(_: BuildSpec, __: Callable[[str], None]) -> None:
    return


class FakeEngine:
    """What outlives a driver object: the instances. One engine can serve several homes."""

    def __init__(self, program: Program = run_for_ever, installer: Installer = install_nothing) -> None:
        self.program = program
        self.installer = installer
        self.release = "1"  # of what instances and builds run on
        self.instances: dict[tuple[str, str], FakeInstance] = {}

    async def run(self, instance: FakeInstance) -> None:
        try:
            instance.exit_code = await self.program(instance)
        except MemoryError:
            instance.exit_code, instance.out_of_memory = 137, True

    async def kill(self, key: tuple[str, str]) -> None:
        instance = self.instances.pop(key, None)
        if instance is not None and instance.task is not None:
            instance.task.cancel()
            await asyncio.wait([instance.task])


@dataclass(frozen=True, slots=True)
class Fault:
    """`after`: the engine did it, only the answer is lost."""

    verb: Verb
    at: int
    kind: FaultKind
    always: bool
    after: bool
    error: HeadraceError

    def hits(self, verb: Verb, number: int) -> bool:
        return verb == self.verb and (number >= self.at if self.always else number == self.at)

    async def strike(self) -> None:
        if self.kind == "fail":
            raise self.error
        if self.kind == "cancel":
            raise asyncio.CancelledError
        await asyncio.Event().wait()


class FakeDriver:
    """`Driver` over a `FakeEngine`; `calls` tells what was asked, `fault` scripts what goes wrong."""

    def __init__(self, engine: FakeEngine | None = None, home: str = "home") -> None:
        self.engine = engine or FakeEngine()
        self.home = home
        self.calls: list[tuple[Verb, str]] = []
        self._faults: list[Fault] = []
        self._counts: Counter[Verb] = Counter()

    def fault(
        self,
        verb: Verb,
        at: int = 1,
        kind: FaultKind = "fail",
        *,
        always: bool = False,
        after: bool = False,
        error: HeadraceError | None = None,
    ) -> None:
        """Script the `at`-th call of `verb` from now on, counted from 1; `always`: the later ones too."""
        error = error or EngineUnavailable(f"scripted: {verb} fails.")
        self._faults.append(Fault(verb, at + self._counts[verb], kind, always, after, error))

    def mend(self) -> None:
        """No faults any more."""
        self._faults.clear()

    async def check(self) -> EngineInfo:
        async with _Call(self, "check", ""):
            return EngineInfo("fake", "1", True)

    async def prepare(self, runtime: Runtime) -> str:
        async with _Call(self, "prepare", runtime):
            return f"{runtimes.get(runtime).name} of {self.engine.release}"

    async def start(self, spec: InstanceSpec) -> None:
        async with _Call(self, "start", spec.id):
            if (self.home, spec.id) in self.engine.instances:
                return
            instance = FakeInstance(spec, spec.memory_mb, spec.cpus)
            instance.thawed.set()
            self.engine.instances[self.home, spec.id] = instance
            instance.task = asyncio.get_running_loop().create_task(self.engine.run(instance))

    async def stop(self, id: str) -> None:
        async with _Call(self, "stop", id):
            await self.engine.kill((self.home, id))

    async def adjust(
        self, id: str, *, memory_mb: int | None = None, cpus: float | None = None, frozen: bool | None = None
    ) -> None:
        async with _Call(self, "adjust", id):
            instance = self.engine.instances.get((self.home, id))
            if instance is None:
                return
            instance.memory_mb = instance.memory_mb if memory_mb is None else memory_mb
            instance.cpus = instance.cpus if cpus is None else cpus
            if frozen is True:
                instance.thawed.clear()
            if frozen is False:
                instance.thawed.set()

    async def inspect(self, id: str) -> InstanceStatus | None:
        async with _Call(self, "inspect", id):
            instance = self.engine.instances.get((self.home, id))
            return None if instance is None else _status(instance, "\n".join(instance.words))

    async def list(self) -> builtins.list[InstanceStatus]:
        async with _Call(self, "list", ""):
            return [_status(instance, "") for (home, _), instance in self.engine.instances.items() if home == self.home]

    async def build(self, spec: BuildSpec, on_line: Callable[[str], None]) -> None:
        async with _Call(self, "build", spec.id):
            try:
                async with asyncio.timeout(spec.timeout_s):
                    await self.engine.installer(spec, on_line)
            except TimeoutError:
                raise BuildFailed(f"installing the dependencies took longer than {spec.timeout_s:g} s.") from None

    async def tidy(self) -> None:
        async with _Call(self, "tidy", ""):
            return

    async def close(self) -> None:
        return

    def struck(self, verb: Verb) -> Fault | None:
        """Count a call; the fault that it meets."""
        self._counts[verb] += 1
        return next((fault for fault in self._faults if fault.hits(verb, self._counts[verb])), None)


class _Call:
    """One call of a verb: noted, and struck by its fault before or after it took effect."""

    def __init__(self, driver: FakeDriver, verb: Verb, subject: str) -> None:
        driver.calls.append((verb, subject))
        self._fault = driver.struck(verb)

    async def __aenter__(self) -> None:
        if self._fault is not None and not self._fault.after:
            await self._fault.strike()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._fault is not None and self._fault.after:
            await self._fault.strike()


def _status(instance: FakeInstance, tail: str) -> InstanceStatus:
    return InstanceStatus(
        id=instance.spec.id,
        running=instance.running,
        exit_code=instance.exit_code,
        out_of_memory=instance.out_of_memory,
        labels=instance.spec.labels,
        tail=tail,
    )
