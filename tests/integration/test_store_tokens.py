"""Tokens: only a hash is kept; names are unique; expiry counts."""

from __future__ import annotations

import asyncio
import hashlib
import re

import pytest
from sqlalchemy import select

from headrace.errors import Conflict, Invalid, NotFound
from headrace.model import Token
from headrace.store import tables
from store_kit import START, Store


async def test_a_token_is_found_by_its_secret(store: Store) -> None:
    token, secret = await store.tokens.create("ci", ["deploy", "read"], ["team-a"], None)
    assert re.fullmatch(r"hr_[A-Za-z0-9_-]{43}", secret)
    assert token == Token(token.id, "ci", ("deploy", "read"), ("team-a",), START, None)
    assert await store.tokens.find(secret) == token
    for wrong in (secret[:-1], secret + "x", "", "hr_", "\0", "\ud800", "ä"):
        assert await store.tokens.find(wrong) is None


async def test_the_secret_is_not_stored(store: Store) -> None:
    _, secret = await store.tokens.create("ci", ["admin"], [], None)
    async with store.database.connect() as connection:
        (row,) = (await connection.execute(select(tables.tokens))).all()
    assert secret not in str(row)
    assert row.hash == hashlib.sha256(secret.encode()).hexdigest()


async def test_secrets_differ(store: Store) -> None:
    made = [await store.tokens.create(f"t{n}", ["read"], [], None) for n in range(3)]
    assert len({secret for _, secret in made}) == 3


async def test_an_expired_token_is_not_found(store: Store) -> None:
    token, secret = await store.tokens.create("brief", ["read"], [], START + 10)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    store.clock.time = START + 9.9
    assert await store.tokens.find(secret) == token
    assert await store.tokens.hashes() == {digest: token}
    store.clock.time = START + 10
    assert await store.tokens.find(secret) is None
    assert await store.tokens.hashes() == {}
    assert (await store.tokens.list(10, None)).items == [token]


async def test_a_name_is_used_once(store: Store) -> None:
    answers = await asyncio.gather(
        *(store.tokens.create("ci", ["read"], [], None) for _ in range(5)), return_exceptions=True
    )
    assert len([answer for answer in answers if isinstance(answer, Conflict)]) == 4
    assert len((await store.tokens.list(10, None)).items) == 1


@pytest.mark.parametrize(
    ("name", "scopes", "namespaces"),
    [("CI", ["read"], []), ("ci", [], []), ("ci", ["root"], []), ("ci", ["read", "root"], []), ("ci", ["read"], ["A"])],
)
async def test_bad_input_makes_no_token(store: Store, name: str, scopes: list[str], namespaces: list[str]) -> None:
    with pytest.raises(Invalid):
        await store.tokens.create(name, scopes, namespaces, None)  # type: ignore[arg-type]
    assert await store.count(tables.tokens) == 0


async def test_a_deleted_token_is_gone_and_its_name_free(store: Store) -> None:
    token, secret = await store.tokens.create("ci", ["read"], [], None)
    await store.tokens.delete(token.id)
    assert await store.tokens.find(secret) is None
    for unknown in (token.id, -1, 2**70):
        with pytest.raises(NotFound):
            await store.tokens.delete(unknown)
    again, _ = await store.tokens.create("ci", ["read"], [], None)
    assert again.id > token.id


async def test_list_pages_are_stable_under_inserts_and_deletes(store: Store) -> None:
    made = [(await store.tokens.create(f"t{n}", ["read"], [], None))[0] for n in range(4)]
    first = await store.tokens.list(2, None)
    await store.tokens.delete(made[1].id)
    await store.tokens.create("late", ["read"], [], None)
    rest = await store.tokens.list(10, first.next)
    assert [token.name for token in rest.items] == ["t2", "t3", "late"]
    assert rest.next is None
