"""The life of a Node instance: load, lose the node and find it again, drain, exit."""

from __future__ import annotations

import asyncio
import random
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from headrace import wire
from node_kit import loaded_node, waiting_node
from shim_kit import PATIENCE_S

OK = "exports.handler = () => 'ok';"
ESM = "export const handler = () => 'ok';"
# Time runs a hundred times as fast, for what waits for a minute.
HURRY = """
const now = performance.now.bind(performance);
Object.defineProperty(performance, 'now', { value: () => now() * 100 });
const later = global.setTimeout;
global.setTimeout = (work, ms) => later(work, ms / 100);
"""


async def failure(home: Path, files: dict[str, str], **fields: Any) -> dict[str, Any]:
    """The header of the LOAD_FAILED that these files lead to; the instance is gone afterwards."""
    async with waiting_node(home, files) as shim:
        frame = await shim.load(**fields)
        assert frame.type == wire.LOAD_FAILED, frame.header
        shim.link.close()
        assert (await shim.exited())[0] == 1
        return wire.loads(frame.header)


async def test_hello_says_who_dials(tmp_path: Path) -> None:
    async with waiting_node(tmp_path, {"handler.js": OK}) as shim:
        assert shim.hello["protocol"] == 1
        assert shim.hello["runtime"] == "node"
        assert shim.hello["instance"] == "i1"
        assert shim.hello["loaded"] is False
        assert shim.hello["pid"] == shim.process.pid


@pytest.mark.parametrize(
    ("file", "source", "handler"),
    [
        ("handler.js", OK, "handler.handler"),
        ("handler.js", "module.exports.handler = () => 'ok';", "handler.handler"),
        ("handler.js", "module.exports = class { static handler() { return 'ok'; } };", "handler.handler"),
        ("handler.cjs", OK, "handler.handler"),
        ("handler.mjs", ESM, "handler.handler"),
        ("handler.mjs", "await null; export default { handler: () => 'ok' };", "handler.handler"),
        ("src/api/main.js", "exports.run = () => 'ok';", "src/api/main.run"),
    ],
)
async def test_every_kind_of_module(tmp_path: Path, file: str, source: str, handler: str) -> None:
    async with waiting_node(tmp_path, {file: source}) as shim:
        frame = await shim.load(handler=handler)
        assert frame.type == wire.LOADED, frame.header
        assert wire.loads(frame.header)["kind"] == "handler"
        assert (await shim.call("/")).body == b"ok"


async def test_js_files_of_a_module_package(tmp_path: Path) -> None:
    files = {"handler.js": "import { word } from './word.js';\n" + ESM.replace("'ok'", "word"), "package.json": "{}"}
    files |= {"word.js": "export const word = 'ok';", "package.json": '{"type": "module"}'}
    async with waiting_node(tmp_path, files) as shim:
        assert (await shim.load()).type == wire.LOADED
        assert (await shim.call("/")).body == b"ok"


async def test_dependencies_are_found_by_require_and_import(tmp_path: Path) -> None:
    layer = {
        "node_modules/common/index.js": "exports.word = 'common ' + require('inner');",
        "node_modules/inner/index.js": "module.exports = 'inner';",
        "node_modules/modern/package.json": '{"type": "module", "exports": "./main.js"}',
        "node_modules/modern/main.js": "export { word } from 'common'; import 'inner';",
    }
    for number, (file, source) in enumerate(
        {
            "handler.js": "const { word } = require('common'); exports.handler = () => word;",
            "handler.cjs": "exports.handler = async () => (await import('modern')).word;",
            "handler.mjs": "import { word } from 'modern'; export const handler = () => word;",
        }.items()
    ):
        async with waiting_node(tmp_path / str(number), {file: source}, layer=layer) as shim:
            frame = await shim.load()
            assert frame.type == wire.LOADED, frame.header
            assert (await shim.call("/")).body == b"common inner"


async def test_the_codes_surroundings(tmp_path: Path) -> None:
    source = """
    exports.handler = () => ({
      env: Object.fromEntries(Object.entries(process.env).filter(([name]) => /^(A|TZ|HEADRACE.*)$/.test(name))),
      cwd: process.cwd(), argv: process.argv.length, main: require.main === module, hour: new Date(0).getHours(),
    });
    """
    async with loaded_node(tmp_path, source, env={"A": "1", "TZ": "Asia/Tokyo"}) as shim:
        assert (await shim.call("/")).json() == {
            "env": {"A": "1", "TZ": "Asia/Tokyo"},
            "cwd": str(shim.code),
            "argv": 1,
            "main": False,
            "hour": 9,
        }


@pytest.mark.parametrize(
    ("files", "kind", "told"),
    [
        ({"main.js": OK}, "HandlerMissing", "needs one of handler.js, handler.mjs, handler.cjs, .* It holds: main.js"),
        ({"handler.js": "exports.other = () => 1"}, "HandlerMissing", "does not export 'handler'. It exports: other"),
        ({"handler.js": "exports.handler = 5"}, "HandlerMissing", "is a number, which cannot be called"),
        ({"handler.js": "exports.handler = (e, c, callback) => callback()"}, "HandlerMissing", "takes a callback"),
        ({"handler.js": "require('nope')"}, "Error", "Cannot find module 'nope'. Is it in package.json"),
        ({"handler.mjs": "import 'nope'"}, "Error", "Cannot find package 'nope' .* Is it in package.json"),
        ({"handler.js": "exports.handler = () => {\n  1 +;\n}"}, "SyntaxError", "handler.js:2\n"),
        ({"handler.mjs": "export const handler = () => {\n  1 +;\n}"}, "SyntaxError", "handler.mjs:2\n"),
        ({"handler.mjs": "import './other.mjs'", "other.mjs": "\n\n1 +;"}, "SyntaxError", "other.mjs:3\n"),
        ({"handler.js": "throw new RangeError('at import')"}, "RangeError", r"at import\n    at .*handler.js:1:7"),
        ({"handler.js": "process.exit(3)"}, "Exit", r"process.exit\(3\) while it was loaded"),
    ],
)
async def test_a_failure_to_load_says_why(tmp_path: Path, files: dict[str, str], kind: str, told: str) -> None:
    if kind == "Exit":
        async with waiting_node(tmp_path, files) as shim:
            frame = await shim.load()
            assert (await shim.exited())[0] == 3
            header = wire.loads(frame.header)
    else:
        header = await failure(tmp_path, files)
    assert header["type"] == kind
    assert re.search(told, f"{header['message']}\n{header['stack']}", re.DOTALL), header
    assert str(tmp_path) not in header["message"] + header["stack"]


async def test_asgi_is_refused(tmp_path: Path) -> None:
    assert "'asgi' is Python's" in (await failure(tmp_path, {"handler.js": OK}, kind="asgi"))["message"]


async def test_calls_sent_with_load_are_served_after_it(tmp_path: Path) -> None:
    source = "await new Promise((ready) => setTimeout(ready, 50)); " + ESM
    async with waiting_node(tmp_path, {"handler.mjs": source}) as shim:
        stream = shim.link.open()
        header = {"namespace": "n", "function": "f", "version": 1, "handler": "handler.handler", "kind": "auto"}
        header |= {"env": {}, "memory_mb": 128, "timeout_s": 30, "concurrency": 1}
        call = wire.dumps({"id": "early", "d": 1000})
        shim.link.raw(
            wire.encode(wire.LOAD, 0, wire.dumps(header))
            + wire.encode(wire.CALL, stream.number, call, b"{}")
            + wire.encode(wire.PING)
        )
        assert (await shim.link.instance.frame()).type == wire.PONG  # while it loads
        assert (await shim.link.instance.frame()).type == wire.LOADED
        assert (await stream.answer()).json() == "ok"


async def test_ping_is_answered_at_any_time(tmp_path: Path) -> None:
    async with waiting_node(tmp_path, {"handler.js": "exports.handler = () => new Promise(() => {});"}) as shim:
        shim.link.send(wire.PING)
        assert (await shim.link.instance.frame()).type == wire.PONG
        await shim.load()
        shim.link.call("/")
        shim.link.send(wire.PING)
        assert (await shim.link.instance.frame()).type == wire.PONG


async def test_what_is_unknown_is_ignored(tmp_path: Path) -> None:
    async with loaded_node(tmp_path, OK) as shim:
        shim.link.send(200, 5, {"new": True}, b"x")
        shim.link.send(wire.BODY, 99, None, b"for nobody")
        shim.link.send(wire.CANCEL, 99, {"why": "client"})
        shim.link.send(wire.LOAD, 0, {"handler": "other.handler"})  # never loaded twice
        assert (await shim.call("/", new_field=1)).body == b"ok"


@pytest.mark.parametrize(
    "data",
    [
        wire.encode(wire.CALL, 1, b"[]"),
        wire.encode(wire.CALL, 1, b'{"id":'),
        wire.encode(wire.CALL, 1, b"{}"),
        (wire.MAX_PAYLOAD + 1).to_bytes(4, "big") + bytes(9),
        bytes(9) + b"\x00\x00\x00\x01",
    ],
    ids=["array", "cut", "no id", "oversized", "header over payload"],
)
async def test_a_broken_frame_ends_the_connection_and_not_the_instance(tmp_path: Path, data: bytes) -> None:
    async with loaded_node(tmp_path, OK) as shim:
        link = shim.link
        link.raw(data)
        await link.until_ended()
        await shim.dialled()
        assert shim.hello["loaded"] is True
        assert (await shim.call("/")).body == b"ok"


async def test_noise_of_every_kind_is_survived(tmp_path: Path) -> None:
    dice = random.Random(20)
    types = [type for type in range(256) if type != wire.DRAIN]
    headers = [b"", b"{}", b"[]", b'{"id":1}', b'{"d":"x"}', b'{"m":1,"d":5,"id":"x"}', b'{"n":"many"}', b'{"n":-5}']
    headers += [b'{"ws":1,"d":1,"id":"x"}', b'{"id":"x","d":9,"m":"GET","h":7}', b'{"id":"x","d":9,"more":true}']
    async with loaded_node(tmp_path, OK) as shim:
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
        assert (await shim.call("/")).body == b"ok"
        assert (await shim.call("/", h=[["host", 7]])).error is not None
        assert (await shim.call("/")).body == b"ok"


async def test_a_connection_that_ends_while_loading_does_not_load_twice(tmp_path: Path) -> None:
    source = "console.log('importing'); await new Promise((ready) => setTimeout(ready, 300)); " + ESM
    async with waiting_node(tmp_path, {"handler.mjs": source}) as shim:
        fields = {"namespace": "n", "function": "f", "version": 1, "handler": "handler.handler", "kind": "auto"}
        shim.link.send(wire.LOAD, 0, {**fields, "env": {}, "memory_mb": 128, "timeout_s": 30, "concurrency": 1})
        async with asyncio.timeout(PATIENCE_S):
            while not shim.link.instance.logs:
                await asyncio.sleep(0.01)
        shim.link.close()
        await shim.dialled()
        assert shim.hello["loaded"] is True
        assert (await shim.call("/")).body == b"ok"


async def test_a_lost_node_finds_its_instance_again(tmp_path: Path) -> None:
    source = """
    let ended = 0;
    exports.handler = async (event) => {
      if (event.rawPath === '/slow') { await new Promise((ready) => setTimeout(ready, 300)); ended += 1; }
      return ended;
    };
    """
    async with loaded_node(tmp_path, source) as shim:
        slow = shim.link.call("/slow")
        await shim.call("/")
        await shim.deafen()
        shim.link.close()
        await asyncio.sleep(0.5)
        await shim.listen()
        await shim.dialled()
        assert (shim.hello["loaded"], shim.hello["kind"]) == (True, "handler")
        assert (await shim.call("/")).json() == 1  # what ran went on
        assert slow.waiting == 0


async def test_an_instance_dials_again_before_it_is_loaded(tmp_path: Path) -> None:
    async with waiting_node(tmp_path, {"handler.js": OK}) as shim:
        shim.link.close()
        await shim.dialled()
        assert shim.hello["loaded"] is False
        assert (await shim.load()).type == wire.LOADED


async def test_an_instance_without_a_node_ends_after_a_minute(tmp_path: Path) -> None:
    (tmp_path / "hurry.js").write_text(HURRY)
    for loaded in (False, True):
        home = tmp_path / str(loaded)
        async with waiting_node(home, {"handler.js": OK}, options=("--require", str(tmp_path / "hurry.js"))) as shim:
            if loaded:
                assert (await shim.load()).type == wire.LOADED
            await shim.deafen()
            shim.link.close()
            assert (await shim.exited())[0] == 1


@pytest.mark.parametrize("how", ["frame", "signal"])
async def test_drain_finishes_running_calls_and_exits(tmp_path: Path, how: str) -> None:
    source = """
    process.on('exit', () => console.log('bye'));
    exports.handler = async (event) => {
      if (event.rawPath === '/slow') await new Promise((ready) => setTimeout(ready, 200));
      return 'done';
    };
    """
    async with loaded_node(tmp_path, source) as shim:
        slow = shim.link.call("/slow")
        await shim.call("/")
        if how == "frame":
            shim.link.send(wire.DRAIN)
        else:
            shim.process.send_signal(signal.SIGTERM)
        assert (await slow.answer()).body == b"done"
        assert await shim.exited() == (0, "")
        await shim.link.until_ended()
        assert [log["text"] for log in shim.link.instance.logs] == ["bye"]


async def test_drain_before_load_exits_at_once(tmp_path: Path) -> None:
    async with waiting_node(tmp_path, {"handler.js": OK}) as shim:
        shim.link.send(wire.DRAIN)
        assert await shim.exited() == (0, "")
    async with waiting_node(tmp_path / "signal", {"handler.js": OK}) as shim:
        shim.process.send_signal(signal.SIGTERM)
        assert await shim.exited() == (0, "")


async def test_process_exit_ends_the_instance_with_its_last_words(tmp_path: Path) -> None:
    async with loaded_node(tmp_path, "exports.handler = () => { console.log('last'); process.exit(7); };") as shim:
        stream = shim.link.call("/")
        assert (await shim.exited())[0] == 7
        await shim.link.until_ended()
        assert [log["text"] for log in stream.logs] == ["last"]
        assert stream.waiting == 0


async def test_a_blocked_loop_catches_up(tmp_path: Path) -> None:
    source = """
    exports.handler = (event) => {
      if (event.rawPath === '/spin') for (const end = Date.now() + 200; Date.now() < end; );
      return event.rawPath;
    };
    """
    async with loaded_node(tmp_path, source) as shim:
        streams = [shim.link.call(path) for path in ("/spin", "/a", "/b")]
        async with asyncio.timeout(PATIENCE_S):
            assert [(await stream.answer()).body for stream in streams] == [b"/spin", b"/a", b"/b"]
