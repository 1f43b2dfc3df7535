"""The node's side of the protocol for contract tests: real subprocesses of a shim, spoken to in frames.

Nothing here knows Python's shim but `python_command`; a test that uses only `Shim` holds for every runtime.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace import wire
from headrace.resources import share

PATIENCE_S = 20.0  # a frame that takes longer is not coming


def assemble(directory: Path) -> Path:
    """The Python shim as the node lays it out: the package and, in it, a copy of the codec."""
    package = directory / "headrace_shim"
    shutil.copytree(
        share("runtime-images") / "python" / "headrace_shim", package, ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(wire.__file__, package / "wire.py")
    return package


def python_command(directory: Path) -> list[str]:
    return [sys.executable, "-I", str(assemble(directory))]


@dataclass
class Answer:
    """A whole answer: of a REPLY, or of HEAD, BODY..., END. `error` is the `e` of its last frame, `after` its `x`."""

    status: int = 0
    headers: list[list[str]] = field(default_factory=list)
    body: bytes = b""
    error: dict[str, str] | None = None
    after: dict[str, str] | None = None
    frames: list[wire.Frame] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)  # {"t", "s", "l", "text"}

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    def json(self) -> Any:
        return json.loads(self.body)

    def lines(self, *sources: str) -> list[str]:
        """Log lines in order, of these streams or of all."""
        return [line for log in self.logs if not sources or log["s"] in sources for line in log["text"].split("\n")]


class Stream:
    """One call as the node sees it; `frame()` gives what arrives, LOG frames go to `logs`."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.logs: list[dict[str, Any]] = []
        self._frames: asyncio.Queue[wire.Frame] = asyncio.Queue()

    def arrived(self, frame: wire.Frame) -> None:
        if frame.type == wire.LOG:
            self.logs.append({**wire.loads(frame.header), "text": frame.body.decode()})
        else:
            self._frames.put_nowait(frame)

    async def frame(self, *, within: float = PATIENCE_S) -> wire.Frame:
        async with asyncio.timeout(within):
            return await self._frames.get()

    @property
    def waiting(self) -> int:
        return self._frames.qsize()

    def send(self, kind: int, header: dict[str, Any] | None = None, body: bytes = b"") -> None:
        self.connection.send(kind, self.number, header, body)

    async def answer(self, *, grant: bool = True) -> Answer:
        """Collect the answer, granting what is consumed."""
        answer = Answer(logs=self.logs)
        while True:
            frame = await self.frame()
            answer.frames.append(frame)
            header = wire.loads(frame.header)
            if frame.type in (wire.REPLY, wire.HEAD):
                answer.status, answer.headers = header.get("s", 0), header.get("h", [])
            answer.body += frame.body
            if frame.type == wire.BODY and grant:
                self.send(wire.WINDOW, {"n": len(frame.body)})
            if frame.type in (wire.REPLY, wire.END):
                answer.error, answer.after = header.get("e"), header.get("x")
                return answer


class Connection:
    """One connection that the shim dialled."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._streams: dict[int, Stream] = {}
        self._number = 0
        self._may_read = asyncio.Event()
        self._may_read.set()
        self.ended = asyncio.Event()
        self.instance = Stream(self, 0)
        self._streams[0] = self.instance

    async def run(self) -> None:
        decoder = wire.Decoder()
        try:
            while data := await self._reader.read(1 << 16):
                await self._may_read.wait()
                for frame in decoder.feed(data):
                    if frame.stream in self._streams:
                        self._streams[frame.stream].arrived(frame)
        except ConnectionError:
            pass
        finally:
            self.ended.set()
            self._writer.close()

    def send(self, kind: int, stream: int = 0, header: dict[str, Any] | None = None, body: bytes = b"") -> None:
        self.raw(wire.encode(kind, stream, b"" if header is None else wire.dumps(header), body))

    def raw(self, data: bytes) -> None:
        self._writer.write(data)

    def close(self) -> None:
        self._writer.close()

    def pause(self) -> None:
        """Read no more, as a node that cannot keep up; the socket fills."""
        self._may_read.clear()

    def resume(self) -> None:
        self._may_read.set()

    def open(self) -> Stream:
        """A stream with a number of its own; its CALL is not sent yet."""
        self._number += 1
        stream = self._streams[self._number] = Stream(self, self._number)
        return stream

    def call(self, path: str = "/", body: bytes = b"", *, then: bytes | None = None, **fields: Any) -> Stream:
        """Send CALL for an HTTP request. `then`: more of the body, in BODY frames without looking at the window."""
        stream = self.open()
        header = http_header(path, more=then is not None, **fields)
        stream.send(wire.CALL, header, body)
        if then is not None:
            for at in range(0, len(then), wire.CHUNK):
                stream.send(wire.BODY, None, then[at : at + wire.CHUNK])
            stream.send(wire.END)
        return stream

    def payload(self, body: bytes, **fields: Any) -> Stream:
        """Send CALL with a JSON payload that is no HTTP request."""
        stream = self.open()
        stream.send(wire.CALL, {"id": "inv-0", "d": 30_000, **fields}, body)
        return stream

    async def until_ended(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.ended.wait()


# The header of a LOAD with every field of the protocol.
LOAD: dict[str, Any] = {
    "namespace": "default",
    "function": "case",
    "version": 7,
    "handler": "handler.handler",
    "kind": "auto",
    "env": {},
    "memory_mb": 128,
    "timeout_s": 30,
    "concurrency": 10,
}


async def logged(stream: Stream, text: str) -> None:
    """Wait until a log line of `stream` has `text` in it."""
    async with asyncio.timeout(PATIENCE_S):
        while not any(text in log["text"] for log in stream.logs):
            await asyncio.sleep(0.005)


def http_header(path: str, *, more: bool = False, **fields: Any) -> dict[str, Any]:
    """The header of an HTTP CALL with every field of the protocol."""
    path, _, query = path.partition("?")
    header: dict[str, Any] = {
        "id": "inv-0",
        "d": 30_000,
        "m": "GET",
        "r": "/fn/case",
        "p": path,
        "q": query,
        "h": [["host", "fn.example:7780"], ["user-agent", "kit/1"]],
        "ip": "192.0.2.7",
        "s": "http",
        "v": "1.1",
    }
    header.update(fields)
    if more:
        header["more"] = True
    return header


class Shim:
    """One subprocess and the connections it made. `hello` is the header of its first frame on the newest."""

    def __init__(self, home: Path, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.home = home
        self.code = home / "code"
        self.layer = home / "layer"
        self.socket = home / "s"
        self.link: Connection
        self.hello: dict[str, Any] = {}
        self.process: asyncio.subprocess.Process
        self._command = command
        self._env = env
        self._server: asyncio.Server | None = None
        self._arrivals: asyncio.Queue[Connection] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._accept, str(self.socket))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        task = asyncio.ensure_future(connection.run())
        self._tasks.add(task)
        self._arrivals.put_nowait(connection)

    async def deafen(self) -> None:
        """Stop listening; the connection that there is stays."""
        assert self._server is not None
        self._server.close()
        self.socket.unlink(missing_ok=True)
        self._server = None

    async def start(self) -> None:
        env = {
            "PATH": "/usr/bin:/bin",
            "HEADRACE_SOCKET": str(self.socket),
            "HEADRACE_INSTANCE": "i1",
            "HEADRACE_CODE": str(self.code),
            **({"HEADRACE_LAYER": str(self.layer)} if self.layer.exists() else {}),
            **self._env,
        }
        self.process = await asyncio.create_subprocess_exec(
            *self._command, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd="/"
        )

    async def dialled(self) -> Connection:
        """Wait for the shim's next connection and its HELLO."""
        async with asyncio.timeout(PATIENCE_S):
            self.link = await self._arrivals.get()
        frame = await self.link.instance.frame()
        assert frame.type == wire.HELLO
        self.hello = wire.loads(frame.header)
        return self.link

    async def load(self, **fields: Any) -> wire.Frame:
        """Send LOAD; the answer, LOADED or LOAD_FAILED."""
        self.link.send(wire.LOAD, 0, LOAD | fields)
        return await self.link.instance.frame()

    async def call(self, path: str = "/", body: bytes = b"", **fields: Any) -> Answer:
        return await self.link.call(path, body, **fields).answer()

    async def exited(self) -> tuple[int, str]:
        """Exit code and what the process wrote to its own stdout and stderr."""
        async with asyncio.timeout(PATIENCE_S):
            output, _ = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, output.decode()

    async def stop(self) -> None:
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
            await self.process.communicate()
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the transports that were closed are told so


@contextlib.asynccontextmanager
async def waiting_shim(
    home: Path,
    files: Mapping[str, str] | Path,
    *,
    layer: Mapping[str, str] | Path | None = None,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Shim]:
    """A Python shim that has said HELLO and has not been loaded. Code and layer: files by name, or a directory."""
    shim = Shim(home, python_command(home), env or {})
    place(shim.code, files)
    if layer is not None:
        place(shim.layer, layer)
    async with running(shim):
        yield shim


@contextlib.asynccontextmanager
async def running(shim: Shim) -> AsyncIterator[None]:
    """`shim` as a process that has dialled and said HELLO; stopped at the end."""
    await shim.listen()
    await shim.start()
    try:
        await shim.dialled()
        yield
    finally:
        await shim.stop()


@contextlib.asynccontextmanager
async def loaded_shim(home: Path, source: str, **fields: Any) -> AsyncIterator[Shim]:
    """A Python shim with `source` as its `handler.py`; `fields` go into LOAD."""
    async with waiting_shim(home, {"handler.py": source}) as shim:
        frame = await shim.load(**fields)
        assert frame.type == wire.LOADED, frame.header.decode()
        yield shim


def place(directory: Path, source: Mapping[str, str] | Path) -> None:
    if isinstance(source, Path):
        directory.symlink_to(source)
    else:
        write_files(directory, source)


def write_files(directory: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
