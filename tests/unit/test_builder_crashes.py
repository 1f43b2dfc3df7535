"""Builds that are cut off anywhere, done twice, or taken over: in the end the version is READY or FAILED, once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from headrace.drivers.base import BuildSpec
from headrace.errors import BuildFailed
from headrace.jobs.worker import Worker
from headrace.model import Version, VersionState
from headrace.releases import durable
from headrace.releases.builder import Builder
from release_kit import LEASE_S, FakeNode, Kit, StubWake, kit

READY, FAILED, BUILDING = VersionState.READY, VersionState.FAILED, VersionState.BUILDING
Say = Callable[[str], None]
FILES = {"requirements": "pillow"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Kit]:
    async with kit(tmp_path / "home") as made:
        made.driver.engine.installer = install
        yield made


async def install(spec: BuildSpec, say: Say) -> None:
    assert not list(spec.out_dir.iterdir())
    (spec.out_dir / "pil.py").write_text("installed")
    say("Successfully installed pillow")


class Killed(BaseException):
    """Stands for the end of the process: nothing that runs because of it reaches the world."""


class Cut:
    """Counts the builder's calls to the world; the process ends before, or just after, call number `at`."""

    def __init__(self, at: int, after: bool) -> None:
        self._at, self._after, self._count = at, after, 0

    def dead(self) -> bool:
        return self._count >= self._at

    def on(self, real: Any, *names: str) -> Any:
        return _Cutting(real, {name: self._wrapped(getattr(real, name)) for name in names})

    def _wrapped(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def wrapped(*args: Any, **named: Any) -> Any:
            if self.dead():
                raise Killed
            self._count += 1
            if not self.dead() or self._after:
                answer = await call(*args, **named)
            if self.dead():
                raise Killed
            return answer

        return wrapped


class _Cutting:
    def __init__(self, real: Any, wrapped: dict[str, Any]) -> None:
        self._real, self._wrapped = real, wrapped

    def __getattr__(self, name: str) -> Any:
        return self._wrapped.get(name) or getattr(self._real, name)


@pytest.mark.parametrize("after", [False, True])
async def test_a_worker_killed_at_any_call_leaves_a_build_that_another_finishes(world: Kit, after: bool) -> None:
    await world.node()
    at, cut = 0, Cut(0, after)
    while cut.dead():
        at += 1
        cut = Cut(at, after)
        versions = cut.on(world.versions, "by_id", "advance", "append_log")
        builder = Builder(
            versions, cut.on(world.driver, "build"), cut.on(world.client, "probe", "refresh"), world.settings
        )
        version = await world.submit(f"f{at}", requirements=f"pillow=={at}")
        job = await world.claim()
        with suppress(Killed):
            await builder.run(job)
        world.clock.at += LEASE_S + 1
        await world.nodes.announce(world.running[0].row(world.clock.now()))
        if cut.dead():
            await world.build()
        else:
            await world.queue.finish(job)
        built = await world.versions.by_id(version.id)
        assert built.state is READY, f"killed at call {at}"
        assert (world.settings.layer_dir(str(built.layer)) / "pil.py").read_text() == "installed"
        assert await world.queue.claim(["build"], LEASE_S) is None
    assert at > 8, "the builder calls the world more often than this"


async def worker(world: Kit, wake: StubWake) -> asyncio.Task[None]:
    running = Worker(world.queue, {"build": world.builder.run}, wake, world.clock, LEASE_S)
    return asyncio.ensure_future(running.run())


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_a_worker_stopped_in_the_middle_of_a_build_and_the_next_one(world: Kit) -> None:
    installing, ended = asyncio.Event(), asyncio.Event()

    async def endless(spec: BuildSpec, say: Say) -> None:
        (spec.out_dir / "half").write_text("half")
        installing.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    await world.node()
    world.driver.engine.installer = endless
    version = await world.submit(**FILES)
    first = await worker(world, world.wake)
    async with asyncio.timeout(20):
        await installing.wait()
    assert await world.state(version) is BUILDING
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert ended.is_set(), "the sandbox was ended"
    assert not world.layers()
    world.driver.engine.installer = install
    second = await worker(world, StubWake())
    await until(lambda: is_in(world, version, READY))
    await until(lambda: idle(world))
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert [path.name for path in world.layers()] == [(await world.versions.by_id(version.id)).layer]


async def is_in(world: Kit, version: Version, state: VersionState) -> bool:
    return await world.state(version) is state


async def idle(world: Kit) -> bool:
    return await world.queue.waiting() == 0 and await world.queue.claim(["build"], 0) is None


@pytest.mark.parametrize("fails", [False, True])
async def test_a_worker_taken_for_dead_says_nothing_more(world: Kit, fails: bool) -> None:
    async def overtaken(spec: BuildSpec, say: Say) -> None:
        world.clock.at += LEASE_S + 1
        await world.nodes.announce(node.row(world.clock.now()))
        world.driver.engine.installer = install
        await world.build()
        if fails:
            raise MemoryError

    node = await world.node()
    world.driver.engine.installer = overtaken
    version = await world.submit(**FILES)
    late = await world.claim()
    with suppress(MemoryError):
        await world.builder.run(late)
    assert await world.state(version) is READY
    assert node.ops() == ["probe", "refresh"], "only the one that took over tried the version"
    assert len(world.layers()) == 1


async def test_a_late_failure_does_not_overwrite_what_another_made(world: Kit) -> None:
    async def overtaken(spec: BuildSpec, say: Say) -> None:
        world.clock.at += LEASE_S + 1
        await world.claim()
        raise BuildFailed("the late one failed.")

    world.driver.engine.installer = overtaken
    version = await world.submit(**FILES)
    await world.builder.run(await world.claim())
    assert await world.state(version) is BUILDING
    assert await world.reason(version) == ""


async def test_two_versions_with_one_new_layer_build_at_once(world: Kit) -> None:
    together = asyncio.Barrier(2)

    async def both(spec: BuildSpec, say: Say) -> None:
        await together.wait()
        await install(spec, say)

    await world.node()
    world.driver.engine.installer = both
    versions = [await world.submit(f"f{n}", **FILES) for n in range(2)]
    jobs = [await world.claim() for _ in versions]
    async with asyncio.timeout(20):
        await asyncio.gather(*(world.builder.run(job) for job in jobs))
    assert [await world.state(version) for version in versions] == [READY, READY]
    assert len(world.installs()) == 2
    [layer] = world.layers()
    assert (layer / "pil.py").read_text() == "installed"


async def test_a_cancelled_build_does_not_tidy_up_under_a_layer_that_is_being_kept(
    world: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping, go_on, order = threading.Event(), threading.Event(), list[str]()
    keep, remove = durable.keep, durable.remove

    def slowly(path: Path, final: Path) -> None:
        keeping.set()
        assert go_on.wait(20)
        keep(path, final)
        order.append("kept")

    version = await world.submit(**FILES)
    monkeypatch.setattr(durable, "keep", slowly)
    monkeypatch.setattr(durable, "remove", lambda path: (order.append("removed"), remove(path))[1])
    build = asyncio.ensure_future(world.builder.run(await world.claim()))
    await asyncio.to_thread(keeping.wait, 20)
    build.cancel()
    await asyncio.sleep(0.05)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await build
    assert order == ["kept", "removed"]
    [layer] = world.layers()
    assert (layer / "pil.py").read_text() == "installed"
    assert await world.state(version) is BUILDING


async def test_a_layer_whose_directory_is_gone_is_installed_again(world: Kit) -> None:
    await world.node()
    await world.ready(**FILES)
    durable.remove(world.layers()[0])
    await world.ready(**FILES, other="n = 1")
    assert len(world.installs()) == 2 and len(world.layers()) == 1


async def test_a_node_that_dies_while_it_tries_the_version(world: Kit) -> None:
    dying = await world.node("n1")
    dying.hangs("probe")
    version = await world.submit()
    build = asyncio.ensure_future(world.builder.run(await world.claim()))
    await until(lambda: asked(dying))
    await dying.close()
    assert not build.done()
    await world.node("n2")
    async with asyncio.timeout(20):
        await build
    assert await world.state(version) is READY


async def asked(node: FakeNode) -> bool:
    return "probe" in node.ops()
