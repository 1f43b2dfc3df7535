"""`headrace up` and `headrace down`: one supervisor per home, in front or detached."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

from headrace.cli.detached import Detached
from headrace.cli.foreground import Foreground
from headrace.cli.output import Output
from headrace.cli.start import GRACE_S, POLL_S, Start, announce
from headrace.cli.uplock import make_private
from headrace.errors import HeadraceError
from headrace.settings import PREFIX


def first_call(directory: Path | None) -> list[tuple[str, ...]]:
    """The commands that deploy `directory`, unless its function is live already, and call it.

    Raises `Invalid` when it cannot be deployed.
    """
    if directory is None:
        return []
    from headrace.cli import project

    directory = project.check_directory(directory)
    name = project.function_name(directory, None)
    return [("deploy", str(directory), "--unless-published"), ("invoke", name, "--verbose")]


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
        start.check_ports(holder)
        state = "runs already" if holder.ready else "is just being started"
        announce(out, start, holder, f"Headrace {state}, as process {holder.pid}.")
    out.line(f"Stop it with: {start.down}")
    environment = {**start.environment, f"{PREFIX}CONTROL_URL": holder.control}
    for arguments in calls:
        code = subprocess.run(start.cli(*arguments), env=environment, check=False).returncode
        if code:
            raise SystemExit(code)
    if calls:
        out.line("")  # an answer need not end its line


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
    within_s = start.settings.drain_s + 3 * GRACE_S
    deadline = time.monotonic() + within_s
    with out.working("Stopping Headrace; running calls may finish"):
        while start.lock.holder() is not None:
            if time.monotonic() > deadline:
                raise HeadraceError(
                    f"Headrace (process {holder.pid}) did not end within {within_s:g} s: see its log in "
                    f"{start.log_dir}, or end it with `kill -9 {holder.pid}`."
                )
            time.sleep(POLL_S)
    out.line("Headrace is stopped.", "bold green")
