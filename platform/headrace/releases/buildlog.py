"""The build log while it grows: lines are taken at once, written in small batches, without addresses nor secrets."""

from __future__ import annotations

import asyncio
import logging
import re
from types import TracebackType

from headrace.errors import HeadraceError
from headrace.store.versions import Versions
from headrace.tasks import Tasks

logger = logging.getLogger(__name__)

_EVERY_S = 0.25
_MAX_WAITING = 5000  # lines; an installer that prints faster than they can be written loses some, and it says so
_MAX_LINE = 4000  # characters
_ADDRESSES = re.compile(
    r"(?<=://)[^\s'\"<>]+"  # of a URL all but its scheme: host, path and query may hold secrets
    r"|(?<=host=['\"])[^'\"]+"
    r"|(?<=resolve ['\"])[^'\"]+"
    r"|(?<=located at )\S+"
    r"|[^\s/:@'\"]+:[^\s/@'\"]+(?=@)"
)


def scrubbed(text: str) -> str:
    """What an installer said, without the addresses it spoke to and the credentials it used."""
    return _ADDRESSES.sub("…", text)


class BuildLog:
    """The log of one version, as a context: what is left is written at its end, unless that is a cancellation."""

    def __init__(self, versions: Versions, version_id: int) -> None:
        self._versions = versions
        self._id = version_id
        self._waiting: list[str] = []
        self._lost = 0
        self._ended = asyncio.Event()
        self._tasks = Tasks()

    def line(self, text: str) -> None:
        """Take a line, or several."""
        for line in text.splitlines() or [""]:
            if len(self._waiting) >= _MAX_WAITING:
                self._lost += 1
            else:
                self._waiting.append(line[:_MAX_LINE])

    def installer(self, text: str) -> None:
        """Take what the installer printed."""
        self.line(scrubbed(text))

    async def __aenter__(self) -> BuildLog:
        self._writer = self._tasks.spawn(self._write_now_and_then(), f"build log of version id {self._id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            await self._tasks.aclose()
        else:
            await asyncio.wait([self._writer])  # not cut off: what it is writing would be written twice
            await self._write()

    async def _write_now_and_then(self) -> None:
        while not self._ended.is_set():
            try:
                async with asyncio.timeout(_EVERY_S):
                    await self._ended.wait()
            except TimeoutError:
                await self._write()

    async def _write(self) -> None:
        """Write what waits. While the store is away it goes on waiting."""
        lines, lost = self._waiting[:], self._lost
        if not lines:
            return
        if lost:
            lines.append(f"[{lost:,} lines came faster than they could be kept]")
        try:
            await self._versions.append_log(self._id, lines)
        except HeadraceError as error:
            logger.warning("can't write the build log of version id %d: %s", self._id, error)
            return
        self._waiting = self._waiting[len(lines) - bool(lost) :]
        self._lost -= lost
