"""`headrace up`, once it holds the lock of its home: everything until it lets go of it.

Check the ports, run `init` (directories, database, token, engine), start the processes, wait until they answer, then
watch over them until a signal comes. The first signal stops them in order, the second ends them at once.
"""

from __future__ import annotations

import asyncio
import re
import signal
from collections import deque
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from headrace import tls
from headrace.cli.output import Output, Work, failure_lines
from headrace.cli.ports import check_free
from headrace.cli.rotating import RotatingFile
from headrace.cli.start import GRACE_S, POLL_S, Start, StartFailed, announce
from headrace.cli.supervisor import Child, Supervisor, ending, first_of, spawned
from headrace.cli.uplock import UpLock
from headrace.errors import HeadraceError
from headrace.settings import Settings

T = TypeVar("T")

_READY_S = 90.0
_ANSWER_S = 2.0
_MOST_DEATHS = 5  # ends in a row of one process before the start counts as failed
_TAIL = 20
_INTERRUPTED = 130
_LOG_PREFIX = re.compile(r"^\d{4}-\S+ \S+ INFO \w+ ")
_SECRET = re.compile(r"hr_[A-Za-z0-9_-]{20,}")


class Interrupted(Exception):
    """A signal asked for the end while something was under way."""


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
        if settings.tls_cert:
            tls.check(settings.tls_cert, settings.tls_key)
        check_free(settings.host, settings.port, "--port")
        check_free(settings.host, settings.control_port, "--control-port")
        with self._out.working("Setting up") as work:
            await self._unless_asked(self._init(work))
        self._supervisor.start()
        with self._out.working("Starting control, node and worker"):
            await self._unless_asked(self._ready())
        holder = self._start.holder(ready=True)
        self._lock.describe(holder)
        announce(self._out, self._start, holder, "Headrace is ready.")
        self._start.show_token(self._out, self._start.token_mark)
        with suppress(Interrupted):
            await self._first_calls(calls)
        self._out.note(f"Ctrl-C stops it. So does: {self._start.down}")
        await self._asked.wait()

    async def _first_calls(self, calls: Sequence[Sequence[str]]) -> None:
        for arguments in calls:
            if await self._unless_asked(self._call(arguments)):
                return  # it has said why
        self._out.line("")  # an answer need not end its line

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
            if _SECRET.search(line):
                return  # the admin token is shown at the end, where it is seen
            line = _LOG_PREFIX.sub("", line)
            tail.append(line)
            self._keep(line)
            work.step(line)

        async with spawned(self._start.command("init"), self._start.environment, heard) as process:
            try:
                await process.wait()
            finally:
                if process.returncode is None:
                    process.terminate()
                    await first_of(process.wait(), timeout_s=GRACE_S)
        if process.returncode:
            said = "what it said is above" if work.kept else "it said:\n" + "\n".join(tail)
            raise StartFailed(f"setting up {ending(process.returncode)}; {said}")

    async def _ready(self) -> None:
        """Wait until control says that all is ready, which it does once it works and the node serves.

        Raises `StartFailed` when a process cannot stay up, or when time is up.
        """
        deadline = asyncio.get_running_loop().time() + _READY_S
        while (status := await _status(f"{self._start.settings.control}/readyz", self._start.settings)) != b"200":
            missing = "node" if status else "control"
            late = asyncio.get_running_loop().time() >= deadline
            for child in self._supervisor.children:
                if child.deaths >= _MOST_DEATHS or (late and child.role.name == missing):
                    raise StartFailed(_why(child))
            await asyncio.sleep(POLL_S)

    async def _call(self, arguments: Sequence[str]) -> int:
        process = await asyncio.create_subprocess_exec(*self._start.cli(*arguments), env=dict(self._start.environment))
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()


async def _status(url: str, settings: Settings) -> bytes:
    """The status that `url` answers with; empty when nothing answers."""
    place = urlsplit(url)
    trusted = tls.pinned(settings.tls_cert) if settings.tls_cert else None
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_connection(place.hostname, place.port, ssl=trusted)
            try:
                writer.write(f"GET {place.path} HTTP/1.0\r\nHost: {place.netloc}\r\n\r\n".encode())
                words = (await reader.readline()).split()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return b""
    return words[1] if len(words) > 1 else b""


def _why(child: Child) -> str:
    how = f"ended {child.deaths} times in a row" if child.deaths else f"was not ready within {_READY_S:g} s"
    said = "\n".join(child.tail)
    return f"{child.role.name} {how}. Its last lines, of {child.log_path}:\n{said}"
