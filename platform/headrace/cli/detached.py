"""`headrace up --detach`: the same supervisor in a session of its own, without a terminal.

It writes to its log only; the command that started it shows that log until it is ready. It outlives the terminal.
"""

from __future__ import annotations

import os
import subprocess
import time

from headrace.cli.output import Output, Work
from headrace.cli.start import POLL_S, Start, StartFailed, announce
from headrace.cli.supervisor import ending
from headrace.cli.uplock import Holder


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
        mark = start.token_mark  # before the supervisor shows the token, to nobody
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
        announce(self._out, start, holder, f"Headrace is ready, as process {holder.pid}.")
        start.show_token(self._out, mark)
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
            time.sleep(POLL_S)

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
