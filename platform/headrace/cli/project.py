"""A directory as something to deploy: its name, its config and its files as one reproducible archive.

The same files give the same bytes: entries are sorted, owners, times and all modes but the executable bit are
dropped. What `.headraceignore` names (else `.gitignore`, in git's own syntax) stays out, as do version control,
caches and virtual environments. Links within the directory are followed; links that leave it are refused.
"""

from __future__ import annotations

import difflib
import gzip
import json
import os
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pathspec import GitIgnoreSpec
from pydantic import ValidationError

from headrace.cli import detect
from headrace.errors import Invalid
from headrace.model import VersionConfig, check_name
from headrace.releases.archive import MAX_FILES, MAX_UNPACKED, MIB

CONFIG_NAMES = ("headrace.toml", "headrace.json")
IGNORE_NAMES = (".headraceignore", ".gitignore")

_NEVER = {".git", ".hg", ".svn", ".venv", "__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".DS_Store"}


def check_directory(directory: Path) -> Path:
    """The absolute path of `directory`; raises `Invalid` when there is no such directory."""
    if not directory.exists():
        raise Invalid(f"{directory} does not exist: give the directory that holds the function's code.")
    if not directory.is_dir():
        raise Invalid(f"{directory} is not a directory: give the directory that holds the function's code.")
    return directory.resolve()


def function_name(directory: Path, given: str | None) -> str:
    """The name to deploy under: the one given, else the directory's own."""
    if given is not None:
        return check_name(given, "--name")
    try:
        return check_name(directory.name)
    except Invalid:
        raise Invalid(
            f"the directory's name {directory.name[:80]!r} is not a function name (1 to 63 of a-z, 0-9 and '-', "
            "starting with a letter): give one with --name."
        ) from None


def read_config(directory: Path, file: Path | None, pairs: Sequence[str], env: Sequence[str]) -> dict[str, Any]:
    """The version config: from `file` (else headrace.toml or headrace.json in `directory`), `key=value` on top.

    Where neither names a runtime, it is the one that the code is written for.
    """
    values = _config_file(directory, file)
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise Invalid(f"--config {pair!r}: write it as key=value, for example memory_mb=256.")
        values[key] = _config_value(key, text)
    if env:
        values["env"] = {**values.get("env", {}), **_environment(env)}
    config = _checked(values)
    if "runtime" not in config and (found := detect.runtime(directory, config)) is not None:
        config["runtime"] = found
    return config


def _environment(pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise Invalid(f"--env {pair!r}: write it as NAME=value.")
        found[key] = text
    return found


def _config_value(key: str, text: str) -> Any:
    if key not in ("env", "secrets"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        example = '{"NAME": "value"}' if key == "env" else '["name"]'
        raise Invalid(f"--config {key}: write its value as JSON, for example {key}='{example}'.") from None


def _config_file(directory: Path, file: Path | None) -> dict[str, Any]:
    if file is None:
        file = next((directory / name for name in CONFIG_NAMES if (directory / name).is_file()), None)
    if file is None:
        return {}
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise Invalid(f"the config file {file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise Invalid(f"the config file {file} is malformed: {error}.") from None
    if not isinstance(values, dict):
        raise Invalid(f"the config file {file} holds no table of keys: write keys such as memory_mb and handler.")
    return values


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        config = VersionConfig(**values)
    except ValidationError as error:
        raise Invalid("\n".join(_complaint(item) for item in error.errors(include_url=False))) from None
    return config.model_dump(mode="json", exclude_unset=True)


def _complaint(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    known = list(VersionConfig.model_fields)
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}."
        return f"config: there is no key {key!r}; {hint}"
    return f"config: {key}: {item['msg'].removeprefix('Value error, ')} (it is {str(item['input'])[:80]!r})."


def pack(directory: Path) -> IO[bytes]:
    """The files of `directory` as an open temporary tar.gz, at its start."""
    files = sorted(_files(directory))
    if not files:
        raise Invalid(f"{directory} holds no files to deploy: put the function's code there.")
    archive = tempfile.TemporaryFile()  # noqa: SIM115 - handed to the caller
    try:
        with (
            gzip.GzipFile(fileobj=archive, mode="wb", filename="", mtime=0, compresslevel=6) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name, path in files:
                _add(tar, name, path)
        archive.seek(0)
    except BaseException:
        archive.close()
        raise
    return archive


def _add(tar: tarfile.TarFile, name: str, path: Path) -> None:
    try:
        with path.open("rb") as content:
            status = os.fstat(content.fileno())
            entry = tarfile.TarInfo(name)
            entry.size = status.st_size
            entry.mode = 0o755 if status.st_mode & 0o111 else 0o644
            tar.addfile(entry, content)
    except OSError as error:
        raise Invalid(f"{name} cannot be packed: {error.strerror or error}.") from None


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    """Time of change and size of every file that `pack` would take, to see whether something changed."""
    seen = {}
    for name, path in _files(directory):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        seen[name] = (status.st_mtime_ns, status.st_size)
    for name in CONFIG_NAMES:
        if (directory / name).is_file():
            status = (directory / name).stat()
            seen[name] = (status.st_mtime_ns, status.st_size)
    return seen


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Name in the archive and path of each file to deploy."""
    ignored = _ignored(directory)
    count = size = 0
    for folder, subfolders, names in os.walk(directory):
        here = Path(folder)
        subfolders[:] = [name for name in subfolders if not _skip(here / name, directory, ignored)]
        for name in names:
            path = here / name
            relative = path.relative_to(directory).as_posix()
            if name in _NEVER or relative in (*CONFIG_NAMES, *IGNORE_NAMES) or ignored.match_file(relative):
                continue
            _check_file(path, relative, directory)
            count, size = count + 1, size + path.stat().st_size
            if count > MAX_FILES or size > MAX_UNPACKED:
                raise Invalid(
                    f"{directory} is too large to deploy: over {MAX_FILES:,} files or {MAX_UNPACKED // MIB} MiB. "
                    "Name what does not belong to the function in .headraceignore."
                )
            yield relative, path


def _ignored(directory: Path) -> GitIgnoreSpec:
    for name in IGNORE_NAMES:
        path = directory / name
        if path.is_file():
            return GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8", errors="replace").splitlines())
    return GitIgnoreSpec.from_lines([])


def _skip(path: Path, directory: Path, ignored: GitIgnoreSpec) -> bool:
    if path.name in _NEVER or (path / "pyvenv.cfg").is_file():
        return True
    relative = path.relative_to(directory).as_posix()
    if ignored.match_file(relative + "/"):
        return True
    if path.is_symlink():
        raise Invalid(f"{relative} is a link to a directory: put the files there, or name it in .headraceignore.")
    return False


def _check_file(path: Path, relative: str, directory: Path) -> None:
    if path.is_symlink() and not path.resolve().is_relative_to(directory):
        raise Invalid(
            f"{relative} is a link that leaves the directory: put the file there, or name it in .headraceignore."
        )
    if not path.exists():
        raise Invalid(f"{relative} is a link to nothing: remove it, or name it in .headraceignore.")
    if not path.is_file():
        raise Invalid(f"{relative} is neither a file nor a directory: remove it, or name it in .headraceignore.")
