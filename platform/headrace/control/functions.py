"""Functions: names with settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.config import JsonDict

from headrace.control.auth import Guarded, Namespace, check_namespace, needs
from headrace.control.problems import READS, READS_ONE, WRITES, problems
from headrace.control.schemas import (
    TEXT_PATTERN,
    Body,
    Cursor,
    FunctionName,
    Limit,
    PageOut,
    page_of,
    timestamp,
    traffic_out,
)
from headrace.control.services import Platform, Services
from headrace.errors import NodeUnavailable
from headrace.model import (
    DEFAULT_NAMESPACE,
    LIVE,
    NAME_PATTERN,
    Access,
    Alias,
    Balancing,
    Function,
    InstanceState,
    Invocation,
    Outcome,
    Token,
)

router = APIRouter(route_class=Guarded, tags=["functions"])

ALL = "*"
_STARTING = (InstanceState.REQUESTED, InstanceState.CREATING, InstanceState.STARTING, InstanceState.LOADING)
_EXAMPLE: JsonDict = {"description": "Makes thumbnails.", "access": "private", "labels": {"team": "images"}}
_SHOWN: JsonDict = {
    "name": "thumbnail",
    "namespace": "default",
    "description": "Makes thumbnails.",
    "access": "public",
    "balancing": "least-loaded",
    "sticky": False,
    "labels": {"team": "images"},
    "created_at": "2026-01-31T12:00:00Z",
    "updated_at": "2026-01-31T12:00:00Z",
    "url": "http://127.0.0.1:7780/fn/thumbnail",
    "live_version": 3,
    "live": {"generation": 4, "traffic": {"3": 100}, "moved_at": "2026-01-31T12:05:00Z"},
    "last_error": None,
    "instances": {"ready": 1, "starting": 0, "draining": 0, "in_flight": 0},
}

LabelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[str, StringConstraints(max_length=200, pattern=TEXT_PATTERN)]


class FunctionIn(Body):
    """Settings of a function. What is left out stays as it is, or takes its default in a new function."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    description: str = Field("", max_length=2000, pattern=TEXT_PATTERN, description="What it is for.")
    access: Access = Field("public", description="`private`: callers need a token with the scope `invoke`.")
    balancing: Balancing = Field("least-loaded", description="How an instance is chosen for a call.")
    sticky: bool = Field(False, description="Under a split, each caller stays with one version.")
    labels: dict[LabelName, LabelValue] = Field(
        default_factory=dict, max_length=64, description="Anything that helps you to sort functions.", examples=[{}]
    )


class LiveOut(BaseModel):
    """Where the plain URL leads."""

    generation: int = Field(description="Grows with each move of the alias.")
    traffic: dict[str, int] = Field(description="Weights by version number.")
    moved_at: datetime


class LastErrorOut(BaseModel):
    """The newest invocation that failed."""

    invocation: str
    at: datetime
    version: int
    outcome: Outcome
    type: str | None = Field(description="Class of the error, when the function raised one.")
    message: str | None


class InstancesOut(BaseModel):
    """Instances of all versions on all nodes, now."""

    ready: int
    starting: int = Field(description="Not ready yet: being made, starting, or loading the version.")
    draining: int
    in_flight: int = Field(description="Calls running in them.")


class FunctionOut(BaseModel):
    """A function as it is now."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SHOWN]})

    name: str
    namespace: str
    description: str
    access: Access
    balancing: Balancing
    sticky: bool
    labels: dict[str, str]
    created_at: datetime
    updated_at: datetime
    url: str = Field(description="Where the function is called.")
    live_version: int | None = Field(description="The version with most traffic; null: nothing is published.")
    live: LiveOut | None
    last_error: LastErrorOut | None
    instances: InstancesOut


class FunctionPage(PageOut[FunctionOut]):
    """Functions, by namespace and name."""

    model_config = page_of(_SHOWN)


async def _namespaces(
    request: Request,
    namespace: Annotated[
        str,
        Query(
            pattern=rf"{NAME_PATTERN}|^\*$",
            description="Namespace of the functions; `*`: all that the token may see.",
            examples=[DEFAULT_NAMESPACE],
        ),
    ] = DEFAULT_NAMESPACE,
) -> list[str] | None:
    token: Token = request.state.token
    if namespace == ALL:
        return list(token.namespaces) or None
    check_namespace(token, namespace)
    return [namespace]


@router.get(
    "/functions",
    summary="List functions",
    response_model=FunctionPage,
    dependencies=[needs("read")],
    responses=problems(*READS),
)
async def list_functions(
    platform: Platform,
    namespaces: Annotated[list[str] | None, Depends(_namespaces)],
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Any:
    """Functions with their URL, the version that is live, their last error and their instances."""
    page = await platform.functions.list(namespaces, limit, cursor)
    return FunctionPage(items=await _shown(platform, page.items), next=page.next)


@router.put(
    "/functions/{name}",
    summary="Create or update a function",
    response_model=FunctionOut,
    dependencies=[needs("deploy")],
    responses=problems(*WRITES, NodeUnavailable) | {201: {"model": FunctionOut, "description": "The function is new."}},
    response_description="The function existed and has these settings now.",
)
async def put_function(
    platform: Platform, name: FunctionName, namespace: Namespace, body: FunctionIn, response: Response
) -> Any:
    """Create the function, or change the settings that the body names and no others."""
    changes = body.model_dump(exclude_unset=True)
    function, created = await platform.releases.put_function(namespace, name, changes)
    if created:
        response.status_code = 201
        return _out(platform, function, None, None, [])
    return (await _shown(platform, [function]))[0]


@router.get(
    "/functions/{name}",
    summary="Show a function",
    response_model=FunctionOut,
    dependencies=[needs("read")],
    responses=problems(*READS_ONE),
)
async def get_function(platform: Platform, name: FunctionName, namespace: Namespace) -> Any:
    """One function with its URL, the version that is live, its last error and its instances."""
    function = await platform.functions.get(namespace, name)
    return (await _shown(platform, [function]))[0]


@router.delete(
    "/functions/{name}",
    summary="Delete a function",
    status_code=204,
    dependencies=[needs("deploy")],
    responses=problems(*READS_ONE, NodeUnavailable),
    response_description="It is gone.",
)
async def delete_function(platform: Platform, name: FunctionName, namespace: Namespace) -> None:
    """Delete the function with its versions, aliases, logs and invocations. Its instances stop."""
    await platform.releases.delete_function(namespace, name)


async def _shown(services: Services, functions: Sequence[Function]) -> list[FunctionOut]:
    """Functions with what belongs to them, in the same few queries for any number of them."""
    ids = [function.id for function in functions]
    live = await services.aliases.named(LIVE, ids)
    failed = await services.records.last_errors(ids)
    statuses = await services.statuses.get()
    return [_out(services, item, live.get(item.id), failed.get(item.id), statuses) for item in functions]


def _out(
    services: Services,
    function: Function,
    live: Alias | None,
    failed: Invocation | None,
    statuses: list[dict[str, Any]],
) -> FunctionOut:
    return FunctionOut(
        name=function.name,
        namespace=function.namespace,
        description=function.description,
        access=function.access,
        balancing=function.balancing,
        sticky=function.sticky,
        labels=function.labels,
        created_at=timestamp(function.created_at),
        updated_at=timestamp(function.updated_at),
        url=url_of(services, function),
        live_version=max(live.traffic, key=lambda number: live.traffic[number]) if live else None,
        live=_live_out(live) if live else None,
        last_error=_last_error_out(failed) if failed else None,
        instances=_instances_out(function, statuses),
    )


def url_of(services: Services, function: Function) -> str:
    place = "" if function.namespace == DEFAULT_NAMESPACE else f".{function.namespace}"
    return f"{services.settings.functions}/fn/{function.name}{place}"


def _live_out(alias: Alias) -> LiveOut:
    return LiveOut(generation=alias.generation, traffic=traffic_out(alias.traffic), moved_at=timestamp(alias.moved_at))


def _last_error_out(invocation: Invocation) -> LastErrorOut:
    error = invocation.error or {}
    return LastErrorOut(
        invocation=invocation.id,
        at=timestamp(invocation.started_at),
        version=invocation.version,
        outcome=invocation.outcome,
        type=error.get("type"),
        message=error.get("message"),
    )


def _instances_out(function: Function, statuses: list[dict[str, Any]]) -> InstancesOut:
    own = [
        instance
        for status in statuses
        for instance in status.get("instances", [])
        if (instance.get("namespace"), instance.get("function")) == (function.namespace, function.name)
    ]
    states = Counter(instance.get("state") for instance in own)
    return InstancesOut(
        ready=states[InstanceState.READY],
        starting=sum(states[state] for state in _STARTING),
        draining=states[InstanceState.DRAINING],
        in_flight=sum(instance.get("in_flight", 0) for instance in own),
    )
