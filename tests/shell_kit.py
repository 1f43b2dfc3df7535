"""The shell shim for contract tests: what `shim_kit` does, on a real `perl`."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from headrace import wire
from headrace.resources import share
from shim_kit import Shim, running, write_files

SHIM = share("runtime-images") / "shell" / "shim"


def perl() -> str:
    """The interpreter. A machine without one cannot run these tests, and that is a failure."""
    found = shutil.which("perl")
    assert found is not None, "install perl: the contract tests run the shim of the shell"
    return found


@contextlib.asynccontextmanager
async def waiting_shell(
    home: Path, files: Mapping[str, str], *, layer: Mapping[str, str] | None = None
) -> AsyncIterator[Shim]:
    """A shell shim that has said HELLO and has not been loaded."""
    shim = Shim(home, [perl(), str(SHIM / "main.pl")], {})
    write_files(shim.code, files)
    if layer is not None:
        write_files(shim.layer, layer)
    async with running(shim):
        yield shim


@contextlib.asynccontextmanager
async def loaded_shell(home: Path, source: str, **fields: object) -> AsyncIterator[Shim]:
    """A shell shim with `source` as its `handler.sh`; `fields` go into LOAD."""
    async with waiting_shell(home, {"handler.sh": source}) as shim:
        frame = await shim.load(**fields)
        assert frame.type == wire.LOADED, frame.header.decode()
        yield shim
