"""Tokens. Only the SHA-256 of a secret is stored: secrets are long and random, so a slow hash would add nothing."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Any, get_args

from sqlalchemy import Row, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from headrace.clock import Clock
from headrace.errors import Conflict, Invalid, NotFound
from headrace.model import Page, Scope, Token, check_name
from headrace.store import paging, tables
from headrace.store.sql import Database, upsert

_SECRET_BYTES = 32


class Tokens:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def create(
        self, name: str, scopes: Sequence[Scope], namespaces: Sequence[str], expires_at: float | None
    ) -> tuple[Token, str]:
        """A new token and its secret, which can't be read again. Raises `Conflict` for a name in use."""
        check_name(name, "token name")
        _check_scopes(scopes)
        for namespace in namespaces:
            check_name(namespace, "namespace")
        secret = "hr_" + secrets.token_urlsafe(_SECRET_BYTES)
        async with self._database.begin() as connection:
            made = await connection.execute(
                upsert(connection, tables.tokens)
                .values(
                    name=name,
                    hash=_hash(secret),
                    scopes=list(scopes),
                    namespaces=list(namespaces),
                    created_at=self._clock.now(),
                    expires_at=expires_at,
                )
                .on_conflict_do_nothing(index_elements=["name"])
                .returning(tables.tokens)
            )
            row = made.first()
        if row is None:
            raise Conflict(f"There is a token {name} already: choose another name, or delete it first.", token=name)
        return _make(row), secret

    async def find(self, secret: str) -> Token | None:
        """The token with this secret; None when it is unknown or has expired."""
        async with self._database.connect() as connection:
            rows = await self._valid(connection, tables.tokens.c.hash == _hash(secret))
        return _make(rows[0]) if rows else None

    async def hashes(self) -> dict[str, Token]:
        """SHA-256 hex of the secret to token, those that have not expired."""
        async with self._database.connect() as connection:
            return {row.hash: _make(row) for row in await self._valid(connection)}

    async def _valid(self, connection: AsyncConnection, *conditions: Any) -> Sequence[Row[Any]]:
        expires_at = tables.tokens.c.expires_at
        query = select(tables.tokens).where(or_(expires_at.is_(None), expires_at > self._clock.now()), *conditions)
        return (await connection.execute(query)).all()

    async def list(self, limit: int, cursor: str | None) -> Page[Token]:
        """All of them, expired ones too, oldest first."""
        c = tables.tokens.c
        query = select(tables.tokens).order_by(c.id).limit(paging.check_limit(limit) + 1)
        if cursor is not None:
            query = query.where(c.id > paging.decode(cursor, int)[0])
        async with self._database.connect() as connection:
            rows = (await connection.execute(query)).all()
        return paging.page(rows, limit, _make, lambda row: (row.id,))

    async def delete(self, id: int) -> None:
        """Raises `NotFound`."""
        gone = 0
        if 0 < id <= paging.LARGEST:
            async with self._database.begin() as connection:
                gone = (await connection.execute(delete(tables.tokens).where(tables.tokens.c.id == id))).rowcount
        if gone == 0:
            raise NotFound(f"There is no token with id {id}: look at the list of tokens.", token_id=id)


def _check_scopes(scopes: Sequence[str]) -> None:
    known = get_args(Scope)
    if not scopes or not set(scopes) <= set(known):
        raise Invalid(f"scopes {list(scopes)} are not valid: use one or more of {', '.join(known)}.")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _make(row: Row[Any]) -> Token:
    return Token(row.id, row.name, tuple(row.scopes), tuple(row.namespaces), row.created_at, row.expires_at)
