"""A task that is cancelled in the middle of a write leaves no lock behind."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from release_kit import kit


async def test_a_cancelled_write_gives_the_lock_back(tmp_path: Path) -> None:
    chance = random.Random(7)
    async with kit(tmp_path / "home") as world:
        version = await world.submit()
        cancelled = []
        for _ in range(150):
            write = asyncio.ensure_future(world.versions.append_log(version.id, ["cut off"]))
            await asyncio.sleep(chance.random() * 0.004)
            write.cancel()
            cancelled.append((await asyncio.gather(write, return_exceptions=True))[0])  # keeps the traceback alive
            async with asyncio.timeout(5):
                await world.versions.append_log(version.id, ["after"])
        assert sum(isinstance(outcome, asyncio.CancelledError) for outcome in cancelled) > 20
        assert (await world.log(version)).count("after") == 150
