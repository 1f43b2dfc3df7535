"""The image's program: started, its output taken as log lines, its end passed on.

A line that comes while exactly one call runs belongs to that call; who serves several at once tells nobody which of
them it writes about, so those lines belong to the instance.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import signal
import subprocess
from typing import TYPE_CHECKING

from headrace_shim.errors import Plain
from headrace_shim.logs import current

if TYPE_CHECKING:
    from headrace_shim.call import Call
    from headrace_shim.logs import Log

PIECE = 64 << 10  # bytes read of the output at once
PIECES = 16  # ... and before an answer goes out
LAST_WORDS = 2000  # bytes of output that explain an end
STOP_S = 8.0  # from SIGTERM to SIGKILL; the node itself waits a little longer


class CannotStart(Plain):
    """The image's command is not something that can be run."""


class Guest:
    """One process. `ended` resolves with its exit code, 128 + n for a signal."""

    def __init__(self, command: list[str], env: dict[str, str], workdir: str, log: Log) -> None:
        self.command = command
        self.calls: set[Call] = set()  # that run now
        self.ended: asyncio.Future[int]
        self._env = env
        self._workdir = workdir
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._sources: dict[int, tuple[str, codecs.IncrementalDecoder]] = {}
        self._tail = b""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises `CannotStart`."""
        self.ended = asyncio.get_running_loop().create_future()
        out, err = self._pipe("stdout"), self._pipe("stderr")
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self._env,
                cwd=self._workdir,
                start_new_session=True,
            )
        except OSError as error:
            where = f" in {self._workdir}" if error.filename == self._workdir else ""
            raise CannotStart(
                f"the image's command {self.command[0]!r} cannot be started{where}: {error.strerror}. It runs as user "
                f"{os.geteuid()}, without privileges; correct ENTRYPOINT, CMD or the modes of its files."
            ) from None
        finally:
            os.close(out)
            os.close(err)
        self._task = asyncio.get_running_loop().create_task(self._watch(self._process))

    @property
    def last_words(self) -> str:
        return self._tail.decode("utf-8", "replace").strip()

    def take_output(self) -> None:
        """Take what the program has written up to now: what it says of a call comes before that call's answer."""
        for descriptor in list(self._sources):
            for _ in range(PIECES):
                if not self._readable(descriptor):
                    break

    async def stop(self) -> None:
        """Let the program shut down, and kill it when it does not."""
        if self._process is None or self.ended.done():
            return
        self._signal(signal.SIGTERM)
        await asyncio.wait({self.ended}, timeout=STOP_S)
        await self.kill()

    async def kill(self) -> None:
        if not self.ended.done():
            self._signal(signal.SIGKILL)
            await asyncio.wait({self.ended}, timeout=1.0)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        try:
            self._process.send_signal(number)
        except ProcessLookupError:
            pass  # it has ended; `_watch` says so next

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        self.take_output()
        for source, decoder in self._sources.values():
            self._log.text(source, decoder.decode(b"", final=True))
        self._log.finish(None)
        self.ended.set_result(code if code >= 0 else 128 - code)

    def _pipe(self, source: str) -> int:
        """The writing end of a pipe whose lines become log lines of `source`."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        self._sources[reading] = source, codecs.getincrementaldecoder("utf-8")("replace")
        asyncio.get_running_loop().add_reader(reading, self._readable, reading)
        return writing

    def _readable(self, descriptor: int) -> bool:
        """Take a piece of output; False when there is none."""
        try:
            data = os.read(descriptor, PIECE)
        except BlockingIOError:
            return False
        if not data:  # the program has closed it, or ended
            asyncio.get_running_loop().remove_reader(descriptor)
            self._sources.pop(descriptor)
            os.close(descriptor)
            return False
        self._tail = (self._tail + data)[-LAST_WORDS:]
        source, decoder = self._sources[descriptor]
        token = current.set(next(iter(self.calls)) if len(self.calls) == 1 else None)
        try:
            self._log.text(source, decoder.decode(data))
        finally:
            current.reset(token)
        return True
