"""Measures and habits of the code itself."""

from __future__ import annotations

import ast
import re

import pytest

from repository import ROOT, files, functions, modules, name_of, text, tree

LONGEST_MODULE = 500
LONGEST_FUNCTION = 70
READERS = {"headrace.main", "headrace.cli.app", "headrace.settings"}
STATEFUL = {"list", "dict", "set", "deque", "defaultdict", "OrderedDict", "Counter", "count", "ContextVar"}
STATEFUL_ROOTS = {"asyncio", "threading", "queue", "weakref", "itertools", "collections"}
MUTATORS = {
    "add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft", "remove",
    "setdefault", "update",
}  # fmt: skip
LEFTOVERS = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
PLATFORM = modules("platform/")  # the shim in runtime-images has an entrance of its own


def test_modules_stay_short() -> None:
    assert not [path for path in modules() if len(text(path).splitlines()) > LONGEST_MODULE]


def test_functions_stay_short() -> None:
    lengths = {
        f"{path}:{function.name}": (function.end_lineno or 0) - function.lineno + 1
        for path in modules()
        for function in functions(tree(path))
    }
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION}


def test_only_the_entrances_read_the_environment() -> None:
    reading = {name_of(path) for path in PLATFORM if any(map(_reads_environment, ast.walk(tree(path))))}
    assert reading <= READERS


def _reads_environment(node: ast.AST) -> bool:
    names = {"environ", "environb", "getenv", "getenvb"}
    if isinstance(node, ast.Attribute):
        return node.attr in names and isinstance(node.value, ast.Name) and node.value.id == "os"
    if isinstance(node, ast.ImportFrom):
        return node.module == "os" and any(alias.name in names for alias in node.names)
    return False


def test_modules_hold_constants_and_no_state() -> None:
    stateful = [
        f"{name_of(path)}.{name}"
        for path in PLATFORM
        for name, value in _assigned(tree(path))
        if _is_state(value) and not (name.isupper() and _is_literal(value))
    ]
    assert not stateful, "made at import and meant to change"


def test_functions_change_nothing_that_belongs_to_a_module() -> None:
    changed = []
    for path in PLATFORM:
        names = {name for name, _ in _assigned(tree(path))}
        changed += [
            f"{name_of(path)}:{function.name}"
            for function in functions(tree(path))
            for node in ast.walk(function)
            if isinstance(node, ast.Global) or _changes(node, names)
        ]
    assert not changed


@pytest.mark.parametrize(
    "code",
    ["cache = {}", "_SEEN = set()", "jobs: list[str] = []", "_LOCK = asyncio.Lock()", "_IDS = itertools.count()"],
)
def test_state_is_recognised(code: str) -> None:
    [(name, value)] = _assigned(ast.parse(code))
    assert _is_state(value) and not (name.isupper() and _is_literal(value))


@pytest.mark.parametrize("code", ["_KNOWN['a'] = 1", "del _KNOWN['a']", "_KNOWN.update(a=1)", "_KNOWN['a'] += 1"])
def test_changes_are_recognised(code: str) -> None:
    assert any(_changes(node, {"_KNOWN"}) for node in ast.walk(ast.parse(code)))


@pytest.mark.parametrize("code", ["os.environ['A']", "os.getenv('A')", "from os import environ", "dict(os.environ)"])
def test_reading_the_environment_is_recognised(code: str) -> None:
    assert any(map(_reads_environment, ast.walk(ast.parse(code))))


def _assigned(module: ast.Module) -> list[tuple[str, ast.expr]]:
    found: list[tuple[str, ast.expr]] = []
    for node in module.body:
        if isinstance(node, ast.Assign):
            found += [(target.id, node.value) for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name):
            found.append((node.target.id, node.value))
    return found


def _is_literal(value: ast.expr) -> bool:
    return isinstance(value, ast.List | ast.Set | ast.Dict)


def _is_state(value: ast.expr) -> bool:
    """An empty container, or something of a kind that exists to be changed."""
    if isinstance(value, ast.List):
        return not value.elts
    if isinstance(value, ast.Dict):
        return not value.keys
    if not isinstance(value, ast.Call):
        return False
    if isinstance(value.func, ast.Name):
        return value.func.id in STATEFUL and not value.args
    root = value.func
    while isinstance(root, ast.Attribute):
        root = root.value
    return isinstance(root, ast.Name) and root.id in STATEFUL_ROOTS


def _changes(node: ast.AST, names: set[str]) -> bool:
    if isinstance(node, ast.Subscript):
        return isinstance(node.ctx, ast.Store | ast.Del) and _named(node.value, names)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in MUTATORS and _named(node.func.value, names)
    return False


def _named(node: ast.expr, names: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def test_nothing_is_left_for_later() -> None:
    found = []
    for path in files():
        content = (ROOT / path).read_bytes()
        if b"\0" not in content and path.name != "requirements.lock":
            lines = content.decode("utf-8").splitlines()
            found += [f"{path}:{number}" for number, line in enumerate(lines, 1) if LEFTOVERS.search(line)]
    assert not found
