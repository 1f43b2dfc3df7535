"""The duties of process 1 in a container: reap orphans, pass signals on.

The shim cannot do this itself: `waitpid(-1)` would steal the exit codes of the children that user code started
and waits for. So process 1 forks before anything is imported; it stays behind as a reaper, which costs 3 MiB, and
the child becomes the shim. An engine that brings an init of its own makes this unnecessary: then the shim is not
process 1.
"""

from __future__ import annotations

import _signal
import os


def supervise() -> None:
    """Return in a child. The parent reaps until that child ends, then exits as it did (128 + n for a signal)."""
    child = os.fork()
    if child == 0:
        return

    def forward(number: int, _frame: object) -> None:
        try:
            os.kill(child, number)
        except ProcessLookupError:
            pass  # it has ended; waitpid says so next

    _signal.signal(_signal.SIGTERM, forward)
    _signal.signal(_signal.SIGINT, forward)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
