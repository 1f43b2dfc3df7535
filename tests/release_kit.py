"""Releases for tests: a real store, fake nodes on real sockets, an engine whose installer the test writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakes import FakeDriver
from headrace.jobs.base import Job
from headrace.jobs.rows import RowQueue
from headrace.model import Node, Target, Version, VersionConfig, VersionState
from headrace.peer import PeerServer
from headrace.releases.builder import Builder
from headrace.releases.bundle import Bundles
from headrace.releases.nodes import NodeClient
from headrace.releases.publish import Publisher
from headrace.releases.version import Releases
from headrace.settings import Settings
from headrace.store.aliases import Aliases
from headrace.store.functions import Functions
from headrace.store.nodes import Nodes
from headrace.store.sql import Database, migrate
from headrace.store.versions import Versions

HANDLER = "def handler(event, context):\n    return 'ok'\n"
LEASE_S = 30.0
Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class HandClock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


class StubWake:
    """Counts pokes; a wait ends at the next one."""

    def __init__(self) -> None:
        self.pokes = 0
        self._poked = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        await self._poked.wait()
        self._poked.clear()

    async def poke(self) -> None:
        self.pokes += 1
        self._poked.set()

    async def close(self) -> None:
        return None


class FakeNode:
    """A node on a real socket. It serves what it read from the store when it was last told to refresh."""

    def __init__(self, id: str, path: Path, functions: Functions) -> None:
        self.id, self.path = id, path
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.serves: dict[int, Target | None] = {}
        self.answers: dict[str, Answer] = {}  # instead of its own
        self._functions = functions
        ops = ("refresh", "refresh_tokens", "warm", "probe", "status", "metrics")
        self._server = PeerServer(path, {op: self._handler(op) for op in ops})

    async def start(self) -> None:
        await self._server.start()

    async def close(self) -> None:
        await self._server.close()

    def row(self, now: float) -> Node:
        return Node(self.id, str(self.path), "http://127.0.0.1:1", now, now)

    def ops(self) -> list[str]:
        return [op for op, _ in self.asked]

    def fails(self, op: str, error: Exception) -> None:
        async def fail(_: dict[str, Any]) -> dict[str, Any]:
            raise error

        self.answers[op] = fail

    def hangs(self, op: str) -> None:
        async def hang(_: dict[str, Any]) -> dict[str, Any]:
            await asyncio.Event().wait()
            return {}

        self.answers[op] = hang

    def _handler(self, op: str) -> Answer:
        async def answer(question: dict[str, Any]) -> dict[str, Any]:
            self.asked.append((op, question))
            return await self.answers.get(op, getattr(self, f"_{op}"))(question)

        return answer

    async def _refresh(self, question: dict[str, Any]) -> dict[str, Any]:
        target = await self._functions.target(question["function_id"])
        self.serves[question["function_id"]] = target
        return {"revision": None if target is None else target.revision}

    async def _refresh_tokens(self, question: dict[str, Any]) -> dict[str, Any]:
        return {}

    async def _warm(self, question: dict[str, Any]) -> dict[str, Any]:
        return {"ready": True}

    async def _probe(self, question: dict[str, Any]) -> dict[str, Any]:
        return {"kind": "handler", "ms": 3.4}

    async def _status(self, question: dict[str, Any]) -> dict[str, Any]:
        return {"id": self.id}

    async def _metrics(self, question: dict[str, Any]) -> dict[str, Any]:
        sample = f'headrace_calls{{node="{self.id}"}} 1\n'
        return {"text": f"# HELP headrace_calls Calls.\n# TYPE headrace_calls gauge\n{sample}"}


@dataclass
class Kit:
    settings: Settings
    database: Database
    clock: HandClock = field(default_factory=HandClock)
    wake: StubWake = field(default_factory=StubWake)
    driver: FakeDriver = field(default_factory=FakeDriver)
    running: list[FakeNode] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.functions = Functions(self.database, self.clock)
        self.versions = Versions(self.database, self.clock)
        self.aliases = Aliases(self.database, self.clock)
        self.nodes = Nodes(self.database, self.clock)
        self.queue = RowQueue(self.database, self.clock)
        self.client = NodeClient(self.nodes)
        self.bundles = Bundles(self.settings)
        self.releases = Releases(self.functions, self.versions, self.client, self.wake)
        self.publisher = Publisher(self.functions, self.versions, self.aliases, self.client)
        self.builder = Builder(self.versions, self.driver, self.client, self.settings)

    async def node(self, id: str = "n1") -> FakeNode:
        """A node that runs and has reported itself."""
        node = FakeNode(id, self.settings.run_dir / f"{id}.sock", self.functions)
        await node.start()
        self.running.append(node)
        await self.nodes.announce(node.row(self.clock.now()))
        return node

    def installs(self) -> list[str]:
        """The builds that the driver was asked for."""
        return [subject for verb, subject in self.driver.calls if verb == "build"]

    async def submit(self, name: str = "hello", config: VersionConfig | None = None, **files: str) -> Version:
        """A version from text files; `requirements` stands for requirements.txt, other names for `<name>.py`."""
        texts = {"handler.py": HANDLER}
        for file, text in files.items():
            texts["requirements.txt" if file == "requirements" else f"{file}.py"] = text
        config = config or VersionConfig()
        stored = await self.bundles.from_files(texts, config)
        return (await self.releases.submit("default", name, stored, config))[0]

    async def claim(self) -> Job:
        job = await self.queue.claim(["build"], LEASE_S)
        assert job is not None, "no job is due"
        return job

    async def build(self) -> None:
        """What the worker does with the next job when all goes well."""
        job = await self.claim()
        await self.builder.run(job)
        assert await self.queue.finish(job)

    async def ready(self, name: str = "hello", **files: str) -> Version:
        version = await self.submit(name, **files)
        await self.build()
        assert (await self.state(version)) is VersionState.READY
        return version

    async def state(self, version: Version) -> VersionState:
        return (await self.versions.by_id(version.id)).state

    async def reason(self, version: Version) -> str:
        return (await self.versions.by_id(version.id)).reason or ""

    async def log(self, version: Version) -> str:
        return "\n".join((await self.versions.read_log(version.id))[0])

    def layers(self) -> list[Path]:
        """Everything on the shelf of layers, what crashes left too."""
        return sorted((self.settings.home / "layers").glob("*"))


@asynccontextmanager
async def kit(home: Path) -> AsyncIterator[Kit]:
    home.mkdir(parents=True)
    settings = Settings(home=home)
    await migrate(settings.database)
    database = Database(settings.database)
    made = Kit(settings, database)
    try:
        yield made
    finally:
        for node in made.running:
            await node.close()
        await database.close()
