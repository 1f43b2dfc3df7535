"""What a packed bundle holds, as one stream of entries, whichever format it was packed in.

The two readers, `tarball` and `zipball`, are our own and strict. The standard library's are made to get at data in
spite of oddities: they hold whole extended headers and directories in memory, cut names at a NUL, trust sizes, accept
entries that overlap. A reader for strangers' uploads has to refuse exactly these, so both know the little of their
format that packers write, read it in bounded pieces, and raise nothing but `BundleRejected` and `TooLarge`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from headrace.errors import BundleRejected, TooLarge

MIB = 1 << 20
MAX_PACKED = 50 * MIB
MAX_UNPACKED = 250 * MIB
MAX_FILES = 20_000  # files and links; as many directories may hold them
MAX_ENTRIES = 4 * MAX_FILES  # of the archive: with directories and the shadow entries some packers add
MAX_TARGET = 4096  # bytes of the target of a link
CHUNK = 64 << 10


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as the archive tells it, unchecked. `chunks` is valid until the next entry is asked for."""

    name: str
    kind: Literal["file", "directory", "link", "hard link"]
    executable: bool = False
    target: str = ""  # of a link: relative to its directory; of a hard link: the name of an earlier entry
    chunks: Iterable[bytes] = ()


def shown(name: str | bytes) -> str:
    """A name from a bundle, quoted and short enough for a message."""
    return repr(name) if len(name) <= 120 else f"{name[:120]!r}..."


def decode(name: bytes) -> str:
    """A name of an entry as text."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise BundleRejected(
            f"the name {shown(name)} is not UTF-8: rename the file, or pack it with UTF-8 names."
        ) from None


def too_large() -> TooLarge:
    return TooLarge(
        f"the bundle unpacks to more than {MAX_UNPACKED // MIB} MiB: leave out what the function doesn't need."
    )


def too_many() -> TooLarge:
    return TooLarge(f"the bundle holds more than {MAX_FILES:,} files: leave out what the function doesn't need.")
