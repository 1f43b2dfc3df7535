"""Reads zip: its directory at the end says what there is; each entry must be where and what it says.

Sizes in the directory are claims. An entry that inflates to more or less than claimed, has another checksum, lies over
its neighbour (one compressed block that many entries share is the strongest bomb there is) or has another name in front
of its data is refused.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import BinaryIO

from headrace.errors import BundleRejected
from headrace.releases.archive import CHUNK, MAX_ENTRIES, MAX_TARGET, Entry, decode, shown, too_many

MAGIC = b"PK\x03\x04", b"PK\x05\x06"  # a first entry, or the end record of an empty zip

_END = Struct("<4s4H2IH")  # ..., entries, directory size, directory offset, comment length
_DIRECTORY = Struct("<4s6H3I5H2I")
_LOCAL = Struct("<4s5H3I2H")
_ZIP64 = 0x0001  # id of the extra field that holds what does not fit 32 bits
_UNSET = 0xFFFFFFFF
_ENCRYPTED = 1 << 0
_PATCHED = 1 << 5
_STORED, _DEFLATED = 0, 8
_MAX_NAME = 4096


@dataclass(frozen=True, slots=True)
class _Member:
    raw_name: bytes
    method: int
    crc: int
    packed: int
    size: int
    mode: int  # st_mode, 0 when the packer knew none
    at: int


def _damaged(what: str) -> BundleRejected:
    return BundleRejected(f"the zip archive is damaged ({what}): pack and send it again.")


def entries(file: BinaryIO) -> Iterator[Entry]:
    """The entries of the zip in `file`, in the order of their data."""
    directory_at, directory_size, count = _find_directory(file)
    members = sorted(_members(file, directory_at, directory_size, count), key=lambda member: member.at)
    starts = [member.at for member in members] + [directory_at]
    for member, end in zip(members, starts[1:], strict=True):
        yield _entry(file, member, end)


def _find_directory(file: BinaryIO) -> tuple[int, int, int]:
    """Offset, size and number of entries of the directory, from the end record."""
    total = file.seek(0, os.SEEK_END)
    tail_at = max(0, total - _END.size - 0xFFFF)
    file.seek(tail_at)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        if at + _END.size <= len(tail):
            _, disk, first_disk, here, count, size, offset, comment = _END.unpack_from(tail, at)
            if at + _END.size + comment == len(tail):
                break
        at = tail.rfind(b"PK\x05\x06", 0, at)
    else:
        raise _damaged("its end is missing")
    if count == 0xFFFF or _UNSET in (size, offset):
        raise BundleRejected("the zip archive is written in the zip64 form for huge archives: pack it without.")
    if disk or first_disk or here != count:
        raise BundleRejected("the zip archive is split into several files: pack it as one.")
    if offset + size > tail_at + at:
        raise _damaged("its directory is not where it should be")
    return offset, size, count


def _members(file: BinaryIO, at: int, size: int, count: int) -> Iterator[_Member]:
    if count > MAX_ENTRIES:
        raise too_many()
    file.seek(at)
    end = at + size
    for _ in range(count):
        if file.tell() + _DIRECTORY.size > end:
            raise _damaged("its directory ends early")
        yield _member(file)
    if file.tell() != end:
        raise _damaged("its directory holds more than it says")


def _member(file: BinaryIO) -> _Member:
    fields = _DIRECTORY.unpack(_exactly(file, _DIRECTORY.size))
    (
        signature,
        _,
        _,
        flags,
        method,
        _,
        _,
        crc,
        packed,
        size,
        name_size,
        extra_size,
        comment_size,
        _,
        _,
        attributes,
        at,
    ) = fields
    if signature != b"PK\x01\x02":
        raise _damaged("its directory makes no sense")
    if name_size > _MAX_NAME:
        raise BundleRejected(f"a name in the zip archive is longer than {_MAX_NAME} bytes: shorten it.")
    name = _exactly(file, name_size)
    extra = _exactly(file, extra_size)
    file.seek(comment_size, os.SEEK_CUR)
    size, packed, at = _widened(extra, size, packed, at)
    if flags & _ENCRYPTED:
        raise BundleRejected(f"{shown(name)} is encrypted: pack without a password.")
    if flags & _PATCHED or method not in (_STORED, _DEFLATED):
        raise BundleRejected(
            f"{shown(name)} is packed with method {method}: use plain deflate, which every packer has."
        )
    return _Member(name, method, crc, packed, size, attributes >> 16, at)


def _widened(extra: bytes, *values: int) -> list[int]:
    """`values` with those that did not fit 32 bits taken from the zip64 field of `extra`."""
    at, wide = 0, b""
    while at + 4 <= len(extra):
        kind, size = int.from_bytes(extra[at : at + 2], "little"), int.from_bytes(extra[at + 2 : at + 4], "little")
        if kind == _ZIP64:
            wide = extra[at + 4 : at + 4 + size]
        at += 4 + size
    widened = []
    for value in values:
        if value == _UNSET and len(wide) >= 8:
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]  # noqa: PLW2901
        widened.append(value)
    return widened


def _entry(file: BinaryIO, member: _Member, end: int) -> Entry:
    """The entry, when its data lies between its local header and `end`, where the next one begins."""
    fits = member.at + _LOCAL.size <= end
    start = _data_start(file, member) if fits else end
    if start + member.packed > end or not fits:
        raise BundleRejected(f"{shown(member.raw_name)} overlaps another entry of the zip archive: pack it again.")
    name = decode(member.raw_name)
    kind = stat.S_IFMT(member.mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        raise BundleRejected(
            f"{shown(name)} is a device, socket or pipe: a bundle holds files, directories and links only."
        )
    if kind == stat.S_IFLNK:
        return Entry(name, "link", target=_target(file, start, member))
    if kind == stat.S_IFDIR or name.endswith("/"):
        return Entry(name, "directory")
    return Entry(name, "file", bool(member.mode & 0o111), chunks=_content(file, start, member))


def _data_start(file: BinaryIO, member: _Member) -> int:
    file.seek(member.at)
    signature, _, _, method, _, _, _, _, _, name_size, extra_size = _LOCAL.unpack(_exactly(file, _LOCAL.size))
    if signature != b"PK\x03\x04" or method != member.method or name_size != len(member.raw_name):
        raise _damaged(f"{shown(member.raw_name)} is not where the directory says")
    if _exactly(file, name_size) != member.raw_name:
        raise _damaged(f"{shown(member.raw_name)} has another name in front of its data")
    return file.tell() + int(extra_size)


def _target(file: BinaryIO, start: int, member: _Member) -> str:
    if member.size > MAX_TARGET:
        raise BundleRejected(f"the target of the link {shown(member.raw_name)} is longer than {MAX_TARGET} bytes.")
    return decode(b"".join(_content(file, start, member)))


def _content(file: BinaryIO, start: int, member: _Member) -> Iterator[bytes]:
    """What the entry holds, in pieces; refused as soon as it turns out longer than claimed."""
    crc = size = 0
    file.seek(start)
    for piece in (_inflated if member.method == _DEFLATED else _stored)(file, member):
        size += len(piece)
        crc = zlib.crc32(piece, crc)
        if size > member.size:
            raise _damaged(f"{shown(member.raw_name)} holds more than the {member.size} bytes it says")
        yield piece
    if size != member.size:
        raise _damaged(f"{shown(member.raw_name)} holds {size} bytes where it says {member.size}")
    if crc != member.crc:
        raise _damaged(f"{shown(member.raw_name)} has a wrong checksum")


def _stored(file: BinaryIO, member: _Member) -> Iterator[bytes]:
    left = member.packed
    while left:
        piece = _exactly(file, min(left, CHUNK))
        left -= len(piece)
        yield piece


def _inflated(file: BinaryIO, member: _Member) -> Iterator[bytes]:
    inflate = zlib.decompressobj(wbits=-15)
    left, data = member.packed, b""
    while not inflate.eof:
        try:
            piece = inflate.decompress(data, CHUNK)
        except zlib.error as error:
            raise _damaged(f"{shown(member.raw_name)}: {error}") from None
        data = inflate.unconsumed_tail
        if piece:
            yield piece
        elif not inflate.eof and not data:
            if not left:
                raise _damaged(f"{shown(member.raw_name)} ends early")
            data = _exactly(file, min(left, CHUNK))
            left -= len(data)
    if left or data or inflate.unused_data:
        raise _damaged(f"{shown(member.raw_name)} holds bytes after its end")


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise _damaged("it ends early")
    return data
