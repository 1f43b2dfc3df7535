"""The checkout as the architecture tests see it: what git tracks or would track, parsed."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "platform" / "headrace"


@cache
def files() -> tuple[Path, ...]:
    """Every file of the project, relative to the root: tracked, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = tuple(Path(name) for name in sorted(set(listed.split("\0")) - {""}) if (ROOT / name).is_file())
    assert found, "git lists no files"
    return found


def modules(under: str = "") -> list[Path]:
    """The Python files below `under`, relative to the root."""
    found = [path for path in files() if path.suffix == ".py" and path.as_posix().startswith(under)]
    assert found, f"no Python file below {under!r}"
    return found


def text(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(text(path), str(path))


def functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child


def name_of(path: Path) -> str:
    """The dotted name of a module in `platform/`."""
    parts = path.with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
