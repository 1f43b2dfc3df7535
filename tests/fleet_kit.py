"""A node without database, containers and HTTP server: the real fleet and gateway over the fake engine.

What runs as an instance is `Program`: it dials in and speaks the frames of the protocol, and its calls do what their
path says. Calls enter as exchanges of the server. Everything shares one event loop, so scenarios can run in
virtual time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fakes import FakeDriver, FakeEngine, FakeInstance
from headrace import wire
from headrace.fleet.fleet import Fleet
from headrace.gateway.access import Gatekeeper
from headrace.gateway.invoke import Invoker
from headrace.gateway.pool import Member, Pool
from headrace.gateway.routes import Routes
from headrace.gateway.server import Gateway
from headrace.gateway.sockets import Sockets
from headrace.model import Function, Target, Version, VersionConfig, VersionState
from headrace.node import Switchboard
from headrace.settings import Settings
from web_kit import Recorded

FAILURE = {"type": "ValueError", "message": "no", "stack": "Traceback"}


class Program:
    """What an instance does. `dial_s`: before it dials in; `load_error`: LOAD fails with it. Calls are counted."""

    def __init__(self) -> None:
        self.dial_s = 0.0
        self.load_error: dict[str, str] | None = None
        self.calls = 0
        self.calls_while_frozen = 0
        self.cancelled = 0

    async def __call__(self, instance: FakeInstance) -> int:
        await asyncio.sleep(self.dial_s)
        reader, writer = await asyncio.open_unix_connection(str(instance.spec.socket_dir / "s"))
        hello = {
            "protocol": wire.PROTOCOL,
            "runtime": "python",
            "pid": 1,
            "instance": instance.spec.id,
            "loaded": False,
        }
        writer.write(wire.encode(wire.HELLO, 0, wire.dumps(hello)))
        decoder = wire.Decoder()
        tasks: dict[int, asyncio.Task[None]] = {}
        try:
            while data := await reader.read(65536):
                frozen = instance.frozen
                await instance.thawed.wait()
                for frame in decoder.feed(data):
                    self.calls_while_frozen += frozen and frame.type == wire.CALL
                    if frame.type == wire.LOAD:
                        self._load(writer)
                    elif frame.type == wire.CALL:
                        call = self._call(frame, writer)
                        tasks[frame.stream] = asyncio.get_running_loop().create_task(call)
                    elif frame.type == wire.CANCEL and (task := tasks.get(frame.stream)):
                        self.cancelled += 1
                        task.cancel()
                    elif frame.type == wire.DRAIN:
                        return 0
                    else:
                        self.arrived(frame, writer)
                for task in tasks.values():
                    if task.done() and not task.cancelled() and task.exception() is not None:
                        return 3
            return 1
        finally:
            writer.close()
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    def arrived(self, frame: wire.Frame, writer: asyncio.StreamWriter) -> None:
        """Any other frame."""

    def _load(self, writer: asyncio.StreamWriter) -> None:
        if self.load_error is not None:
            writer.write(wire.encode(wire.LOAD_FAILED, 0, wire.dumps(self.load_error)))
        else:
            writer.write(wire.encode(wire.LOADED, 0, wire.dumps({"kind": "handler", "ms": 1})))

    async def _call(self, frame: wire.Frame, writer: asyncio.StreamWriter) -> None:
        self.calls += 1
        path = wire.loads(frame.header)["p"]
        if path == "/wait":
            await asyncio.Event().wait()
        if path == "/die":
            writer.transport.abort()
            return
        if path in ("/half", "/stream", "/endless"):
            writer.write(wire.encode(wire.HEAD, frame.stream, b'{"s":200,"h":[]}'))
            writer.write(wire.encode(wire.BODY, frame.stream, b"", b"half"))
            await (asyncio.Event().wait() if path == "/endless" else asyncio.sleep(0.1))
            if path == "/half":
                writer.transport.abort()
                return
            writer.write(wire.encode(wire.END, frame.stream))
            return
        if path == "/slow":
            await asyncio.sleep(1)
        if path == "/raise":
            writer.write(wire.encode(wire.REPLY, frame.stream, wire.dumps({"e": FAILURE})))
            return
        if path == "/page":  # its own error page, and then the failure
            writer.write(wire.encode(wire.REPLY, frame.stream, wire.dumps({"s": 500, "e": FAILURE}), b"my own page"))
            return
        if path == "/late":  # the same, after a streamed answer
            writer.write(wire.encode(wire.HEAD, frame.stream, b'{"s":200,"h":[]}'))
            writer.write(wire.encode(wire.BODY, frame.stream, b"", b"all of it"))
            writer.write(wire.encode(wire.END, frame.stream, wire.dumps({"x": FAILURE})))
            return
        writer.write(wire.encode(wire.REPLY, frame.stream, b'{"s":200,"h":[["x-a","b"]]}', path.encode()))


class Answer(Recorded):
    """One GET of the function, and what its caller got."""

    def __init__(self, path: str = "/ok", reads: asyncio.Event | None = None) -> None:
        super().__init__(path=f"/fn/f{path}", reads=reads)
        self.empty = self.complete = True


class House:
    """The parts of a node that this kit wires. `records` are the rows noted, in the order of model.Invocation."""

    def __init__(
        self,
        home: Path,
        prewarm: int = 0,
        switchboard: Switchboard | None = None,
        program: Program | None = None,
        **config: Any,
    ) -> None:
        self.settings = Settings(home=home, prewarm=prewarm, instance_memory_mb=1024)
        self.program = program or Program()
        self.engine = FakeEngine(self.program)
        self.driver = FakeDriver(self.engine)
        self.records: list[tuple[Any, ...]] = []
        self.lines: list[tuple[Any, ...]] = []
        self.active: set[Pool] = set()
        self.pools: dict[int, Pool] = {}
        self.retired: list[Pool] = []  # their last calls may still run
        self.sockets = Sockets(self.settings.socket_drain_s)
        self.fleet = Fleet(
            self.driver, switchboard or Switchboard(self.sockets), self.settings, lambda version, id: self._line
        )
        self.routes = Routes(self.pool_of)
        self.invoker = Invoker(
            self.routes,
            Gatekeeper(),
            self.records.append,
            "node",
            max_body=1 << 20,
            look_again=self._look_again,
            sockets=self.sockets,
            monotonic=_now,
        )
        self.gateway = Gateway(self.invoker, self.active, self._late, self.settings)
        self._wanted = VersionConfig(**{"concurrency": 2, "max_instances": 3, "timeout_s": 5, "idle_s": 30, **config})
        code = self.settings.code_dir("d")
        code.mkdir(parents=True)
        (code / "handler.py").write_text("")
        self.target = self.publish(1)

    def _line(self, invocation: str, header: dict[str, Any], text: bytes) -> None:
        self.lines.append((invocation, header, text))

    def publish(self, number: int, revision: int = 1) -> Target:
        """Versions up to `number` exist and `live` leads to it."""
        return self.route(number, range(1, number + 1), revision)

    def route(self, live: int | None, numbers: Iterable[int], revision: int) -> Target:
        """The versions `numbers` exist and `live` leads to one of them or nowhere; what is gone is retired."""
        function = Function(1, "default", "f", "", "public", "least-loaded", False, {}, 0, 0)
        versions = {
            n: Version(n, 1, "default", "f", n, VersionState.READY, None, "d", None, self._wanted, 1, 0, 0)
            for n in numbers
        }
        target = Target(function, {"live": {live: 100}} if live else {}, versions, revision)
        self.routes.put(target)
        self.sockets.moved(1, target)
        for gone in self.pools.keys() - versions.keys():
            self.fleet.retire(gone)
            self.retired.append(self.pools.pop(gone))
        for number in self.pools.keys() & versions.keys():
            keeper = self.fleet.keep(versions[number], self.pools[number])
            keeper.in_traffic = number == live
            keeper.wake()
        return target

    def kill(self, instance: FakeInstance) -> None:
        """The instance dies, as if by SIGKILL."""
        assert instance.task is not None
        instance.exit_code = 137
        instance.task.cancel()

    def pool_of(self, target: Target, version: Version) -> Pool:
        pool = self.pools.get(version.id)
        if pool is None:
            pool = Pool(version.config.queue, "least-loaded", self.active)
            self.pools[version.id] = pool
            self.fleet.keep(version, pool).in_traffic = any(version.number in t for t in target.aliases.values())
        return pool

    async def _look_again(self, function_id: int) -> bool:
        return False

    def _late(self, member: Member) -> None:
        self.fleet.late(member.name)

    async def call(
        self,
        path: str = "/ok",
        answer: Answer | None = None,
        gone: asyncio.Event | None = None,
        reads: asyncio.Event | None = None,
    ) -> Answer:
        """One GET through the gateway; `gone` is set when the caller leaves, `reads` when it reads the body."""
        answer = answer or Answer(path, reads)
        leaving = None
        if gone is not None:
            leaving = asyncio.ensure_future(gone.wait())
            leaving.add_done_callback(lambda left: None if left.cancelled() else answer.leave())
        try:
            self.gateway.serve(answer)
            await answer.over.wait()
        finally:
            if leaving is not None:
                leaving.cancel()
            answer.leave()
        return answer

    def balanced(self) -> None:
        """No slot is held and nothing waits."""
        assert self.invoker.in_flight == 0
        for pool in (*self.pools.values(), *self.retired):
            assert (pool.in_flight, pool.waiting) == (0, 0), pool
            assert all(member.in_flight == 0 for member in pool.members.values()), pool
            assert all(member.link.in_flight == 0 for member in pool.members.values()), pool


@asynccontextmanager
async def house(
    home: Path,
    prewarm: int = 0,
    switchboard: Switchboard | None = None,
    program: Program | None = None,
    **config: Any,
) -> AsyncIterator[House]:
    """A house with its ticker running; at the end it is stopped and nothing may be left of it."""
    made = House(home, prewarm, switchboard, program, **config)
    made.fleet.start(iter(()))
    ticking = asyncio.get_running_loop().create_task(_ticks(made.gateway))
    try:
        yield made
    finally:
        ticking.cancel()
        made.driver.mend()
        await made.fleet.stop(1.0)
    made.balanced()
    await made.fleet.sweep()
    assert made.engine.instances == {}, "an instance was left behind"
    assert list((made.settings.run_dir / "i").glob("*")) == [], "an instance left files behind"


async def _ticks(gateway: Gateway) -> None:
    """The gateway's ticker, in the loop's time instead of the machine's."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    while True:
        await asyncio.sleep(0.02)
        before, now = now, loop.time()
        gateway.tick(now, now - before)


def _now() -> float:
    return asyncio.get_running_loop().time()
