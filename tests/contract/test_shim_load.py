"""LOAD: what becomes of the code, and how a failure to load it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace import wire
from shim_kit import LOAD, Shim, loaded_shim, waiting_shim

ECHO = "def handler(event, context): return 'ok'"


async def failure(home: Path, files: dict[str, str], **fields: Any) -> dict[str, Any]:
    """The header of the LOAD_FAILED that these files lead to; the instance is gone afterwards."""
    async with waiting_shim(home, files) as shim:
        frame = await shim.load(**fields)
        assert frame.type == wire.LOAD_FAILED, frame.header
        shim.link.close()
        code, _ = await shim.exited()
        assert code == 1
        return wire.loads(frame.header)


async def test_hello_says_who_dials(tmp_path: Path) -> None:
    async with waiting_shim(tmp_path, {"handler.py": ECHO}) as shim:
        assert shim.hello["protocol"] == 1
        assert shim.hello["runtime"] == "python"
        assert shim.hello["instance"] == "i1"
        assert shim.hello["loaded"] is False
        assert shim.hello["pid"] == shim.process.pid


async def test_loaded_says_kind_and_duration(tmp_path: Path) -> None:
    async with waiting_shim(tmp_path, {"handler.py": "import time; time.sleep(0.05)\n" + ECHO}) as shim:
        header = wire.loads((await shim.load()).header)

        assert header["kind"] == "handler"
        assert header["ms"] >= 50


async def test_code_may_appear_just_before_load(tmp_path: Path) -> None:
    async with waiting_shim(tmp_path, {}) as shim:
        shim.code.mkdir()
        (shim.code / "handler.py").write_text(ECHO)

        assert (await shim.load()).type == wire.LOADED


async def test_calls_sent_with_load_are_served_after_it(tmp_path: Path) -> None:
    async with waiting_shim(tmp_path, {"handler.py": ECHO}) as shim:
        header = {"namespace": "n", "function": "f", "version": 1, "handler": "handler.handler", "kind": "auto"}
        header |= {"env": {}, "memory_mb": 128, "timeout_s": 30, "concurrency": 1}
        stream = shim.link.open()
        call = wire.dumps({"id": "early", "d": 1000})
        shim.link.raw(
            wire.encode(wire.LOAD, 0, wire.dumps(header)) + wire.encode(wire.CALL, stream.number, call, b"{}")
        )

        assert (await stream.answer()).json() == "ok"


async def test_path_is_code_then_layer_then_python(tmp_path: Path) -> None:
    files = {"handler.py": "import sys, dep, both, os\ndef handler(e, c): return [sys.path, os.getcwd(), both.WHERE]\n"}
    files["both.py"] = "WHERE = 'code'"
    layer = {"dep.py": "", "both.py": "WHERE = 'layer'"}
    async with waiting_shim(tmp_path, files, layer=layer) as shim:
        assert (await shim.load()).type == wire.LOADED
        path, cwd, where = (await shim.call()).json()

        assert path[:2] == [str(shim.code), str(shim.layer)]
        assert path[2:]
        assert all("python3" in entry and "-packages" not in entry for entry in path[2:])
        assert (cwd, where) == (str(shim.code), "code")


async def test_modules_of_the_function_may_have_the_names_of_the_shim(tmp_path: Path) -> None:
    names = ["link", "logs", "main", "call", "wire", "event", "handler_app"]
    files = {f"{name}.py": f"NAME = 'own {name}'" for name in names}
    files["handler.py"] = f"import {', '.join(names)}\ndef handler(e, c): return [m.NAME for m in ({', '.join(names)})]"
    async with waiting_shim(tmp_path, files) as shim:
        assert (await shim.load()).type == wire.LOADED
        assert (await shim.call()).json() == [f"own {name}" for name in names]


async def test_environment_is_the_functions(tmp_path: Path) -> None:
    source = """
import os, time
AT_IMPORT = os.environ["GREETING"]
def handler(event, context):
    return {"greeting": AT_IMPORT, "zone": time.tzname[0], "own": [n for n in os.environ if n.startswith("HEADRACE_")]}
"""
    async with loaded_shim(tmp_path, source, env={"GREETING": "grüß dich", "TZ": "XYZ-3"}) as shim:
        assert (await shim.call()).json() == {"greeting": "grüß dich", "zone": "XYZ", "own": []}


async def test_code_directory_stays_as_it_was(tmp_path: Path) -> None:
    async with waiting_shim(tmp_path, {"handler.py": "import other\n" + ECHO, "other.py": ""}) as shim:
        assert (await shim.load()).type == wire.LOADED
        assert sorted(entry.name for entry in shim.code.iterdir()) == ["handler.py", "other.py"]


@pytest.mark.parametrize("handler", ["pkg/mod.run", "pkg.mod.run"])
async def test_handler_in_a_package(tmp_path: Path, handler: str) -> None:
    files = {"pkg/mod.py": "from . import other\nrun = lambda e, c: other.VALUE", "pkg/other.py": "VALUE = 5"}
    async with waiting_shim(tmp_path, files) as shim:
        assert (await shim.load(handler=handler)).type == wire.LOADED
        assert (await shim.call()).json() == 5


async def test_import_runs_in_the_main_thread_without_a_running_loop(tmp_path: Path) -> None:
    source = """
import asyncio, signal, threading
async def probe(): return "ran"
signal.signal(signal.SIGUSR1, lambda *_: None)
LOCK = asyncio.Lock()  # before Python 3.10 it belongs to the loop of its making
RESULT = [asyncio.run(probe()), threading.current_thread() is threading.main_thread()]
async def handler(event, context):
    async with LOCK:
        return RESULT
"""
    async with loaded_shim(tmp_path, source) as shim:
        assert (await shim.call()).json() == ["ran", True]


KINDS = {
    "plain function": ("def handler(event, context): return 1", "handler"),
    "async function": ("async def handler(event, context): return 1", "handler"),
    "async function of three": ("async def handler(scope, receive, send): pass", "asgi"),
    "third parameter has a default": ("async def handler(event, context, tool=None): return 1", "handler"),
    "sync function of three": ("def handler(a, b, c): pass", "handler"),
    "instance with async call": (
        "class App:\n  async def __call__(self, scope, receive, send): pass\nhandler = App()",
        "asgi",
    ),
    "bound method": ("class App:\n  async def run(self, scope, receive, send): pass\nhandler = App().run", "asgi"),
    "bound handler": ("class App:\n  async def run(self, event, context): return 1\nhandler = App().run", "handler"),
    "class": ("class handler:\n  def __init__(self, event, context): pass", "handler"),
    "partial": ("import functools\nasync def f(a, b, c): pass\nhandler = functools.partial(f)", "handler"),
    "lambda": ("handler = lambda event, context: 1", "handler"),
    "star arguments": ("async def handler(*args): return 1", "handler"),
}


@pytest.mark.parametrize("name", KINDS)
async def test_kind_is_found_from_the_code(tmp_path: Path, name: str) -> None:
    source, kind = KINDS[name]
    async with waiting_shim(tmp_path, {"handler.py": source}) as shim:
        frame = await shim.load()
        assert (frame.type, wire.loads(frame.header).get("kind")) == (wire.LOADED, kind)


@pytest.mark.parametrize(
    ("kind", "source"), [("asgi", "def handler(*args): ..."), ("handler", KINDS["bound method"][0])]
)
async def test_explicit_kind_wins(tmp_path: Path, kind: str, source: str) -> None:
    async with waiting_shim(tmp_path, {"handler.py": source}) as shim:
        frame = await shim.load(kind=kind)
        assert (frame.type, wire.loads(frame.header).get("kind")) == (wire.LOADED, kind)


FAILURES: dict[str, tuple[str, str, Callable[[dict[str, str]], bool]]] = {
    "raises": ("def f():\n    raise ValueError('no')\nf()", "ValueError", lambda e: e["message"] == "no"),
    "syntax": ("x = 1\ndef broken(:\n  pass", "SyntaxError", lambda e: "handler.py, line 2" in e["message"]),
    "exits": ("import sys; sys.exit('enough')", "SystemExit", lambda e: "sys.exit('enough')" in e["message"]),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt", lambda e: True),
    "dependency": ("import fastapi_of_nowhere", "ModuleNotFoundError", lambda e: "requirements.txt" in e["message"]),
    "no attribute": ("def main(e, c): ...", "HandlerMissing", lambda e: "It defines: main." in e["message"]),
    "not callable": ("handler = 3", "HandlerMissing", lambda e: "is a int" in e["message"]),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_failure_to_load_is_told(tmp_path: Path, name: str) -> None:
    source, kind, fits = FAILURES[name]

    error = await failure(tmp_path, {"handler.py": source})

    assert error["type"] == kind
    assert fits(error)
    assert kind in error["stack"]
    assert "headrace_shim" not in error["stack"]
    assert "importlib" not in error["stack"]


async def test_stack_shows_the_users_lines_relative_to_the_code(tmp_path: Path) -> None:
    files = {"handler.py": "import inner", "inner.py": "def f():\n    return 1 / 0\nf()"}

    stack = (await failure(tmp_path, files))["stack"]

    assert 'File "handler.py", line 1, in <module>' in stack
    assert 'File "inner.py", line 2, in f\n    return 1 / 0' in stack
    assert stack.endswith("ZeroDivisionError: division by zero")


async def test_missing_module_names_the_files_there_are(tmp_path: Path) -> None:
    error = await failure(tmp_path, {"app.py": ECHO})

    assert error["type"] == "HandlerMissing"
    assert "handler.py" in error["message"]
    assert "It holds: app.py." in error["message"]


async def test_chained_errors_keep_their_own_lines_only(tmp_path: Path) -> None:
    source = "try:\n    import nowhere_to_find\nexcept ImportError as e:\n    raise RuntimeError('wrapped') from e"

    stack = (await failure(tmp_path, {"handler.py": source}))["stack"]

    assert "direct cause" in stack
    assert "headrace_shim" not in stack


async def test_what_was_printed_while_loading_comes_before_the_failure(tmp_path: Path) -> None:
    async with waiting_shim(tmp_path, {"handler.py": "print('starting'); print('half', end='')\n1/0"}) as shim:
        assert (await shim.load()).type == wire.LOAD_FAILED
        assert [log["text"] for log in shim.link.instance.logs] == ["starting", "half"]


async def test_exit_of_the_process_while_loading(tmp_path: Path) -> None:
    async with waiting_shim(tmp_path, {"handler.py": "import os; os._exit(3)"}) as shim:
        with pytest.raises(TimeoutError):
            await load_briefly(shim)
        code, _ = await shim.exited()
        assert code == 3
        assert shim.link.ended.is_set()


async def load_briefly(shim: Shim) -> None:
    shim.link.send(wire.LOAD, 0, json.loads(json.dumps(LOAD)))
    await shim.link.instance.frame(within=1.0)
