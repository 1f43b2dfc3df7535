"""What the engine builds for a version, and what becomes of it: bounds, ends, and images that nobody needs."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from driver_kit import PATIENCE_S, Kit
from headrace.drivers import image_build
from headrace.drivers.base import BuildSpec, Driver
from headrace.drivers.guest import GuestImage, layer_of
from headrace.errors import BuildFailed, EngineUnavailable

GONE = {"id": f"sha256:{'0' * 64}", "command": ["x"], "env": {}, "user": "", "workdir": "/", "volumes": []}
START = "ARG HEADRACE_BASE_PYTHON\nFROM ${HEADRACE_BASE_PYTHON}\n"


@pytest.fixture
def engine(engine: Any, kit: Kit) -> Iterator[Any]:
    """The engine without the images of this test afterwards."""
    yield engine
    for name in names(engine, kit):
        engine.remove_image(name, force=True)


def names(engine: Any, kit: Kit) -> list[str]:
    tags = [tag for item in engine.images() for tag in item["RepoTags"] or []]
    return [tag for tag in tags if kit.settings.home_tag in tag]


def spec(kit: Kit, lines: str, **changes: Any) -> BuildSpec:
    asked = kit.build_spec("none", **changes)
    (asked.code_dir / "Dockerfile").write_text(START + lines)
    return BuildSpec(asked.id, "image", asked.code_dir, asked.out_dir, timeout_s=changes.get("timeout_s", 120))


async def test_an_image_is_described_kept_and_removed(kit: Kit, driver: Driver, engine: Any) -> None:
    asked = spec(kit, 'ENV A=1 B=x=y\nWORKDIR /srv\nVOLUME /data\nUSER games\nENTRYPOINT ["serve"]\nCMD ["--all"]\n')
    (asked.code_dir / "secret").write_text("left out")
    (asked.code_dir / ".dockerignore").write_text("secret\n")
    lines: list[str] = []
    await driver.build(asked, lines.append)
    image = GuestImage.read(asked.out_dir)
    assert (image.command, image.user, image.workdir, image.volumes) == (["serve", "--all"], "5:60", "/srv", ["/data"])
    assert image.env["A"] == "1" and image.env["B"] == "x=y"
    assert any(line.startswith("Step 2/") for line in lines)
    layer = layer_of(asked.out_dir)
    [kept] = names(engine, kit)
    assert kept.endswith(f":{layer}")

    await driver.tidy()
    assert names(engine, kit) == [kept]  # its layer is perhaps just being kept
    note = kit.settings.home / "images" / layer
    os.utime(note, (1, 1))
    kit.settings.layer_dir(layer).mkdir(parents=True)
    await driver.tidy()
    assert names(engine, kit) == [kept]
    kit.settings.layer_dir(layer).rmdir()
    engine.tag(kept, "headrace-test-of-tidy", kit.settings.home_tag)  # somebody's own name for it stays
    await driver.tidy()
    assert names(engine, kit) == [f"headrace-test-of-tidy:{kit.settings.home_tag}"] and not note.exists()


async def test_a_step_is_bounded(kit: Kit, driver: Driver, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    limits = "/sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max"
    memory = "/sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max"
    with pytest.raises(BuildFailed, match="It said: "):
        await driver.build(spec(kit, f"RUN sleep 2; cat {limits} {memory}; exit 9 # {os.getpid()}\n"), lines.append)
    assert "512" in lines and str(2048 << 20) in lines
    monkeypatch.setattr(image_build, "_LARGEST", 8 << 20)
    monkeypatch.setattr(image_build, "_MEASURE_S", 0.1)
    with pytest.raises(BuildFailed, match="wrote more than"):
        await driver.build(spec(kit, f"RUN head -c 32000000 /dev/zero > /x; sleep 60 # {os.getpid()}\n"), lines.append)


async def test_a_build_that_takes_too_long_or_is_cancelled_ends_in_the_engine(
    kit: Kit, driver: Driver, engine: Any
) -> None:
    mark = f"sleep 97 # {os.getpid()}"
    with pytest.raises(BuildFailed, match="took longer than 3 s"):
        await driver.build(spec(kit, f"RUN {mark}\n", timeout_s=3), lambda _: None)
    await until_gone(engine, mark)
    begun = asyncio.Event()
    building = asyncio.create_task(
        driver.build(spec(kit, f"RUN {mark}\n"), lambda line: begun.set() if mark in line else None)
    )
    async with asyncio.timeout(PATIENCE_S):
        await begun.wait()
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    await until_gone(engine, mark)


async def until_gone(engine: Any, mark: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while any(mark in item["Command"] for item in await asyncio.to_thread(engine.containers, all=True)):
            await asyncio.sleep(0.1)


async def test_an_image_of_the_engine_needs_no_registry(
    kit: Kit, driver: Driver, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = next(tag for item in engine.images() for tag in item["RepoTags"] or [] if tag.startswith("headrace-python:"))
    asked = kit.build_spec("none")
    with pytest.raises(BuildFailed, match="neither ENTRYPOINT nor CMD"):
        await driver.build(BuildSpec(asked.id, "image", asked.code_dir, asked.out_dir, image=base), lambda _: None)
    (asked.out_dir / "image.json").write_text(json.dumps(GONE))
    gone = await kit.spec("steady", runtime="image", layer_dir=asked.out_dir)
    with pytest.raises(EngineUnavailable, match="is not in the engine any more"):
        await driver.start(gone)
    missing = BuildSpec(asked.id, "image", asked.code_dir, asked.out_dir, image="sha256:" + "0" * 64)
    with pytest.raises(BuildFailed, match="no registry knows an image by its id"):
        await driver.build(missing, lambda _: None)
    monkeypatch.setattr(image_build, "_LARGEST_IMAGE", 1 << 20)
    with pytest.raises(BuildFailed, match="MiB and may take 1: leave some out"):
        await driver.build(BuildSpec(asked.id, "image", asked.code_dir, asked.out_dir, image=base), lambda _: None)
