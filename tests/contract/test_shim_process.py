"""The shim as a process: forks, orphans, what it imports and when."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from headrace import wire
from shim_kit import assemble, loaded_shim

FORKS = """
import os, time, threading
def act(path):
    if path == "/fine": return "fine"
    pid = os.fork()
    if pid == 0:
        print("child")                       # not a frame
        if path == "/exit": os._exit(5)
        if path == "/raise": raise ValueError("in the child")
        return "child"
    return str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
def handler(event, context): return act(event["rawPath"])
async def async_handler(event, context): return act(event["rawPath"])
"""


@pytest.mark.parametrize("name", ["handler", "async_handler"])
@pytest.mark.parametrize(("path", "code"), [("/exit", b"5"), ("/return", b"0"), ("/raise", b"0")])
async def test_forked_child_never_speaks_for_its_parent(tmp_path: Path, name: str, path: str, code: bytes) -> None:
    async with loaded_shim(tmp_path, FORKS, handler=f"handler.{name}") as shim:
        for _ in range(3):
            stream = shim.link.call(path)
            assert (await stream.answer()).body == code
            assert stream.logs == []
        others = await asyncio.gather(*(shim.call("/fine") for _ in range(10)))

        assert {answer.body for answer in others} == {b"fine"}
        shim.link.send(wire.DRAIN)
        code_, output = await shim.exited()
        assert code_ == 0
        assert output.splitlines().count("child") == 3


async def test_code_that_closes_every_descriptor_ends_the_instance_at_once(tmp_path: Path) -> None:
    source = """
import os, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
async def handler(event, context): os.closerange(3, 100)
"""
    async with loaded_shim(tmp_path, source) as shim:
        shim.link.call()
        code, output = await shim.exited()

        assert (code, "Bad file descriptor" in output) == (1, True)


async def test_multiprocessing_works(tmp_path: Path) -> None:
    source = """
import multiprocessing, time
def square(number): return number * number
def handler(event, context):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        squares = pool.map(square, [1, 2, 3])
    sleeper = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    sleeper.start()
    sleeper.terminate()
    sleeper.join(10)
    return [squares, sleeper.exitcode]
"""
    async with loaded_shim(tmp_path, source) as shim:
        assert (await shim.call()).json() == [[1, 4, 9], -15]
        assert (await shim.call()).json() == [[1, 4, 9], -15]


async def test_async_subprocesses_work(tmp_path: Path) -> None:
    source = """
import asyncio
async def handler(event, context):
    process = await asyncio.create_subprocess_exec("sh", "-c", "echo hi; exit 3", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return [output.decode(), process.returncode]
"""
    async with loaded_shim(tmp_path, source) as shim:
        assert (await shim.call()).json() == ["hi\n", 3]


TLS = """
import asyncio, ssl, threading
def handler(event, context):
    contexts = []
    threads = [threading.Thread(target=lambda: contexts.append(ssl.create_default_context())) for _ in range(8)]
    [thread.start() for thread in threads]; [thread.join() for thread in threads]
    async def refused():
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            await asyncio.open_connection("127.0.0.1", port, ssl=contexts[0])
        except (ssl.SSLError, OSError) as error:
            return type(error).__name__
        finally:
            server.close()
    return [len(contexts), asyncio.run(refused()), isinstance(contexts[0], ssl.SSLContext), ssl.__name__]
"""


async def test_tls_works_though_it_loads_only_when_used(tmp_path: Path) -> None:
    async with loaded_shim(tmp_path, TLS) as shim:
        count, error, is_context, name = (await shim.call()).json()

        assert (count, is_context, name) == (8, True, "ssl")
        assert "Error" in error


async def test_plain_handlers_do_without_the_heavy_modules(tmp_path: Path) -> None:
    """A budget: each of these costs every waiting instance memory and every cold start time."""
    bare = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; print(*sys.modules)"], capture_output=True, check=True
    )
    source = """
import sys
def loaded(name):
    return name in sys.modules and "_Lazy" not in str(object.__getattribute__(sys.modules[name], "__class__"))
HEAVY = ["ssl", "_ssl", "inspect", "ast", "dis", "urllib.parse", "pathlib", "tempfile", "random", "base64", "email",
         "http.client", "multiprocessing", "asyncio.sslproto", "headrace_shim.asgi"]
def handler(event, context): return [name for name in HEAVY if loaded(name)]
"""
    async with loaded_shim(tmp_path, source) as shim:
        assert set((await shim.call("/x?a=b")).json()) <= set(bare.stdout.decode().split())


ORPHANS = """
import ctypes, os, sys, time
sys.path.insert(0, sys.argv[1])
ctypes.CDLL(None).prctl(36, 1)          # as process 1 does, take in the orphans of the children
from headrace_shim.init import supervise
supervise()
me = os.getppid()
orphan_source = os.fork()
if orphan_source == 0:
    if os.fork() == 0:
        os._exit(0)                     # an orphan, once its parent is gone
    os._exit(0)
assert os.waitpid(orphan_source, 0)[1] == 0
for _ in range(500):                    # the orphan has to vanish without our doing
    states = [open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[:2] for pid in os.listdir("/proc")
              if pid.isdigit() and os.path.exists(f"/proc/{pid}/stat")]
    if not any(state == "Z" and int(parent) == me for state, parent in states):
        break
    time.sleep(0.01)
else:
    sys.exit(99)
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137), ("os.kill(os.getppid(), 15); time.sleep(9)", 143)],
)
def test_process_one_reaps_orphans_passes_signals_and_ends_as_its_child(tmp_path: Path, end: str, code: int) -> None:
    assemble(tmp_path)

    done = subprocess.run([sys.executable, "-c", ORPHANS + end, str(tmp_path)], timeout=30, check=False)

    assert done.returncode == code


async def test_main_module_and_arguments_are_nobodys(tmp_path: Path) -> None:
    source = "import sys, __main__\ndef handler(e, c): return [sys.argv, hasattr(__main__, '__file__')]"
    async with loaded_shim(tmp_path, source) as shim:
        assert (await shim.call()).json() == [[""], False]
