"""The connection: dialled again and again, ended by nonsense, drained at the end."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from pathlib import Path

import pytest

from headrace import wire
from shim_kit import LOAD, Shim, assemble, loaded_shim, python_command, waiting_shim, write_files

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "frames.json").read_text())
REFUSED = {vector["name"]: bytes.fromhex(vector["bytes"]) for vector in GOLDEN["invalid"]}
FINE = "def handler(event, context): return 'fine'"


async def test_ping_before_load(tmp_path: Path) -> None:
    async with waiting_shim(tmp_path, {"handler.py": FINE}) as shim:
        shim.link.send(wire.PING)

        assert (await shim.link.instance.frame()).type == wire.PONG


async def test_waiting_instance_dials_again_and_can_still_be_loaded(tmp_path: Path) -> None:
    async with waiting_shim(tmp_path, {"handler.py": FINE}) as shim:
        await shim.deafen()
        shim.link.close()
        await asyncio.sleep(0.3)
        await shim.listen()
        await shim.dialled()

        assert shim.hello["loaded"] is False
        assert (await shim.load()).type == wire.LOADED
        assert (await shim.call()).body == b"fine"


async def test_loaded_instance_dials_again_and_says_so(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, FINE) as shim:
        for _ in range(3):
            await shim.deafen()
            shim.link.close()
            await shim.listen()
            await shim.dialled()

            assert (shim.hello["loaded"], shim.hello["kind"]) == (True, "handler")
            assert (await shim.call()).body == b"fine"


async def test_connection_that_ends_while_loading_does_not_load_twice(tmp_path: Path) -> None:
    source = "import time\nprint('importing')\ntime.sleep(0.3)\n" + FINE
    async with waiting_shim(tmp_path, {"handler.py": source}) as shim:
        shim.link.send(wire.LOAD, 0, {**LOAD, "concurrency": 1})
        async with asyncio.timeout(10):
            while not shim.link.instance.logs:
                await asyncio.sleep(0.01)
        shim.link.close()
        await shim.dialled()

        assert shim.hello["loaded"] is True
        assert (await shim.call()).body == b"fine"


@pytest.mark.parametrize("make", ["async def", "def"])
async def test_running_calls_go_on_without_their_connection(tmp_path: Path, make: str) -> None:
    pause = "await asyncio.sleep(0.01)" if make == "async def" else "time.sleep(0.01)"
    source = f"""
import asyncio, time
done = []
proceed = False
{make} handler(event, context):
    global proceed
    if event["rawPath"] == "/long":
        print("running")
        while not proceed: {pause}
        done.append(1)
        return "late"
    if event["rawPath"] == "/proceed": proceed = True
    return done
"""
    async with loaded_shim(tmp_path, source) as shim:
        long = shim.link.call("/long")
        async with asyncio.timeout(10):
            while not long.logs:
                await asyncio.sleep(0.005)
        shim.link.close()
        link = await shim.dialled()
        other = link.open()  # takes the number that the lost call had
        assert other.number == long.number
        assert (await shim.call("/proceed")).json() == []
        async with asyncio.timeout(10):
            while (await shim.call("/done")).json() != [1]:
                await asyncio.sleep(0.01)

        assert other.waiting == 0


@pytest.mark.parametrize("name", REFUSED)
async def test_nonsense_ends_the_connection_and_nothing_else(tmp_path: Path, name: str) -> None:
    async with waiting_shim(tmp_path, {"handler.py": FINE}) as shim:
        if "header" not in name or "longer" in name:  # before LOAD only frames are looked at
            shim.link.raw(REFUSED[name])
            await shim.link.until_ended()
            await shim.dialled()
        await shim.load()
        data = bytearray(REFUSED[name])
        if "header" in name and "longer" not in name:
            data[4] = wire.CALL  # a type whose header is read
        shim.link.raw(bytes(data))
        await shim.link.until_ended()
        await shim.dialled()

        assert (await shim.call()).body == b"fine"


async def test_noise_of_every_kind_is_survived(tmp_path: Path) -> None:
    """Random bytes, and frames of known types with random headers: redial, and serve on."""
    dice = random.Random(20)
    types = [type for type in range(256) if type != wire.DRAIN]
    headers = [
        b"",
        b"{}",
        b"[]",
        b'{"id":1}',
        b'{"d":"x"}',
        b'{"m":1,"d":5,"id":"x"}',
        b'{"n":"many"}',
        b'{"ws":1,"d":1}',
    ]
    async with loaded_shim(tmp_path, FINE) as shim:
        for _ in range(20):
            frames = [
                wire.encode(dice.choice(types), dice.randrange(3), dice.choice(headers), dice.randbytes(5))
                for _ in range(dice.randrange(1, 20))
            ]
            for noise in (dice.randbytes(dice.randrange(1, 4000)), b"".join(frames)):
                shim.link.raw(noise)
                shim.link.close()
                await shim.dialled()

        assert shim.process.returncode is None
        assert (await shim.call()).body == b"fine"


async def test_call_beyond_the_types_of_its_fields_is_a_failure_not_the_end(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, FINE) as shim:
        answer = await shim.call(h=[["host", 7]])

        assert answer.error is not None or answer.body == b"fine"
        assert (await shim.call()).body == b"fine"


DRAINED = """
import asyncio, atexit, threading, time
atexit.register(lambda: __import__("os").write(1, b"atexit\\n"))
threading.Thread(target=time.sleep, args=(60,)).start()  # must not hold the exit up
async def handler(event, context):
    print("running")
    await asyncio.sleep(0.3)
    return "finished"
"""


@pytest.mark.parametrize("how", ["frame", "sigterm", "sigint"])
async def test_drain_finishes_running_calls_and_exits(tmp_path: Path, how: str) -> None:
    async with loaded_shim(tmp_path, DRAINED) as shim:
        stream = shim.link.call()
        async with asyncio.timeout(10):
            while not stream.logs:
                await asyncio.sleep(0.005)
        if how == "frame":
            shim.link.send(wire.DRAIN)
        else:
            shim.process.send_signal(signal.SIGTERM if how == "sigterm" else signal.SIGINT)

        assert (await stream.answer()).body == b"finished"
        assert await shim.exited() == (0, "atexit\n")


@pytest.mark.parametrize("how", ["frame", "sigterm"])
async def test_drain_of_a_waiting_instance(tmp_path: Path, how: str) -> None:
    async with waiting_shim(tmp_path, {}) as shim:
        if how == "frame":
            shim.link.send(wire.DRAIN)
        else:
            shim.process.send_signal(signal.SIGTERM)

        assert await shim.exited() == (0, "")


@pytest.mark.parametrize("loaded", [False, True])
async def test_instance_without_a_node_exits(tmp_path: Path, loaded: bool) -> None:
    command = python_command(tmp_path)
    module = assemble(tmp_path / "patient").parent / "headrace_shim" / "instance.py"
    module.write_text(module.read_text().replace("LOST_AFTER_S = 60.0", "LOST_AFTER_S = 0.5"))
    shim = Shim(tmp_path, [*command[:-1], str(module.parent)], {})
    write_files(shim.code, {"handler.py": FINE})
    await shim.listen()
    await shim.start()
    try:
        await shim.dialled()
        if loaded:
            await shim.load()
        await shim.deafen()
        shim.link.close()

        assert await shim.exited() == (1, "")
    finally:
        await shim.stop()
