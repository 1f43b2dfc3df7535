"""A whole control API for tests: real store, real releases, a node that notes what it is asked."""

from __future__ import annotations

import asyncio
import io
import shutil
import socket
import zipfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from headrace.clock import SystemClock
from headrace.control.app import create_app
from headrace.control.services import Following, Services
from headrace.errors import HeadraceError
from headrace.jobs.rows import RowQueue
from headrace.model import Node, Scope, VersionState
from headrace.peer import PeerServer
from headrace.releases.bundle import Bundles
from headrace.releases.nodes import NodeClient
from headrace.releases.publish import Publisher
from headrace.releases.version import Releases
from headrace.settings import Settings
from headrace.store.aliases import Aliases
from headrace.store.functions import Functions
from headrace.store.nodes import Nodes
from headrace.store.records import Records
from headrace.store.sql import Database, migrate
from headrace.store.tokens import Tokens
from headrace.store.versions import Versions

PORTS = range(17300, 17400)
HANDLER = "def handler(event, context):\n    return 'hello'\n"
NODE = "n1"


def zipped(files: Mapping[str, str | bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def instance(state: str, in_flight: int, **changes: Any) -> dict[str, Any]:
    """One of the instances in a node's status."""
    own = {"id": f"i{state}{in_flight}", "state": state, "version_id": 1, "in_flight": in_flight, "memory_mb": 128}
    return {**own, "namespace": "default", "function": "hello", "version": 1, **changes}


class NotedNode:
    """A node's side of the conversation: answers as told, and notes every question."""

    def __init__(self, path: Path) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.failures: dict[str, HeadraceError] = {}
        self.instances: list[dict[str, Any]] = []
        self._server = PeerServer(path, {name: self._handler(name) for name in _ANSWERS})

    def _handler(self, op: str) -> Any:
        async def answer(question: dict[str, Any]) -> dict[str, Any]:
            self.asked.append((op, question))
            if op in self.failures:
                raise self.failures[op]
            answered = dict(_ANSWERS[op])
            if op == "status":
                answered["instances"] = self.instances
            return answered

        return answer

    def ops(self) -> list[str]:
        return [op for op, _ in self.asked]

    async def start(self) -> None:
        await self._server.start()

    async def close(self) -> None:
        await self._server.close()


_ANSWERS: dict[str, dict[str, Any]] = {
    "refresh": {"revision": 1},
    "refresh_tokens": {},
    "warm": {"ready": True},
    "probe": {"kind": "handler", "ms": 3.0},
    "status": {
        "id": NODE,
        "url": "http://127.0.0.1:7780",
        "started_at": 1769860800.0,
        "serving": True,
        "functions": 1,
        "in_flight": 0,
        "dropped_invocations": 0,
        "dropped_lines": 0,
        "waiting": 2,
        "memory_mb": {"limit": 4096, "reserved": 256},
        "recovery": {"adopted": 1, "shelved": 0, "removed": 2},
    },
    "metrics": {"text": "headrace_test 1\n"},
}


@dataclass
class World:
    settings: Settings
    clock: SystemClock
    services: Services
    node: NotedNode
    nodes: Nodes
    app: FastAPI
    admin: str
    http: httpx.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        self.http = self.client(self.admin)

    def client(self, secret: str | None) -> httpx.AsyncClient:
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://control", headers=headers)

    async def announce(self) -> None:
        """The node reports itself, as it does every few seconds."""
        now = self.clock.now()
        await self.nodes.announce(
            Node(NODE, str(self.settings.run_dir / "node.sock"), self.settings.functions, now, now)
        )

    async def token(self, name: str, *scopes: Scope, namespaces: tuple[str, ...] = ()) -> str:
        _, secret = await self.services.tokens.create(name, scopes, namespaces, None)
        return secret

    async def upload(self, name: str = "hello", text: str = HANDLER, namespace: str = "default") -> int:
        answer = await self.http.post(
            f"/v1/functions/{name}/versions", params={"namespace": namespace}, json={"files": {"handler.py": text}}
        )
        assert answer.status_code in (200, 202), answer.text
        return int(answer.json()["number"])

    async def build(self, end: VersionState = VersionState.READY, reason: str | None = None) -> None:
        """Bring all versions that wait for a worker to their end."""
        while (job := await self.services.queue.claim(["build"], 30)) is not None:
            id = job.payload["version_id"]
            await self.services.versions.append_log(id, ["Nothing to install.", "Loaded in 3 ms."])
            assert await self.services.versions.advance(id, end, job.lease, reason=reason)
            await self.services.queue.finish(job)

    async def ready(self, name: str = "hello", text: str = HANDLER, namespace: str = "default") -> int:
        number = await self.upload(name, text, namespace)
        await self.build()
        return number

    async def live(self, name: str = "hello", text: str = HANDLER, namespace: str = "default") -> int:
        number = await self.ready(name, text, namespace)
        answer = await self.http.post(
            f"/v1/functions/{name}/publish", params={"namespace": namespace}, json={"version": number}
        )
        assert answer.status_code == 200, answer.text
        return number

    def leftovers(self) -> list[Path]:
        return list((self.settings.home / "tmp").glob("*"))


@asynccontextmanager
async def world(home: Path, following: Following = Following(), url: str = "") -> AsyncIterator[World]:  # noqa: B008
    settings = Settings(home=home, database_url=url)
    settings.home.mkdir(parents=True, exist_ok=True)
    clock = SystemClock()
    await migrate(settings.database)
    database = Database(settings.database)
    node = NotedNode(settings.run_dir / "node.sock")
    await node.start()
    try:
        made = await _make(settings, clock, database, node, following)
        async with made.http:
            yield made
    finally:
        await node.close()
        await database.close()
        shutil.rmtree(settings.run_dir, ignore_errors=True)  # it may lie outside the test's directory


async def _make(
    settings: Settings, clock: SystemClock, database: Database, node: NotedNode, following: Following
) -> World:
    nodes = Nodes(database, clock)
    functions, versions, aliases = Functions(database, clock), Versions(database, clock), Aliases(database, clock)
    client = NodeClient(nodes)
    tokens = Tokens(database, clock)
    services = Services(
        settings=settings,
        clock=clock,
        functions=functions,
        versions=versions,
        aliases=aliases,
        records=Records(database, clock),
        tokens=tokens,
        releases=Releases(functions, versions, client, _Silent()),
        bundles=Bundles(settings),
        publisher=Publisher(functions, versions, aliases, client),
        nodes=client,
        queue=RowQueue(database, clock),
        following=following,
    )
    _, admin = await tokens.create("admin", ["admin"], [], None)
    made = World(settings, clock, services, node, nodes, create_app(services), admin)
    await made.announce()
    return made


class _Silent:
    """A wake-up call to a worker that is not there."""

    async def wait(self, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)

    async def poke(self) -> None:
        return None

    async def close(self) -> None:
        return None


@contextmanager
def free_socket() -> Iterator[socket.socket]:
    for port in PORTS:
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except OSError:
            listening.close()
            continue
        with listening:
            yield listening
        return
    raise RuntimeError(f"ports {PORTS} are all taken")


class _Quiet(uvicorn.Server):
    """Leaves the signals to the test run."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """`app` on a real server; its base URL."""
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = _Quiet(config)
    with free_socket() as listening:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            await asyncio.sleep(0.005)
            if serving.done():
                serving.result()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
