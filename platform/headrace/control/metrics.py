"""Metrics: counts and durations of a function, and everything for Prometheus."""

from __future__ import annotations

import logging
import math
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict
from starlette.responses import PlainTextResponse

from headrace.control.auth import Guarded, Namespace, everywhere, needs
from headrace.control.problems import READS, READS_ONE, problems
from headrace.control.schemas import NOT_NULL, WINDOW_PATTERN, FunctionName, timestamp
from headrace.control.services import Platform
from headrace.errors import HeadraceError
from headrace.model import SLOT_S
from headrace.telemetry.metrics import MOST_POINTS, Family, render, summarise

logger = logging.getLogger(__name__)

router = APIRouter(route_class=Guarded, tags=["metrics"])

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SUMMARY: JsonDict = {
    "invocations": 1200,
    "errors": {"function_error": 3},
    "cold_starts": 2,
    "throttled": 0,
    "p50_ms": 1.1,
    "p95_ms": 2.4,
    "p99_ms": 9.8,
    "max_ms": 41.5,
    "concurrency": 4,
    "instances": 1,
}

Window = Annotated[
    str,
    Query(
        pattern=WINDOW_PATTERN,
        description="How far back: a number and `s`, `m`, `h` or `d`.",
        examples=["1h", "30m", "7d"],
    ),
]
Step = Annotated[
    int,
    Query(
        ge=int(SLOT_S),
        le=86_400,
        multiple_of=int(SLOT_S),
        description=f"Seconds of one point; longer ones are taken when the series would pass {MOST_POINTS} points.",
    ),
]
By = Annotated[Literal["version"] | None, NOT_NULL, Query(description="`version`: the same for each version too.")]


class SummaryOut(BaseModel):
    """What happened in a stretch of time."""

    invocations: int
    errors: dict[str, int] = Field(description="Invocations that failed, by outcome.")
    cold_starts: int = Field(description="Invocations that waited for an instance to start.")
    throttled: int = Field(description="Calls refused because queue or capacity were full.")
    p50_ms: float | None = Field(description="Half of the calls took up to this; null without any.")
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    concurrency: int = Field(description="Most calls at once.")
    instances: int = Field(description="Most instances at once.")


class PointOut(SummaryOut):
    """One step of a series."""

    at: datetime = Field(description="When the step begins.")


class VersionMetricsOut(BaseModel):
    """The metrics of one version."""

    totals: SummaryOut
    series: list[PointOut]


class MetricsOut(BaseModel):
    """The metrics of a function."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "function": "hello",
                    "namespace": "default",
                    "since": "2026-01-31T11:00:00Z",
                    "until": "2026-01-31T12:00:00Z",
                    "step_s": 60,
                    "totals": _SUMMARY,
                    "series": [{**_SUMMARY, "at": "2026-01-31T11:00:00Z"}],
                    "versions": None,
                }
            ]
        }
    )

    function: str
    namespace: str
    since: datetime
    until: datetime
    step_s: int
    totals: SummaryOut
    series: list[PointOut] = Field(description="One point per step, oldest first.")
    versions: dict[str, VersionMetricsOut] | None = Field(description="By version number; null without `by=version`.")


@router.get(
    "/functions/{name}/metrics",
    summary="Metrics of a function",
    response_model=MetricsOut,
    dependencies=[needs("read")],
    responses=problems(*READS_ONE),
)
async def function_metrics(
    *,
    platform: Platform,
    name: FunctionName,
    namespace: Namespace,
    window: Window = "1h",
    step_s: Step = 60,
    by: By = None,
) -> Any:
    """Invocations, errors by kind, cold starts, durations, concurrency: in total and as a series."""
    await platform.functions.get(namespace, name)
    until = platform.clock.now()
    length = int(window[:-1]) * _UNITS_S[window[-1]]
    since = until - length
    shortest = math.ceil((length + step_s) / MOST_POINTS / SLOT_S) * int(SLOT_S)
    step = max(step_s, shortest)
    slots = await platform.records.slots(namespace, name, since - SLOT_S, until)
    found = summarise(slots, since, until, step, by_version=by is not None)
    versions = found.get("versions")
    return MetricsOut(
        function=name,
        namespace=namespace,
        since=timestamp(since),
        until=timestamp(until),
        step_s=step,
        totals=SummaryOut(**found["totals"]),
        series=_series(found),
        versions=None if versions is None else {str(number): _of_version(versions[number]) for number in versions},
    )


def _of_version(found: dict[str, Any]) -> VersionMetricsOut:
    return VersionMetricsOut(totals=SummaryOut(**found["totals"]), series=_series(found))


def _series(found: dict[str, Any]) -> list[PointOut]:
    return [PointOut(**{**point, "at": timestamp(point["at"])}) for point in found["series"]]


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    dependencies=[needs("read"), Depends(everywhere)],
    responses=problems(*READS)
    | {
        200: {
            "description": "The Prometheus text format, version 0.0.4.",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": "headrace_jobs_waiting 0\n"}},
        }
    },
)
async def prometheus(platform: Platform) -> Any:
    """Counters, gauges and histograms of all nodes and of the control plane."""
    waiting = Family("headrace_jobs_waiting", "gauge", "Background jobs that nobody works on yet.")
    waiting.add(await platform.queue.waiting())
    text = render([waiting]) + await _of_nodes(platform)
    return PlainTextResponse(text.encode("utf-8", "replace"), media_type="text/plain; version=0.0.4")


async def _of_nodes(platform: Platform) -> str:
    try:
        return await platform.nodes.metrics()
    except HeadraceError as error:
        logger.warning("no node told its metrics: %s", error.detail)
        return ""
