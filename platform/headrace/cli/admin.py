"""What each command about the platform itself takes. The work is in the module that a command imports when it runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from headrace.cli.session import Session

Driver = Literal["docker", "process"]


class Scope(StrEnum):
    """What a token may do."""

    ADMIN = "admin"
    DEPLOY = "deploy"
    READ = "read"
    INVOKE = "invoke"


Home = Annotated[Path | None, typer.Option("--home", help="Where all state lives; default: ~/.headrace.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def up(
    context: typer.Context,
    *,
    deploy: Annotated[
        Path | None, typer.Option("--deploy", metavar="DIR", help="Deploy this unless live; call it.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave it running; `headrace down` stops it.")] = False,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port of functions; default: 7780.")] = None,
    control_port: Annotated[int | None, typer.Option("--control-port", help="Port of the API; default: 7700.")] = None,
    home: Home = None,
    driver: Annotated[
        Driver | None, typer.Option("--driver", help="What runs instances; `process` isolates nothing.")
    ] = None,
) -> None:
    """Start Headrace and stay in front of it; Ctrl-C stops it."""
    from headrace.cli import start
    from headrace.cli import up as work

    session: Session = context.obj
    options = {"host": host, "port": port, "control_port": control_port, "home": home, "driver": driver}
    work.up(session.out, start.plan(session, options), deploy, detach)


def down(context: typer.Context, home: Home = None) -> None:
    """Stop a Headrace that runs detached, or in another terminal."""
    from headrace.cli import start
    from headrace.cli import up as work

    session: Session = context.obj
    work.down(session.out, start.plan(session, {"home": home}))


def doctor(context: typer.Context, json: Json = False) -> None:
    """Look at everything that Headrace needs, and say what to do."""
    from headrace.cli import doctor as work

    session: Session = context.obj
    work.doctor(session.out, session.settings, json)


def create_token(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Shown in histories; unique.")],
    scope: Annotated[list[Scope], typer.Option("--scope", "-s", help="What it may do; repeatable.")],
    namespace: Annotated[
        list[str] | None, typer.Option("--namespace", "-n", help="Limits it to this one; repeatable.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option("--expires", help="How long it lives: 12h, 90d; default: ever.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a token and print its secret."""
    from headrace.cli import tokens

    session: Session = context.obj
    tokens.create(session, name, scopes=scope, namespaces=namespace or (), expires=expires, json=json)


def list_tokens(context: typer.Context, json: Json = False) -> None:
    """List the tokens, without their secrets."""
    from headrace.cli import tokens

    session: Session = context.obj
    tokens.list_tokens(session, json=json)


def delete_token(
    context: typer.Context,
    token: Annotated[str, typer.Argument(metavar="NAME|ID", help="The token to delete.")],
) -> None:
    """Delete a token: it is refused from then on."""
    from headrace.cli import tokens

    session: Session = context.obj
    tokens.delete(session, token)
