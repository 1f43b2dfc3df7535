"""Directories that are there whole or not at all: written under a temporary name, synced, renamed into place.

A crash leaves nothing but temporary directories, which `sweep` removes once they are old. Two writers of the same name
are fine: what is named by its content is the same whoever wrote it, so the one that comes second throws its own away.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.errors import HeadraceError

logger = logging.getLogger(__name__)

_NEW, _OLD = ".new-", ".old-"
_OLD_AFTER_S = 3600.0  # longer than anything takes between writing a directory and noting who uses it


@contextmanager
def temporary(shelf: Path) -> Iterator[Path]:
    """A fresh empty directory on `shelf`, gone afterwards unless it was kept. A full disk is said plainly."""
    try:
        path = fresh(shelf)
        try:
            yield path
        finally:
            remove(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HeadraceError(f"the disk that holds {shelf} is full: free some space and try again.") from error
        raise


def fresh(shelf: Path) -> Path:
    """A new empty directory on `shelf`, to be filled and kept, or removed."""
    shelf.mkdir(parents=True, exist_ok=True)
    path = shelf / f"{_NEW}{secrets.token_hex(8)}"
    path.mkdir()
    path.chmod(0o755)
    return path


def keep(path: Path, final: Path) -> None:
    """Make the finished tree at `path` durable as `final`, unless that is there already."""
    if present(final):
        return
    _sync(path)
    try:
        path.rename(final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    _sync_one(final.parent)


def present(final: Path) -> bool:
    """Whether `final` exists; if so it counts as new again, so that `sweep` leaves it to its next user."""
    try:
        os.utime(final)
    except FileNotFoundError:
        return False
    return True


def sweep(shelf: Path, used: Collection[str]) -> int:
    """Remove what is on `shelf`, not `used` and older than an hour; how many directories went."""
    removed = 0
    for path in sorted(shelf.iterdir()) if shelf.is_dir() else []:
        if path.name not in used and _is_old(path):
            removed += _retire(path)
    return removed


def _retire(path: Path) -> bool:
    """Move `path` aside first: nobody sees a half removed directory, nor loses one that was just found again."""
    aside = path if path.name.startswith(_OLD) else path.with_name(f"{_OLD}{secrets.token_hex(8)}")
    try:
        if aside != path:
            path.rename(aside)
        if not _is_old(aside):
            aside.rename(path)
            return False
    except OSError as error:
        logger.warning("can't tidy %s away: %s", path, error)
        return False
    return remove(aside)


def _is_old(path: Path) -> bool:
    try:
        return path.stat().st_mtime < time.time() - _OLD_AFTER_S
    except FileNotFoundError:
        return False


def remove(path: Path) -> bool:
    """Remove the tree at `path`; False when it is not there, or when something of it stays."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return False
    except (OSError, RecursionError):
        return _force(path)
    return True


def _force(path: Path) -> bool:
    """Remove a tree that was made hard to remove: closed directories, or more in each other than Python follows."""
    for command in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
        done = subprocess.run([*command, "--", str(path)], capture_output=True, text=True, check=False)
    if path.exists():
        logger.warning("can't remove %s: %s", path, done.stderr[-300:])
        return False
    return True


def _sync(root: Path) -> None:
    for directory, _, files in os.walk(root):
        for name in files:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                _sync_one(path)
        _sync_one(Path(directory))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
