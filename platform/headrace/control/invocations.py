"""Invocations: every call that was served, and what came of it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from headrace.control.auth import Caller, Guarded, Namespace, may_see, needs
from headrace.control.logs import LineOut, line_out
from headrace.control.problems import READS_ONE, problems
from headrace.control.schemas import (
    NOT_NULL,
    TEXT_PATTERN,
    Cursor,
    FunctionName,
    InvocationId,
    Limit,
    PageOut,
    Since,
    Until,
    VersionFilter,
    page_of,
    timestamp,
)
from headrace.control.services import Platform, Services
from headrace.errors import NotFound
from headrace.model import Invocation, Outcome, Token
from headrace.store.records import InvocationFilter

router = APIRouter(route_class=Guarded, tags=["invocations"])

_EXAMPLE: JsonDict = {
    "id": "0a1b2c3d4e5f",
    "namespace": "default",
    "function": "hello",
    "version": 1,
    "instance": "i7f3k2",
    "node": "n1",
    "started_at": "2026-01-31T12:00:00.125Z",
    "queue_ms": 0.0,
    "start_ms": 3.1,
    "run_ms": 1.4,
    "duration_ms": 4.5,
    "status": 500,
    "outcome": "function_error",
    "method": "GET",
    "path": "/",
    "bytes_in": 0,
    "bytes_out": 181,
    "error": {"type": "KeyError", "message": "'name'"},
}

StatusFilter = Annotated[int | None, NOT_NULL, Query(ge=100, le=599, description="Only this HTTP status.")]
LongerThan = Annotated[
    float | None,
    NOT_NULL,
    Query(ge=0, le=1e12, allow_inf_nan=False, description="Only those that took at least this long."),
]
ErrorFilter = Annotated[
    str | None,
    NOT_NULL,
    Query(
        min_length=1,
        max_length=200,
        pattern=TEXT_PATTERN,
        description="Only this outcome, or this class of error.",
        examples=["KeyError", "timeout"],
    ),
]
OutcomeFilter = Annotated[Outcome | None, NOT_NULL, Query(description="Only this outcome.")]


class ErrorOut(BaseModel):
    """What a function raised, or why its instance could not answer."""

    type: str
    message: str


class FullErrorOut(ErrorOut):
    """An error with its stack."""

    stack: str = Field(description="The stack as the language prints it; empty when there is none.")


class InvocationOut(BaseModel):
    """One call that has ended."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    id: str = Field(description="Also in the header `Headrace-Invocation` of the answer.")
    namespace: str
    function: str
    version: int
    instance: str
    node: str
    started_at: datetime
    queue_ms: float = Field(description="Waiting for an instance.")
    start_ms: float = Field(description="Starting one; 0 for a warm call.")
    run_ms: float = Field(description="Inside the function.")
    duration_ms: float
    status: int
    outcome: Outcome
    method: str
    path: str
    bytes_in: int
    bytes_out: int
    error: ErrorOut | None


class InvocationDetailOut(InvocationOut):
    """One call with its log lines and its error."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    **_EXAMPLE,
                    "error": {
                        "type": "KeyError",
                        "message": "'name'",
                        "stack": 'Traceback (most recent call last):\n  File "handler.py", line 2, in handler\n',
                    },
                    "lines": [],
                }
            ]
        }
    )

    error: FullErrorOut | None
    lines: list[LineOut] = Field(description="What it printed and logged, oldest first.")


class InvocationPage(PageOut[InvocationOut]):
    """Invocations, newest first."""

    model_config = page_of(_EXAMPLE)


@router.get(
    "/functions/{name}/invocations",
    summary="List invocations",
    response_model=InvocationPage,
    dependencies=[needs("read")],
    responses=problems(*READS_ONE),
)
async def list_invocations(
    *,
    platform: Platform,
    name: FunctionName,
    namespace: Namespace,
    status: StatusFilter = None,
    version: VersionFilter = None,
    since: Since = None,
    until: Until = None,
    min_duration_ms: LongerThan = None,
    error: ErrorFilter = None,
    outcome: OutcomeFilter = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Any:
    """The calls of a function that all filters let through, newest first."""
    await platform.functions.get(namespace, name)
    wanted = InvocationFilter(
        status=status,
        version=version,
        since=since,
        until=until,
        min_duration_ms=min_duration_ms,
        error=error,
        outcome=outcome,
    )
    page = await platform.records.invocations(namespace, name, wanted, limit, cursor)
    return InvocationPage(items=[InvocationOut(**_fields(item)) for item in page.items], next=page.next)


@router.get(
    "/invocations/{id}",
    summary="Show an invocation",
    response_model=InvocationDetailOut,
    dependencies=[needs("read")],
    responses=problems(*READS_ONE),
)
async def get_invocation(platform: Platform, caller: Caller, id: InvocationId) -> Any:
    """One call: the record, what it printed, what it raised and where."""
    invocation = await _visible(platform, caller, id)
    lines = await platform.records.lines_of(id)
    return InvocationDetailOut(**_fields(invocation), lines=[line_out(line) for line in lines])


async def _visible(services: Services, caller: Token, id: str) -> Invocation:
    """The record. One that the token may not see is told apart in nothing from one that does not exist."""
    try:
        invocation = await services.records.invocation(id)
    except NotFound as error:
        raise _unknown(id) from error
    if not may_see(caller, invocation.namespace):
        raise _unknown(id)
    return invocation


def _unknown(id: str) -> NotFound:
    return NotFound(
        f"there is no invocation '{id}': records appear within a second after the call, and are kept as long as the "
        "retention settings say.",
        invocation=id,
    )


def _fields(invocation: Invocation) -> dict[str, Any]:
    return {
        "id": invocation.id,
        "namespace": invocation.namespace,
        "function": invocation.function,
        "version": invocation.version,
        "instance": invocation.instance,
        "node": invocation.node,
        "started_at": timestamp(invocation.started_at),
        "queue_ms": round(invocation.queue_ms, 3),
        "start_ms": round(invocation.start_ms, 3),
        "run_ms": round(invocation.run_ms, 3),
        "duration_ms": round(invocation.duration_ms, 3),
        "status": invocation.status,
        "outcome": invocation.outcome,
        "method": invocation.method,
        "path": invocation.path,
        "bytes_in": invocation.bytes_in,
        "bytes_out": invocation.bytes_out,
        "error": None if invocation.error is None else _error(invocation.error),
    }


def _error(error: dict[str, Any]) -> dict[str, str]:
    return {name: str(error.get(name, "")) for name in FullErrorOut.model_fields}
