"""Which version answers: `publish`, `rollback`, `traffic`; and the lists of functions and versions, and `delete`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from headrace.cli import times
from headrace.cli.output import bytes_text, traffic_text
from headrace.cli.session import Session
from headrace.errors import Invalid
from headrace.model import LIVE, check_name, check_traffic

_WEIGHT = re.compile(r"([1-9][0-9]{0,8})=([0-9]{1,3})")


def parse_traffic(pairs: Sequence[str]) -> dict[str, int]:
    """`["1=90", "2=10"]` as weights by version; raises `Invalid` unless they are whole and sum to 100."""
    traffic: dict[int, int] = {}
    for pair in pairs:
        found = _WEIGHT.fullmatch(pair)
        if found is None:
            raise Invalid(f"{pair!r} is no weight: write VERSION=WEIGHT, for example 1=90 2=10.")
        if int(found[1]) in traffic:
            raise Invalid(f"version {found[1]} has two weights: give it one.")
        traffic[int(found[1])] = int(found[2])
    return {str(number): weight for number, weight in check_traffic(traffic).items()}


def alias_path(alias: str) -> str:
    return f"aliases/{check_name(alias, '--alias')}"


def move(
    session: Session, method: str, name: str, what: str, *, namespace: str, body: Mapping[str, Any], json: bool
) -> None:
    """Send one move of an alias and say where it leads now."""
    done = session.control.send(method, f"{_path(name)}/{what}", body, namespace=namespace)
    if json:
        session.out.document(done)
        return
    moved = name if done["alias"] == LIVE else f"{name}@{done['alias']}"
    before = traffic_text(done["previous"]) if done["previous"] else "nothing"
    now = traffic_text(done["traffic"])
    session.out.line(f"{moved} is version {now} now (before: {before}; generation {done['generation']}).", "bold green")


def delete(session: Session, name: str, version: int | None, namespace: str, *, yes: bool) -> None:
    """Delete one version, or the function with all that belongs to it. Asks first on a terminal, else needs `yes`."""
    path = _path(name) if version is None else f"{_path(name)}/versions/{version}"
    what = f"{name} with all its versions, logs and records" if version is None else f"version {version} of {name}"
    out, control = session.out, session.control
    control.get(path, namespace=namespace)
    if not yes and not out.confirm(f"Delete {what}?"):
        raise SystemExit(1)
    control.send("DELETE", path, namespace=namespace)
    out.line(f"Deleted {what}.")


def functions(session: Session, namespace: str, limit: int, *, json: bool) -> None:
    out = session.out
    found = session.control.items("/functions", limit, namespace=namespace)
    if json:
        out.document(found)
        return
    if not found["items"]:
        out.note("No functions yet: deploy one with `headrace deploy DIR`.")
        return
    now = datetime.now(UTC)
    rows = [
        [
            _spelled(item),
            traffic_text(item["live"]["traffic"]) if item["live"] else "-",
            str(item["instances"]["ready"]),
            times.ago(item["updated_at"], now),
            _last_error(item["last_error"], now),
            item["url"],
        ]
        for item in found["items"]
    ]
    out.table(["name", "live", "instances", "updated", "last error", "url"], rows, right=["instances"])


def function(session: Session, name: str, namespace: str, *, json: bool) -> None:
    """One function with its aliases."""
    out, control = session.out, session.control
    found = control.get(_path(name), namespace=namespace)
    aliases = control.get(f"{_path(name)}/aliases", namespace=namespace)["items"]
    if json:
        out.document({**found, "aliases": aliases})
        return
    now = datetime.now(UTC)
    counts = found["instances"]
    rows = [
        ["name", _spelled(found)],
        ["url", found["url"]],
        ["description", found["description"] or "-"],
        ["access", found["access"]],
        ["balancing", found["balancing"] + (", sticky" if found["sticky"] else "")],
        ["labels", ", ".join(f"{key}={value}" for key, value in found["labels"].items()) or "-"],
        ["updated", times.ago(found["updated_at"], now)],
        ["instances", ", ".join(f"{count} {state}" for state, count in counts.items())],
        ["last error", _last_error(found["last_error"], now)],
    ]
    if found["last_error"]:
        rows.append(["", f"headrace invocations {found['last_error']['invocation']}"])
    for alias in aliases:
        moved = (
            f"{traffic_text(alias['traffic'])} (generation {alias['generation']}, {times.ago(alias['moved_at'], now)})"
        )
        rows.append([f"@{alias['alias']}", moved])
    out.table(["setting", "value"], rows)


def _spelled(item: dict[str, Any]) -> str:
    return item["name"] if item["namespace"] == "default" else f"{item['name']}.{item['namespace']}"


def _last_error(error: dict[str, Any] | None, now: datetime) -> str:
    if error is None:
        return "-"
    return f"{error['type'] or error['outcome']}, {times.ago(error['at'], now)}"


def versions(session: Session, name: str, namespace: str, limit: int, *, json: bool) -> None:
    out, control = session.out, session.control
    found = control.items(f"{_path(name)}/versions", limit, namespace=namespace)
    if json:
        out.document(found)
        return
    aliases = control.get(f"{_path(name)}/aliases", namespace=namespace)["items"]
    now = datetime.now(UTC)
    rows = [
        [
            str(item["number"]),
            item["state"],
            _aliases_of(aliases, str(item["number"])),
            item["config"]["runtime"],
            bytes_text(item["size_bytes"]),
            times.ago(item["created_at"], now),
            item["digest"][:12],
            _shortly(item["reason"]),
        ]
        for item in found["items"]
    ]
    columns = ["version", "state", "aliases", "runtime", "size", "made", "digest", "reason"]
    out.table(columns, rows, right=["version", "size"])


def _aliases_of(aliases: list[dict[str, Any]], number: str) -> str:
    shares = [(alias["alias"], alias["traffic"][number]) for alias in aliases if number in alias["traffic"]]
    return ", ".join(name if weight == 100 else f"{name} {weight} %" for name, weight in shares) or "-"


def _shortly(reason: str | None) -> str:
    first = (reason or "").splitlines()[:1]
    return first[0][:100] if first else "-"


def _path(name: str) -> str:
    return f"/functions/{check_name(name)}"
