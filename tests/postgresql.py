"""A PostgreSQL of our own for the tests: a throw-away cluster on a unix socket, started once per session."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

SUPERUSER = "headrace"
_MISSING = "PostgreSQL's programs are missing: run ./tests/run, which installs what the tests need."


class Cluster:
    """initdb refuses root, so root runs it as another user. Nothing is synced: the data is worth nothing."""

    def __init__(self) -> None:
        self._bin = _programs()
        self._user = _unprivileged() if os.geteuid() == 0 else None
        self.home = Path(tempfile.mkdtemp(prefix="headrace-pg-", dir="/tmp"))
        self._databases = 0

    def start(self) -> None:
        if self._user is not None:
            shutil.chown(self.home, self._user)
        self._run("initdb", "-D", self._data, "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={self.home} -c fsync=off -c max_connections=200"
        self._run("pg_ctl", "-D", self._data, "-l", self.home / "log", "-w", "-t", "60", "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")
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
            [str(self._bin / program), *map(str, arguments)],
            cwd=self.home,
            user=self._user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # The server inherits it: a pipe would stay open as long as the server runs.
            stderr=subprocess.DEVNULL if program == "pg_ctl" else subprocess.PIPE,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed in {self.home}: {(done.stderr or b'see the log there').decode()}")


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
