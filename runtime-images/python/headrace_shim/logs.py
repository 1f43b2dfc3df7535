"""What user code prints and logs, as LOG frames of the call that it belongs to.

`current` names that call; a task and its children inherit it as a context variable, a thread gets it from the one that
started it, work in a `ThreadPoolExecutor` from the one that submitted it. Output without a call, or of a call that
has been answered, goes to stream 0. Without a connection it goes to the container's own log, as does
everything written to the file descriptors 1 and 2 directly.

Lines are kept whole: a piece without a line break waits for its end, per thread, until its call is answered.
"""

from __future__ import annotations

import concurrent.futures.thread
import io
import logging
import os
import sys
import threading
import warnings
from _thread import get_ident
from contextvars import ContextVar
from time import time
from typing import Any, Callable

from . import wire
from .call import Call
from .link import Link

FRAME_LIMIT = 32 << 10  # bytes of text in one LOG frame
LINE_LIMIT = 8 << 10  # characters of a line that wait for its end
UNFINISHED_LIMIT = 100  # lines without a call that wait for their end; threads may leave theirs behind

current: ContextVar[Call | None] = ContextVar("headrace_call", default=None)

_LEVELS = {"stdout": "INFO", "stderr": "ERROR"}
_CUT = b"[headrace: this call has logged 256 KiB; the rest of its output is dropped]"


class Log:
    """Sends lines over the link that `link()` names at that moment, None while there is none."""

    def __init__(self, link: Callable[[], Link | None]) -> None:
        self._link = link
        self._lock = threading.RLock()
        self._partial: dict[tuple[str, int], str] = {}

    def text(self, source: str, text: str) -> None:
        """What was written to `source` (stdout, stderr), cut anywhere."""
        call = current.get()
        if call is not None:
            if call.answered:
                call = None
            elif call.log_left <= 0:
                return
        with self._lock:
            if call is None:
                partial = self._partial
                if len(partial) > UNFINISHED_LIMIT:
                    self.finish(None)
            else:
                partial = call.partial
                if partial is None:
                    partial = call.partial = {}
            key = (source, get_ident())
            text = partial.pop(key, "") + text
            lines, newline, rest = text.rpartition("\n")
            if "\r" in rest:  # a progress bar paints over its own line
                rest = rest.rpartition("\r")[2]
            if len(rest) > LINE_LIMIT:
                lines, newline, rest = text, "\n", ""
            if rest:
                partial[key] = rest
        if newline:
            self._emit(call, source, _LEVELS[source], lines)

    def record(self, level: str, text: str) -> None:
        """A complete record of the logging module."""
        self._emit(current.get(), "log", level, text)

    def stack(self, text: str) -> None:
        """A stack that user code left behind."""
        self.record("ERROR", text)

    def finish(self, call: Call | None) -> None:
        """Send the unfinished lines of `call`, or of no call, before its answer."""
        partial = self._partial if call is None else call.partial
        if not partial:
            return
        with self._lock:
            rest = list(partial.items())
            partial.clear()
        for (source, _), text in rest:
            self._emit(call, source, _LEVELS[source], text)

    def flush(self, seconds: float) -> None:
        """Before a sudden end: see that what was logged reaches the node."""
        link = self._link()
        if link is not None:
            link.flush(seconds)

    def forget(self) -> None:
        """In a forked child: another thread may have held the lock."""
        self._lock = threading.RLock()

    def _emit(self, call: Call | None, source: str, level: str, text: str) -> None:
        data = text.encode("utf-8", "replace")
        link, stream = self._link(), 0
        if call is not None and not call.answered:
            link, stream = call.link, call.stream
            with self._lock:
                left = call.log_left
                if left <= 0:
                    return
                call.log_left = max(1, left - len(data) - 1)  # at 0 nothing is said any more, not even that
            if len(data) >= left:
                data = data[:left].decode("utf-8", "ignore").encode() + b"\n" + _CUT
                call.log_left = 0
        if link is None or link.closed:
            os.write(2, data + b"\n")
            return
        head = b'{"t":%.3f,"s":"%s","l":"%s"}' % (time(), source.encode(), level.encode())
        if link.lost_lines:
            lost, link.lost_lines = link.lost_lines, 0
            note = b"[headrace: %d writes to the log were dropped, faster than the node could take them]" % lost
            link.log(wire.encode(wire.LOG, 0, head, note))
        for piece in _pieces(data):
            link.log(wire.encode(wire.LOG, stream, head, piece))


def _pieces(data: bytes) -> list[bytes]:
    """`data` in frames of at most FRAME_LIMIT, cut after a line where there is one."""
    pieces = []
    while len(data) > FRAME_LIMIT:
        at = data.rfind(b"\n", 0, FRAME_LIMIT)
        if at < 0:
            at = FRAME_LIMIT
            while at > FRAME_LIMIT - 4 and data[at] & 0xC0 == 0x80:  # inside a character
                at -= 1
            pieces.append(data[:at])
            data = data[at:]
        else:
            pieces.append(data[:at])
            data = data[at + 1 :]
    pieces.append(data)
    return pieces


class _Bytes(io.RawIOBase):
    """`sys.stdout.buffer`."""

    def __init__(self, text: _Writer) -> None:
        self._text = text

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        data = bytes(data)
        self._text.write(data.decode("utf-8", "replace"))
        return len(data)


class _Writer(io.TextIOBase):
    """`sys.stdout` or `sys.stderr` of user code."""

    encoding = "utf-8"
    errors = "replace"
    line_buffering = True

    def __init__(self, log: Log, source: str, descriptor: int) -> None:
        self._log = log
        self._source = source
        self._descriptor = descriptor
        self.name = f"<{source}>"
        self.mode = "w"
        self.buffer = _Bytes(self)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def reconfigure(self, **_: Any) -> None:
        """Encoding and buffering are fixed; scripts that set them at their start go on."""

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text:
            self._log.text(self._source, text)
        return len(text)


class _Handler(logging.Handler):
    """The root logger's handler."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the handler's lock: a thread that waits for room must not hold up the loop."""
        passed = bool(self.filter(record))
        if passed:
            self.emit(record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log.record(_level(record.levelno), self.format(record))
        except Exception:  # noqa: BLE001 - what logging does with a record that cannot be formatted
            self.handleError(record)


def _level(number: int) -> str:
    if number >= logging.ERROR:
        return "CRITICAL" if number >= logging.CRITICAL else "ERROR"
    if number >= logging.INFO:
        return "WARNING" if number >= logging.WARNING else "INFO"
    return "DEBUG"


def install(log: Log) -> None:
    """Point print, logging, warnings, threads and thread pools of this process to `log`."""
    sys.stdout = _Writer(log, "stdout", 1)
    sys.stderr = _Writer(log, "stderr", 2)
    handler = _Handler(log)
    logging.root.addHandler(handler)
    logging.root.setLevel(logging.INFO)
    _honour_basic_config(handler)
    _log_warnings(log)
    _follow_threads()


def _honour_basic_config(handler: logging.Handler) -> None:
    """`basicConfig` does nothing once the root logger has a handler; here its level and format still count."""
    original = logging.basicConfig

    def basic_config(**options: Any) -> None:
        own = logging.root.handlers == [handler] and not {"filename", "handlers"} & options.keys()
        if not own:
            original(**options)
            return
        if options.get("level") is not None:
            logging.root.setLevel(options["level"])
        if "format" in options or "datefmt" in options:
            style = options.get("style", "%")
            handler.setFormatter(logging.Formatter(options.get("format"), options.get("datefmt"), style))

    logging.basicConfig = basic_config


def _log_warnings(log: Log) -> None:
    def show(message: Any, category: type, filename: str, lineno: int, *_: Any) -> None:
        log.record("WARNING", f"{filename}:{lineno}: {category.__name__}: {message}")

    warnings.showwarning = show


def _follow_threads() -> None:
    """Let threads and pool work belong to the call that started them.

    Only `current` is handed on, not the whole context: libraries keep things there that are true for one thread.
    A pool's own threads outlive the call that happened to start them, so it is the work that is tagged.
    """
    start = threading.Thread.start
    submit = concurrent.futures.ThreadPoolExecutor.submit

    def start_tagged(thread: threading.Thread) -> None:
        call = current.get()
        if call is not None and getattr(thread, "_target", None) is not concurrent.futures.thread._worker:
            thread.run = _tagged(call, thread.run)
        start(thread)

    def submit_tagged(pool: Any, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        call = current.get()
        return submit(pool, work if call is None else _tagged(call, work), *args, **kwargs)

    threading.Thread.start = start_tagged
    concurrent.futures.ThreadPoolExecutor.submit = submit_tagged


def _tagged(call: Call, work: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        token = current.set(call)
        try:
            return work(*args, **kwargs)
        finally:
            current.reset(token)

    return run
