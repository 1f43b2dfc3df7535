"""The Node shim for contract tests: what `shim_kit` does, on a real `node`."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from headrace import wire
from headrace.resources import share
from shim_kit import Shim, running, write_files

SHIM = share("runtime-images") / "node" / "shim"


def node() -> str:
    """The interpreter. A machine without one cannot run these tests, and that is a failure."""
    found = shutil.which("node")
    assert found is not None, "install Node.js 18 or later: the contract tests run its shim"
    return found


@contextlib.asynccontextmanager
async def waiting_node(
    home: Path,
    files: Mapping[str, str],
    *,
    layer: Mapping[str, str] | None = None,
    options: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Shim]:
    """A Node shim that has said HELLO and has not been loaded. A layer appears beside the code, as drivers lay it."""
    shim = Shim(home, [node(), *options, str(SHIM / "main.js")], env or {})
    write_files(shim.code, files)
    if layer is not None:
        write_files(shim.layer, layer)
        (home / "node_modules").symlink_to(shim.layer / "node_modules")
    async with running(shim):
        yield shim


@contextlib.asynccontextmanager
async def loaded_node(home: Path, source: str, *, file: str = "handler.js", **fields: Any) -> AsyncIterator[Shim]:
    """A Node shim with `source` as its handler; `fields` go into LOAD."""
    async with waiting_node(home, {file: source}) as shim:
        frame = await shim.load(**fields)
        assert frame.type == wire.LOADED, frame.header.decode()
        yield shim
