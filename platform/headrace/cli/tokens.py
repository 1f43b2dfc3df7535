"""`headrace token`: who may do what."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from headrace.cli import times
from headrace.cli.session import Session
from headrace.errors import NotFound
from headrace.model import check_name

_MOST = 1000


def create(
    session: Session, name: str, *, scopes: Sequence[str], namespaces: Sequence[str], expires: str | None, json: bool
) -> None:
    """Make a token; its secret is all that goes to stdout."""
    body: dict[str, Any] = {"name": check_name(name), "scopes": list(scopes), "namespaces": list(namespaces)}
    if expires is not None:
        body["expires_in_s"] = max(int(times.seconds(expires)), 1)
    made = session.control.send("POST", "/tokens", body)
    if json:
        session.out.document(made)
        return
    session.out.note(f"Token {made['name']} (id {made['id']}), shown only this once:")
    session.out.line(made["secret"], "bold")


def list_tokens(session: Session, *, json: bool) -> None:
    found = session.control.items("/tokens", _MOST)
    if json:
        session.out.document(found)
        return
    now = datetime.now(UTC)
    rows = [
        [
            str(item["id"]),
            item["name"],
            ", ".join(item["scopes"]),
            ", ".join(item["namespaces"]) or "all",
            times.ago(item["created_at"], now),
            item["expires_at"] or "never",
        ]
        for item in found["items"]
    ]
    session.out.table(["id", "name", "scopes", "namespaces", "made", "expires"], rows, right=["id"])


def delete(session: Session, name_or_id: str) -> None:
    for item in session.control.items("/tokens", _MOST)["items"]:
        if name_or_id in (item["name"], str(item["id"])):
            session.control.send("DELETE", f"/tokens/{item['id']}")
            session.out.line(f"Token {item['name']} is deleted: it is refused from now on.")
            return
    raise NotFound(f"there is no token {name_or_id[:80]!r}: see `headrace token list`.")
