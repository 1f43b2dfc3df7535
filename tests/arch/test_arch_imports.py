"""The rooms and who may import whom."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

from repository import PACKAGE, ROOT, functions, modules, name_of, tree

HEAVY = {"sqlalchemy", "aiosqlite", "asyncpg", "alembic", "fastapi", "docker", "redis"}
LOAD_ALL = """
import importlib, json, pkgutil, sys
import headrace.gateway
for module in pkgutil.walk_packages(headrace.gateway.__path__, "headrace.gateway."):
    importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="module")
def contracts() -> list[dict[str, object]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[dict[str, object]] = settings["tool"]["importlinter"]["contracts"]
    return found


def test_the_gateway_loads_no_database_no_engine_and_no_web_framework() -> None:
    done = subprocess.run([sys.executable, "-c", LOAD_ALL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    rooms = {"routes", "pool", "balance", "link", "invoke", "websocket", "server"}
    assert {f"headrace.gateway.{room}" for room in rooms} <= loaded
    assert not {name.partition(".")[0] for name in loaded} & HEAVY
    assert not {name for name in loaded if name.startswith(("headrace.store", "headrace.drivers", "headrace.fleet"))}


def test_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]  # in here it would silence loggers
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_import_contracts_cover_every_room(contracts: list[dict[str, object]]) -> None:
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert isinstance(layers, list)
    named = {name.strip() for layer in layers for name in layer.split("|")}
    there = {
        f"headrace.{path.stem}"
        for path in PACKAGE.iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
    }
    assert named == there
    forbidden = {name: contract for contract in contracts for name in contract.get("source_modules", [])}  # type: ignore[attr-defined]
    assert "headrace.gateway" in forbidden
    assert {"headrace.model", "headrace.wire", "headrace.errors", "headrace.settings"} <= forbidden.keys()


def test_no_module_imports_itself_around_a_corner() -> None:
    graph = grimp.build_graph("headrace", cache_dir=None)
    edges = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        tuple(graphlib.TopologicalSorter(edges).static_order())
    except graphlib.CycleError as cycle:
        pytest.fail(f"an import cycle: {' <- '.join(cycle.args[1])}")


def test_imports_stand_at_the_top_but_in_main_and_the_commands() -> None:
    late = {
        f"{name_of(path)}:{node.lineno}"
        for path in modules("platform/")
        if name_of(path) != "headrace.main" and not name_of(path).startswith("headrace.cli")
        for function in functions(tree(path))
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not late
