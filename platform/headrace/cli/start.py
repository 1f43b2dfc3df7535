"""What `up` starts: settings, the environment of its children, how each of them is run; and how it tells where."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from headrace.cli.output import Output
from headrace.cli.session import Session
from headrace.cli.supervisor import Backoff, Role
from headrace.cli.uplock import Holder, UpLock
from headrace.errors import HeadraceError
from headrace.settings import PREFIX, Settings

GRACE_S = 10.0  # a process that is asked to end gets this long; the node first drains
POLL_S = 0.1


class StartFailed(HeadraceError):
    """Headrace could not be started."""

    code, title = "start_failed", "Headrace could not be started"


class RunsElsewhere(HeadraceError):
    """Headrace runs already, at other ports than those asked for."""

    code, title = "runs_elsewhere", "Headrace runs already at other ports"


def role_command(role: str) -> tuple[str, ...]:
    """The command that runs a role (`init`, `control`, `node`, `worker`)."""
    return (sys.executable, "-m", "headrace.main", role)


def cli_command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "headrace.cli.app", *arguments)


@dataclass(frozen=True, slots=True)
class Start:
    """What to start: settings, the environment of every child, and how roles and the command line are run."""

    settings: Settings
    environment: Mapping[str, str]
    options: frozenset[str] = frozenset()  # the settings that were given on the command line
    command: Callable[[str], tuple[str, ...]] = role_command
    cli: Callable[..., tuple[str, ...]] = cli_command
    backoff: Backoff = field(default_factory=Backoff)

    @property
    def lock(self) -> UpLock:
        return UpLock(self.settings.run_dir)

    @property
    def token_path(self) -> Path:
        return self.settings.home / "admin-token"

    @property
    def token_mark(self) -> str:
        """Which admin token was shown already; empty: none."""
        return self._token_mark_path.read_text() if self._token_mark_path.exists() else ""

    @property
    def _token_mark_path(self) -> Path:
        return self.settings.home / "admin-token.shown"

    def show_token(self, out: Output, mark: str) -> None:
        """Show the admin token unless `mark` says that it was, and mark it as shown."""
        token = self.token_path.read_text().strip()
        fresh = hashlib.sha256(token.encode()).hexdigest()
        if fresh != mark:
            out.line(f"  Admin token, shown only this once: {token}", "bold")
            self._token_mark_path.write_text(fresh)

    @property
    def down(self) -> str:
        """The command that stops it."""
        return "headrace down" + (f" --home {shlex.quote(str(self.settings.home))}" if "home" in self.options else "")

    @property
    def exports(self) -> str:
        """What a shell has to export so that other commands find it; empty: nothing."""
        names = [name for name in ("home", "host", "control_port") if name in self.options]
        return " ".join(f"{PREFIX}{name.upper()}={shlex.quote(str(getattr(self.settings, name)))}" for name in names)

    def check_ports(self, holder: Holder) -> None:
        """Raise `RunsElsewhere` when ports were asked for that are not those of `holder`, which runs already."""
        for name, url in (("port", holder.functions), ("control_port", holder.control)):
            asked = name in self.options or PREFIX + name.upper() in self.environment
            if asked and url and urlsplit(url).port != getattr(self.settings, name):
                raise RunsElsewhere(
                    f"Headrace runs already for {self.settings.home}, as process {holder.pid}, at {holder.functions} "
                    f"(functions) and {holder.control} (API): stop it first with `{self.down}`, ask for those ports, "
                    "or give another --home."
                )

    @property
    def log_dir(self) -> Path:
        return self.settings.home / "log"

    def holder(self, ready: bool) -> Holder:
        return Holder(os.getpid(), self.settings.functions, self.settings.control, ready)

    def stages(self) -> list[list[Role]]:
        """Which roles run; the node stops first, so that its last calls still find control and their records."""
        node = Role("node", self.command("node"), self.settings.drain_s + GRACE_S)
        return [[node], [Role(name, self.command(name), GRACE_S) for name in ("control", "worker")]]


def plan(session: Session, overrides: Mapping[str, Any]) -> Start:
    """The start that the options of the command line ask for: always on this machine, whatever CONTROL_URL says."""
    settings = session.settings_with(**overrides).model_copy(update={"control_url": ""})
    others = {name: value for name, value in session.environ.items() if not name.startswith(PREFIX)}
    options = frozenset(name for name, value in overrides.items() if value is not None)
    return Start(settings, {**others, **settings.environment()}, options)


def announce(out: Output, start: Start, holder: Holder, title: str) -> None:
    """Say where everything is."""
    out.line(title, "bold green")
    if holder.functions:
        out.line(f"  functions  {holder.functions}/fn/<name>")
        out.line(f"  control    {holder.control}/v1")
        out.line(f"  API docs   {holder.control}/docs")
    out.line(f"  logs       {start.log_dir}")
    out.line(f"  token      in {start.token_path}")
    if start.exports:
        out.line(f"  For other commands: export {start.exports}")
