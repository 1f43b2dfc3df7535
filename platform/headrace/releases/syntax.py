"""Finds syntax errors without running anything, in a process of its own.

Compiling can take long and be brought down by hostile source, so it must not happen in the process that serves the API.
What a runtime's `check` can't judge, or can't judge on this machine, is left to the probe.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from headrace.errors import BundleRejected
from headrace.runtimes import Runtime, filled

_TIMEOUT_S = 20.0
_MAX_SOURCE = 2 << 20  # bytes


def check(runtime: Runtime, root: Path, paths: list[str]) -> None:
    """Refuse the first of `paths`, files below `root`, that is not in the language."""
    judged = [path for path in paths if (root / path).stat().st_size <= _MAX_SOURCE]
    command = filled(runtime.code.check, {"self": sys.executable, "runtime": runtime.directory})
    if not judged or not command or shutil.which(command[0]) is None:
        return
    try:
        found = subprocess.run(
            [*command, *judged], cwd=root, capture_output=True, timeout=_TIMEOUT_S, check=False
        ).stdout
    except subprocess.TimeoutExpired:
        return
    if not found:
        return
    error = json.loads(found)
    path, line, text = error["path"], error["line"], (error["text"] or "").strip()
    where = path if line is None else f"{path}, line {line}"
    quoted = f" in {text[:120]!r}" if text else ""
    raise BundleRejected(f"{where}: {error['message']}{quoted} (read as {error['as']}).", path=path, line=line)
