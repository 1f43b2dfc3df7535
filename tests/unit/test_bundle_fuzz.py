"""Whatever is sent as a bundle is stored whole and closed in itself, or refused by name with nothing left behind."""

from __future__ import annotations

import asyncio
import stat
import tarfile
import tempfile
import zlib
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

import packing
from headrace.errors import BundleRejected, TooLarge
from headrace.model import VersionConfig
from headrace.releases.bundle import Bundles
from headrace.settings import Settings

NODE = VersionConfig(runtime="node")  # no syntax check, which would start a process for each example
MODES = {"ln": stat.S_IFLNK | 0o777, "bin/run": 0o100755}
FILES = {"handler.js": b"exports.handler = 1", "bin/run": bytes(range(256)) * 9, "ln": b"bin/run", "d/e/f": b""}
MEMBERS = [
    packing.member("handler.js", FILES["handler.js"]),
    packing.member("d", kind=tarfile.DIRTYPE, mode=0o755),
    packing.member("d/" + "e" * 150, FILES["bin/run"], mode=0o755),
    packing.link("ln", "d/" + "e" * 150),
    packing.member("twin", kind=tarfile.LNKTYPE, target="handler.js"),
    packing.member("ü" * 60, b"x"),
]
TARS = [packing.tar(*MEMBERS, mode="w", format=f) for f in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)]
ZIPS = [packing.zipped(FILES, MODES), packing.zipped(FILES, MODES, method=0)]
WHOLE = [*TARS, *ZIPS, *(packing.gzip_of([data]) for data in TARS)]
names = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\:"), min_size=1, max_size=40)
places = st.floats(0, 1, exclude_max=True)


def judge(data: bytes) -> dict[str, bytes] | None:
    """What became of the bundle `data`; None when it was refused."""
    with tempfile.TemporaryDirectory() as place:
        home, upload = Path(place, "home"), Path(place, "upload")
        upload.write_bytes(data)
        settings = Settings(home=home)
        try:
            stored = asyncio.run(Bundles(settings).from_archive(upload, NODE))
        except (BundleRejected, TooLarge) as refused:
            assert str(refused)
            assert list(home.glob("code/*")) == []
            return None
        finally:
            assert {path.name for path in Path(place).iterdir()} <= {"home", "upload"}
        code = settings.code_dir(stored.digest)
        assert list((home / "code").iterdir()) == [code]
        assert all(path.resolve(strict=True).is_relative_to(code) for path in code.rglob("*"))
        return packing.tree(code)


def test_the_archives_of_this_test_are_good() -> None:
    assert all(judge(data) is not None for data in WHOLE)


@given(st.sampled_from([b"", b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08\0", TARS[0][:512]]), st.binary(max_size=3000))
@example(b"\x1f\x8b\x08\0", b"")
@settings(deadline=None, max_examples=80)
def test_random_bytes(start: bytes, rest: bytes) -> None:
    judge(start + rest)


@given(st.sampled_from(WHOLE), places)
@settings(deadline=None, max_examples=80)
def test_cut_anywhere(data: bytes, where: float) -> None:
    cut = data[: int(len(data) * where)]
    if judge(cut) is not None:  # only padding behind the end of a tar may be missing
        assert set(data[len(cut) :]) == {0}


@given(
    st.sampled_from(TARS + ZIPS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=8)), max_size=6),
)
@settings(deadline=None, max_examples=120)
def test_overwritten_anywhere(data: bytes, changes: list[tuple[float, bytes]]) -> None:
    broken = bytearray(data)
    for where, put in changes:
        at = int(len(data) * where)
        broken[at : at + len(put)] = put
    judge(bytes(broken))


@given(st.sampled_from(TARS), st.integers(0, 11), st.integers(0, 511), st.binary(min_size=1, max_size=12))
@settings(deadline=None, max_examples=120)
def test_tar_headers_that_lie_with_a_right_checksum(data: bytes, block: int, at: int, put: bytes) -> None:
    broken = bytearray(data)
    start = block * 512
    broken[start + at : start + at + len(put)] = put
    total = sum(broken[start : start + 148]) + sum(broken[start + 156 : start + 512]) + 256
    broken[start + 148 : start + 156] = b"%06o\0 " % total
    judge(bytes(broken))
    judge(packing.gzip_of([bytes(broken)]))


@given(
    st.dictionaries(st.lists(names, min_size=1, max_size=4).map("/".join), st.binary(max_size=2000), max_size=8),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
@example({".": b"", "a/./b": b"x", "a/../b": b"y"}, tarfile.PAX_FORMAT)
@example({".": b""}, tarfile.PAX_FORMAT)
@example({"a": b"", "a/b": b"x"}, tarfile.GNU_FORMAT)
@settings(deadline=None, max_examples=80)
def test_what_the_standard_library_packs_comes_out_the_same(files: dict[str, bytes], format: int) -> None:
    plain = {f"top/{path}": content for path, content in files.items()}
    plain["handler.js"] = b""
    as_tar = judge(packing.tar(*(packing.member(*one) for one in plain.items()), format=format))
    as_zip = judge(packing.zipped(plain))
    assert as_tar == as_zip
    cleaned = {path: tuple(part for part in path.split("/") if part != ".") for path in plain}
    if as_tar is not None:
        assert as_tar == {"/".join(cleaned[path]): content for path, content in plain.items()}
    else:  # refused: a path that means another, or one that is another's folder
        folders = {path[:count] for path in cleaned.values() for count in range(1, len(path))}
        same = len(set(cleaned.values())) < len(plain)
        assert same or folders & set(cleaned.values()) or any(".." in path for path in cleaned.values())


def test_every_cut_of_a_deflated_stream_is_noticed() -> None:
    packed = packing.gzip_of([TARS[0]])
    assert zlib.decompress(packed, wbits=31) == TARS[0]
    assert [judge(packed[:size]) for size in range(0, len(packed), 7)] == [None] * len(range(0, len(packed), 7))
