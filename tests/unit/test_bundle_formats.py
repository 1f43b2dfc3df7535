"""What a bundle may look like, and that the same tree is the same bundle however it was packed."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

import packing
from headrace.model import VersionConfig
from headrace.releases.bundle import Bundles, Stored
from headrace.settings import Settings
from packing import HANDLER

PYTHON = VersionConfig()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


async def store(settings: Settings, data: bytes, config: VersionConfig = PYTHON) -> tuple[Stored, dict[str, bytes]]:
    upload = settings.home.parent / "upload"
    upload.write_bytes(data)
    stored = await Bundles(settings).from_archive(upload, config)
    return stored, packing.tree(settings.code_dir(stored.digest))


async def test_the_same_tree_has_the_same_digest_however_it_is_packed(settings: Settings) -> None:
    files = {"handler.py": HANDLER, "pkg/data.txt": "schön\n".encode()}
    members = [packing.member(name, content, mode=0o600) for name, content in files.items()]
    folder = packing.member("./pkg", kind=tarfile.DIRTYPE, mode=0o700)
    dotted = [packing.member(f"./{name}", content) for name, content in files.items()]
    plain_tar = packing.tar(*members, mode="w")
    ways = [
        packing.zipped(files),
        packing.zipped(files, method=zipfile.ZIP_STORED),
        packing.zipped({"pkg/": b"", **dict(reversed(files.items()))}),
        packing.tar(*members),
        packing.tar(*reversed(members), format=tarfile.USTAR_FORMAT),
        packing.tar(folder, *dotted, format=tarfile.GNU_FORMAT),
        plain_tar,
        gzip.compress(plain_tar[:700]) + gzip.compress(plain_tar[700:]) + bytes(512),
    ]
    stored = [await store(settings, data) for data in ways]
    stored.append(
        (await Bundles(settings).from_files({name: text.decode() for name, text in files.items()}, PYTHON), files)
    )
    assert {one.digest for one, _ in stored} == {stored[0][0].digest}
    assert all(found == files for _, found in stored)
    assert {one.size_bytes for one, _ in stored} == {len(HANDLER) + 7}
    assert [path.name for path in (settings.home / "code").iterdir()] == [stored[0][0].digest]


@pytest.mark.parametrize(
    "other",
    [
        {"handler.py": HANDLER + b"#"},
        {"handler.py": HANDLER, "b": b""},
        {"handler.py": HANDLER, "a": b"", "b": b""},
        {"handler.py": HANDLER, "a/": b""},
    ],
)
async def test_different_trees_have_different_digests(settings: Settings, other: dict[str, bytes]) -> None:
    one, _ = await store(settings, packing.zipped({"handler.py": HANDLER, "a": b""}))
    two, _ = await store(settings, packing.zipped(other))
    assert one.digest != two.digest


async def test_modes_are_normal_and_only_the_right_to_execute_counts(settings: Settings) -> None:
    modes = {"handler.py": stat.S_IFREG | 0o400, "run": stat.S_IFREG | 0o6700 | stat.S_ISVTX, "lib/x": 0o100666}
    stored, _ = await store(settings, packing.zipped(dict.fromkeys(modes, HANDLER), modes))
    code = settings.code_dir(stored.digest)
    assert stat.S_IMODE((code / "handler.py").stat().st_mode) == 0o644
    assert stat.S_IMODE((code / "run").stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in (code, code / "lib")} == {0o755}
    plain, _ = await store(settings, packing.zipped(dict.fromkeys(modes, HANDLER)))
    assert plain.digest != stored.digest


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
async def test_long_names_of_pax_and_gnu_tar(settings: Settings, format: int) -> None:
    long = "/".join(["ordner-äöü" * 3] * 8) + "/" + "n" * 200
    links = packing.link("ln", long)
    _, found = await store(settings, packing.tar(packing.handler(), packing.member(long, b"x"), links, format=format))
    assert found == {"handler.py": HANDLER, long: b"x", "ln": b"-> " + long.encode()}


async def test_git_archives_with_their_global_header_and_single_folder(settings: Settings) -> None:
    packed = io.BytesIO()
    with tarfile.open(
        fileobj=packed, mode="w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "4b825dc"}
    ) as archive:
        for header, content in [
            packing.member("repo-main", kind=tarfile.DIRTYPE),
            packing.member("repo-main/handler.py", HANDLER),
            packing.member("repo-main/lib/a.py", b"A = 1\n"),
            packing.link("repo-main/b.py", "lib/a.py"),
        ]:
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    stored, found = await store(settings, packed.getvalue())
    assert found == {"handler.py": HANDLER, "lib/a.py": b"A = 1\n", "b.py": b"-> lib/a.py"}
    flat, _ = await store(
        settings,
        packing.tar(packing.handler(), packing.member("lib/a.py", b"A = 1\n"), packing.link("b.py", "lib/a.py")),
    )
    assert flat.digest == stored.digest


async def test_a_single_folder_stays_when_the_handler_is_asked_for_in_it(settings: Settings) -> None:
    data = packing.zipped({"app/main.py": HANDLER, "app/__init__.py": b""})
    _, found = await store(settings, data, VersionConfig(handler="app.main.handler"))
    assert set(found) == {"app/main.py", "app/__init__.py"}


async def test_shadow_files_of_macos_are_left_out(settings: Settings) -> None:
    data = packing.zipped({"hello/handler.py": HANDLER, "__MACOSX/hello/._handler.py": b"\0\5\26\7"})
    _, found = await store(settings, data)
    assert found == {"handler.py": HANDLER}


async def test_links_that_stay_inside_are_kept(settings: Settings) -> None:
    data = packing.tar(
        packing.link("handler.py", "current/code.py"),
        packing.link("current", "./releases/../releases/1"),
        packing.member("releases/1/code.py", HANDLER),
        packing.link("releases/1/up", "../.."),
        packing.link("a/b/deep", "../../releases"),
    )
    stored, found = await store(settings, data)
    assert found["handler.py"] == b"-> current/code.py"
    assert (settings.code_dir(stored.digest) / "handler.py").read_bytes() == HANDLER
    assert (settings.code_dir(stored.digest) / "a/b/deep/1/up/handler.py").resolve().read_bytes() == HANDLER
    as_zip = packing.zipped(
        {"handler.py": b"code.py", "code.py": HANDLER}, {"handler.py": stat.S_IFLNK | 0o777, "code.py": 0o100644}
    )
    _, found = await store(settings, as_zip)
    assert found == {"handler.py": b"-> code.py", "code.py": HANDLER}


async def test_a_hard_link_becomes_a_file_of_its_own(settings: Settings) -> None:
    twin = packing.member("copy.py", kind=tarfile.LNKTYPE, target="./handler.py")
    stored, found = await store(settings, packing.tar(packing.handler(), twin))
    assert found == {"handler.py": HANDLER, "copy.py": HANDLER}
    assert stored.size_bytes == 2 * len(HANDLER)
    assert (settings.code_dir(stored.digest) / "copy.py").stat().st_nlink == 1


@pytest.mark.parametrize(
    ("handler", "path"),
    [
        ("handler.handler", "handler/__init__.py"),
        ("app.main.handler", "app/main.py"),
        ("src/fn.handler", "src/fn.py"),
        ("my-fn.handler", "my-fn.py"),
    ],
)
async def test_where_the_module_of_a_python_handler_may_be(settings: Settings, handler: str, path: str) -> None:
    _, found = await store(settings, packing.zipped({path: HANDLER}), VersionConfig(handler=handler))
    assert found == {path: HANDLER}


@pytest.mark.parametrize("path", ["handler.js", "handler.mjs", "handler.cjs"])
async def test_where_the_module_of_a_node_handler_may_be(settings: Settings, path: str) -> None:
    _, found = await store(settings, packing.zipped({path: b"let n = 1\n"}), VersionConfig(runtime="node"))
    assert found == {path: b"let n = 1\n"}


async def test_names_in_a_zip_are_utf8_flagged_or_not(settings: Settings) -> None:
    crooked = packing.CrookedZip()
    crooked.file("grüße.txt".encode(), b"x")
    crooked.file(b"handler.py", HANDLER)
    _, found = await store(settings, crooked.bytes())
    assert found == {"handler.py": HANDLER, "grüße.txt": b"x"}


async def test_a_zip_with_a_comment_and_wide_sizes_is_read(settings: Settings) -> None:
    crooked = packing.CrookedZip()
    at = crooked.local(b"handler.py", HANDLER)
    wide = b"\1\0\10\0" + len(HANDLER).to_bytes(8, "little")
    crooked.entry(b"handler.py", at, HANDLER, size=0xFFFFFFFF, extra=b"ux\2\0ab" + wide)
    comment = b"see PK\5\6 below" + bytes(30)
    data = crooked.bytes()[:-2] + len(comment).to_bytes(2, "little") + comment
    _, found = await store(settings, data)
    assert found == {"handler.py": HANDLER}


async def test_archives_inside_are_not_unpacked(settings: Settings) -> None:
    inner = packing.gzip_of([bytes(1 << 20)] * 300)
    _, found = await store(settings, packing.zipped({"handler.py": HANDLER, "bomb.gz": inner}))
    assert found["bomb.gz"] == inner


async def test_warnings_of_the_compiler_are_not_errors(settings: Settings) -> None:
    source = b"def handler(event, context):\n    assert (1, 'x')\n    return 1 is 1, '\\d'\n"
    _, found = await store(settings, packing.zipped({"handler.py": source}))
    assert found == {"handler.py": source}


async def test_nothing_of_the_bundle_runs_while_it_is_checked(settings: Settings, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    source = f"open({str(mark)!r}, 'w')\n".encode()
    shadow = dict.fromkeys(("json.py", "sitecustomize.py", "handler.py", "encodings/__init__.py"), source)
    await store(settings, packing.zipped(shadow))
    assert not mark.exists()
