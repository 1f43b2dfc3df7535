"""Bundles: what a deploy sends, checked, unpacked and stored under the digest of its content."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from headrace import runtimes
from headrace.errors import BundleRejected, TooLarge
from headrace.model import IMAGE_RUNTIME, VersionConfig
from headrace.releases import durable, syntax, tarball, zipball
from headrace.releases.archive import MAX_PACKED, MIB, Entry, shown
from headrace.releases.unpack import Tree
from headrace.runtimes import Code
from headrace.settings import Settings

_FILES_BESIDE_IMAGE = (
    "the config names an image, which runs as it is, and the bundle holds files: leave out the files; or leave out "
    f"`image` and set `runtime` to {IMAGE_RUNTIME!r}, to have a Dockerfile built from them."
)
_AT_ONCE = 4  # bundles unpacked at the same time; each may take MAX_UNPACKED of the disk
_OTHER_FORMATS = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """A bundle in the store: sha256 hex of its content, and its unpacked size."""

    digest: str
    size_bytes: int


class Bundles:
    """Takes bundles in and keeps them below HOME/code, each once, whoever sends it and however it is packed.

    Raises `BundleRejected` with the reason, or `TooLarge`; then nothing is left behind.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._code = settings.code_dir("any").parent
        self._layers = settings.layer_dir("any").parent
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def from_archive(self, path: Path, config: VersionConfig) -> Stored:
        """Store the zip, tar.gz or tar at `path`, told apart by content."""
        async with self._gate:
            return await asyncio.to_thread(self._store_archive, path, config)

    async def from_files(self, files: Mapping[str, str], config: VersionConfig) -> Stored:
        """Store text files given by path."""
        async with self._gate:
            return await asyncio.to_thread(self._store, _given(files), config)

    async def collect(self, digests: set[str], layers: set[str]) -> int:
        """Remove bundles and layers that no version uses and what crashes left, if older than an hour; how many."""
        code = await asyncio.to_thread(durable.sweep, self._code, digests)
        return code + await asyncio.to_thread(durable.sweep, self._layers, layers)

    def _store_archive(self, path: Path, config: VersionConfig) -> Stored:
        with path.open("rb") as file:
            return self._store(_open(file), config)

    def _store(self, entries: Iterable[Entry], config: VersionConfig) -> Stored:
        runtime = runtimes.check(config)
        with durable.temporary(self._code) as root:
            tree = Tree(root)
            for entry in entries:
                tree.add(entry)
            modules = [] if config.image is not None else _find_handler(tree, config, runtime.code)
            if config.image is not None and tree.files():
                raise BundleRejected(_FILES_BESIDE_IMAGE)
            digest = tree.finish()
            syntax.check(runtime, tree.root, modules)
            durable.keep(tree.root, self._settings.code_dir(digest))
            return Stored(digest, tree.size)


def _open(file: BinaryIO) -> Iterator[Entry]:
    """The entries of the archive in `file`, whatever its format."""
    size = os.fstat(file.fileno()).st_size
    if size > MAX_PACKED:
        raise TooLarge(f"the bundle is over {MAX_PACKED // MIB} MiB: leave out what the function doesn't need.")
    start = file.read(tarball.BLOCK)
    file.seek(0)
    if start.startswith(zipball.MAGIC):
        return zipball.entries(file)
    if start.startswith(tarball.GZIP_MAGIC) or tarball.looks_like_tar(start):
        return tarball.entries(file, gzipped=start.startswith(tarball.GZIP_MAGIC))
    if not start:
        raise BundleRejected("the bundle is empty (0 bytes): send a zip or tar.gz of the function's folder.")
    other = next((name for magic, name in _OTHER_FORMATS.items() if start.startswith(magic)), None)
    what = f"{other} is not taken" if other else f"this is neither (it starts with {start[:16]!r})"
    raise BundleRejected(f"a bundle is a zip or tar.gz archive, {what}: pack the function's folder as one of these.")


def _given(files: Mapping[str, str]) -> Iterator[Entry]:
    total = 0
    for path, text in files.items():
        try:
            content = text.encode()
        except UnicodeEncodeError:
            raise BundleRejected(f"the content of {shown(path)} is not valid Unicode: send it in an archive.") from None
        total += len(content)
        if total > MAX_PACKED:
            raise TooLarge(f"the files are over {MAX_PACKED // MIB} MiB: leave out what the function doesn't need.")
        yield Entry(path, "file", chunks=[content])


def _find_handler(tree: Tree, config: VersionConfig, code: Code) -> list[str]:
    """Paths of the modules that run when the handler loads: its own last, before it the packages it is in.

    When everything is in one folder, as in the archives that code hosts make, and the handler is found there and
    not at the top, that folder becomes the top.
    """
    if not tree.files():
        raise BundleRejected("the bundle holds no files: pack the function's folder.")
    candidates, packages = places(config, code)
    found = _first(tree, candidates)
    folder = tree.only_folder()
    if found is None and folder is not None and _first(tree, [f"{folder}/{path}" for path in candidates]) is not None:
        tree.strip(folder)
        found = _first(tree, candidates)
    if found is None and config.runtime == IMAGE_RUNTIME:
        raise BundleRejected(
            f"no {code.files[0]}: the runtime {IMAGE_RUNTIME!r} builds the one at the top of the bundle, which holds "
            f"{_listing(tree.files())}. Put one there, or name an `image` in the config."
        )
    if found is None:
        wanted = " or ".join(sorted(candidates, key=len))
        raise BundleRejected(
            f"no handler: for {config.handler!r} the file {wanted} is needed, and the bundle holds "
            f"{_listing(tree.files())}. Name the file so, or say in the config's `handler` where it is.{_hint(tree)}"
        )
    return [real for path in packages if (real := tree.find(path)) is not None] + [found]


def _hint(tree: Tree) -> str:
    found = tree.find(runtimes.get(IMAGE_RUNTIME).code.files[0])
    return f" To have its {found} built instead, set `runtime` to {IMAGE_RUNTIME!r}." if found is not None else ""


def places(config: VersionConfig, code: Code) -> tuple[list[str], list[str]]:
    """Where the handler's module may be, as the runtime looks for it, and the package files that load before it."""
    module = config.handler.rpartition(".")[0]
    parts = re.split(f"[{re.escape(code.separators)}]", module)
    if not all(part.strip(".") for part in parts):
        raise BundleRejected(f"the handler {config.handler!r} names no module: write it like `handler.handler`.")
    folders = ["/".join(parts[:count]) for count in range(1, len(parts))] if code.packages else []
    packages = [runtimes.filled([code.packages], {"package": folder})[0] for folder in folders]
    return runtimes.filled(code.files, {"module": "/".join(parts)}), packages


def _first(tree: Tree, paths: list[str]) -> str | None:
    return next((real for path in paths if (real := tree.find(path)) is not None), None)


def _listing(paths: list[str]) -> str:
    few = ", ".join(shown(path) for path in paths[:8])
    return few if len(paths) <= 8 else f"{few} and {len(paths) - 8:,} more"
