"""What every way of waking the worker promises: over a real socket, over a real Redis, and without either."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from headrace.jobs.redis_wake import RedisWake
from headrace.jobs.wake import SocketWake, Wake

LONG_S = 30.0  # a test that waits so long has failed, whatever else it finds
SHORT_S = 0.05

Make = Callable[[], Wake]


class RedisServer:
    """A redis-server of our own, on a unix socket."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "redis.sock"
        self.url = f"unix://{self.path}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", str(self.path), "--save", "", "--appendonly", "no"]
        command = ["redis-server", *options, "--dir", str(self.path.parent)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if b"Ready to accept connections" in line or b"ready to accept connections" in line:
                return
        raise AssertionError("redis-server did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process.wait()
            self._process = None


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["socket", "redis"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes wakes of one kind that reach each other; closes them at the end."""
    made: list[Wake] = []
    url = request.getfixturevalue("redis").url if request.param == "redis" else ""

    def make() -> Wake:
        made.append(RedisWake(url, "tag") if url else SocketWake(tmp_path / "run" / "worker.wake"))
        return made[-1]

    yield make
    for wake in made:
        await wake.close()


async def returns(waiting: asyncio.Future[None]) -> None:
    async with asyncio.timeout(LONG_S):
        await waiting


async def waits(wake: Wake) -> bool:
    """Whether a wait lasts until its timeout."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await wake.wait(SHORT_S)
    return loop.time() - began >= SHORT_S * 0.9


async def listening(make: Make) -> Wake:
    """A wake that is past its first wait, which returns at once."""
    wake = make()
    await returns(asyncio.ensure_future(wake.wait(2 * LONG_S)))
    return wake


async def test_a_poke_wakes_the_one_who_waits(make: Make) -> None:
    worker, control = await listening(make), make()
    waiting = asyncio.ensure_future(worker.wait(2 * LONG_S))
    await asyncio.sleep(0)
    assert not waiting.done()
    await control.poke()
    await returns(waiting)


async def test_a_poke_while_nobody_waits_is_kept(make: Make) -> None:
    worker, control = await listening(make), make()
    await control.poke()
    await returns(asyncio.ensure_future(worker.wait(2 * LONG_S)))


async def test_the_worker_can_poke_itself(make: Make) -> None:
    worker = await listening(make)
    await worker.poke()
    await returns(asyncio.ensure_future(worker.wait(2 * LONG_S)))


async def test_without_a_poke_a_wait_ends_by_its_timeout(make: Make) -> None:
    worker = await listening(make)
    assert await waits(worker)
    assert await waits(worker)


async def test_thousands_of_pokes_are_soon_over(make: Make) -> None:
    worker, control = await listening(make), make()
    async with asyncio.timeout(LONG_S):
        for _ in range(2000):
            await control.poke()
        wakes = 1
        while not await waits(worker):
            wakes += 1
    assert wakes < 200


async def test_a_cancelled_wait_does_no_harm(make: Make) -> None:
    worker, control = await listening(make), make()
    waiting = asyncio.ensure_future(worker.wait(2 * LONG_S))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
    await control.poke()
    await returns(asyncio.ensure_future(worker.wait(2 * LONG_S)))


async def test_poking_nobody_is_fine(make: Make) -> None:
    await make().poke()


async def test_a_new_worker_takes_over(make: Make) -> None:
    old = await listening(make)
    new, control = await listening(make), make()
    await old.close()
    await control.poke()
    await returns(asyncio.ensure_future(new.wait(2 * LONG_S)))


def test_over_uvloop_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        worker, control = SocketWake(tmp_path / "wake"), SocketWake(tmp_path / "wake")
        await worker.wait(LONG_S)
        waiting = asyncio.ensure_future(worker.wait(LONG_S))
        await asyncio.sleep(0)
        await control.poke()
        await returns(waiting)
        await worker.close()

    uvloop.run(scenario())


async def test_the_socket_of_a_dead_worker_is_replaced_and_private(tmp_path: Path) -> None:
    path = tmp_path / "run" / "worker.wake"
    dead = SocketWake(path)
    await dead.wait(0)
    assert dead._transport is not None
    dead._transport.close()  # as a killed process leaves it: the file is still there
    control = SocketWake(path)
    await control.poke()
    worker = SocketWake(path)
    await worker.wait(0)
    assert path.stat().st_mode & 0o777 == 0o600
    await control.poke()
    await returns(asyncio.ensure_future(worker.wait(2 * LONG_S)))
    await worker.close()
    assert not path.exists()


async def test_without_redis_waits_last_and_pokes_return(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    worker, control = RedisWake(redis.url, "t"), RedisWake(redis.url, "t")
    await worker.wait(LONG_S)
    redis.stop()
    for _ in range(3):
        assert await waits(worker)
        await control.poke()
    assert caplog.text.count("Redis does not answer") == 2, "once for each of the two"
    redis.start()
    await worker.wait(LONG_S)  # back again: look at once for what was missed
    await control.poke()
    await returns(asyncio.ensure_future(worker.wait(2 * LONG_S)))
    assert caplog.text.count("Redis answers again") == 2
    await worker.close()
    await control.close()


async def test_redis_goes_away_in_the_middle_of_a_wait(redis: RedisServer) -> None:
    worker = RedisWake(redis.url, "t")
    await worker.wait(LONG_S)
    waiting = asyncio.ensure_future(worker.wait(0.3))
    await asyncio.sleep(0.01)
    redis.stop()
    await returns(waiting)
    await worker.close()


async def test_redis_of_others_wakes_nobody(redis: RedisServer) -> None:
    worker, stranger = RedisWake(redis.url, "mine"), RedisWake(redis.url, "theirs")
    await worker.wait(LONG_S)
    await stranger.poke()
    assert await waits(worker)
    await worker.close()
    await stranger.close()
