"""Finds syntax errors without running anything, in a process of its own.

`compile` holds the interpreter for as long as it takes and can be brought down by hostile source, so it must not happen
in the process that serves the API. Source that can't be judged here (too long, too deep) is left to the probe.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from headrace.errors import BundleRejected

_TIMEOUT_S = 20.0
_MAX_SOURCE = 2 << 20  # bytes
_CHECK = """
import json, sys
for path in sys.argv[1:]:
    try:
        with open(path, "rb") as file:
            compile(file.read(), path, "exec", dont_inherit=True)
    except SyntaxError as error:
        print(json.dumps([path, error.lineno, error.msg, error.text]))
        break
    except ValueError as error:
        print(json.dumps([path, None, str(error), None]))
        break
"""


def check_python(root: Path, paths: list[str]) -> None:
    """Refuse the first of `paths`, files below `root`, that is no Python."""
    judged = [path for path in paths if (root / path).stat().st_size <= _MAX_SOURCE]
    if not judged:
        return
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", _CHECK, *judged]
    try:
        found = subprocess.run(command, cwd=root, capture_output=True, timeout=_TIMEOUT_S, check=False).stdout
    except subprocess.TimeoutExpired:
        return
    if not found:
        return
    path, line, message, text = json.loads(found)
    where = path if line is None else f"{path}, line {line}"
    quoted = f" in {text.strip()[:120]!r}" if text and text.strip() else ""
    version = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    raise BundleRejected(f"{where}: {message}{quoted} (read as {version}).", path=path, line=line)
