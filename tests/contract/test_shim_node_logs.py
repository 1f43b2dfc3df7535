"""What Node code prints: whose it is, of which level, how much of it; and errors that nobody caught."""

from __future__ import annotations

import asyncio
from pathlib import Path

from headrace import wire
from node_kit import loaded_node, waiting_node
from shim_kit import PATIENCE_S, Shim


async def own_lines(shim: Shim, count: int) -> list[str]:
    """The first `count` lines of the instance itself, those without a call."""
    async with asyncio.timeout(PATIENCE_S):
        while len(shim.link.instance.logs) < count:
            await asyncio.sleep(0.01)
    return [log["text"] for log in shim.link.instance.logs]


async def test_streams_and_levels(tmp_path: Path) -> None:
    source = """
    exports.handler = async () => {
      console.log('a %d', 1, { b: [2] });
      console.info('info');
      console.debug('debug');
      console.warn('warn');
      console.error('error');
      console.group('group'); console.log('inside'); console.groupEnd();
      process.stdout.write('no newline');
      process.stderr.write(Buffer.from('bytes ü\\n'));
      process.emitWarning('careful', 'OwnWarning');
      await new Promise((ready) => process.stdout.write('', ready));
      return 1;
    };
    """
    async with loaded_node(tmp_path, source) as shim:
        logs = (await shim.call("/")).logs
    assert [(log["s"], log["l"], log["text"]) for log in logs] == [
        ("stdout", "INFO", "a 1 { b: [ 2 ] }"),
        ("stdout", "INFO", "info"),
        ("stdout", "DEBUG", "debug"),
        ("stderr", "WARNING", "warn"),
        ("stderr", "ERROR", "error"),
        ("stdout", "INFO", "group"),
        ("stdout", "INFO", "  inside"),
        ("stderr", "ERROR", "bytes ü"),
        ("log", "WARNING", "OwnWarning: careful"),
        ("stdout", "INFO", "no newline"),
    ]


async def test_lines_find_their_call_through_everything_asynchronous(tmp_path: Path) -> None:
    source = """
    const { EventEmitter } = require('node:events');
    const fs = require('node:fs');
    exports.handler = async (event) => {
      const name = event.rawPath;
      const pause = () => new Promise((ready) => setTimeout(ready, 3));
      await pause();
      console.log(name, 'promise');
      await new Promise((ready) => setImmediate(() => { console.log(name, 'immediate'); ready(); }));
      await new Promise((ready) => fs.stat('/', () => { console.log(name, 'file'); ready(); }));
      await Promise.all([1, 2].map(async (n) => { await pause(); console.log(name, 'all', n); }));
      queueMicrotask(() => console.log(name, 'microtask'));
      await pause();
      return 1;
    };
    """
    async with loaded_node(tmp_path, source) as shim:
        streams = {f"/{number}": shim.link.call(f"/{number}") for number in range(10)}
        for name, stream in streams.items():
            words = ("promise", "immediate", "file", "all 1", "all 2", "microtask")
            assert (await stream.answer()).lines() == [f"{name} {word}" for word in words]
    assert shim.link.instance.logs == []


async def test_what_comes_after_the_answer_is_the_instances_own(tmp_path: Path) -> None:
    source = """
    console.log('loading'); process.stdout.write('unfinished');
    exports.handler = async () => {
      console.log('during');
      setTimeout(() => console.log('after'), 1);
      return 1;
    };
    """
    async with loaded_node(tmp_path, source) as shim:
        assert (await shim.call("/")).lines() == ["during"]
        assert await own_lines(shim, 3) == ["loading", "unfinished", "after"]


async def test_a_call_logs_256_kib_and_says_that_it_was_cut(tmp_path: Path) -> None:
    source = """
    exports.handler = (event) => {
      if (event.rawPath === '/many') for (let n = 0; n < 100000; n++) console.log('line', n);
      else process.stdout.write('ü'.repeat(300000));
      return 'done';
    };
    """
    async with loaded_node(tmp_path, source) as shim:
        for path in ("/many", "/long"):
            answer = await shim.call(path)
            assert answer.body == b"done"
            *lines, last = answer.lines()
            assert last == "[headrace: this call has logged 256 KiB; the rest of its output is dropped]"
            size = sum(len(log["text"].encode()) for log in answer.logs) - len(last) - 1
            assert 200 << 10 < size <= 256 << 10
            assert all(len(log["text"].encode()) <= (32 << 10) + 100 for log in answer.logs)
            assert "\ufffd" not in "".join(lines)
        assert (await shim.call("/many")).lines()[0] == "line 0"  # the next call has its own


async def test_the_last_words_of_code_that_then_blocks_everything_have_left(tmp_path: Path) -> None:
    for make in ("", "async "):
        source = f"exports.handler = {make}() => {{ console.log('one'); console.log('about to block'); for (;;); }};"
        async with loaded_node(tmp_path / (make or "plain"), source) as shim:
            stream = shim.link.call("/")
            async with asyncio.timeout(PATIENCE_S):
                while len(stream.logs) < 2:
                    await asyncio.sleep(0.01)
            assert [log["text"] for log in stream.logs] == ["one", "about to block"]


async def test_a_flood_that_the_node_does_not_read_fills_no_memory(tmp_path: Path) -> None:
    source = """
    exports.handler = (event) => {
      if (event.rawPath === '/flood') {
        setTimeout(function flood() {
          for (let n = 0; n < 50; n++) console.log('x'.repeat(10000));
          setTimeout(flood);
        }, 5);
      }
      return 'fine';
    };
    """

    def highest_kb() -> int:
        status = Path(f"/proc/{shim.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])

    async with loaded_node(tmp_path, source) as shim:
        await shim.call("/flood")
        await own_lines(shim, 100)
        before = highest_kb()
        shim.link.pause()
        await asyncio.sleep(1.0)  # the node does not read, the function writes on
        assert highest_kb() < before + 40_000
        shim.link.resume()
        async with asyncio.timeout(PATIENCE_S):
            while not any("were dropped" in log["text"] for log in shim.link.instance.logs):
                await asyncio.sleep(0.01)
        assert (await shim.call("/")).body == b"fine"


async def test_a_progress_bar_is_its_last_state(tmp_path: Path) -> None:
    source = "exports.handler = () => { for (let n = 0; n < 9; n++) process.stdout.write(`\\r${n} %`); return 1; };"
    async with loaded_node(tmp_path, source) as shim:
        assert (await shim.call("/")).lines() == ["8 %"]


async def test_output_of_a_worker_thread_and_a_pipe_arrives(tmp_path: Path) -> None:
    source = """
    const { Worker } = require('node:worker_threads');
    const { spawn } = require('node:child_process');
    exports.handler = async () => {
      const worker = new Worker('console.log("from a thread")', { eval: true });
      await new Promise((ready) => worker.on('exit', ready));
      const child = spawn('/bin/echo', ['from a child']);
      child.stdout.pipe(process.stdout);
      await new Promise((ready) => child.on('close', ready));
      console.log('still open');
      return 1;
    };
    """
    async with loaded_node(tmp_path, source) as shim:
        answer = await shim.call("/")
        lines = answer.lines() + [log["text"] for log in shim.link.instance.logs]
    assert sorted(lines) == ["from a child", "from a thread", "still open"]


async def test_uncaught_errors_fail_their_call_and_nothing_else(tmp_path: Path) -> None:
    source = """
    const cases = {
      '/timer': () => setTimeout(() => { throw new Error('timer'); }, 1),
      '/promise': () => setTimeout(async () => { throw new Error('promise'); }, 1),
      '/floating': () => { Promise.reject(new Error('floating')); },
      '/event': () => { new (require('node:events'))().emit('error', new Error('event')); },
      '/text': () => setTimeout(() => { throw 'text'; }, 1),
    };
    let others = 0;
    exports.handler = (event) => new Promise((ready) => {
      if (event.rawPath === '/wait') setTimeout(() => ready('fine'), 50);
      else cases[event.rawPath]();
    });
    """
    async with loaded_node(tmp_path, source) as shim:
        neighbour = shim.link.call("/wait")
        for path in ("/timer", "/promise", "/floating", "/event", "/text"):
            answer = await shim.call(path)
            assert answer.error is not None
            assert answer.error["message"] == path[1:]
            assert answer.lines("log")[0] == ("text" if path == "/text" else f"Error: {path[1:]}")
        assert (await neighbour.answer()).body == b"fine"


async def test_uncaught_errors_outside_a_call_are_logged(tmp_path: Path) -> None:
    source = """
    setTimeout(() => { throw new Error('loaded'); }, 1);
    exports.handler = async () => { setTimeout(() => { throw new Error('after'); }, 5); return 1; };
    """
    async with loaded_node(tmp_path, source) as shim:
        first, *_ = await own_lines(shim, 1)
        assert first.startswith("Error: loaded\n    at Timeout._onTimeout (handler.js:")
        assert (await shim.call("/")).json() == 1
        assert (await own_lines(shim, 2))[1].startswith("Error: after\n")
        assert (await shim.call("/")).json() == 1


async def test_code_with_its_own_listeners_decides(tmp_path: Path) -> None:
    source = """
    process.on('unhandledRejection', (reason) => console.log('mine:', reason.message));
    exports.handler = () => { Promise.reject(new Error('x')); return new Promise((r) => setTimeout(r, 5, 1)); };
    """
    async with loaded_node(tmp_path, source) as shim:
        answer = await shim.call("/")
        assert (answer.json(), answer.lines()) == (1, ["mine: x"])


async def test_without_a_node_the_lines_go_to_the_containers_own_log(tmp_path: Path) -> None:
    source = """
    exports.handler = () => { setTimeout(() => console.log('nobody there'), 50); return 1; };
    """
    async with waiting_node(tmp_path, {"handler.js": source}) as shim:
        await shim.load()
        assert (await shim.call("/")).json() == 1
        await shim.deafen()
        shim.link.close()
        await asyncio.sleep(0.3)
        await shim.listen()
        await shim.dialled()
        shim.link.send(wire.DRAIN)
        assert await shim.exited() == (0, "nobody there\n")
