"""A PostgreSQL of our own for the tests: a throw-away cluster on a unix socket, started once per session."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

SUPERUSER = "headrace"
_START_S = 60
_PR_SET_PDEATHSIG = 1
_MISSING = "PostgreSQL's programs are missing: run ./tests/run, which installs what the tests need."


class Cluster:
    """initdb refuses root, so root runs it as another user. Nothing is synced: the data is worth nothing.

    The server dies with the test session, however that ends.
    """

    def __init__(self) -> None:
        self._bin = _programs()
        self._user = _unprivileged() if os.geteuid() == 0 else None
        self.home = Path(tempfile.mkdtemp(prefix="headrace-pg-", dir="/tmp"))
        self._databases = 0

    def start(self) -> None:
        if self._user is not None:
            shutil.chown(self.home, self._user)
        self._run("initdb", "-D", self._data, "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        options = {"listen_addresses": "", "unix_socket_directories": self.home, "fsync": "off", "max_connections": 200}
        with (self.home / "log").open("wb") as log:
            self._server = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, *(f"--{name}={value}" for name, value in options.items())],
                cwd=self.home,
                user=self._user,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - it only makes a system call
            )
        deadline = time.monotonic() + _START_S
        while subprocess.run([self._bin / "pg_isready", "-q", "-h", self.home], check=False).returncode != 0:
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start: {(self.home / 'log').read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        self._server.send_signal(signal.SIGQUIT)  # at once
        self._server.wait()
        shutil.rmtree(self.home)

    def create(self) -> str:
        """The name of a new database."""
        self._databases += 1
        name = f"test_{self._databases}"
        self._run("createdb", "-h", self.home, "-U", SUPERUSER, name)
        return name

    def url(self, name: str) -> str:
        return f"postgresql+asyncpg://{SUPERUSER}@/{name}?host={self.home}"

    @property
    def _data(self) -> Path:
        return self.home / "data"

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments], cwd=self.home, user=self._user, capture_output=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {done.stderr.decode()}")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def _programs() -> Path:
    """Where initdb, pg_ctl and createdb are: on the PATH, or where Debian puts them; the newest."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    homes = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parent.parent.name))
    assert homes, _MISSING
    return homes[-1].parent


def _unprivileged() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"
