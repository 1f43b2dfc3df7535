"""Writes the entries of a bundle into an empty directory, and nothing outside it.

Nothing is trusted but what was written: bytes and files are counted as they come. While files are written the tree has
no links at all, so no path can lead anywhere else; links are kept in mind, judged together when everything else is
there (each must end inside, however many links its way takes), and made last.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import BundleRejected
from headrace.releases.archive import MAX_FILES, MAX_UNPACKED, Entry, shown, too_large, too_many

_MAX_PATH = 1024  # bytes
_MAX_COMPONENT = 255  # bytes; what file systems take
_MAX_DEPTH = 64
_MAX_STEPS = 256  # components on the way of a link, through other links
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"[A-Za-z]:")
_SHADOW = "__MACOSX"  # where one packer keeps attributes beside the files


@dataclass(frozen=True, slots=True)
class _File:
    executable: bool
    size: int
    digest: bytes


class Tree:
    """A bundle on its way to disk. `add` every entry, `strip` a folder if needed, then `finish`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, _File] = {}
        self._links: dict[str, str] = {}
        self._directories: set[str] = set()
        self._entries = 0
        self.size = 0  # bytes written

    def add(self, entry: Entry) -> None:
        path = clean(entry.name)
        if path.partition("/")[0] == _SHADOW:
            return
        if entry.kind == "directory":
            self._make_directory(path)
            return
        if not path:
            raise BundleRejected(f"{shown(entry.name)} names the bundle itself, not a file in it.")
        self._claim(path)
        if entry.kind == "link":
            self._links[path] = _checked_target(path, entry.target)
        elif entry.kind == "hard link":
            self._copy(path, entry.target)
        else:
            self._write(path, entry.executable, entry.chunks)

    def files(self) -> list[str]:
        """Paths of files and links, sorted."""
        return sorted([*self._files, *self._links])

    def find(self, path: str) -> str | None:
        """The real path of the file at `path`, through links; None when there is none."""
        real = self._resolve(path)
        return real if real in self._files else None

    def only_folder(self) -> str | None:
        """The folder that holds everything, if there is just one thing at the top and it is a folder."""
        tops = {path.partition("/")[0] for path in [*self._files, *self._links, *self._directories]}
        return tops.pop() if len(tops) == 1 and tops <= self._directories else None

    def strip(self, folder: str) -> None:
        """Make `folder`, which holds everything, the root."""
        cut = len(folder) + 1
        self.root = self.root / folder
        self._files = {path[cut:]: file for path, file in self._files.items()}
        self._links = {path[cut:]: target for path, target in self._links.items()}
        self._directories = {path[cut:] for path in self._directories if path != folder}

    def finish(self) -> str:
        """Judge and make the links; the digest of the whole."""
        for path, target in self._links.items():
            real = self._resolve(path)
            if real and real not in self._files and real not in self._directories:
                raise BundleRejected(
                    f"the link {shown(path)} points at {shown(target)}, which the bundle doesn't hold."
                )
        for path, target in self._links.items():
            (self.root / path).symlink_to(target)
        return self._digest()

    def _digest(self) -> str:
        """SHA-256 over the sorted list of what is there: the same tree has the same digest however it was packed."""
        total = hashlib.sha256(b"headrace bundle 1\n")
        lines = [(path, b"x" if file.executable else b"f", file.digest) for path, file in self._files.items()]
        lines += [(path, b"l", target.encode()) for path, target in self._links.items()]
        parents = {path.rpartition("/")[0] for path in [*self._files, *self._links, *self._directories]}
        lines += [(path, b"d", b"") for path in self._directories - parents]
        for path, kind, content in sorted((path.encode(), kind, content) for path, kind, content in lines):
            total.update(b"%b %b\0%d %b\n" % (kind, path, len(content), content))
        return total.hexdigest()

    def _claim(self, path: str) -> None:
        """Take `path` for a file or link, with the directories above it."""
        self._entries += 1
        if self._entries > MAX_FILES:
            raise too_many()
        self._make_directory(path.rpartition("/")[0])
        if path in self._files or path in self._links or path in self._directories:
            raise BundleRejected(f"{shown(path)} is in the bundle twice: pack it once.")

    def _make_directory(self, path: str) -> None:
        if not path or path in self._directories:
            return
        if path in self._files or path in self._links:
            raise BundleRejected(f"{shown(path)} is in the bundle both as a file or link and as a folder.")
        self._make_directory(path.rpartition("/")[0])
        if len(self._directories) >= MAX_FILES:
            raise too_many()
        self._directories.add(path)
        directory = self.root / path
        try:
            directory.mkdir()
        except FileExistsError:
            raise _same_name(path) from None
        directory.chmod(0o755)

    def _write(self, path: str, executable: bool, chunks: Iterable[bytes]) -> None:
        digest, size = hashlib.sha256(), 0
        try:
            descriptor = os.open(self.root / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            raise _same_name(path) from None
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                size += len(chunk)
                if self.size + size > MAX_UNPACKED:
                    raise too_large()
                digest.update(chunk)
                file.write(chunk)
            os.fchmod(file.fileno(), 0o755 if executable else 0o644)
        self.size += size
        self._files[path] = _File(executable, size, digest.digest())

    def _copy(self, path: str, target: str) -> None:
        """A hard link becomes a file of its own: what it names must be a file that came before."""
        original = clean(target)
        if original not in self._files:
            raise BundleRejected(f"the hard link {shown(path)} points at {shown(target)}, which is no file before it.")
        with (self.root / original).open("rb") as file:
            self._write(path, self._files[original].executable, iter(lambda: file.read(1 << 16), b""))

    def _resolve(self, path: str) -> str:
        """Where `path` leads, `..` and links taken as the kernel takes them; refused when that is outside."""
        todo = path.split("/")[::-1]
        at = [""]  # every prefix of the way so far
        for _ in range(_MAX_STEPS):
            if not todo:
                return at[-1]
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                at.pop()
                if not at:
                    raise BundleRejected(f"the link {shown(path)} leads outside the bundle: make it end inside.")
                continue
            here = f"{at[-1]}/{part}" if at[-1] else part
            target = self._links.get(here)
            if target is None:
                at.append(here)
            else:
                todo += target.split("/")[::-1]
        raise BundleRejected(f"the link {shown(path)} leads in a circle, or through too many links.")


def clean(name: str) -> str:
    """`name` as a plain relative path such as `pkg/mod.py`, empty for the root; refused when it may mean another."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BundleRejected(f"the name {shown(name)} is not valid Unicode: rename the file.") from None
    if _CONTROL.search(name) or "\\" in name:
        raise BundleRejected(f"the name {shown(name)} holds a backslash or a control character: rename the file.")
    if name.startswith("/") or _DRIVE.match(name):
        raise BundleRejected(f"{shown(name)} is an absolute path: pack with paths relative to the function's folder.")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise BundleRejected(f"{shown(name)} leads outside the bundle: pack without '..' in paths.")
    if size > _MAX_PATH or len(parts) > _MAX_DEPTH or any(len(part.encode()) > _MAX_COMPONENT for part in parts):
        raise BundleRejected(
            f"the path {shown(name)} is too long: at most {_MAX_PATH} bytes, {_MAX_DEPTH} folders deep, "
            f"{_MAX_COMPONENT} bytes for one name."
        )
    return "/".join(parts)


def _checked_target(path: str, target: str) -> str:
    if not target or _CONTROL.search(target) or "\\" in target:
        raise BundleRejected(f"the link {shown(path)} has the target {shown(target)}: use a plain relative path.")
    if target.startswith("/") or _DRIVE.match(target):
        raise BundleRejected(f"the link {shown(path)} points at the absolute path {shown(target)}: make it relative.")
    return target


def _same_name(path: str) -> BundleRejected:
    return BundleRejected(f"{shown(path)} differs from another name only in ways that this disk does not keep apart.")
