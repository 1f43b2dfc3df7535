from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from headrace.cli import project
from headrace.errors import Invalid
from headrace.model import VersionConfig
from headrace.releases.bundle import Bundles
from headrace.settings import Settings


def write(directory: Path, name: str, content: str = "") -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def packed(directory: Path) -> dict[str, tuple[int, bytes]]:
    with project.pack(directory) as archive, tarfile.open(fileobj=archive, mode="r:gz") as tar:
        found = {}
        for entry in tar:
            content = tar.extractfile(entry)
            assert content is not None
            found[entry.name] = (entry.mode, content.read())
        return found


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, "b.py", "b")
    write(one, "lib/a.py", "a")
    write(two, "lib/a.py", "a")
    write(two, "b.py", "b")
    os.utime(two / "b.py", (1, 1))
    (two / "b.py").chmod(0o600)
    with project.pack(one) as first, project.pack(two) as second:
        assert first.read() == second.read()


def test_the_executable_bit_is_kept_and_other_modes_are_not(tmp_path: Path) -> None:
    write(tmp_path, "run.sh", "#!/bin/sh").chmod(0o700)
    write(tmp_path, "handler.py", "x").chmod(0o666)
    assert packed(tmp_path) == {"run.sh": (0o755, b"#!/bin/sh"), "handler.py": (0o644, b"x")}


def test_what_never_belongs_to_a_function_stays_out(tmp_path: Path) -> None:
    for name in (
        "handler.py",
        "pkg/mod.py",
        ".git/config",
        "__pycache__/handler.pyc",
        "pkg/__pycache__/mod.pyc",
        ".venv/bin/python",
        "env/pyvenv.cfg",
        "env/lib/x.py",
        "headrace.toml",
        ".headraceignore",
    ):
        write(tmp_path, name)
    assert sorted(packed(tmp_path)) == ["handler.py", "pkg/mod.py"]


def test_ignore_file_has_the_syntax_of_git(tmp_path: Path) -> None:
    write(tmp_path, ".headraceignore", "# notes\n*.log\n!keep.log\n/build/\nsecret.*\n")
    for name in ("handler.py", "a.log", "keep.log", "build/x.py", "lib/build/y.py", "lib/secret.txt"):
        write(tmp_path, name)
    assert sorted(packed(tmp_path)) == ["handler.py", "keep.log", "lib/build/y.py"]


def test_gitignore_counts_only_without_an_own_ignore_file(tmp_path: Path) -> None:
    write(tmp_path, ".gitignore", "dist/\n")
    write(tmp_path, "handler.py")
    write(tmp_path, "dist/app.js")
    assert sorted(packed(tmp_path)) == ["handler.py"]
    write(tmp_path, ".headraceignore", "")
    assert sorted(packed(tmp_path)) == ["dist/app.js", "handler.py"]


def test_links_within_are_followed(tmp_path: Path) -> None:
    write(tmp_path, "real.py", "real")
    (tmp_path / "alias.py").symlink_to("real.py")
    assert packed(tmp_path)["alias.py"] == (0o644, b"real")


@pytest.mark.parametrize(
    ("target", "complaint"),
    [("../outside.txt", "leaves the directory"), ("missing.txt", "a link to nothing"), ("lib", "link to a directory")],
)
def test_other_links_are_refused_with_their_name(tmp_path: Path, target: str, complaint: str) -> None:
    directory = tmp_path / "fn"
    write(directory, "handler.py")
    write(directory, "lib/x.py")
    write(tmp_path, "outside.txt")
    (directory / "odd").symlink_to(target)
    with pytest.raises(Invalid, match=f"odd .*{complaint}"):
        project.pack(directory)


def test_special_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "handler.py")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Invalid, match="pipe is neither a file nor a directory"):
        project.pack(tmp_path)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no files to deploy"):
        project.pack(tmp_path)


@pytest.mark.parametrize(("limit", "value"), [("MAX_FILES", 2), ("MAX_UNPACKED", 10)])
def test_too_much_is_refused_before_it_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    for number in range(3):
        write(tmp_path, f"{number}.py", "12345")
    monkeypatch.setattr(project, limit, value)
    with pytest.raises(Invalid, match="too large to deploy"):
        project.pack(tmp_path)


def test_long_names_survive(tmp_path: Path) -> None:
    name = "/".join(["d" * 60] * 4) + "/é.py"
    write(tmp_path, name, "x")
    assert list(packed(tmp_path)) == [name]


def test_snapshot_sees_changes_of_code_and_config_only(tmp_path: Path) -> None:
    write(tmp_path, "handler.py", "1")
    write(tmp_path, ".headraceignore", "notes.txt")
    before = project.snapshot(tmp_path)
    write(tmp_path, "notes.txt", "new")
    assert project.snapshot(tmp_path) == before
    write(tmp_path, "headrace.toml", "memory_mb = 64")
    changed = project.snapshot(tmp_path)
    assert changed != before
    write(tmp_path, "handler.py", "22")
    assert project.snapshot(tmp_path) != changed


def test_name_is_the_directorys(tmp_path: Path) -> None:
    (tmp_path / "hello").mkdir()
    assert project.function_name(tmp_path / "hello", None) == "hello"
    assert project.function_name(tmp_path / "hello", "other") == "other"


def test_a_directory_that_is_no_name_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"'My_App' is not a function name.*--name"):
        project.function_name(tmp_path / "My_App", None)


@pytest.mark.parametrize(("path", "complaint"), [("nowhere", "does not exist"), ("file", "is not a directory")])
def test_directory_must_be_one(tmp_path: Path, path: str, complaint: str) -> None:
    write(tmp_path, "file")
    with pytest.raises(Invalid, match=complaint):
        project.check_directory(tmp_path / path)


def test_config_from_toml_with_options_on_top(tmp_path: Path) -> None:
    write(tmp_path, "headrace.toml", 'memory_mb = 256\nhandler = "main.app"\n[env]\nA = "1"\nB = "2"\n')
    config = project.read_config(tmp_path, None, ["memory_mb=512", "timeout_s=2.5", "network=none"], ["B=3", "C=x=y"])
    assert config == {
        "memory_mb": 512,
        "handler": "main.app",
        "timeout_s": 2.5,
        "network": "none",
        "env": {"A": "1", "B": "3", "C": "x=y"},
    }


def test_config_from_a_json_file_that_is_named(tmp_path: Path) -> None:
    write(tmp_path, "headrace.toml", "memory_mb = 256")
    file = write(tmp_path, "other.json", '{"cpus": 2}')
    assert project.read_config(tmp_path, file, [], []) == {"cpus": 2.0}


def test_without_config_nothing_is_sent(tmp_path: Path) -> None:
    assert project.read_config(tmp_path, None, [], []) == {}


@pytest.mark.parametrize(
    ("pairs", "complaint"),
    [
        (["memory=256"], "no key 'memory'; did you mean memory_mb"),
        (["zzz=1"], "no key 'zzz'; known keys: runtime"),
        (["memory_mb=lots"], "memory_mb: .*'lots'"),
        (["memory_mb=8"], "memory_mb: .*greater than or equal to 32"),
        (["memory_mb"], "write it as key=value"),
        (["env=A"], "env: write its value as JSON"),
        (['env={"HEADRACE_X": "1"}'], "the platform's own"),
    ],
)
def test_bad_config_says_what_is_wrong(tmp_path: Path, pairs: list[str], complaint: str) -> None:
    with pytest.raises(Invalid, match=complaint):
        project.read_config(tmp_path, None, pairs, [])


@pytest.mark.parametrize("env", ["NAME", "=value"])
def test_bad_env(tmp_path: Path, env: str) -> None:
    with pytest.raises(Invalid, match="write it as NAME=value"):
        project.read_config(tmp_path, None, [], [env])


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("headrace.toml", "memory_mb = ", "malformed"),
        ("headrace.json", "{", "malformed"),
        ("headrace.json", "[1]", "no table of keys"),
        ("headrace.toml", "\0", "malformed"),
    ],
)
def test_bad_config_file(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    write(tmp_path, name, content)
    with pytest.raises(Invalid, match=complaint):
        project.read_config(tmp_path, None, [], [])


def test_missing_config_file(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be read"):
        project.read_config(tmp_path, tmp_path / "none.toml", [], [])


async def test_what_is_packed_is_what_the_platform_takes(tmp_path: Path) -> None:
    """The archive goes through the reader that meets it on the other side."""
    deep = "/".join(["d" * 60] * 4) + "/deep.py"
    write(tmp_path, "fn/handler.py", "def handler(event, context): ...")
    write(tmp_path, f"fn/{deep}", "1")
    settings = Settings(home=tmp_path / "home")
    with project.pack(tmp_path / "fn") as archive:
        (tmp_path / "bundle").write_bytes(archive.read())
    stored = await Bundles(settings).from_archive(tmp_path / "bundle", VersionConfig())
    code = settings.code_dir(stored.digest)
    assert (code / "handler.py").read_text() == "def handler(event, context): ..."
    assert (code / deep).read_text() == "1"


@pytest.mark.parametrize(
    ("files", "config", "runtime"),
    [
        (["handler.py"], "", None),
        (["handler.js", "package.json"], "", "node"),
        (["src/api.mjs"], 'handler = "src/api.run"', "node"),
        (["handler.sh", "apt.txt", "lib/handler.js"], "", "shell"),
        (["handler"], "", "shell"),
        (["handler.js"], 'runtime = "python"', "python"),
        (["handler.py", "handler.js", "package.json"], "", "node"),
        (["main.js", "package.json"], "", "node"),  # its handler is elsewhere, which the answer will say
        (["readme.txt"], "", None),
        (["Dockerfile", "main.go"], "", "image"),
        (["Dockerfile", "handler.py"], "", None),
    ],
)
def test_the_runtime_is_the_one_that_the_code_is_written_for(
    tmp_path: Path, files: list[str], config: str, runtime: str | None
) -> None:
    for name in files:
        write(tmp_path, name)
    write(tmp_path, "headrace.toml", config)
    assert project.read_config(tmp_path, None, [], []).get("runtime") == runtime


def test_a_handler_in_two_languages_needs_a_word(tmp_path: Path) -> None:
    write(tmp_path, "handler.py")
    write(tmp_path, "handler.sh")
    with pytest.raises(Invalid, match=r"handler\.py and handler\.sh are both here.*`runtime`.*python, shell"):
        project.read_config(tmp_path, None, [], [])
