"""The shelf of bundles and layers: whole or not there, once each, tidied without taking what is about to be used."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path

import pytest

import packing
from headrace.errors import BundleRejected, HeadraceError
from headrace.model import VersionConfig
from headrace.releases import durable
from headrace.releases.bundle import Bundles
from headrace.settings import Settings
from packing import HANDLER

PYTHON = VersionConfig()
FILES = {"handler.py": HANDLER.decode(), "lib/a.txt": "x" * 100_000}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def age(path: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


async def test_many_puts_of_one_bundle_at_once(settings: Settings) -> None:
    stored = await asyncio.gather(*(Bundles(settings).from_files(FILES, PYTHON) for _ in range(12)))
    assert len({one.digest for one in stored}) == 1
    code = settings.code_dir(stored[0].digest)
    assert list(code.parent.iterdir()) == [code]
    assert packing.tree(code) == {name: text.encode() for name, text in FILES.items()}


async def test_losing_the_race_for_the_name_is_success(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await Bundles(settings).from_files(FILES, PYTHON)
    monkeypatch.setattr(durable, "present", lambda final: False)  # both looked before either had renamed
    assert await Bundles(settings).from_files(FILES, PYTHON) == first
    assert [path.name for path in (settings.home / "code").iterdir()] == [first.digest]


async def test_all_is_synced_before_it_gets_its_name(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    renamed_after: list[int] = []
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda old, new: (renamed_after.append(len(synced)), rename(old, new)))
    await Bundles(settings).from_files(FILES, PYTHON)
    code = settings.home / "code"
    before = [Path(path).relative_to(code).parts[1:] for path in synced[: renamed_after[0]]]
    assert sorted(before) == [(), ("handler.py",), ("lib",), ("lib", "a.txt")]
    assert synced[renamed_after[0] :] == [str(code)]


async def test_only_what_is_old_and_unused_goes(settings: Settings) -> None:
    bundles = Bundles(settings)
    stored = [await bundles.from_files({**FILES, "n": str(n)}, PYTHON) for n in range(3)]
    used, unused, fresh = (settings.code_dir(one.digest) for one in stored)
    layer, crashed = settings.layer_dir("ab" * 32), settings.home / "code" / ".new-0123"
    for path in (layer / "deep", crashed / "deep"):
        path.mkdir(parents=True)
    for path in (used, unused, layer, crashed):
        age(path, 1.1)
    assert await bundles.collect({used.name}, {layer.name}) == 2
    assert sorted(used.parent.iterdir()) == sorted([used, fresh])
    assert layer.is_dir()
    assert await bundles.collect({used.name}, set()) == 1
    assert not list(layer.parent.iterdir())


async def test_a_bundle_sent_again_counts_as_new(settings: Settings) -> None:
    bundles = Bundles(settings)
    code = settings.code_dir((await bundles.from_files(FILES, PYTHON)).digest)
    age(code, 5)
    await bundles.from_files(FILES, PYTHON)
    assert await bundles.collect(set(), set()) == 0
    assert code.is_dir()


async def test_a_bundle_sent_again_during_its_removal_stays(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = Bundles(settings)
    code = settings.code_dir((await bundles.from_files(FILES, PYTHON)).digest)
    age(code, 5)
    rename = Path.rename

    def racing(old: Path, new: Path) -> Path:
        if old == code:
            assert durable.present(code)  # the other side finds it, a moment before it is taken away
        return rename(old, new)

    monkeypatch.setattr(Path, "rename", racing)
    assert await bundles.collect(set(), set()) == 0
    assert packing.tree(code) == {name: text.encode() for name, text in FILES.items()}


async def test_nothing_to_collect(settings: Settings) -> None:
    assert await Bundles(settings).collect(set(), set()) == 0


async def test_a_full_disk_is_said_plainly(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(HeadraceError, match="is full: free some space") as caught:
        await Bundles(settings).from_files(FILES, PYTHON)
    assert caught.value.fault == "platform"
    assert not list((settings.home / "code").iterdir())


async def test_names_that_the_disk_does_not_keep_apart(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def caseless(path: str | Path, *how: int, **where: int | None) -> int:
        return real(path.with_name(path.name.lower()) if isinstance(path, Path) else path, *how, **where)

    monkeypatch.setattr(os, "open", caseless)
    with pytest.raises(BundleRejected, match="does not keep apart"):
        await Bundles(settings).from_files({"handler.py": "", "Handler.py": ""}, PYTHON)
