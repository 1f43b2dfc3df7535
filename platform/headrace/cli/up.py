"""`headrace up` and `headrace down`: one supervisor per home, in front or detached.

In front: take the lock of the home, check the ports, run `init` (directories, database, token, engine), start
the processes, wait until they answer, then watch over them until a signal comes. The first signal stops them
in order, the second ends them at once.

Detached: start the same thing in a session of its own, without a terminal, and show what it writes to its log
until it is ready. It outlives this terminal; `headrace down` stops it.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx

from headrace.cli import project
from headrace.cli.output import Output, Work, failure_lines
from headrace.cli.ports import check_free
from headrace.cli.rotating import RotatingFile
from headrace.cli.session import Session
from headrace.cli.supervisor import Backoff, Child, Role, Supervisor, ending, first_of, spawned
from headrace.cli.uplock import Holder, UpLock, make_private
from headrace.errors import HeadraceError
from headrace.settings import PREFIX, Settings

T = TypeVar("T")

_READY_S = 90.0
_MOST_DEATHS = 5  # ends in a row of one process before the start counts as failed
_GRACE_S = 10.0
_POLL_S = 0.1
_TAIL = 20
_INTERRUPTED = 130
_LOG_PREFIX = re.compile(r"^\d{4}-\S+ \S+ INFO \w+ ")
_SECRET = re.compile(r"hr_[A-Za-z0-9_-]{20,}")


class StartFailed(HeadraceError):
    """Headrace could not be started."""

    code, title = "start_failed", "Headrace could not be started"


class Interrupted(Exception):
    """A signal asked for the end while something was under way."""


def role_command(role: str) -> tuple[str, ...]:
    """The command that runs a role (`init`, `control`, `node`, `worker`)."""
    return (sys.executable, "-m", "headrace.main", role)


def cli_command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "headrace.cli.app", *arguments)


@dataclass(frozen=True, slots=True)
class Start:
    """What to start: settings, the environment of every child, and how roles and the command line are run."""

    settings: Settings
    environment: Mapping[str, str]
    command: Callable[[str], tuple[str, ...]] = role_command
    cli: Callable[..., tuple[str, ...]] = cli_command
    backoff: Backoff = field(default_factory=Backoff)

    @property
    def lock(self) -> UpLock:
        return UpLock(self.settings.run_dir)

    @property
    def token_path(self) -> Path:
        return self.settings.home / "admin-token"

    @property
    def log_dir(self) -> Path:
        return self.settings.home / "log"

    def holder(self, ready: bool) -> Holder:
        return Holder(os.getpid(), self.settings.functions, self.settings.control, ready)

    def stages(self) -> list[list[Role]]:
        """Which roles run; the node stops first, so that its last calls still find control and their records."""
        node = Role("node", self.command("node"), self.settings.drain_s + _GRACE_S)
        return [[node], [Role(name, self.command(name), _GRACE_S) for name in ("control", "worker")]]


def plan(session: Session, overrides: Mapping[str, Any]) -> Start:
    """The start that the options of the command line ask for: always on this machine, whatever CONTROL_URL says."""
    settings = session.settings_with(**overrides).model_copy(update={"control_url": ""})
    others = {name: value for name, value in session.environ.items() if not name.startswith(PREFIX)}
    return Start(settings, {**others, **settings.environment()})


def first_call(directory: Path | None) -> list[tuple[str, ...]]:
    """The commands that deploy `directory` and call what it holds; raises `Invalid` when it cannot be deployed."""
    if directory is None:
        return []
    directory = project.check_directory(directory)
    name = project.function_name(directory, None)
    return [("deploy", str(directory)), ("invoke", name, "--verbose")]


def up(out: Output, start: Start, directory: Path | None, detach: bool) -> None:
    """Start Headrace, or say where it runs already; then deploy and call the function in `directory`."""
    calls = first_call(directory)
    make_private(start.settings.home)
    lock = start.lock
    holder = lock.take()
    if holder is None and not detach:
        code = asyncio.run(Foreground(out, start, lock).run(calls))
        if code:
            raise SystemExit(code)
        return
    if holder is None:
        lock.release()
        holder = Detached(out, start).run()
    else:
        state = "runs already" if holder.ready else "is just being started"
        announce(out, start, holder, f"Headrace {state}, as process {holder.pid}.")
    out.line("Stop it with: headrace down")
    environment = {**start.environment, f"{PREFIX}CONTROL_URL": holder.control}
    for arguments in calls:
        code = subprocess.run(start.cli(*arguments), env=environment, check=False).returncode
        if code:
            raise SystemExit(code)


def announce(out: Output, start: Start, holder: Holder, title: str, fresh_token: bool = False) -> None:
    """Say where everything is; the admin token itself only when it was made just now."""
    out.line(title, "bold green")
    if holder.functions:
        out.line(f"  functions  {holder.functions}/fn/<name>")
        out.line(f"  control    {holder.control}/v1")
        out.line(f"  API docs   {holder.control}/docs")
    out.line(f"  logs       {start.log_dir}")
    out.line(f"  token      in {start.token_path}")
    if fresh_token:
        out.line(f"  Admin token, shown only this once: {start.token_path.read_text().strip()}", "bold")


def down(out: Output, start: Start) -> None:
    """Stop the supervisor of this home; returns when all its processes have ended."""
    home = start.settings.home
    holder = start.lock.holder()
    if holder is None:
        out.note(f"Headrace does not run for {home}: nothing to stop.")
        return
    if holder.pid == 0:
        raise HeadraceError(f"Headrace for {home} is just being started: try again in a second.")
    os.kill(holder.pid, signal.SIGTERM)
    within_s = start.settings.drain_s + 3 * _GRACE_S
    deadline = time.monotonic() + within_s
    with out.working("Stopping Headrace; running calls may finish"):
        while start.lock.holder() is not None:
            if time.monotonic() > deadline:
                raise HeadraceError(
                    f"Headrace (process {holder.pid}) did not end within {within_s:g} s: see its log in "
                    f"{start.log_dir}, or end it with `kill -9 {holder.pid}`."
                )
            time.sleep(_POLL_S)
    out.line("Headrace is stopped.", "bold green")


class Detached:
    """A supervisor without a terminal, seen through its log until it is ready."""

    def __init__(self, out: Output, start: Start) -> None:
        self._out = out
        self._start = start
        self._log = start.log_dir / "up.log"
        self._read = self._log.stat().st_size if self._log.exists() else 0

    def run(self) -> Holder:
        """Start it and return when it is ready."""
        start = self._start
        fresh_token = not start.token_path.exists()
        process = subprocess.Popen(
            self._start.cli("up"),
            env=dict(start.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            with self._out.working("Starting Headrace") as work:
                holder = self._wait(process, work)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        announce(self._out, start, holder, f"Headrace is ready, as process {holder.pid}.", fresh_token)
        return holder

    def _wait(self, process: subprocess.Popen[bytes], work: Work) -> Holder:
        while True:
            self._relay(work)
            holder = self._start.lock.note()
            if holder is not None and holder.ready and holder.pid == process.pid:
                return holder
            code = process.poll()
            if code is not None:
                self._relay(work)  # the failure itself is among its last lines
                raise SystemExit(code) if code > 0 else StartFailed(f"its supervisor {ending(code)}: see {self._log}.")
            time.sleep(_POLL_S)

    def _relay(self, work: Work) -> None:
        if not self._log.exists():
            return
        with self._log.open("rb") as log:
            if self._read > os.fstat(log.fileno()).st_size:
                self._read = 0  # the log was rotated
            log.seek(self._read)
            data = log.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._read += len(complete)
        for line in complete.decode("utf-8", "replace").splitlines():
            work.note(line.partition(" ")[2])


class Foreground:
    """The supervisor itself: everything between taking the lock and letting go of it."""

    def __init__(self, out: Output, start: Start, lock: UpLock) -> None:
        self._out = out
        self._start = start
        self._lock = lock
        self._log = RotatingFile(start.log_dir / "up.log")
        self._asked = asyncio.Event()
        self._supervisor = Supervisor(start.stages(), start.environment, start.log_dir, self.say, start.backoff)

    def say(self, line: str) -> None:
        """To the terminal, if it is still there, and to up.log."""
        self._keep(line)
        with suppress(OSError, ValueError):
            self._out.note(line)

    def _keep(self, line: str) -> None:
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._log.write(f"{moment} {_SECRET.sub('hr_...', line)}\n".encode())

    async def run(self, calls: Sequence[Sequence[str]]) -> int:
        """Serve until a signal comes; the exit code."""
        self._lock.describe(self._start.holder(ready=False))
        self._listen()
        try:
            await self._serve(calls)
            return 0
        except Interrupted:
            self.say("Stopped before it was ready.")
            return _INTERRUPTED
        except HeadraceError as error:
            for line in failure_lines(error):
                self._keep(line)
            raise
        finally:
            await self._stop()
            self._lock.release()
            self._log.close()

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup a hangup means nothing
                loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        if self._asked.is_set():
            self._supervisor.kill()
        self._asked.set()

    async def _serve(self, calls: Sequence[Sequence[str]]) -> None:
        settings = self._start.settings
        check_free(settings.host, settings.port, "--port")
        check_free(settings.host, settings.control_port, "--control-port")
        fresh_token = not self._start.token_path.exists()
        with self._out.working("Setting up") as work:
            await self._unless_asked(self._init(work))
        self._supervisor.start()
        with self._out.working("Starting control, node and worker"):
            await self._unless_asked(self._ready())
        holder = self._start.holder(ready=True)
        self._lock.describe(holder)
        announce(self._out, self._start, holder, "Headrace is ready.", fresh_token)
        with suppress(Interrupted):
            await self._first_calls(calls)
        self._out.note("Ctrl-C stops it.")
        await self._asked.wait()

    async def _first_calls(self, calls: Sequence[Sequence[str]]) -> None:
        for arguments in calls:
            if await self._unless_asked(self._call(arguments)):
                return  # it has said why

    async def _stop(self) -> None:
        if not self._supervisor.started:
            return
        bound = self._start.settings.drain_s
        self.say(f"Stopping: running calls may finish (up to {bound:g} s). Ctrl-C again ends them at once.")
        await self._supervisor.stop()
        self.say("Headrace is stopped.")

    async def _unless_asked(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work`, but give it up and raise `Interrupted` once a signal has asked for the end."""
        task = asyncio.ensure_future(work)
        await first_of(asyncio.wait([task]), self._asked.wait())
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
            raise Interrupted
        return task.result()

    async def _init(self, work: Work) -> None:
        """Run `init`; what it writes is shown as it comes."""
        tail: deque[str] = deque(maxlen=_TAIL)

        def heard(line: str) -> None:
            self._keep(line)
            if not _SECRET.search(line):  # the token is shown at the end, where it is seen
                tail.append(line)
                work.step(_LOG_PREFIX.sub("", line))

        async with spawned(self._start.command("init"), self._start.environment, heard) as process:
            try:
                await process.wait()
            finally:
                if process.returncode is None:
                    process.terminate()
                    await first_of(process.wait(), timeout_s=_GRACE_S)
        if process.returncode:
            said = "what it said is above" if work.kept else "it said:\n" + "\n".join(tail)
            raise StartFailed(f"setting up {ending(process.returncode)}; {said}")

    async def _ready(self) -> None:
        """Wait until control and node answer; raise `StartFailed` when a process cannot stay up or time is up."""
        settings = self._start.settings
        missing = {"control": f"{settings.control}/readyz", "node": settings.functions}
        deadline = asyncio.get_running_loop().time() + _READY_S
        async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
            while True:
                missing = {role: url for role, url in missing.items() if not await _answers(client, url)}
                if not missing:
                    return
                late = asyncio.get_running_loop().time() > deadline
                for child in self._supervisor.children:
                    if child.deaths >= _MOST_DEATHS or (late and child.role.name in missing):
                        raise StartFailed(_why(child))
                await asyncio.sleep(_POLL_S)

    async def _call(self, arguments: Sequence[str]) -> int:
        process = await asyncio.create_subprocess_exec(*self._start.cli(*arguments), env=dict(self._start.environment))
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    """Whether something serves at `url` and calls itself ready; the node has no such page, any answer of it will do."""
    try:
        answer = await client.get(url)
    except httpx.TransportError:
        return False
    return answer.is_success or not url.endswith("/readyz")


def _why(child: Child) -> str:
    how = f"ended {child.deaths} times in a row" if child.deaths else f"did not answer within {_READY_S:g} s"
    said = "\n".join(child.tail)
    return f"{child.role.name} {how}. Its last lines, of {child.log_path}:\n{said}"
