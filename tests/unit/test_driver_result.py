"""What an installer may leave behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.drivers import result
from headrace.drivers.result import check_disk, settle
from headrace.errors import BuildFailed
from headrace.releases import durable


def nested(top: Path, depth: int) -> None:
    """Directories in each other, more than a path can name."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 50, dir_fd=here)
        inner = os.open("d" * 50, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def test_a_result_over_its_bounds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "data").write_bytes(b"x" * 9000)
    settle(tmp_path)
    monkeypatch.setattr(result, "LARGEST_RESULT", 8000)
    with pytest.raises(BuildFailed, match="MiB"):
        settle(tmp_path)


def test_links_in_a_result_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "result"
    kept.mkdir()
    (tmp_path / "elsewhere").write_bytes(b"x" * 100_000)
    (tmp_path / "elsewhere").chmod(0o600)
    (kept / "link").symlink_to(tmp_path / "elsewhere")
    (kept / "circle").symlink_to(kept)
    monkeypatch.setattr(result, "LARGEST_RESULT", 50_000)
    settle(kept)
    assert (tmp_path / "elsewhere").stat().st_mode == 0o100600


def test_directories_without_end_are_refused_and_removed(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    nested(shelf, 1500)
    with pytest.raises(BuildFailed, match="directories in each other"):
        settle(shelf)
    assert durable.remove(shelf) and not shelf.exists()


def test_what_the_disk_loses_has_to_be_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result, "LARGEST_RESULT", 100)
    check_disk(1000, 900)
    check_disk(-1000, 0)
    with pytest.raises(BuildFailed, match="fills it"):
        check_disk(1000, 500)
