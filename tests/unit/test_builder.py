"""What becomes of a version: what is installed, what the log says, whose fault a failure is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from headrace.drivers.base import BuildSpec
from headrace.errors import BuildFailed, EngineUnavailable, LoadFailed, NoCapacity, NodeUnavailable, OutOfMemory
from headrace.jobs.base import Job
from headrace.model import VersionConfig, VersionState
from headrace.releases import buildlog, nodes
from release_kit import HANDLER, Kit, kit

READY, FAILED, PROBING, BUILDING = VersionState.READY, VersionState.FAILED, VersionState.PROBING, VersionState.BUILDING
Say = Callable[[str], None]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Kit]:
    async with kit(tmp_path / "home") as made:
        yield made


async def install(spec: BuildSpec, say: Say) -> None:
    say("Collecting pillow")
    (spec.out_dir / "PIL").mkdir()
    (spec.out_dir / "PIL" / "__init__.py").write_text((spec.code_dir / "requirements.txt").read_text())


async def test_without_dependencies_a_version_is_only_tried(world: Kit) -> None:
    node = await world.node()
    version = await world.submit()
    await world.build()
    built = await world.versions.by_id(version.id)
    assert (built.state, built.layer, built.reason) == (READY, None, None)
    assert node.asked == [("probe", {"version_id": version.id}), ("refresh", {"function_id": version.function_id})]
    assert node.serves[version.function_id].versions == {1: built}  # type: ignore[union-attr]
    assert "Nothing to install." in await world.log(version)
    assert "the handler loads, an instance started in 3 ms" in await world.log(version)
    assert not world.installs() and not world.layers()


async def test_dependencies_become_a_layer_that_versions_share(world: Kit) -> None:
    await world.node()
    world.driver.engine.installer = install
    versions = [await world.ready(requirements="pillow>=11\n", other=f"n = {n}") for n in range(3)]
    layers = {(await world.versions.by_id(version.id)).layer for version in versions}
    assert len(layers) == 1 and len(world.installs()) == 1
    [layer] = world.layers()
    assert layer.name in layers and (layer / "PIL/__init__.py").read_text() == "pillow>=11\n"
    assert "Collecting pillow" in await world.log(versions[0])
    assert "installed already" in await world.log(versions[1])
    await world.ready(requirements="pillow>=12\n")
    assert len(world.layers()) == 2
    world.driver.engine.release = "2"  # another interpreter, or another engine: what was made for the first may not fit
    await world.ready(requirements="pillow>=11\n", other="n = 3")
    assert len(world.layers()) == 3


async def test_the_log_says_which_files_of_other_installers_are_not_read(world: Kit) -> None:
    await world.node()
    stored = await world.bundles.from_files({"handler.py": HANDLER, "uv.lock": "version = 1"}, VersionConfig())
    version, _ = await world.releases.submit("default", "hello", stored, VersionConfig())
    await world.build()
    assert "uv.lock is not read: write it as requirements.txt with `uv export" in await world.log(version)


@pytest.mark.parametrize(
    ("text", "builds"),
    [
        ("pillow", 1),
        ("pillow[avif] ~= 11.0 ; python_version > '3.8' # for webp", 1),
        ("a==1 \\\n    --hash=sha256:00ff \\\n    --hash=sha256:11ff\n", 1),
        ("--extra-index-url https://mirror/simple\nlib @ https://mirror/lib.whl", 1),
        ("lib @ git+https://mirror/lib@v1", 1),
        ("./lib", 2),
        ("lib.whl", 2),
        ("-e .", 2),
        ("-r more.txt", 2),
        ("--constraint=bounds.txt\npillow", 2),
        ("lib @ file:///function/lib", 2),
        ("-r/function/more.txt", 2),
    ],
)
async def test_a_layer_is_shared_unless_it_depends_on_other_files_of_the_bundle(
    world: Kit, text: str, builds: int
) -> None:
    await world.node()
    for n in range(2):
        await world.ready(requirements=text, other=f"n = {n}")
    assert len(world.installs()) == builds


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing yet\n   # nor here\n"])
async def test_an_empty_list_of_dependencies_is_none(world: Kit, text: str) -> None:
    await world.node()
    version = await world.ready(requirements=text)
    assert not world.installs()
    assert (await world.versions.by_id(version.id)).layer is None


async def test_node_bundles_have_no_python_dependencies(world: Kit) -> None:
    await world.node()
    config = VersionConfig(runtime="node")
    stored = await world.bundles.from_files({"handler.js": "", "requirements.txt": "pillow"}, config)
    version, _ = await world.releases.submit("default", "js", stored, config)
    await world.build()
    assert await world.state(version) is READY
    assert not world.installs()


async def test_the_log_says_when_nothing_says_exactly_which_versions(world: Kit) -> None:
    await world.node()
    config = VersionConfig(runtime="node")
    files = {"handler.js": "", "package.json": '{"dependencies": {"a": "1"}}'}
    for number, more in enumerate(({}, {"package-lock.json": "{}"}), 1):
        stored = await world.bundles.from_files(files | more, config)
        version, _ = await world.releases.submit("default", "js", stored, config)
        await world.build()
        assert ("another installation may get other versions" in await world.log(version)) == (number == 1)
    assert len(world.installs()) == 2


async def test_a_failed_install_fails_the_version_and_leaves_nothing(world: Kit) -> None:
    async def failing(spec: BuildSpec, say: Say) -> None:
        (spec.out_dir / "half").mkdir()
        say("ERROR: No matching distribution found for pilow")
        raise BuildFailed("the dependencies could not be installed: see https://me:secret@mirror/simple/pilow/.")

    node = await world.node()
    world.driver.engine.installer = failing
    version = await world.submit(requirements="pilow")
    await world.build()
    assert await world.state(version) is FAILED
    assert await world.reason(version) == "the dependencies could not be installed: see https://…"
    assert "ERROR: No matching distribution found for pilow\nFailed: the dep" in await world.log(version)
    assert not world.layers()
    assert not node.asked


async def test_absurd_requirements(world: Kit) -> None:
    version = await world.submit(requirements="# " + "x" * (8 << 20))
    await world.build()
    assert await world.state(version) is FAILED
    assert "longer than 8 MiB" in await world.reason(version)


async def test_the_log_shows_no_addresses_and_no_secrets(world: Kit) -> None:
    async def talkative(spec: BuildSpec, say: Say) -> None:
        say("Looking in indexes: https://me:pass@mirror.internal/simple, https://other.internal")
        say("  Downloading https://mirror.internal/p/pillow-11.whl?token=abc (4.4 MB)")
        say("HTTPSConnectionPool(host='mirror.internal', port=443): Failed to resolve 'mirror.internal'")
        say("WARNING: The repository located at mirror.internal is not trusted")
        say("git clone me:pass@mirror.internal")
        say("Successfully installed pillow-11.0")

    await world.node()
    world.driver.engine.installer = talkative
    log = await world.log(await world.ready(requirements="pillow"))
    assert not [word for word in ("internal/", "pass", "token", "abc", "'mirror", "at mirror", "other") if word in log]
    assert "  Downloading https://… (4.4 MB)" in log
    assert "Successfully installed pillow-11.0" in log


async def test_the_log_grows_while_the_installer_runs(world: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buildlog, "_EVERY_S", 0.01)
    seen, version_id = asyncio.Event(), 0

    async def slow(spec: BuildSpec, say: Say) -> None:
        say("Collecting pillow")
        while "Collecting pillow" not in (await world.versions.read_log(version_id))[0]:
            await asyncio.sleep(0.01)
        seen.set()

    await world.node()
    world.driver.engine.installer = slow
    version = await world.submit(requirements="pillow")
    version_id = version.id
    async with asyncio.timeout(20):
        await world.build()
    assert seen.is_set()
    assert (await world.log(version)).count("Collecting pillow") == 1


async def test_an_installer_that_prints_too_much_says_so(world: Kit) -> None:
    async def flood(spec: BuildSpec, say: Say) -> None:
        for n in range(20_000):
            say(f"line {n}" + "x" * 10_000 * (n == 7))

    await world.node()
    world.driver.engine.installer = flood
    log = (await world.log(await world.ready(requirements="pillow"))).splitlines()
    assert len(log) < 6000 and "lines came faster than they could be kept]" in " ".join(log)
    assert max(map(len, log)) == 4000
    assert log[-1].startswith("[") or log[-1].startswith("Ready")


async def test_code_that_does_not_load_fails_the_version_with_its_stack(world: Kit) -> None:
    node = await world.node()
    raised = {"type": "ValueError", "message": "boom\0", "stack": 'Traceback:\n  File "handler.py", line 3'}
    node.fails("probe", LoadFailed("ValueError: boom\0", error=raised))
    version = await world.submit()
    await world.build()
    assert await world.state(version) is FAILED
    assert await world.reason(version) == "ValueError: boom\ufffd"
    assert 'Traceback:\n  File "handler.py", line 3\nFailed: ValueError: boom' in await world.log(version)
    assert "refresh" not in node.ops()


async def test_an_instance_that_dies_while_loading_fails_the_version(world: Kit) -> None:
    node = await world.node()
    node.fails("probe", OutOfMemory("the instance needed more than 128 MiB while loading."))
    version = await world.submit()
    await world.build()
    assert await world.state(version) is FAILED
    assert "more than 128 MiB" in await world.reason(version)


async def attempt(world: Kit, number: int) -> Job:
    """The job of the only version, claimed for the `number`-th time."""
    for _ in range(number):
        job = await world.claim()
        world.clock.at += 31
    return job


@pytest.mark.parametrize("where", ["build", "probe"])
async def test_what_the_platform_cannot_do_now_is_tried_again(world: Kit, where: str) -> None:
    node = await world.node()
    if where == "build":
        world.driver.fault("build", error=EngineUnavailable("the engine sleeps."))
    else:
        node.fails("probe", NoCapacity("the machine is full."))
    version = await world.submit(requirements="pillow")
    job = await world.claim()
    with pytest.raises((EngineUnavailable, NoCapacity)):
        await world.builder.run(job)
    assert await world.state(version) is (BUILDING if where == "build" else PROBING)
    assert "The next attempt is in 1 s." in await world.log(version)
    assert len(world.layers()) == (where == "probe")
    node.answers.clear()
    await world.queue.retry(job, 0, "again")
    await world.build()
    assert await world.state(version) is READY
    assert "Attempt 2." in await world.log(version)


async def test_without_a_node_the_version_waits_and_then_fails(world: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_PATIENCE_S", 0)
    version = await world.submit()
    with pytest.raises(NodeUnavailable, match="no node runs"):
        await world.builder.run(await attempt(world, 19))
    assert await world.state(version) is PROBING
    await world.builder.run(await attempt(world, 1))
    assert await world.state(version) is FAILED
    assert (await world.reason(version)).startswith("Given up after 20 attempts. no node runs")


async def test_a_build_that_always_takes_its_worker_down_fails_in_the_end(world: Kit) -> None:
    version = await world.submit()
    await world.builder.run(await attempt(world, 21))
    assert await world.state(version) is FAILED
    assert "20 attempts to build it were cut off" in await world.reason(version)


async def test_a_surprise_is_tried_again_and_then_fails_without_its_secrets(
    world: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(spec: BuildSpec, say: Say) -> None:
        raise ZeroDivisionError("password")

    world.driver.engine.installer = broken
    version = await world.submit(requirements="pillow")
    with pytest.raises(ZeroDivisionError):
        await world.builder.run(await attempt(world, 4))
    assert await world.state(version) is BUILDING
    await world.builder.run(await attempt(world, 1))
    assert await world.state(version) is FAILED
    assert "(ZeroDivisionError)" in await world.reason(version)
    assert "password" not in await world.reason(version) + await world.log(version)
    assert "password" in caplog.text
    assert not world.layers()


@pytest.mark.parametrize("end", [READY, FAILED])
async def test_a_version_that_has_ended_is_left_alone(world: Kit, end: VersionState) -> None:
    node = await world.node()
    version = await world.submit()
    job = await world.claim()
    await world.versions.advance(version.id, end, job.lease, reason="as it was")
    await world.builder.run(job)
    assert (await world.state(version), await world.reason(version)) == (end, "as it was")
    assert not node.asked and not await world.log(version)


async def test_a_function_deleted_during_its_build(world: Kit) -> None:
    async def delete(spec: BuildSpec, say: Say) -> None:
        await world.functions.delete("default", "hello")

    node = await world.node()
    world.driver.engine.installer = delete
    await world.submit(requirements="pillow")
    await world.builder.run(await world.claim())
    assert not node.asked


async def test_a_function_deleted_before_its_build(world: Kit) -> None:
    await world.submit()
    job = await world.claim()
    await world.functions.delete("default", "hello")
    await world.builder.run(job)
