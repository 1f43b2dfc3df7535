"""What the platform asks of an engine that runs instances: ten verbs, all idempotent.

"Already so" and "already gone" are success. Everything raises `EngineUnavailable` when the engine itself does
not answer, with what to do in the detail. The engine is the truth about what runs: nothing here is remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from headrace.model import Network, Runtime


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """One instance to start. Paths are on the host; each is mounted read-only into this instance alone.

    `socket_dir` holds the unix socket `s` on which the node listens for this instance, mounted at
    `/run/headrace`. `code_dir` is mounted at `/function`, `layer_dir` at `/layer`, `shim_dir` at `/shim`.
    Without `code_dir` the instance is generic: before LOAD the node puts the code into `socket_dir/code`.

    The instance finds its way by its environment, in its own view of the paths: `HEADRACE_SOCKET`,
    `HEADRACE_INSTANCE`, `HEADRACE_CODE` and, when there is a layer, `HEADRACE_LAYER`.
    """

    id: str  # [a-z0-9]{1,32}, unique for ever
    runtime: Runtime
    memory_mb: int
    cpus: float
    network: Network
    socket_dir: Path
    shim_dir: Path
    code_dir: Path | None
    layer_dir: Path | None
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """What the engine knows about an instance. `tail` is the end of what it wrote to its own stdout/stderr."""

    id: str
    running: bool
    exit_code: int | None
    out_of_memory: bool
    labels: dict[str, str]
    tail: str = ""


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """Install the dependencies of the code in `code_dir` (read-only) into `out_dir` (empty, writable).

    For a runtime whose versions bring images: get `image`, or build the Dockerfile in `code_dir` when it is None, and
    describe the result in `out_dir` (see `guest.GuestImage`).
    """

    id: str
    runtime: Runtime
    code_dir: Path
    out_dir: Path
    image: str | None = None
    memory_mb: int = 2048
    timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """For `doctor` and `GET /system`."""

    name: str
    version: str
    isolated: bool
    detail: str = ""


class Driver(Protocol):
    async def check(self) -> EngineInfo:
        """Answer when the engine is there and usable."""
        ...

    async def prepare(self, runtime: Runtime) -> str:
        """Make sure that instances of `runtime` can start: the base image and the networks exist.

        Tells what they and their builds run on: a layer made on one such text is for that one only.
        """
        ...

    async def start(self, spec: InstanceSpec) -> None:
        """Create and start; returns when the process runs, not when it has dialled in."""
        ...

    async def stop(self, id: str) -> None:
        """Kill at once and remove every trace. Draining is asked of the instance, over its link, before."""
        ...

    async def adjust(
        self, id: str, *, memory_mb: int | None = None, cpus: float | None = None, frozen: bool | None = None
    ) -> None:
        """Change limits of a running instance, freeze it (no CPU until thawed) or thaw it. None: leave as it is."""
        ...

    async def inspect(self, id: str) -> InstanceStatus | None:
        """None when there is no such instance. Works after the instance has died, until `stop`."""
        ...

    async def list(self) -> list[InstanceStatus]:
        """All instances that this home owns, dead ones too, without `tail`."""
        ...

    async def build(self, spec: BuildSpec, on_line: Callable[[str], None]) -> None:
        """Run the installer inside the sandbox, one `on_line` per line of output, on the caller's loop.

        Raises `BuildFailed` when the installer fails or runs out of time. Cancelling it ends the sandbox.
        """
        ...

    async def tidy(self) -> None:
        """Remove what no version needs any more: images whose layers are gone, builds whose process is dead."""
        ...

    async def close(self) -> None:
        """Let go of the engine; instances keep running."""
        ...
