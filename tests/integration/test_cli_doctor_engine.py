"""`headrace doctor` and the Docker engine of this machine."""

from __future__ import annotations

from pathlib import Path

from headrace.cli import doctor
from headrace.settings import Settings


async def test_the_engine_of_this_machine_is_described(tmp_path: Path) -> None:
    found = {item.name: item for item in await doctor.examine(Settings(home=tmp_path))}
    assert found["engine"].state == "ok"
    assert found["engine"].detail.startswith("docker ")
    assert "headrace-python:" in found["images"].detail


async def test_an_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, runtimes={"BASE_IMAGE_PYTHON": "headrace-test/none:1"})
    found = {item.name: item for item in await doctor.examine(settings)}
    assert found["images"].state == "warn"
    assert "headrace-test/none:1" in found["images"].detail
