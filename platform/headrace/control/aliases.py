"""Aliases: which versions a name leads to, who moved it, and moving it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.config import JsonDict

from headrace.control.auth import Caller, Guarded, Namespace, needs
from headrace.control.problems import READS_ONE, WRITES_ONE, problems
from headrace.control.schemas import (
    LARGEST_ID,
    AliasName,
    Body,
    Cursor,
    FunctionName,
    Limit,
    PageOut,
    page_of,
    timestamp,
    traffic_out,
)
from headrace.control.services import Platform
from headrace.errors import Conflict, NodeUnavailable
from headrace.model import LIVE, NAME_PATTERN, Alias, Move

router = APIRouter(route_class=Guarded, tags=["aliases"])

VersionKey = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,8}$")]
Weight = Annotated[int, Field(ge=0, le=100)]
Generation = Annotated[
    int | None,
    Field(
        ge=0,
        le=LARGEST_ID,
        description="Move only if the alias is at this generation (0: there is none); leave it out to move anyway.",
    ),
]
_MOVE: JsonDict = {"alias": "live", "generation": 8, "traffic": {"4": 100}, "previous": {"3": 100}}
_ALIAS: JsonDict = {"alias": "live", "generation": 8, "traffic": {"4": 100}, "moved_at": "2026-01-31T12:00:00Z"}
_HISTORY: JsonDict = {**_MOVE, "action": "publish", "actor": "admin", "at": "2026-01-31T12:00:00Z"}


class PublishIn(Body):
    """Lead an alias to one version."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 1, "alias": "live", "if_generation": 0}]})

    version: int = Field(ge=1, le=LARGEST_ID, description="A version whose state is `ready`.")
    alias: str = Field(LIVE, pattern=NAME_PATTERN, description="`live` is the one that plain URLs use.")
    if_generation: Generation = None


class RollbackIn(Body):
    """Lead an alias back."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"alias": "live", "to": None}]})

    alias: str = Field(LIVE, pattern=NAME_PATTERN, description="`live` is the one that plain URLs use.")
    to: int | None = Field(None, ge=1, le=LARGEST_ID, description="A version; null: the traffic before the last move.")
    if_generation: Generation = None


class TrafficIn(Body):
    """Split an alias between versions."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"traffic": {"1": 90, "2": 10}}]},
    )

    traffic: dict[VersionKey, Weight] = Field(
        min_length=1, max_length=100, description="Whole weights by version number; they sum to 100."
    )
    if_generation: Generation = None


class MoveOut(BaseModel):
    """The alias as it is after the move, and where it led before."""

    model_config = ConfigDict(json_schema_extra={"examples": [_MOVE]})

    alias: str
    generation: int = Field(description="Grows with each move: `if_generation` of the next one.")
    traffic: dict[str, int] = Field(description="Weights by version number; empty when the alias was deleted.")
    previous: dict[str, int] = Field(description="The traffic before the move; empty when the alias was new.")


class AliasOut(BaseModel):
    """An alias as it is now."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"alias": "live", "generation": 8, "traffic": {"4": 100}, "moved_at": "2026-01-31T12:00:00Z"}]
        }
    )

    alias: str
    generation: int
    traffic: dict[str, int] = Field(description="Weights by version number.")
    moved_at: datetime


class HistoryOut(MoveOut):
    """One move: who, when, how, from where to where."""

    model_config = ConfigDict(json_schema_extra={"examples": [_HISTORY]})

    action: Literal["publish", "rollback", "traffic", "delete"]
    actor: str = Field(description="Name of the token that moved it.")
    at: datetime


class AliasPage(PageOut[AliasOut]):
    """Aliases, by name."""

    model_config = page_of(_ALIAS)


class HistoryPage(PageOut[HistoryOut]):
    """Moves, newest first."""

    model_config = page_of(_HISTORY)


_BACK = RollbackIn()  # what an empty body means
_MOVES: dict[str, Any] = {
    "response_model": MoveOut,
    "dependencies": [needs("deploy")],
    "responses": problems(*WRITES_ONE, Conflict, NodeUnavailable),
    "response_description": "The alias is moved: no request accepted from now on runs what it left.",
}


@router.post("/functions/{name}/publish", summary="Publish a version", **_MOVES)
async def publish(platform: Platform, caller: Caller, name: FunctionName, namespace: Namespace, body: PublishIn) -> Any:
    """Lead an alias to one version.

    Refused with 409 while the version is not ready, and with the present state when `if_generation` is not it.
    """
    move = await platform.publisher.publish(
        namespace, name, body.version, body.alias, body.if_generation, actor=caller.name
    )
    return _move_out(move)


@router.put("/functions/{name}/aliases/{alias}", summary="Split traffic", **_MOVES)
async def put_alias(
    *, platform: Platform, caller: Caller, name: FunctionName, alias: AliasName, namespace: Namespace, body: TrafficIn
) -> Any:
    """Split an alias between versions by weight; makes the alias if it is new."""
    traffic = {int(number): weight for number, weight in body.traffic.items()}
    move = await platform.publisher.split(namespace, name, alias, traffic, body.if_generation, actor=caller.name)
    return _move_out(move)


@router.post("/functions/{name}/rollback", summary="Roll back", **_MOVES)
async def rollback(
    platform: Platform, caller: Caller, name: FunctionName, namespace: Namespace, body: RollbackIn = _BACK
) -> Any:
    """Lead an alias back to a version, or to the traffic before its last move."""
    move = await platform.publisher.rollback(
        namespace, name, body.alias, body.to, body.if_generation, actor=caller.name
    )
    return _move_out(move)


@router.get(
    "/functions/{name}/aliases",
    summary="List aliases",
    response_model=AliasPage,
    dependencies=[needs("read")],
    responses=problems(*READS_ONE),
)
async def list_aliases(platform: Platform, name: FunctionName, namespace: Namespace) -> Any:
    """All aliases of a function with their traffic."""
    aliases = await platform.aliases.list(namespace, name)
    return AliasPage(items=[_alias_out(alias) for alias in aliases], next=None)


@router.get(
    "/functions/{name}/aliases/{alias}/history",
    summary="History of an alias",
    response_model=HistoryPage,
    dependencies=[needs("read")],
    responses=problems(*READS_ONE),
)
async def alias_history(
    *,
    platform: Platform,
    name: FunctionName,
    alias: AliasName,
    namespace: Namespace,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Any:
    """Who moved the alias, when, from where to where."""
    page = await platform.aliases.history(namespace, name, alias, limit, cursor)
    items = [
        HistoryOut(**_move_out(move).model_dump(), action=move.action, actor=move.actor, at=timestamp(move.at))
        for move in page.items
    ]
    return HistoryPage(items=items, next=page.next)


@router.delete(
    "/functions/{name}/aliases/{alias}",
    summary="Delete an alias",
    response_model=MoveOut,
    dependencies=[needs("deploy")],
    responses=problems(*READS_ONE, Conflict, NodeUnavailable),
    response_description="The alias leads nowhere now.",
)
async def delete_alias(
    platform: Platform, caller: Caller, name: FunctionName, alias: AliasName, namespace: Namespace
) -> Any:
    """Delete an alias; its history stays. Without `live` the plain URL answers 404."""
    return _move_out(await platform.publisher.delete_alias(namespace, name, alias, actor=caller.name))


def _move_out(move: Move) -> MoveOut:
    return MoveOut(
        alias=move.alias,
        generation=move.generation,
        traffic=traffic_out(move.traffic),
        previous=traffic_out(move.previous),
    )


def _alias_out(alias: Alias) -> AliasOut:
    return AliasOut(
        alias=alias.name,
        generation=alias.generation,
        traffic=traffic_out(alias.traffic),
        moved_at=timestamp(alias.moved_at),
    )
