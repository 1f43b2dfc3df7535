"""Keeps the processes of one Headrace running: starts them, restarts one that ends, stops them in order.

Each role has one `Child`, and that child's task alone starts, waits for and signals its process; everybody else
only sets its two events. `stop` asks the process to end and gives it its grace; `kill` ends it at once. Because
the task looks at the events right after a start, a stop that arrives during one is never missed.

A child must not outlive its supervisor, not even one that was killed with `kill -9`: on Linux the kernel sends
each child SIGKILL when the supervisor's main thread ends (PR_SET_PDEATHSIG, set between fork and exec). SIGKILL and
not SIGTERM, so that the ports are free at once and a new `headrace up` can take over; instances keep running
and the new node adopts them. Children get a session of their own, so Ctrl-C and a closing terminal reach the
supervisor alone, which then stops them in order.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from headrace.cli.rotating import Lines, RotatingFile
from headrace.tasks import Tasks

_PR_SET_PDEATHSIG = 1
_UNSTARTABLE = 127
_SEVERE = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b")
_LEVEL_WITHIN = 60  # the level of a line stands within this many characters of its start
_TAIL = 20
_LAST_WORDS_S = 1.0  # what an ended process wrote is read for this long, in case a grandchild holds the pipe


@dataclass(frozen=True, slots=True)
class Role:
    """One process to keep running. After SIGTERM it gets `grace_s` seconds, then SIGKILL."""

    name: str
    command: tuple[str, ...]
    grace_s: float


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a restart: doubling, and from the start again after a healthy run."""

    first_s: float = 0.1
    most_s: float = 10.0
    healthy_s: float = 30.0

    def after(self, previous_s: float, ran_s: float) -> float:
        """The pause after a run of `ran_s` seconds that `previous_s` (0: none) had come before."""
        if previous_s == 0 or ran_s >= self.healthy_s:
            return self.first_s
        return min(previous_s * 2, self.most_s)


def ending(code: int) -> str:
    """An exit code of `subprocess` in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


async def first_of(*waits: Awaitable[object], timeout_s: float | None = None) -> None:
    """Wait until one of `waits` is done, or the time is up; end the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def die_with_this_process() -> Callable[[], None] | None:
    """What a forked child runs before exec so that it dies with this process; None where only Linux can."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before the call took effect
            os._exit(_UNSTARTABLE)

    return before_exec


@asynccontextmanager
async def spawned(
    command: Sequence[str],
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    on_data: Callable[[bytes], None] = lambda data: None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process in a session of its own that is gone, with its whole process group, when the block ends.

    Its output goes to a pipe of ours, so that its end is seen even while a grandchild holds the pipe open.
    """
    reading, writing = os.pipe()
    lines = Lines(on_line, on_data)
    await asyncio.get_running_loop().connect_read_pipe(lambda: lines, os.fdopen(reading, "rb"))
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                env=dict(environment),
                start_new_session=True,
                preexec_fn=die_with_this_process(),
            )
        finally:
            os.close(writing)
        try:
            yield process
        finally:
            _kill_group(process.pid)
            await process.wait()
            await first_of(lines.closed.wait(), timeout_s=_LAST_WORDS_S)
    finally:
        lines.close()


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


class Child:
    """One role. `deaths` counts ends in a row without a healthy run between them."""

    def __init__(
        self,
        role: Role,
        environment: Mapping[str, str],
        file: RotatingFile,
        say: Callable[[str], None],
        backoff: Backoff,
    ) -> None:
        self.role = role
        self.deaths = 0
        self.pid: int | None = None
        self._environment = environment
        self._file = file
        self._say = say
        self._backoff = backoff
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()
        self.tail: deque[str] = deque(maxlen=_TAIL)  # the last lines it wrote, in the last life in which it wrote any
        self._said = self.tail  # in this life

    @property
    def log_path(self) -> Path:
        return self._file.path

    def stop(self) -> None:
        self._stop.set()

    def kill(self) -> None:
        self._kill.set()
        self._stop.set()

    async def keep(self) -> None:
        """Run the role until it is stopped, starting it again whenever it ends."""
        pause_s = 0.0
        loop = asyncio.get_running_loop()
        try:
            while not self._stop.is_set():
                started = loop.time()
                how, last_words = await self._run()
                if self._stop.is_set():
                    break
                ran_s = loop.time() - started
                pause_s = self._backoff.after(pause_s, ran_s)
                self.deaths = 1 if ran_s >= self._backoff.healthy_s else self.deaths + 1
                self._say(f"{self.role.name} {how} after {ran_s:.1f} s; it starts again in {pause_s:g} s.{last_words}")
                await first_of(self._stop.wait(), timeout_s=pause_s)
        finally:
            self._file.close()

    async def _run(self) -> tuple[str, str]:
        """One life of the process: how it ended, and what it said last when it ended itself because of a failure."""
        self._said = deque(maxlen=_TAIL)
        try:
            async with spawned(self.role.command, self._environment, self._heard, self._take) as process:
                self.pid = process.pid
                await first_of(process.wait(), self._stop.wait())
                if process.returncode is None:
                    await self._end(process)
        except OSError as error:
            return f"could not be started ({error.strerror or error})", ""
        finally:
            self.pid = None
        assert process.returncode is not None
        failed = process.returncode > 0 and self._said
        return ending(process.returncode), f" It said last: {self._said[-1]}" if failed else ""

    def _take(self, data: bytes) -> None:
        lost = self._file.lost_bytes
        self._file.write(data)
        if self._file.lost_bytes and not lost:
            self._say(
                f"{self.role.name}: what it says is being lost: {self.log_path} cannot be written. Is the disk full?"
            )

    def _heard(self, line: str) -> None:
        self._said.append(line)
        self.tail = self._said
        if _SEVERE.search(line[:_LEVEL_WITHIN]):
            self._say(f"{self.role.name}: {line}")

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if not self._kill.is_set():
            process.terminate()
            await first_of(process.wait(), self._kill.wait(), timeout_s=self.role.grace_s)
            if process.returncode is None and not self._kill.is_set():
                self._say(f"{self.role.name} did not end within {self.role.grace_s:g} s; it is killed.")


class Supervisor:
    """Keeps the roles of all `stages` running; they stop one stage after another, the first one first."""

    def __init__(
        self,
        stages: Sequence[Sequence[Role]],
        environment: Mapping[str, str],
        log_dir: Path,
        say: Callable[[str], None],
        backoff: Backoff = Backoff(),
    ) -> None:
        self._stages = [
            [Child(role, environment, RotatingFile(log_dir / f"{role.name}.log"), say, backoff) for role in stage]
            for stage in stages
        ]
        self._tasks = Tasks()
        self._keeping: dict[str, asyncio.Task[None]] = {}

    @property
    def children(self) -> list[Child]:
        return [child for stage in self._stages for child in stage]

    @property
    def started(self) -> bool:
        return bool(self._keeping)

    def start(self) -> None:
        for child in self.children:
            self._keeping[child.role.name] = self._tasks.spawn(child.keep(), f"keep {child.role.name}")

    async def stop(self) -> None:
        """Stop all, stage by stage; returns when every process has ended."""
        for stage in self._stages:
            for child in stage:
                child.stop()
            running = [self._keeping[child.role.name] for child in stage if child.role.name in self._keeping]
            await asyncio.gather(*running, return_exceptions=True)

    def kill(self) -> None:
        """End all at once; a `stop` under way then returns soon."""
        for child in self.children:
            child.kill()
