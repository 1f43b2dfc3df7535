"""What instances write, on its way to the recorder: LOG frames become log lines.

An instance is not trusted with the size of the log. Each has a token bucket of bytes; what it writes beyond is
dropped, and a line in its own log says how much, so that nothing vanishes silently.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from headrace.model import Version

BURST = 4 << 20  # bytes an instance may write at once
LINE = 100  # bytes that every line costs beside its text
RATE = 512 << 10  # bytes a second it may write for ever
LONGEST = 16 << 10  # bytes of one line; the rest of a longer one is the next line
_STREAMS = frozenset(("stdout", "stderr", "log"))
_LEVELS = frozenset(("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"))

Take = Callable[[str, dict[str, Any], bytes], None]


class LogTap:
    """`line` gets one tuple per line, in the field order of `model.LogLine` without `seq`."""

    def __init__(self, line: Callable[[tuple[Any, ...]], None]) -> None:
        self._line = line

    def of(self, version: Version, instance: str) -> Take:
        """What takes the LOG frames of `instance`: (invocation id or "", header, text)."""
        place = (version.namespace, version.function, version.number)
        tokens, filled, dropped = float(BURST), time.monotonic(), 0

        def take(invocation: str, header: dict[str, Any], text: bytes) -> None:
            nonlocal tokens, filled, dropped
            now = time.monotonic()
            tokens, filled = min(BURST, tokens + (now - filled) * RATE), now
            cost = len(text) + LINE * (1 + text.count(b"\n"))
            if tokens < cost:
                dropped += len(text)
                return
            at = _time(header)
            if dropped:
                note = f"{dropped} bytes of log were dropped here: the instance wrote more than {RATE} bytes a second."
                self._line((at, *place, "", instance, "platform", "WARNING", note))
                dropped = 0
            tokens -= cost
            stream, level = _known(header.get("s"), _STREAMS, "stdout"), _known(header.get("l"), _LEVELS, "INFO")
            for line in _lines(text):
                self._line((at, *place, invocation, instance, stream, level, line))

        return take


def _time(header: dict[str, Any]) -> float:
    """The instance's own time when it is near ours: its lines keep their order, and it can't write history."""
    now, at = time.time(), header.get("t")
    return float(at) if isinstance(at, int | float) and now - 60 < at < now + 60 else now


def _known(value: object, known: frozenset[str], otherwise: str) -> str:
    return value if isinstance(value, str) and value in known else otherwise


def _lines(text: bytes) -> list[str]:
    return [
        raw[start : start + LONGEST].decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
        for raw in text.rstrip(b"\n").split(b"\n")
        for start in range(0, len(raw) or 1, LONGEST)
    ]
