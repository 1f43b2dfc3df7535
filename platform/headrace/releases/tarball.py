"""Reads tar, plain or gzipped, from front to back: ustar, with the long names of pax and GNU tar."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from headrace.errors import BundleRejected
from headrace.releases.archive import (
    CHUNK,
    MAX_ENTRIES,
    MAX_TARGET,
    MAX_UNPACKED,
    MIB,
    Entry,
    decode,
    shown,
    too_large,
    too_many,
)

BLOCK = 512
GZIP_MAGIC = b"\x1f\x8b"
_MAX_STREAM = MAX_UNPACKED + 64 * MIB  # headers and padding come on top of the content
_MAX_EXTENDED = MIB  # bytes of one pax header or GNU long name
_MAX_GZIP_MEMBERS = 1000  # parallel packers write several streams, one after the other
_ZERO_BLOCK = bytes(BLOCK)
_OCTAL = re.compile(rb" *([0-7]*) *")
_FILES = b"0", b"\0", b"7"
_REFUSED = {b"3": "a character device", b"4": "a block device", b"6": "a named pipe", b"S": "a sparse file"}


@dataclass(slots=True)
class _Long:
    """What extended headers say about the entry that follows them."""

    name: bytes | None = None
    target: bytes | None = None
    size: int | None = None


class _Stream:
    """Exact reads from pieces of any size; counts what passed."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = b""
        self._at = 0
        self._passed = 0

    def chunks(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes, as they come."""
        while size:
            if self._at == len(self._piece):
                self._next(f"{size} bytes of an entry are missing")
            chunk = self._piece[self._at : self._at + size]
            self._at += len(chunk)
            size -= len(chunk)
            yield chunk

    def take(self, size: int) -> bytes:
        return b"".join(self.chunks(size))

    def drain(self) -> None:
        """Read to the very end, so that the checksum of a gzip stream is checked."""
        for piece in self._pieces:
            self._count(piece)

    def _next(self, otherwise: str) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            raise BundleRejected(f"the tar archive ends early ({otherwise}): pack and send it again.")
        self._count(piece)
        self._piece, self._at = piece, 0

    def _count(self, piece: bytes) -> None:
        self._passed += len(piece)
        if self._passed > _MAX_STREAM:
            raise too_large()


def looks_like_tar(start: bytes) -> bool:
    """Whether an archive whose first block is in `start` can be a plain tar."""
    return len(start) >= BLOCK and (start[:BLOCK] == _ZERO_BLOCK or _checksum_fits(start[:BLOCK]))


def entries(file: BinaryIO, *, gzipped: bool) -> Iterator[Entry]:
    """The entries of the tar in `file`, read from its position on."""
    stream = _Stream(_gunzip(file) if gzipped else iter(lambda: file.read(CHUNK), b""))
    long = _Long()
    for _ in range(MAX_ENTRIES):
        header = stream.take(BLOCK)
        if header == _ZERO_BLOCK:
            stream.drain()
            return
        if not _checksum_fits(header):
            raise BundleRejected("the tar archive is damaged (a header has a wrong checksum): pack and send it again.")
        size, type_ = _number(header[124:136]), header[156:157]
        if type_ in (b"x", b"g", b"L", b"K"):
            _extend(long, type_, _extended(stream, size))
            continue
        if long.size is not None:
            size = long.size
        entry = _entry(header, type_, long)
        content = stream.chunks(size if entry.kind == "file" else 0)
        yield Entry(entry.name, entry.kind, entry.executable, entry.target, content)
        for _ in content:  # what the receiver did not want
            pass
        if entry.kind == "file":
            stream.take(-size % BLOCK)
        long = _Long()
    raise too_many()


def _entry(header: bytes, type_: bytes, long: _Long) -> Entry:
    name = decode(long.name if long.name is not None else _name(header))
    target = long.target if long.target is not None else _text(header[157:257])
    if type_ == b"5" or (type_ in _FILES and name.endswith("/")):
        return Entry(name, "directory")
    if type_ in _FILES:
        return Entry(name, "file", executable=bool(_number(header[100:108]) & 0o111))
    if type_ in (b"1", b"2"):
        if len(target) > MAX_TARGET:
            raise BundleRejected(f"the target of the link {shown(name)} is longer than {MAX_TARGET} bytes.")
        return Entry(name, "link" if type_ == b"2" else "hard link", target=decode(target))
    what = _REFUSED.get(type_, f"of the unknown type {type_!r}")
    raise BundleRejected(f"{shown(name)} is {what}: a bundle holds files, directories and links only.")


def _name(header: bytes) -> bytes:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    match = _OCTAL.fullmatch(_text(field))
    if match is None:
        raise BundleRejected(f"the tar archive is damaged (a header has the number {field!r}): pack and send it again.")
    return int(match[1] or b"0", 8)


def _checksum_fits(header: bytes) -> bool:
    match = _OCTAL.fullmatch(_text(header[148:156]))
    return match is not None and int(match[1] or b"0", 8) == sum(header[:148]) + sum(header[156:]) + 8 * ord(" ")


def _extended(stream: _Stream, size: int) -> bytes:
    if size > _MAX_EXTENDED:
        raise BundleRejected(
            f"a tar header of {size} bytes: pack without extended attributes (at most {_MAX_EXTENDED})."
        )
    data = stream.take(size)
    stream.take(-size % BLOCK)
    return data


def _extend(long: _Long, type_: bytes, data: bytes) -> None:
    if type_ == b"L":
        long.name = data.removesuffix(b"\0")
    elif type_ == b"K":
        long.target = data.removesuffix(b"\0")
    else:
        records = _pax(data)
        if any(key.startswith(b"GNU.sparse.") for key in records):
            raise BundleRejected("the tar archive holds a sparse file: pack without --sparse.")
        if type_ == b"g" and records.keys() & {b"path", b"linkpath", b"size"}:
            raise BundleRejected("the tar archive gives one name or size to all entries: pack it with another tool.")
        if type_ == b"x":
            long.name = records.get(b"path", long.name)
            long.target = records.get(b"linkpath", long.target)
            if b"size" in records:
                long.size = _decimal(records[b"size"])


def _pax(data: bytes) -> dict[bytes, bytes]:
    """Records `<length> <key>=<value>\\n`, where the length counts the whole record."""
    records = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        end = at + _decimal(data[at : max(space, at)])
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not space < end <= len(data) or data[end - 1 : end] != b"\n" or not equals:
            raise BundleRejected("the tar archive is damaged (a pax header makes no sense): pack and send it again.")
        records[key] = value
        at = end
    return records


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise BundleRejected(f"the tar archive is damaged ({digits[:20]!r} is no number): pack and send it again.")
    return int(digits)


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    """Content in pieces of at most CHUNK bytes, so that no bomb swells in memory."""
    data = file.read(CHUNK)
    for _ in range(_MAX_GZIP_MEMBERS):
        inflate = zlib.decompressobj(wbits=31)
        while not inflate.eof:
            try:
                piece = inflate.decompress(data, CHUNK)
            except zlib.error as error:
                raise BundleRejected(f"the gzip stream is damaged ({error}): pack and send it again.") from None
            data = inflate.unconsumed_tail
            if piece:
                yield piece
            elif not inflate.eof and not data:
                data = file.read(CHUNK)
                if not data:
                    raise BundleRejected("the gzip stream ends early: send it again.")
        data = inflate.unused_data.lstrip(b"\0") or _after_padding(file)
        if not data:
            return
    raise BundleRejected(f"more than {_MAX_GZIP_MEMBERS:,} gzip streams in one file: pack it as one.")


def _after_padding(file: BinaryIO) -> bytes:
    """The first bytes after any padding of zeros; empty at the end."""
    while data := file.read(CHUNK):
        if data := data.lstrip(b"\0"):
            return data
    return b""
