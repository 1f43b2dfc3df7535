"""What each command about functions takes. The work is in the module that a command imports when it runs.

Nothing heavy is imported here, so that `headrace --help` and completion answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from headrace.cli.session import Session

Outcome = Literal[
    "ok", "function_error", "timeout", "instance_died", "out_of_memory", "client_gone", "rejected", "platform_error"
]
Level = Literal["debug", "info", "warning", "error", "critical"]

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the function.", show_default=False)]
Version = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Number of the version.", show_default=False)]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Namespace of the function.")]
Alias = Annotated[str, typer.Option("--alias", help="Alias to move; `live` is what plain URLs use.")]
Generation = Annotated[
    int | None,
    typer.Option("--if-generation", min=0, help="Move only if the alias is still at this generation."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Most items to show.")]
Directory = Annotated[Path, typer.Argument(metavar="[DIR]", help="Directory with the function's code.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--file", "-f", help="Config file; default: headrace.toml or headrace.json in DIR.")
]
Config = Annotated[
    list[str] | None, typer.Option("--config", "-c", metavar="KEY=VALUE", help="One key of the config; repeatable.")
]
Env = Annotated[
    list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="Environment of the function; repeatable.")
]
FunctionName = Annotated[str | None, typer.Option("--name", help="Name of the function; default: the directory's.")]


def deploy(
    context: typer.Context,
    *,
    directory: Directory = Path(),
    name: FunctionName = None,
    namespace: Namespace = "default",
    config: Config = None,
    file: ConfigFile = None,
    env: Env = None,
    alias: Alias = "live",
    no_publish: Annotated[bool, typer.Option("--no-publish", help="Build it, but let no alias lead to it.")] = False,
    unless_published: Annotated[
        bool, typer.Option("--unless-published", help="Do nothing when the alias leads to a version already.")
    ] = False,
    json: Json = False,
) -> None:
    """Deploy a directory: upload, build, publish, print the URL."""
    from headrace.cli import deploy as work

    session: Session = context.obj
    where = None if no_publish else alias
    deployment = work.read(
        directory, name=name, namespace=namespace, file=file, pairs=config or (), env=env or (), alias=where
    )
    if unless_published and (alias_now := work.published(session.control, deployment)) is not None:
        work.report_published(session.out, deployment, alias_now, json=json)
        return
    result = work.deploy(session.out, session.control, deployment)
    if json:
        session.out.document(result)
    else:
        work.report(session.out, result)


def dev(
    context: typer.Context,
    *,
    directory: Directory = Path(),
    name: FunctionName = None,
    namespace: Namespace = "default",
    config: Config = None,
    file: ConfigFile = None,
    env: Env = None,
) -> None:
    """Deploy a directory after every change; show what it writes."""
    from headrace.cli import deploy as deploying
    from headrace.cli import dev as work

    session: Session = context.obj

    def read() -> deploying.Deployment:
        return deploying.read(
            directory, name=name, namespace=namespace, file=file, pairs=config or (), env=env or (), alias="live"
        )

    work.dev(session, read)


def invoke(
    context: typer.Context,
    *,
    target: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="Function, and which version or alias.")],
    namespace: Namespace = "default",
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="Body: JSON or text, @FILE, or - for standard input.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-X", help="HTTP method; default: GET, with a body POST.")
    ] = None,
    path: Annotated[str, typer.Option("--path", help="Path and query behind the function's URL.")] = "",
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="NAME:VALUE", help="Request header; repeatable.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show id, version and timings.")] = False,
) -> None:
    """Call a function over HTTP and print its answer."""
    from headrace.cli import invoke as work

    session: Session = context.obj
    work.invoke(
        session,
        target,
        namespace,
        data=data,
        method=method,
        path=path,
        headers=header or (),
        verbose=verbose,
    )


def publish(
    context: typer.Context,
    *,
    name: Name,
    version: Version,
    alias: Alias = "live",
    if_generation: Generation = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Lead an alias to a version."""
    from headrace.cli import releases

    session: Session = context.obj
    body = {"version": version, "alias": alias, "if_generation": if_generation}
    releases.move(session, "POST", name, "publish", namespace=namespace, body=body, json=json)


def rollback(
    context: typer.Context,
    *,
    name: Name,
    to: Annotated[int | None, typer.Option("--to", min=1, help="Version; default: the traffic before.")] = None,
    alias: Alias = "live",
    if_generation: Generation = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Lead an alias back to where it led before its last move."""
    from headrace.cli import releases

    session: Session = context.obj
    body = {"alias": alias, "to": to, "if_generation": if_generation}
    releases.move(session, "POST", name, "rollback", namespace=namespace, body=body, json=json)


def traffic(
    context: typer.Context,
    *,
    name: Name,
    weights: Annotated[list[str], typer.Argument(metavar="VERSION=WEIGHT...", help="Weights; they sum to 100.")],
    alias: Alias = "live",
    if_generation: Generation = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Split an alias between versions: traffic hello 1=90 2=10"""
    from headrace.cli import releases

    session: Session = context.obj
    body = {"traffic": releases.parse_traffic(weights), "if_generation": if_generation}
    releases.move(session, "PUT", name, releases.alias_path(alias), namespace=namespace, body=body, json=json)


def functions(
    context: typer.Context,
    *,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one with its aliases.")] = None,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Namespace; * lists all.")] = "default",
    limit: Limit = 1000,
    json: Json = False,
) -> None:
    """List functions, or show one."""
    from headrace.cli import releases

    session: Session = context.obj
    if name is None:
        releases.functions(session, namespace, limit, json=json)
    else:
        releases.function(session, name, namespace, json=json)


def versions(
    context: typer.Context,
    *,
    name: Name,
    namespace: Namespace = "default",
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """List the versions of a function, newest first."""
    from headrace.cli import releases

    session: Session = context.obj
    releases.versions(session, name, namespace, limit, json=json)


def delete(
    context: typer.Context,
    *,
    name: Name,
    version: Annotated[int | None, typer.Argument(metavar="[VERSION]", min=1, help="Only this version.")] = None,
    namespace: Namespace = "default",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a function with all of it, or one version."""
    from headrace.cli import releases

    session: Session = context.obj
    releases.delete(session, name, version, namespace, yes=yes)


def logs(
    context: typer.Context,
    *,
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with lines as they come.")] = False,
    since: Annotated[str | None, typer.Option("--since", help="10m, 2h, 7d back, or an RFC 3339 time.")] = None,
    last: Annotated[int, typer.Option("--last", "-l", min=1, max=10_000, help="Lines to show without --since.")] = 100,
    level: Annotated[
        Level | None, typer.Option("--level", case_sensitive=False, help="Lines of this level and above.")
    ] = None,
    version: Annotated[int | None, typer.Option("--version", min=1, help="Lines of this version.")] = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Show what a function wrote."""
    from headrace.cli import logs as work

    session: Session = context.obj
    work.logs(
        session,
        name,
        since=since,
        last=last,
        follows=follow,
        json=json,
        level=level.upper() if level else None,
        version=version,
        namespace=namespace,
    )


def invocations(
    context: typer.Context,
    *,
    name_or_id: Annotated[str, typer.Argument(metavar="NAME|ID", help="Function, or id of one invocation.")],
    status: Annotated[int | None, typer.Option("--status", min=100, max=599, help="Only this HTTP status.")] = None,
    version: Annotated[int | None, typer.Option("--version", min=1, help="Only this version.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="10m, 2h, 7d back, or an RFC 3339 time.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="The same, for the end.")] = None,
    min_ms: Annotated[float | None, typer.Option("--min-ms", min=0, help="Only those that took this long.")] = None,
    error: Annotated[str | None, typer.Option("--error", help="Only this class of error or outcome.")] = None,
    outcome: Annotated[Outcome | None, typer.Option("--outcome", help="Only this outcome.")] = None,
    limit: Limit = 20,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """List the calls of a function, or show one with its stack."""
    from headrace.cli import invocations as work

    session: Session = context.obj
    filters = {
        "status": status,
        "version": version,
        "since": since,
        "until": until,
        "min_duration_ms": min_ms,
        "error": error,
        "outcome": outcome,
    }
    work.invocations(session, name_or_id, namespace, limit, filters, json=json)


def metrics(
    context: typer.Context,
    *,
    name: Name,
    window: Annotated[str, typer.Option("--window", "-w", help="How far back: 30m, 1h, 7d.")] = "1h",
    by_version: Annotated[bool, typer.Option("--by-version", help="Each version too.")] = False,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Show how a function did."""
    from headrace.cli import metrics as work

    session: Session = context.obj
    work.metrics(session, name, namespace, window, by_version=by_version, json=json)
