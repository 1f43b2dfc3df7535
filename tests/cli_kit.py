"""What the tests of the command line share: a server that plays the control API and functions, and a way to run it."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from headrace.cli.app import run
from headrace.cli.output import Output
from headrace.cli.session import Session
from headrace.errors import HeadraceError


@dataclass(frozen=True)
class Request:
    """One request as the server saw it; names of headers in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What to answer. `cut`: the connection breaks before the announced end."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


def document(value: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(json.dumps(value).encode(), status, {"content-type": "application/json", **headers})


def problem(error: HeadraceError, **headers: str) -> Answer:
    body = json.dumps(error.problem()).encode()
    return Answer(body, error.status, {"content-type": "application/problem+json", **headers})


def events(*pieces: str, cut: bool = False) -> Answer:
    text = "".join(f"{piece}\n\n" for piece in pieces)
    return Answer(text.encode(), 200, {"content-type": "text/event-stream"}, cut)


class Server:
    """Answers `method path` with the next of the answers it was given, the last one over and over."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._answers: dict[tuple[str, str], list[Answer | Callable[[Request], Answer]]] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def handle_one(self) -> None:
                server._serve(self)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_one

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def on(self, method: str, path: str, *answers: Answer | Callable[[Request], Answer]) -> None:
        self._answers[method, path] = list(answers)

    def seen(self, method: str, path: str) -> list[Request]:
        return [request for request in self.requests if (request.method, request.path) == (method, path)]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        body = self._read(handler, headers)
        request = Request(handler.command, parts.path, dict(parse_qsl(parts.query)), headers, body)
        self.requests.append(request)
        waiting = self._answers.get((request.method, request.path))
        if waiting is None:
            answer = Answer(b"the test did not expect this", 599)
        else:
            answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if callable(answer):
            answer = answer(request)
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(answer.body) + (1 if answer.cut else 0)))
        handler.end_headers()
        handler.wfile.write(answer.body)

    @staticmethod
    def _read(handler: BaseHTTPRequestHandler, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return handler.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(handler.rfile.readline(), 16):
            body += handler.rfile.read(size)
            handler.rfile.readline()
        handler.rfile.readline()
        return body


class Stream(io.TextIOWrapper):
    """A standard stream in memory, which may say that it is a terminal."""

    def __init__(self, content: bytes = b"", terminal: bool = False) -> None:
        self._content = io.BytesIO(content)
        self._terminal = terminal
        super().__init__(self._content, encoding="utf-8", newline="", write_through=True)

    def isatty(self) -> bool:
        return self._terminal

    @property
    def data(self) -> bytes:
        return self._content.getvalue()


@dataclass(frozen=True)
class Result:
    code: int
    data: bytes
    err: str

    @property
    def out(self) -> str:
        return self.data.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class Cli:
    """Runs commands in this process, against `server`, with a home of their own."""

    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        self.environ = {
            "HEADRACE_HOME": str(home),
            "HEADRACE_CONTROL_URL": url,
            "HEADRACE_TOKEN": "hr_of_the_test",
        }

    def __call__(self, *arguments: str, stdin: bytes = b"", terminal: bool = False, **environ: str) -> Result:
        out, err = Stream(terminal=terminal), Stream(terminal=terminal)
        given = {name: value for name, value in (self.environ | environ).items() if value}
        code = run(arguments, Session(given, Output(Stream(stdin, terminal), out, err)))
        return Result(code, out.data, err.data.decode())
