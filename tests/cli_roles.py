"""`headrace up` with small stand-ins for its roles: `python cli_roles.py ROLE`, or `up` and `down` with options.

The stand-ins serve the two ports as the real ones do, and import little, so that they start at once.
`HEADRACE_TOKEN` carries what a test wants of them, because it travels to every child: a word such as `init-fails`
or `node-dies`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SECRET = "hr_" + "s" * 43
_HOME = Path(os.environ.get("HEADRACE_HOME", "/nonexistent"))
_WISH = os.environ.get("HEADRACE_TOKEN")


def command(role: str) -> tuple[str, ...]:
    return (sys.executable, "-S", __file__, role)


def note(text: str) -> None:
    """Leave a line about what happened where the test finds it."""
    with (_HOME / "events").open("a") as file:
        file.write(f"{text}\n")


def init() -> int:
    print("2026-01-31 12:00:00,000 INFO init engine: pretended 1.0", file=sys.stderr, flush=True)
    if _WISH == "init-fails":
        print("Container engine unavailable: there is no Docker engine. Install it.", file=sys.stderr)
        return 1
    if _WISH == "init-hangs":
        note(f"init {os.getpid()}")
        time.sleep(600)
    path = _HOME / "admin-token"
    if not path.exists():
        path.write_text(f"{SECRET}\n")
        print(f"admin token (shown once, kept in {path}): {SECRET}", flush=True)
    return 0


def serve(role: str) -> int:
    note(f"{role} {os.getpid()}")
    if f"{role}-dies" == _WISH:
        print(f"{role}: the wheel is broken", file=sys.stderr)
        return 7

    def stop(*_: object) -> None:
        note(f"{role} stopped")
        if f"{role}-hangs" != _WISH:
            os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    port = {"control": "HEADRACE_CONTROL_PORT", "node": "HEADRACE_PORT"}.get(role)
    if port is None:
        time.sleep(600)
        return 0
    server = socket.create_server(("127.0.0.1", int(os.environ[port])))
    while True:
        connection, _ = server.accept()
        with connection:
            ready = connection.recv(65536).startswith(b"GET /readyz ") and node_serves()
            status = "200 OK" if ready else "503 Service Unavailable"
            connection.sendall(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())


def node_serves() -> bool:
    """Whether the node serves; one that is to start late does so once it was asked for three times."""
    if _WISH == "node-late":
        note("asked")
        return (_HOME / "events").read_text().count("asked") > 3
    with socket.socket() as link:
        return link.connect_ex(("127.0.0.1", int(os.environ["HEADRACE_PORT"]))) == 0


def cli(*arguments: str) -> tuple[str, ...]:
    """What `up` runs of the command line: itself with these roles; of the rest only the words, to be seen."""
    if arguments[0] == "up":
        return (sys.executable, __file__, *arguments)
    return (sys.executable, "-S", __file__, "cli", *arguments)


def main(arguments: Sequence[str]) -> int:
    role, *rest = arguments
    if role == "init":
        return init()
    if role == "cli":
        print("cli:", *rest, "at", os.environ.get("HEADRACE_CONTROL_URL"), flush=True)
        return 1 if _WISH == "deploy-fails" else 0
    if role not in ("up", "down"):
        return serve(role)

    from dataclasses import replace

    from headrace.cli import app, start
    from headrace.cli.output import Output
    from headrace.cli.session import Session
    from headrace.cli.supervisor import Backoff

    real = start.plan

    def plan(session: Session, overrides: dict[str, object]) -> start.Start:
        backoff = Backoff(first_s=0.02, most_s=0.1)
        return replace(real(session, overrides), command=command, cli=cli, backoff=backoff)

    start.plan = plan
    return app.run(arguments, Session(dict(os.environ), Output(sys.stdin, sys.stdout, sys.stderr)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
