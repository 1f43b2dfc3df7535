"""Every refusal says why, and leaves nothing behind."""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import packing
from headrace.errors import BundleRejected, HeadraceError, TooLarge
from headrace.model import VersionConfig
from headrace.releases import unpack
from headrace.releases.bundle import Bundles
from headrace.settings import Settings
from packing import HANDLER, CrookedZip

PYTHON = VersionConfig()
MIB = 1 << 20


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(home=tmp_path / "home")
    beside = tmp_path / "beside"
    beside.write_text("as it was")
    yield settings
    assert list((settings.home / "code").glob("*")) == [], "something was left behind"
    assert beside.read_text() == "as it was"
    assert {path.name for path in tmp_path.iterdir()} <= {"home", "beside", "upload"}


async def refusal(settings: Settings, data: bytes, config: VersionConfig = PYTHON) -> HeadraceError:
    upload = settings.home.parent / "upload"
    upload.write_bytes(data)
    with pytest.raises(HeadraceError) as caught:
        await Bundles(settings).from_archive(upload, config)
    assert isinstance(caught.value, BundleRejected | TooLarge)
    return caught.value


PATHS = {
    "../beside": "outside",
    "pkg/../../beside": "outside",
    "a/../b": "outside",
    "/etc/passwd": "absolute",
    "C:/windows": "absolute",
    "..\\beside": "backslash",
    "a\nb": "control character",
    "n" * 256: "too long",
    "/".join(["d" * 200] * 6): "too long",
    "/".join("d" * 65): "folders deep",
}


@pytest.mark.parametrize(("path", "why"), PATHS.items())
@pytest.mark.parametrize("way", ["tar", "zip", "files"])
async def test_paths_that_leave_or_confuse(settings: Settings, path: str, why: str, way: str) -> None:
    if way == "files":
        with pytest.raises(BundleRejected, match=why):
            await Bundles(settings).from_files({"handler.py": HANDLER.decode(), path: "x"}, PYTHON)
        return
    crooked = CrookedZip()
    crooked.file(b"handler.py", HANDLER)
    crooked.file(path.encode(), b"x")
    data = crooked.bytes() if way == "zip" else packing.tar(packing.handler(), packing.member(path, b"x"))
    error = await refusal(settings, data)
    assert why in error.detail and repr(path)[1:40] in error.detail


@pytest.mark.parametrize("path", ["a\0b", "\ud800"])
async def test_names_that_no_file_can_have(settings: Settings, path: str) -> None:
    with pytest.raises(BundleRejected, match=r"control character|not valid Unicode"):
        await Bundles(settings).from_files({"handler.py": "", path: "x"}, PYTHON)


async def test_a_nul_does_not_cut_a_name_short(settings: Settings) -> None:
    crooked = CrookedZip()
    crooked.file(b"handler.py\0.txt", HANDLER)
    assert "control character" in (await refusal(settings, crooked.bytes())).detail


async def test_names_that_are_not_utf8(settings: Settings) -> None:
    crooked = CrookedZip()
    crooked.file(b"gr\xfc\xdfe", b"x")
    assert "not UTF-8" in (await refusal(settings, crooked.bytes())).detail
    data = packing.tar(packing.member("gr\udcfc\udcdfe", b"x"), format=tarfile.GNU_FORMAT)
    assert "not UTF-8" in (await refusal(settings, data)).detail


@pytest.mark.parametrize(
    ("links", "why"),
    [
        ([("x", "/etc/passwd")], "absolute path"),
        ([("x", "../beside")], "outside"),
        ([("a/x", "../../beside")], "outside"),
        ([("a/up", ".."), ("a/x", "up/../beside")], "outside"),
        ([("one", "two/.."), ("two", "a/b"), ("a/b/c", "../../one/../..")], "outside"),
        ([("x", "y"), ("y", "x")], "circle"),
        ([("x", "x/y")], "circle"),
        ([("x", "nowhere")], "doesn't hold"),
        ([("x", "handler.py\\")], "plain relative path"),
        ([("x", "handler.py/../../../beside")], "outside"),
    ],
)
async def test_links_that_leave(settings: Settings, links: list[tuple[str, str]], why: str) -> None:
    files = [packing.handler(), packing.member("a/b/file", b"x")]
    error = await refusal(settings, packing.tar(*files, *(packing.link(*one) for one in links)))
    assert why in error.detail and "the link" in error.detail
    contents = {"handler.py": HANDLER, "a/b/file": b"x", **{name: target.encode() for name, target in links}}
    error = await refusal(settings, packing.zipped(contents, {name: stat.S_IFLNK | 0o777 for name, _ in links}))
    assert why in error.detail and "the link" in error.detail


async def test_a_link_that_would_leave_once_its_folder_is_the_top(settings: Settings) -> None:
    data = packing.tar(packing.member("top/handler.py", HANDLER), packing.link("top/x", "../top/handler.py"))
    assert "outside" in (await refusal(settings, data)).detail


async def test_nothing_is_written_through_a_link(settings: Settings) -> None:
    for first, second in [("d", "d/beside"), ("d", "d")]:
        data = packing.tar(packing.handler(), packing.link(first, ".."), packing.member(second, b"overwritten"))
        error = await refusal(settings, data)
        assert "'d' is in the bundle" in error.detail


@pytest.mark.parametrize("target", ["../beside", "/etc/passwd", "later.py", "link.py", "pkg"])
async def test_hard_links_to_anything_but_a_file_before(settings: Settings, target: str) -> None:
    data = packing.tar(
        packing.handler(),
        packing.link("link.py", "handler.py"),
        packing.member("pkg", kind=tarfile.DIRTYPE),
        packing.member("hard.py", kind=tarfile.LNKTYPE, target=target),
        packing.member("later.py", b""),
    )
    detail = (await refusal(settings, data)).detail
    assert any(why in detail for why in ("no file before", "outside", "absolute"))


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"V"])
async def test_devices_pipes_and_sparse_files(settings: Settings, kind: bytes) -> None:
    error = await refusal(settings, packing.tar(packing.handler(), packing.member("odd", kind=kind)))
    assert "'odd' is " in error.detail and "files, directories and links only" in error.detail


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
async def test_devices_and_pipes_in_a_zip(settings: Settings, kind: int) -> None:
    error = await refusal(settings, packing.zipped({"handler.py": HANDLER, "odd": b""}, {"odd": kind | 0o644}))
    assert "'odd' is a device" in error.detail


async def test_sparse_files_of_pax(settings: Settings) -> None:
    header, content = packing.member("sparse", b"0\n")
    header.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(1 << 40)}
    assert "sparse" in (await refusal(settings, packing.tar(packing.handler(), (header, content)))).detail


@pytest.mark.parametrize(
    "names", [("a", "a"), ("a", "./a"), ("b/a", "b//a"), ("a", "a/b"), ("a/b", "a"), ("handler.py", ".//handler.py")]
)
async def test_the_same_name_twice(settings: Settings, names: tuple[str, str]) -> None:
    members = [packing.member(name, b"x") for name in names]
    assert "is in the bundle" in (await refusal(settings, packing.tar(*members))).detail
    crooked = CrookedZip()
    for name in names:
        crooked.file(name.encode(), b"x")
    assert "is in the bundle" in (await refusal(settings, crooked.bytes())).detail


async def test_over_the_packed_limit(settings: Settings) -> None:
    with (settings.home.parent / "upload").open("wb") as upload:
        upload.truncate(50 * MIB + 1)
    with pytest.raises(TooLarge, match="over 50 MiB"):
        await Bundles(settings).from_archive(settings.home.parent / "upload", PYTHON)
    with pytest.raises(TooLarge, match="over 50 MiB"):
        await Bundles(settings).from_files({"handler.py": "", "a": "x" * 25 * MIB, "b": "x" * (25 * MIB + 1)}, PYTHON)


def endless_tar(size: int) -> bytes:
    """A gzipped tar whose only file says it holds 1 TiB and really goes on for `size` bytes."""
    header = tarfile.TarInfo("big")
    header.size = 1 << 40
    return packing.gzip_of([header.tobuf(tarfile.GNU_FORMAT), *[bytes(MIB)] * (size // MIB)])


async def test_bombs_are_stopped_by_what_really_comes_out(settings: Settings) -> None:
    error = await refusal(settings, endless_tar(400 * MIB))
    assert isinstance(error, TooLarge) and "250 MiB" in error.detail
    crooked = CrookedZip()
    for name in (b"a", b"b"):
        crooked.file(name, bytes(130 * MIB))
    assert isinstance(await refusal(settings, crooked.bytes()), TooLarge)


async def test_a_bomb_of_hard_links(settings: Settings) -> None:
    twins = [packing.member(f"copy{n}", kind=tarfile.LNKTYPE, target="big") for n in range(30)]
    assert isinstance(await refusal(settings, packing.tar(packing.member("big", bytes(10 * MIB)), *twins)), TooLarge)


async def test_a_bomb_of_headers_only(settings: Settings) -> None:
    folder = tarfile.TarInfo("same")
    folder.type = tarfile.DIRTYPE
    block = folder.tobuf() * 2048
    assert "20,000 files" in (await refusal(settings, packing.gzip_of([block] * 100))).detail
    long = tarfile.TarInfo("long")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 100 * MIB
    error = await refusal(settings, packing.gzip_of([long.tobuf(tarfile.GNU_FORMAT), *[bytes(MIB)] * 100]))
    assert "extended attributes" in error.detail
    error = await refusal(settings, packing.tar(packing.handler()) + packing.gzip_of([bytes(MIB) + b"x"] * 350))
    assert isinstance(error, TooLarge)


async def test_too_many_files(settings: Settings) -> None:
    names = [packing.member(f"{n}", b"") for n in range(20_001)]
    error = await refusal(settings, packing.tar(*names, format=tarfile.USTAR_FORMAT))
    assert isinstance(error, TooLarge) and "20,000 files" in error.detail


async def test_too_many_folders(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MAX_FILES", 300)
    deep = [packing.member("/".join([f"{n}", *["d"] * 50, "file"])) for n in range(6)]
    assert isinstance(await refusal(settings, packing.tar(*deep)), TooLarge)


@pytest.mark.parametrize(("says", "why"), [(10, "holds more than the 10 bytes"), (MIB, "where it says 1048576")])
async def test_zip_sizes_that_lie(settings: Settings, says: int, why: str) -> None:
    crooked = CrookedZip()
    crooked.file(b"handler.py", HANDLER, size=says)
    assert why in (await refusal(settings, crooked.bytes())).detail


async def test_zip_entries_that_share_their_data(settings: Settings) -> None:
    crooked = CrookedZip()
    at = crooked.local(b"handler.py", HANDLER)
    crooked.entry(b"handler.py", at, HANDLER)
    crooked.entry(b"handler.py", at, HANDLER)
    assert "overlaps" in (await refusal(settings, crooked.bytes())).detail
    nested = CrookedZip()
    inner = CrookedZip()
    inner.local(b"b", b"")
    at = nested.local(b"a", inner.data)
    nested.entry(b"a", at, inner.data)
    nested.entry(b"b", at + 31, b"")
    assert "overlaps" in (await refusal(settings, nested.bytes())).detail


async def test_a_zip_entry_far_away(settings: Settings) -> None:
    for at, extra in [(0xFFFFFFF0, b""), (0xFFFFFFFF, b"\1\0\10\0" + b"\xff" * 8)]:
        crooked = CrookedZip()
        crooked.local(b"handler.py", HANDLER)
        crooked.entry(b"handler.py", at, HANDLER, extra=extra)
        assert "overlaps" in (await refusal(settings, crooked.bytes())).detail


async def test_a_zip_entry_with_another_name_at_its_data(settings: Settings) -> None:
    crooked = CrookedZip()
    crooked.entry(b"handler.py", crooked.local(b"hidden0.py", HANDLER), HANDLER)
    assert "another name" in (await refusal(settings, crooked.bytes())).detail


async def test_a_changed_byte_is_noticed(settings: Settings) -> None:
    stored = bytearray(packing.zipped({"handler.py": HANDLER}, method=0))
    stored[stored.index(b"return")] ^= 1
    assert "wrong checksum" in (await refusal(settings, bytes(stored))).detail
    packed = bytearray(packing.tar(packing.handler()))
    packed[-6] ^= 1
    assert "gzip stream is damaged" in (await refusal(settings, bytes(packed))).detail


async def test_encrypted_and_exotic_zips(settings: Settings) -> None:
    data = bytearray(packing.zipped({"handler.py": HANDLER}))
    at = data.index(b"PK\1\2")
    data[at + 8] |= 1
    assert "encrypted" in (await refusal(settings, bytes(data))).detail
    error = await refusal(settings, packing.zipped({"handler.py": HANDLER}, method=14))
    assert "method 14" in error.detail and "deflate" in error.detail


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "0 bytes"),
        (b"def handler(event, context): ...", "neither"),
        (b"BZh91AY&SY" + bytes(600), "bzip2 is not taken"),
        (b"\xfd7zXZ\0" + bytes(600), "xz is not taken"),
        (packing.gzip_of([b"just text, no tar" * 100]), "wrong checksum"),
        (packing.gzip_of([b"short"]), "ends early"),
        (packing.zipped({}), "holds no files"),
        (packing.zipped({"only/": b""}), "holds no files"),
        (packing.tar(), "holds no files"),
        (bytes(10240), "holds no files"),
        (b"PK\3\4" + bytes(100), "its end is missing"),
    ],
)
async def test_no_archive_or_nothing_in_it(settings: Settings, data: bytes, why: str) -> None:
    assert why in (await refusal(settings, data)).detail


async def test_no_files_at_all(settings: Settings) -> None:
    with pytest.raises(BundleRejected, match="holds no files"):
        await Bundles(settings).from_files({}, PYTHON)


async def test_a_missing_handler_says_what_was_looked_for_and_what_there_is(settings: Settings) -> None:
    files = {f"f{n}.txt": b"" for n in range(20)}
    error = await refusal(settings, packing.zipped({"app.py": HANDLER, **files}))
    assert "'handler.handler'" in error.detail and "handler.py or handler/__init__.py" in error.detail
    assert "'app.py', 'f0.txt'" in error.detail and "and 13 more" in error.detail
    error = await refusal(settings, packing.zipped({"handler.py": HANDLER}), VersionConfig(runtime="node"))
    assert "handler.js or handler.mjs or handler.cjs" in error.detail
    two = packing.zipped({"one/handler.py": HANDLER, "two/x": b""})
    assert "'one/handler.py', 'two/x'" in (await refusal(settings, two)).detail


@pytest.mark.parametrize("name", ["a..b.handler", "a/../b.handler", "a//b.handler", "a/.b.handler"])
async def test_handlers_that_name_no_module(settings: Settings, name: str) -> None:
    error = await refusal(settings, packing.zipped({"b.py": HANDLER}), VersionConfig(handler=name))
    assert "names no module" in error.detail


@pytest.mark.parametrize(
    ("source", "where"),
    [
        (b"import os\n\ndef handler(event context):\n    pass\n", "handler.py, line 3: "),
        (b"def handler(e, c):\nreturn 1\n", "handler.py, line 2: expected an indented block"),
        (b"\xff\xfe", "handler.py, line 1: "),
        (b"a = 1\0", "handler.py: source code string cannot contain null bytes"),
        (b"# coding: klingon\n", "unknown encoding"),
    ],
)
async def test_syntax_errors_name_file_and_line(settings: Settings, source: bytes, where: str) -> None:
    error = await refusal(settings, packing.zipped({"handler.py": source}))
    assert where in error.detail
    assert error.ids["path"] == "handler.py"


async def test_syntax_errors_in_the_packages_around_the_handler(settings: Settings) -> None:
    data = packing.zipped({"app/__init__.py": b"import (\n", "app/main.py": HANDLER})
    error = await refusal(settings, data, VersionConfig(handler="app.main.handler"))
    assert "app/__init__.py, line 1" in error.detail and error.ids == {"path": "app/__init__.py", "line": 1}
