"""One supervisor per home: a lock held for its whole life, and beside it a note on who holds it and where it serves.

The lock is a `flock`, which the kernel lets go of when its holder ends in any way, so a stale one cannot exist. The
note means something only while the lock is held.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from headrace.errors import HeadraceError

_LOCK = "up.lock"
_NOTE = "up.json"


class UnusableHome(HeadraceError):
    """The home directory cannot be used."""

    code, title = "unusable_home", "The home directory cannot be used"


@dataclass(frozen=True, slots=True)
class Holder:
    """The supervisor of a home. `ready` once it serves at its two URLs."""

    pid: int
    functions: str
    control: str
    ready: bool


def make_private(directory: Path) -> None:
    """Make sure that `directory` exists and is ours alone."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = directory.stat().st_uid
    except OSError as error:
        raise UnusableHome(
            f"{directory} cannot be made ({error.strerror}): give one you may write with --home or HEADRACE_HOME."
        ) from None
    if owner != os.geteuid() or not os.access(directory, os.W_OK | os.X_OK):
        raise UnusableHome(
            f"{directory} is not yours to write: run as its owner, or give another with --home or HEADRACE_HOME."
        )


class UpLock:
    """The lock of the home whose run directory is given."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._file = -1

    def acquire(self) -> bool:
        """Take the lock; False when somebody holds it."""
        make_private(self._run_dir)
        file = os.open(self._run_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._file = file
        (self._run_dir / _NOTE).unlink(missing_ok=True)
        return True

    def take(self) -> Holder | None:
        """Take the lock, or say who holds it."""
        while not self.acquire():
            holder = self.holder()
            if holder is not None:
                return holder
        return None

    def describe(self, holder: Holder) -> None:
        """Say who holds the lock; replaces the note as a whole."""
        fresh = self._run_dir / f"{_NOTE}.new"
        fresh.write_text(json.dumps(asdict(holder)))
        fresh.replace(self._run_dir / _NOTE)

    def release(self) -> None:
        (self._run_dir / _NOTE).unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1

    def holder(self) -> Holder | None:
        """Who holds the lock now; None: nobody. A holder that has not yet said who it is has pid 0."""
        if not (self._run_dir / _LOCK).exists():
            return None
        if self.acquire():
            self.release()
            return None
        return self.note() or Holder(pid=0, functions="", control="", ready=False)

    def note(self) -> Holder | None:
        """What the last holder said of itself; it may be gone."""
        try:
            return Holder(**json.loads((self._run_dir / _NOTE).read_text()))
        except (OSError, ValueError, TypeError):
            return None
