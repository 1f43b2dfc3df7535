"""What an installer leaves behind, and how much of the disk it may take. Its content is hostile: no link is followed.

A directory has no quota that every engine and file system knows. So it is measured while it grows: walked through once
in a while, and at once when the free space of its disk falls fast. A file that is deleted while it is open is in no
directory; that the disk keeps falling without an explanation in the result gives it away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from headrace.errors import BuildFailed

LARGEST_RESULT = 1 << 30  # bytes
_MOST_FILES = 200_000
_DEEPEST = 60  # directories in each other
_UNEXPLAINED = 4  # times as much as the result may take
_LOOK_EVERY_S = 0.1
_MEASURE_EVERY_S = 1.0


async def too_large(directory: Path) -> BuildFailed:
    """Returns why, when the result or what the disk loses is over the bounds; cancel it when the installer ends."""
    before = measured_at = _free(directory)
    size, waited = 0, 0.0
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        waited += _LOOK_EVERY_S
        free = _free(directory)
        try:
            if waited >= _MEASURE_EVERY_S or measured_at - free > LARGEST_RESULT / 4:
                size, waited, measured_at = await asyncio.to_thread(_size, directory), 0.0, free
            check_disk(before - free, size)
        except BuildFailed as error:
            return error


def check_disk(lost: int, size: int) -> None:
    """Raise `BuildFailed` when the disk has `lost` far more bytes than the `size` of the result."""
    if lost - size > _UNEXPLAINED * LARGEST_RESULT:
        raise BuildFailed(
            f"the disk lost {lost >> 20:,} MiB while the dependencies were installed, which take {size >> 20:,} MiB: "
            "one of their programs fills it. Deploy it again if that was something else on this machine."
        )


def settle(directory: Path) -> None:
    """Make the result, whose installer has ended, fit to be kept: bounded, readable by all, without setuid bits.

    What is no file, directory or link goes. Raises `BuildFailed` when it is over the bounds.
    """
    for path, status in _measured(directory):
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            wanted = mode & 0o777 | 0o755
        elif stat.S_ISREG(status.st_mode):
            wanted = mode & 0o777 | (0o555 if mode & 0o100 else 0o444)
        else:
            if not stat.S_ISLNK(status.st_mode):
                Path(path).unlink()
            continue
        if wanted != mode:
            Path(path).chmod(wanted)


def _size(directory: Path) -> int:
    """Bytes on disk. Raises `BuildFailed` when they are too many."""
    size = 0
    for _, status in _measured(directory):
        size += status.st_blocks * 512
    return size


def _measured(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below `directory`, a directory before what is in it, until there is too much."""
    size = files = 0
    waiting = [(str(directory), 0)]
    while waiting:
        folder, depth = waiting.pop()
        for path, status in _entries(folder):
            files, size = files + 1, size + status.st_blocks * 512
            if size > LARGEST_RESULT or files > _MOST_FILES or depth >= _DEEPEST:
                raise BuildFailed(
                    f"the dependencies take more than {LARGEST_RESULT >> 20:,} MiB, {_MOST_FILES:,} files or "
                    f"{_DEEPEST} directories in each other. Leave out what the function does not need."
                )
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                waiting.append((path, depth + 1))


def _entries(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """What is in `folder`; nothing of what has just gone, or may not be looked at while it is written."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                yield entry.path, entry.stat(follow_symlinks=False)


def _free(directory: Path) -> int:
    return shutil.disk_usage(directory).free
