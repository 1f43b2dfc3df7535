"""The house: what lies at the top, what a room may be called, and that the README names every room."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from repository import PACKAGE, ROOT, files, modules, text

TOP = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "functions",
    "migrations",
    "platform",
    "pyproject.toml",
    "requirements.lock",
    "runtime-images",
    "tests",
}
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
SHELVES = sorted(name for name in TOP if not name.startswith(".") and (ROOT / name).is_dir())


def test_nothing_else_lies_at_the_top() -> None:
    assert {path.parts[0] for path in files()} == TOP


def test_platform_is_a_folder_and_never_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_test_folders_are_no_packages_and_test_files_have_names_of_their_own() -> None:
    tests = modules("tests/")
    assert not [path for path in tests if path.name == "__init__.py"]
    names = [path.name for path in tests if path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))


def test_no_module_is_called_like_one_of_the_standard_library() -> None:
    entrance = {"__init__", "__main__"}
    assert not [path for path in modules() if path.stem in sys.stdlib_module_names - entrance]
    packages = {path.parent for path in modules() if path.name == "__init__.py"}
    assert not [path for path in packages if path.name in sys.stdlib_module_names]


def test_readme_names_every_room_and_folder() -> None:
    readme = text(Path("README.md"))
    names = [*ROOMS, *SHELVES]
    assert not [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}/", readme)]
