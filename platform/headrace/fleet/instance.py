"""One instance: a sandbox with a life that only moves forward.

    REQUESTED > CREATING > STARTING > WAITING > LOADING > READY > DRAINING > STOPPED    (FAILED, LOST: ends on the way)

CREATING is one driver call; STARTING lasts from the process running until it has dialled in; WAITING is generic,
LOADING is becoming a version. An illegal move is a bug and raises. What must survive the node's death stands in a
small file beside the instance's directory: what the instance is, and what was loaded into it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.fleet.ports import Link, Member
from headrace.model import InstanceState, Network, Runtime, Version

S = InstanceState
MOVES: dict[InstanceState, frozenset[InstanceState]] = {
    S.REQUESTED: frozenset((S.CREATING, S.STARTING, S.FAILED)),  # STARTING: adopted, it runs already
    S.CREATING: frozenset((S.STARTING, S.FAILED)),
    S.STARTING: frozenset((S.WAITING, S.FAILED, S.LOST)),
    S.WAITING: frozenset((S.LOADING, S.READY, S.DRAINING, S.FAILED, S.LOST)),  # READY: adopted, it was loaded before
    S.LOADING: frozenset((S.READY, S.FAILED, S.LOST)),
    S.READY: frozenset((S.DRAINING, S.LOST)),
    S.DRAINING: frozenset((S.STOPPED, S.LOST)),
    S.STOPPED: frozenset(),
    S.FAILED: frozenset(),
    S.LOST: frozenset(),
}
ENDS = frozenset((S.STOPPED, S.FAILED, S.LOST))


@dataclass(frozen=True, slots=True)
class Kind:
    """What a sandbox can be used for; sandboxes of one kind are alike until something is loaded."""

    runtime: Runtime
    network: Network
    layer: str | None

    @staticmethod
    def of(version: Version) -> Kind:
        return Kind(version.config.runtime, version.config.network, version.layer)


class Instance:
    __slots__ = (
        "_state",
        "directory",
        "handler_kind",
        "id",
        "kind",
        "limits",
        "link",
        "member",
        "memory_mb",
        "pausing",
        "start_ms",
        "steps",
        "version",
    )

    def __init__(self, kind: Kind, memory_mb: int, cpus: float, run_dir: Path, id: str | None = None) -> None:
        self.id = id or secrets.token_hex(8)
        self.kind = kind
        self.memory_mb = memory_mb  # reserved of the node's memory; a waiting one reserves less than its limit
        self.limits: tuple[int, float] | None = (memory_mb, cpus)  # in force at the engine; None: not known
        self.directory = run_dir / "i" / self.id
        self.link: Link | None = None
        self.member: Member | None = None
        self.version: Version | None = None
        self.handler_kind = ""  # what LOADED said: "handler" or "asgi"
        self.pausing = asyncio.Lock()  # freezing and thawing take turns
        self.start_ms = 0.0
        self.steps: dict[str, float] = {}  # what was done since a call wanted it, milliseconds
        self._state = S.REQUESTED

    def __repr__(self) -> str:
        return f"<Instance {self.id} {self._state} {self.version or self.kind}>"

    @property
    def state(self) -> InstanceState:
        return self._state

    @property
    def ended(self) -> bool:
        return self._state in ENDS

    def become(self, state: InstanceState) -> None:
        """Move forward. Raises `ValueError` for a move that the table does not have."""
        if state not in MOVES[self._state]:
            raise ValueError(f"instance {self.id} cannot go from {self._state} to {state}")
        self._state = state

    def finish(self, end: InstanceState) -> None:
        """Reach an end: `end`, or FAILED for an instance that never ran; a stop of a running one passes DRAINING."""
        if end is S.STOPPED and S.DRAINING in MOVES[self._state]:
            self.become(S.DRAINING)
        self.become(end if end in MOVES[self._state] else S.FAILED)

    def remember(self) -> None:
        """Write down what this instance is, before the node acts on it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)  # the sandbox's user looks into it, whatever the umask was
        memory_mb, cpus = self.limits or (self.memory_mb, 0)
        note = {
            "runtime": self.kind.runtime,
            "network": self.kind.network,
            "layer": self.kind.layer,
            "memory_mb": memory_mb,
            "cpus": cpus,
            "version": self.version.id if self.version else None,
            "start_ms": self.start_ms,
        }
        path = self._note(self.directory)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(note))
        fresh.replace(path)

    def forget(self) -> None:
        """Remove every trace on disk."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self._note(self.directory).unlink(missing_ok=True)

    @staticmethod
    def recall(run_dir: Path, id: str) -> tuple[Instance, int | None] | None:
        """The instance `id` as it was remembered, with the id of its version; None when nothing usable is there."""
        try:
            note: dict[str, Any] = json.loads(Instance._note(run_dir / "i" / id).read_text())
            kind = Kind(note["runtime"], note["network"], note["layer"])
            instance = Instance(kind, note["memory_mb"], note["cpus"], run_dir, id)
            instance.start_ms = note.get("start_ms", 0.0)  # notes of earlier releases have none
            return instance, note["version"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @staticmethod
    def remembered(run_dir: Path) -> set[str]:
        """Ids of all instances that left a trace on disk."""
        return {path.stem for path in (run_dir / "i").glob("*.json")} | {
            path.name for path in (run_dir / "i").glob("*") if path.is_dir()
        }

    @staticmethod
    def _note(directory: Path) -> Path:
        return directory.with_name(f"{directory.name}.json")
