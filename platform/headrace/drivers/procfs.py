"""Which process is which on Linux: a pid together with its start is never used twice while the machine runs."""

from __future__ import annotations

from pathlib import Path

_START = 19  # of the fields that follow the name of the program


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of `pid`; None when it is gone, a zombie included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[_START])


def process_tag(pid: int) -> str:
    """`pid-start`, the same for as long as the process lives."""
    return f"{pid}-{start_time(pid)}"
