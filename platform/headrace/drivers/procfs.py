"""Which process is which on Linux: a pid together with its start is never used twice while the machine runs."""

from __future__ import annotations

from pathlib import Path

_START = 19  # of the fields that follow the name of the program


def start_time(pid: int, *, zombie: bool = False) -> int | None:
    """Clock ticks from boot to the start of `pid`; None when it is gone. A zombie counts as gone unless asked for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[_START]) if zombie or fields[0] not in "ZX" else None


def process_tag(pid: int) -> str:
    """`pid-start`, the same for as long as the process lives."""
    return f"{pid}-{start_time(pid)}"
