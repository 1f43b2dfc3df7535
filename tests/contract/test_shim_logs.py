"""What user code prints and logs: whose it is, in what order, and how much of it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from headrace import wire
from shim_kit import Shim, Stream, loaded_shim, logged, waiting_shim

LIMIT = 256 << 10


def lines(stream: Stream) -> list[str]:
    return [line for log in stream.logs for line in log["text"].split("\n")]


async def test_everything_comes_before_the_answer_with_stream_and_level(tmp_path: Path) -> None:
    source = """
import logging, sys, warnings
def handler(event, context):
    print("out")
    print("err", file=sys.stderr)
    logging.info("plain")
    logging.getLogger("lib").error("of a library")
    logging.debug("not wanted")
    logging.log(35, "between")
    warnings.warn("watch out")
    sys.stdout.write("two\\nlines")
    return 1
"""
    async with loaded_shim(tmp_path, source) as shim:
        before = time.time()
        stream = shim.link.call()
        frame = await stream.frame()

        assert frame.type == wire.REPLY
        assert [(log["s"], log["l"], log["text"]) for log in stream.logs if "watch" not in log["text"]] == [
            ("stdout", "INFO", "out"),
            ("stderr", "ERROR", "err"),
            ("log", "INFO", "plain"),
            ("log", "ERROR", "of a library"),
            ("log", "WARNING", "between"),
            ("stdout", "INFO", "two"),
            ("stdout", "INFO", "lines"),
        ]
        (warning,) = [log for log in stream.logs if "watch" in log["text"]]
        assert (warning["s"], warning["l"]) == ("log", "WARNING")
        assert warning["text"].endswith("handler.py:10: UserWarning: watch out")
        assert all(before - 1 <= log["t"] <= time.time() + 1 for log in stream.logs)


@pytest.mark.parametrize("make", ["def", "async def"])
async def test_line_of_a_handler_that_then_blocks_everything_has_left(tmp_path: Path, make: str) -> None:
    source = f"{make} handler(event, context):\n    print('about to block')\n    __import__('time').sleep(60)\n"
    async with loaded_shim(tmp_path, source) as shim:
        await logged(shim.link.call(), "about to block")


async def test_exceptions_are_logged_with_their_stack(tmp_path: Path) -> None:
    source = """
import logging
def handler(event, context):
    try:
        1 / 0
    except ZeroDivisionError:
        logging.exception("caught")
    return 1
"""
    async with loaded_shim(tmp_path, source) as shim:
        (log,) = (await shim.call()).logs

        assert log["text"].startswith("caught\nTraceback")
        assert log["text"].endswith("ZeroDivisionError: division by zero")


async def test_basic_config_still_sets_level_and_format(tmp_path: Path) -> None:
    source = """
import logging
logging.basicConfig(level=logging.DEBUG, format="%(levelname)s/%(name)s/%(message)s")
def handler(event, context):
    logging.getLogger("deep").debug("seen")
    return 1
"""
    async with loaded_shim(tmp_path, source) as shim:
        (log,) = (await shim.call()).logs

        assert (log["s"], log["l"], log["text"]) == ("log", "DEBUG", "DEBUG/deep/seen")


OWNERS = """
import asyncio, concurrent.futures, threading
pool = concurrent.futures.ThreadPoolExecutor(1)
def say(name): print(name)
def sync_handler(event, context):
    name = event["rawPath"][1:]
    thread = threading.Thread(target=say, args=(name + " thread",))
    thread.start(); thread.join()
    pool.submit(say, name + " pool").result()
    say(name + " self")
    return 1
async def async_handler(event, context):
    name = event["rawPath"][1:]
    async def child():
        await asyncio.sleep(0.01)
        say(name + " task")
    await asyncio.gather(child(), asyncio.to_thread(say, name + " to_thread"))
    await asyncio.get_running_loop().run_in_executor(None, say, name + " executor")
    say(name + " self")
    return 1
"""


@pytest.mark.parametrize("name", ["sync_handler", "async_handler"])
async def test_lines_belong_to_the_call_whose_code_wrote_them(tmp_path: Path, name: str) -> None:
    async with loaded_shim(tmp_path, OWNERS, handler=f"handler.{name}") as shim:
        first = await shim.call("/first")  # the pool's thread starts in this call
        others = await asyncio.gather(*(shim.call(f"/c{number}") for number in range(6)))

        for answer, owner in [(first, "first"), *((other, f"c{number}") for number, other in enumerate(others))]:
            assert {line.partition(" ")[0] for line in answer.lines()} == {owner}
            assert len(answer.lines()) == (3 if name == "sync_handler" else 4)
        assert shim.link.instance.logs == []


async def test_threads_of_one_call_do_not_cut_each_others_lines(tmp_path: Path) -> None:
    source = """
import threading
def work(letter):
    for _ in range(50):
        print(letter * 10, letter * 10)
def handler(event, context):
    threads = [threading.Thread(target=work, args=(letter,)) for letter in "abcd"]
    [thread.start() for thread in threads]; [thread.join() for thread in threads]
    return 1
"""
    async with loaded_shim(tmp_path, source) as shim:
        found = (await shim.call()).lines()

        assert sorted(set(found)) == [f"{letter * 10} {letter * 10}" for letter in "abcd"]
        assert len(found) == 200


async def test_output_without_a_call_goes_to_the_instance(tmp_path: Path) -> None:
    source = """
import asyncio, threading, time
print("importing")
threading.Thread(target=print, args=("from an import-time thread",)).start()
after = []
async def later():
    await asyncio.sleep(0.05)
    print("after the answer")
async def handler(event, context):
    after.append(asyncio.create_task(later()))
    print("during")
    return 1
"""
    async with loaded_shim(tmp_path, source) as shim:
        answer = await shim.call()
        await logged(shim.link.instance, "after the answer")

        assert answer.lines() == ["during"]
        assert lines(shim.link.instance) == ["importing", "from an import-time thread", "after the answer"]


async def test_descriptors_and_subprocesses_write_to_the_containers_own_log(tmp_path: Path) -> None:
    source = """
import os, subprocess, sys
def handler(event, context):
    os.write(1, b"descriptor\\n")
    subprocess.run(["echo", "subprocess"], check=True)
    subprocess.run(["echo", "through stdout"], stdout=sys.stdout, check=True)
    print("captured")
    return 1
"""
    async with loaded_shim(tmp_path, source) as shim:
        assert (await shim.call()).lines() == ["captured"]
        shim.link.send(wire.DRAIN)

        assert (await shim.exited())[1].split("\n") == ["descriptor", "subprocess", "through stdout", ""]


async def test_progress_bars_show_their_last_state(tmp_path: Path) -> None:
    source = """
import sys
def handler(event, context):
    for percent in range(0, 101, 5):
        sys.stdout.write(f"\\r{percent} %"); sys.stdout.flush()
    sys.stdout.write("\\n")
    sys.stdout.buffer.write("binär\\n".encode())
    return [sys.stdout.isatty(), sys.stdout.encoding, sys.stdout.fileno()]
"""
    async with loaded_shim(tmp_path, source) as shim:
        answer = await shim.call()

        assert answer.lines() == ["100 %", "binär"]
        assert answer.json() == [False, "utf-8", 1]


FLOODS = {
    "lines": "for number in range(200_000): print('line', number, 'x' * 40)",
    "one write": "print('x' * 50_000_000)",
    "no line break": "[print('é' * 1000, end='') for _ in range(5000)]",
    "records": "import logging; [logging.info('x' * 1000) for _ in range(5000)]",
}


@pytest.mark.parametrize("make", ["def", "async def"])
@pytest.mark.parametrize("flood", FLOODS)
async def test_flood_ends_at_the_limit_with_a_line_saying_so(tmp_path: Path, flood: str, make: str) -> None:
    source = f"{make} handler(event, context):\n    {FLOODS[flood]}\n    return 'fine'\n"
    async with loaded_shim(tmp_path, source) as shim:
        answer = await shim.call()

        assert answer.body == b"fine"
        *text, note = answer.lines()
        assert "256 KiB" in note
        size = sum(len(line.encode()) + 1 for line in text)
        assert LIMIT - 60_000 < size <= LIMIT + len(text)
        assert all(len(log["text"].encode()) <= 33_000 for log in answer.logs)
        assert (await shim.call()).lines()[-1] == note  # each call has its own measure


async def test_flood_of_a_call_keeps_the_stack_of_its_failure(tmp_path: Path) -> None:
    source = "def handler(event, context):\n    print('x' * 300_000)\n    raise ValueError('the cause')\n"
    async with loaded_shim(tmp_path, source) as shim:
        answer = await shim.call()

        assert answer.error is not None
        assert answer.error["stack"].endswith("ValueError: the cause")


async def memory_kb(shim: Shim) -> int:
    status = Path(f"/proc/{shim.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


async def test_flood_without_a_call_neither_blocks_the_loop_nor_fills_the_memory(tmp_path: Path) -> None:
    source = """
import asyncio
async def flood():
    while True:
        print("x" * 10_000)
        await asyncio.sleep(0)
tasks = []
async def handler(event, context):
    if event["rawPath"] == "/flood":
        import contextvars
        tasks.append(asyncio.create_task(flood()))
    return "fine"
"""
    async with waiting_shim(tmp_path, {"handler.py": source}) as shim:
        await shim.load()
        await shim.call("/flood")
        before = await memory_kb(shim)
        shim.link.pause()
        await asyncio.sleep(1.0)  # the node does not read, the function writes on
        assert await memory_kb(shim) < before + 20_000

        shim.link.resume()
        await logged(shim.link.instance, "were dropped")
        assert (await shim.call()).body == b"fine"


async def test_thread_that_floods_waits_for_the_node(tmp_path: Path) -> None:
    source = """
import threading
count = 0
def flood():
    global count
    while True:
        print("x" * 10_000)
        count += 1
threading.Thread(target=flood, daemon=True).start()
def handler(event, context): return count
"""
    async with loaded_shim(tmp_path, source) as shim:
        shim.link.pause()
        await asyncio.sleep(0.5)
        shim.link.resume()
        reached = (await shim.call()).json()
        await asyncio.sleep(0.2)

        assert (await shim.call()).json() > reached  # it went on
        assert not any("dropped" in log["text"] for log in shim.link.instance.logs)
