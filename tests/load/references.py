"""What Headrace is compared with: servers that answer the same bytes, each started for one scenario.

Bare Granian is always there. workerd (a JavaScript isolate) and the functions-framework for Python are installed
beside the results on first use; where that is not possible, a line says so and the comparison goes on without.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from measure import Unavailable

from stack import KEPT, end, free_port

HERE = Path(__file__).resolve().parent
TOOLS = KEPT / "tools"
_INSTALL_S = 240
_START_S = 30.0

WORKER = """export default {{
  async fetch() {{
    return new Response({body}, {{ headers: {{ "content-type": {content_type} }} }});
  }}
}};
"""
WORKERD = """using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [ (name = "main", worker = .hello) ],
  sockets = [ (name = "http", address = "127.0.0.1:{port}", http = (), service = "main") ]
);
const hello :Workerd.Worker = (
  modules = [ (name = "hello.js", esModule = embed "hello.js") ],
  compatibilityDate = "2024-09-23",
);
"""
FRAMEWORK = """def hello(request):
    return {body}, 200, {{"content-type": {content_type}}}
"""


class Answer:
    """What every reference answers: body and content type, as the function does."""

    def __init__(self, body: str, content_type: str) -> None:
        self.body = body
        self.content_type = content_type


@contextmanager
def running(answer: Answer, optional: bool, say: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """URLs of the references by name; `bare` is always among them."""
    makers: dict[str, Callable[[Answer, int], list[str]]] = {"bare": bare}
    if optional:
        makers |= {"workerd": workerd, "functions-framework": functions_framework}
    urls: dict[str, str] = {}
    with ExitStack() as stack:
        for name, make in makers.items():
            try:
                port = free_port()
                stack.enter_context(served(make(answer, port), port, answer))
                urls[name] = f"http://127.0.0.1:{port}/fn/hello"
            except Unavailable as reason:
                if name == "bare":
                    raise
                say(f"without {name}: {reason}")
        yield urls


def bare(answer: Answer, port: int) -> list[str]:
    """The command that serves `answer` from Granian alone."""
    command = [sys.executable, str(HERE / "bare.py"), "--port", str(port)]
    return [*command, "--body", answer.body, "--content-type", answer.content_type]


def workerd(answer: Answer, port: int) -> list[str]:
    folder = TOOLS / "workerd"
    program = folder / "node_modules" / ".bin" / "workerd"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _install(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "workerd"])
    script = WORKER.format(body=json.dumps(answer.body), content_type=json.dumps(answer.content_type))
    (folder / "hello.js").write_text(script)
    (folder / "config.capnp").write_text(WORKERD.format(port=port))
    return [str(program), "serve", str(folder / "config.capnp")]


def functions_framework(answer: Answer, port: int) -> list[str]:
    folder = TOOLS / "functions-framework"
    program = folder / "bin" / "functions-framework"
    if not program.exists():
        _install([sys.executable, "-m", "venv", str(folder)])
        _install([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "functions-framework"])
    source = folder / "hello.py"
    source.write_text(FRAMEWORK.format(body=repr(answer.body), content_type=repr(answer.content_type)))
    return [str(program), "--source", str(source), "--target", "hello", "--host", "127.0.0.1", "--port", str(port)]


def _install(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        raise Unavailable(f"{command[0]} is not installed.")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"`{' '.join(command)}` took over {_INSTALL_S} s.") from None
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise Unavailable(f"`{' '.join(command)}` failed: {' '.join(last)}")


@contextmanager
def served(command: list[str], port: int, answer: Answer) -> Iterator[None]:
    """Run a server until the end of the block; it has answered with `answer` when the block begins."""
    log = KEPT / f"{Path(command[0]).name}-{port}.log"
    KEPT.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        _wait_for(process, port, answer, log)
        log.unlink()
        yield
    finally:
        end(process)


def _wait_for(process: subprocess.Popen[bytes], port: int, answer: Answer, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            found = httpx.get(f"http://127.0.0.1:{port}/fn/hello", timeout=2)
        except httpx.TransportError:
            time.sleep(0.1)
            continue
        if found.status_code != 200 or found.text != answer.body:
            raise Unavailable(f"it answers {found.status_code} {found.text[:80]!r} and not what the function does.")
        return
    raise Unavailable(f"it did not start: {' '.join(log.read_text(errors='replace').splitlines()[-3:])}")
