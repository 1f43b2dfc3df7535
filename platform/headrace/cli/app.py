"""The command line: `headrace COMMAND`.

Exit codes: 0 done; 1 the platform or the function failed, or the request was refused; 2 wrong use (an unknown
option, a malformed value, a bad setting); 130 interrupted. Failures go to stderr: what happened, whose fault it is,
what to do. The environment is read here and nowhere else.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from headrace.cli import admin, commands
from headrace.cli.output import Output
from headrace.cli.session import Session
from headrace.errors import HeadraceError, Invalid, SettingsError

_HELP = "Headrace runs functions: deploy code, call it over HTTP, publish and roll back in milliseconds."


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"headrace {version('headrace')}")
        raise typer.Exit


def build(session: Session) -> typer.Typer:
    """The application with all its commands."""
    app = typer.Typer(
        name="headrace",
        help=_HELP,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def start(
        context: typer.Context,
        version: Annotated[
            bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the release.")
        ] = False,
    ) -> None:
        context.obj = session

    for work in (admin.up, admin.down, admin.doctor):
        app.command()(work)
    for command in (
        commands.deploy,
        commands.dev,
        commands.invoke,
        commands.publish,
        commands.rollback,
        commands.traffic,
        commands.functions,
        commands.versions,
        commands.delete,
        commands.logs,
        commands.invocations,
        commands.metrics,
    ):
        app.command()(command)
    tokens = typer.Typer(help="Make, list and delete tokens.", no_args_is_help=True, rich_markup_mode=None)
    tokens.command("create")(admin.create_token)
    tokens.command("list")(admin.list_tokens)
    tokens.command("delete")(admin.delete_token)
    app.add_typer(tokens, name="token")
    return app


def run(arguments: Sequence[str], session: Session) -> int:
    """Run one command; its exit code."""
    out = session.out
    try:
        build(session)(list(arguments), prog_name="headrace")
    except SystemExit as end:
        return _code(end)
    except HeadraceError as error:
        out.failure(error)
        return 2 if isinstance(error, Invalid | SettingsError) else 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        out.failure(HeadraceError(f"{what}{error.strerror or error}. See `headrace doctor`."))
        return 1
    except Exception:  # noqa: BLE001 - a mistake of ours; people get a place to look, never a traceback
        out.failure(HeadraceError(f"the command line failed. Please report it, with {_keep_traceback()}."))
        return 1
    finally:
        session.close()
    return 0


def _code(end: SystemExit) -> int:
    if end.code is None:
        return 0
    return end.code if isinstance(end.code, int) else 1


def _keep_traceback() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="headrace-failure-", suffix=".txt", delete=False) as file:
        file.write(traceback.format_exc())
    return file.name


def main() -> None:
    """The entry point."""
    session = Session(dict(os.environ), Output(sys.stdin, sys.stdout, sys.stderr))
    sys.exit(run(sys.argv[1:], session))


if __name__ == "__main__":
    main()
