"""Tokens: who may do what."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from headrace.control.auth import Caller, Guarded, everywhere, needs
from headrace.control.problems import READS, READS_ONE, WRITES, problems
from headrace.control.schemas import Body, Cursor, Limit, PageOut, TokenId, page_of, timestamp
from headrace.control.services import Platform
from headrace.errors import Conflict, NodeUnavailable
from headrace.model import NAME_PATTERN, Name, Scope, Token

router = APIRouter(route_class=Guarded, tags=["tokens"])

_YEAR_S = 365 * 86_400
_GUARD = [needs("admin"), Depends(everywhere)]
_EXAMPLE: JsonDict = {
    "id": 2,
    "name": "ci",
    "scopes": ["deploy"],
    "namespaces": [],
    "created_at": "2026-01-31T12:00:00Z",
    "expires_at": None,
}


class TokenIn(Body):
    """A token to make."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"name": "ci", "scopes": ["deploy"], "namespaces": [], "expires_in_s": 2_592_000}]
        }
    )

    name: str = Field(pattern=NAME_PATTERN, description="Shown in histories; unique.")
    scopes: list[Scope] = Field(
        min_length=1,
        max_length=4,
        description="`admin` allows everything, `deploy` changing functions and reading, `read` reading, "
        "`invoke` calling private functions.",
    )
    namespaces: list[Name] = Field(
        default_factory=list, max_length=100, description="Limits the token to these; empty: all."
    )
    expires_in_s: int | None = Field(
        None, ge=1, le=100 * _YEAR_S, description="Seconds from now until it is refused; null: never."
    )


class TokenOut(BaseModel):
    """A token, without its secret."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: int
    name: str
    scopes: list[Scope]
    namespaces: list[str]
    created_at: datetime
    expires_at: datetime | None


class NewTokenOut(TokenOut):
    """A new token. Its secret is shown here and nowhere else, ever."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_EXAMPLE, "secret": "hr_0kq3m-example-only-this-is-not-a-secret"}]}
    )

    secret: str = Field(description="Send it as `Authorization: Bearer <secret>`.")


class TokenPage(PageOut[TokenOut]):
    """Tokens, oldest first."""

    model_config = page_of(_EXAMPLE)


@router.get("/tokens", summary="List tokens", response_model=TokenPage, dependencies=_GUARD, responses=problems(*READS))
async def list_tokens(platform: Platform, limit: Limit = 50, cursor: Cursor = None) -> Any:
    """All tokens, without their secrets."""
    page = await platform.tokens.list(limit, cursor)
    return TokenPage(items=[TokenOut(**_fields(token)) for token in page.items], next=page.next)


@router.post(
    "/tokens",
    summary="Make a token",
    status_code=201,
    response_model=NewTokenOut,
    dependencies=_GUARD,
    responses=problems(*WRITES, Conflict, NodeUnavailable),
    response_description="The token with its secret.",
)
async def create_token(platform: Platform, body: TokenIn, response: Response) -> Any:
    """Make a token. Keep the secret of the answer: only its hash is stored."""
    expires_at = None if body.expires_in_s is None else platform.clock.now() + body.expires_in_s
    scopes, namespaces = list(dict.fromkeys(body.scopes)), list(dict.fromkeys(body.namespaces))
    token, secret = await platform.tokens.create(body.name, scopes, namespaces, expires_at)
    await platform.nodes.refresh_tokens()
    response.headers["Cache-Control"] = "no-store"
    return NewTokenOut(**_fields(token), secret=secret)


@router.delete(
    "/tokens/{id}",
    summary="Delete a token",
    status_code=204,
    dependencies=_GUARD,
    responses=problems(*READS_ONE, Conflict, NodeUnavailable),
    response_description="It is refused from now on.",
)
async def delete_token(platform: Platform, caller: Caller, id: TokenId) -> None:
    """Delete a token: it is refused from now on. The token of the request itself can't be deleted."""
    if id == caller.id:
        raise Conflict("this is the token that you are using; delete it with another admin token.", token=id)
    await platform.tokens.delete(id)
    await platform.nodes.refresh_tokens()


def _fields(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "scopes": list(token.scopes),
        "namespaces": list(token.namespaces),
        "created_at": timestamp(token.created_at),
        "expires_at": None if token.expires_at is None else timestamp(token.expires_at),
    }
