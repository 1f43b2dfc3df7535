"""`headrace dev`: deploys a directory whenever a file in it changes, and shows what the function writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from headrace.cli import deploy, logs, project
from headrace.cli.client import Control
from headrace.cli.output import Output
from headrace.cli.session import Session
from headrace.errors import HeadraceError, Invalid
from headrace.settings import Settings

_LOOK_S = 0.5
_SETTLED_S = 0.1


def dev(session: Session, read: Callable[[], deploy.Deployment]) -> None:
    """Deploy what `read` describes, again after every change, until interrupted. A failed one waits for the next."""
    deployment = read()
    out, settings, control = session.out, session.settings, session.control
    follower: threading.Thread | None = None
    while True:
        before = _snapshot(deployment)
        try:
            deployment = read()
            deploy.report(out, deploy.deploy(out, control, deployment))
            if follower is None:
                follower = threading.Thread(target=_tail, args=(out, settings, deployment), name="logs", daemon=True)
                follower.start()
        except HeadraceError as error:
            out.failure(error)
        out.note(f"Watching {deployment.directory}; Ctrl-C ends it.", "dim")
        while (now := _snapshot(deployment)) == before:
            time.sleep(_LOOK_S)
        _settle(deployment, now)


def _settle(deployment: deploy.Deployment, now: object) -> None:
    """An editor may be in the middle of writing: wait until nothing has changed for a moment."""
    while True:
        time.sleep(_SETTLED_S)
        before, now = now, _snapshot(deployment)
        if now == before:
            return


def _snapshot(deployment: deploy.Deployment) -> object:
    """What the directory holds; a state that cannot be packed is one of its own, so that mending it is a change."""
    try:
        return project.snapshot(deployment.directory)
    except Invalid as error:
        return error.detail


def _tail(out: Output, settings: Settings, deployment: deploy.Deployment) -> None:
    """Show new lines; runs in a thread of its own, with a client of its own, for as long as the process."""
    filters = {"namespace": deployment.namespace, "limit": 1000}
    control = Control(settings)
    try:
        for line in logs.follow(out, control, f"{deployment.path}/logs", filters):
            logs.show_line(out, line)
    except HeadraceError as error:
        out.failure(error)
    finally:
        control.close()
