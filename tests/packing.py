"""Packs bundles for tests: honest ones with the standard library, crooked ones by hand."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from struct import pack

HANDLER = b"def handler(event, context):\n    return 'ok'\n"


def tar(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz", format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of (header, content) pairs."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode, format=format) as archive:  # type: ignore[call-overload]
        for header, content in members:
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return packed.getvalue()


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644
) -> tuple[tarfile.TarInfo, bytes]:
    header = tarfile.TarInfo(name)
    header.type, header.linkname, header.mode = kind, target, mode
    return header, content


def handler() -> tuple[tarfile.TarInfo, bytes]:
    return member("handler.py", HANDLER)


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind=tarfile.SYMTYPE, target=target)


def zipped(files: dict[str, bytes], modes: dict[str, int] | None = None, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip as the standard library writes it; `modes` are whole st_mode values."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.external_attr = (modes or {}).get(name, 0o100644) << 16
            archive.writestr(info, content)
    return packed.getvalue()


class CrookedZip:
    """Writes a zip record by record, each of which may lie."""

    def __init__(self) -> None:
        self.data = b""
        self.directory = b""
        self.count = 0

    def local(self, name: bytes, content: bytes) -> int:
        """Deflated data behind a local header; its offset."""
        at = len(self.data)
        packed = deflate(content)
        self.data += pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(packed), len(content), len(name), 0)
        self.data += name + packed
        return at

    def entry(self, name: bytes, at: int, content: bytes, size: int | None = None, extra: bytes = b"") -> None:
        """A directory entry for the data at `at`, which claims to hold `size` bytes."""
        size = len(content) if size is None else size
        sizes = (zlib.crc32(content), len(deflate(content)), size)
        lengths = (len(name), len(extra), 0, 0, 0)
        head = pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, *sizes, *lengths, 0o100644 << 16, at)
        self.directory += head + name + extra
        self.count += 1

    def file(self, name: bytes, content: bytes, size: int | None = None) -> None:
        self.entry(name, self.local(name, content), content, size)

    def bytes(self) -> bytes:
        end = pack("<4s4H2IH", b"PK\5\6", 0, 0, self.count, self.count, len(self.directory), len(self.data), 0)
        return self.data + self.directory + end


def deflate(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def gzip_of(pieces: Iterable[bytes]) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join(packer.compress(piece) for piece in pieces) + packer.flush()


def tree(root: Path) -> dict[str, bytes]:
    """Everything below `root`: files by content, links as their target behind an arrow, empty folders as nothing."""
    found = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = b"-> " + str(path.readlink()).encode()
        elif path.is_file():
            found[name] = path.read_bytes()
        elif not any(path.iterdir()):
            found[name] = b""
    return found
