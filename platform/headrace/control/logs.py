"""Logs: what functions wrote."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

from headrace.control import streams
from headrace.control.auth import Guarded, Namespace, authenticate, needs
from headrace.control.problems import READS_ONE, problems
from headrace.control.schemas import (
    NOT_NULL,
    Follow,
    FunctionName,
    LastEventId,
    PageOut,
    Since,
    VersionFilter,
    page_of,
    timestamp,
)
from headrace.control.services import Platform, Services
from headrace.errors import NoCapacity
from headrace.model import LogLine

router = APIRouter(route_class=Guarded, tags=["logs"])

_READ_LINES = 1000  # most lines that a follower is sent at once
_EXAMPLE: JsonDict = {
    "seq": 4711,
    "at": "2026-01-31T12:00:00.125Z",
    "function": "hello",
    "namespace": "default",
    "version": 1,
    "invocation": "0a1b2c3d4e5f",
    "instance": "i7f3k2",
    "stream": "stdout",
    "level": "INFO",
    "text": "hello",
}


def _upper(text: Any) -> Any:
    return text.upper() if isinstance(text, str) else text


Level = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] | None,
    BeforeValidator(_upper),
    NOT_NULL,
    Query(description="Only lines of this level and above; in small letters too."),
]
LineLimit = Annotated[
    int, Query(ge=1, le=10_000, description="Most lines to answer; with `follow`, before those that come later.")
]
After = Annotated[
    str | None,
    NOT_NULL,
    Query(pattern=r"^[0-9]{1,15}$", description="`next` of the page before: lines after it.", examples=["4711"]),
]


class LineOut(BaseModel):
    """One line."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    seq: int = Field(description="Its place in the log; grows.")
    at: datetime
    namespace: str
    function: str
    version: int
    invocation: str = Field(description="Empty for what was written outside any call, such as while loading.")
    instance: str
    stream: Literal["stdout", "stderr", "log", "platform"]
    level: str = Field(description="DEBUG, INFO, WARNING, ERROR or CRITICAL.")
    text: str


class LinePage(PageOut[LineOut]):
    """Lines, oldest first; `next` is there whenever there are lines, because more may come."""

    model_config = page_of(_EXAMPLE)


_LINES_OR_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": LinePage,
        "description": "Lines, oldest first; with `follow=true` server-sent events, each with one line as JSON.",
        "content": {
            streams.MEDIA_TYPE: {
                "schema": streams.event_schema(
                    {
                        "type": "string",
                        "contentMediaType": "application/json",
                        "contentSchema": {"$ref": "#/components/schemas/LineOut"},
                    }
                ),
                "example": f"data: {LineOut.model_validate(_EXAMPLE).model_dump_json()}\nid: 4711\n\n",
            }
        },
    }
}


def line_out(line: LogLine) -> LineOut:
    return LineOut(
        seq=line.seq,
        at=timestamp(line.at),
        namespace=line.namespace,
        function=line.function,
        version=line.version,
        invocation=line.invocation,
        instance=line.instance,
        stream=line.stream,
        level=line.level,
        text=line.text,
    )


@router.get(
    "/functions/{name}/logs",
    summary="Read logs",
    response_model=LinePage,
    dependencies=[needs("read")],
    responses=problems(*READS_ONE, NoCapacity) | _LINES_OR_EVENTS,
)
async def read_logs(
    *,
    platform: Platform,
    request: Request,
    name: FunctionName,
    namespace: Namespace,
    since: Since = None,
    level: Level = None,
    version: VersionFilter = None,
    follow: Follow = False,
    limit: LineLimit = 1000,
    cursor: After = None,
    last_event_id: LastEventId = 0,
) -> Any:
    """What a function wrote: the last lines, or those since a time or after a cursor.

    With `follow` the lines that come later too. The id of an event is the place in the log: a follower that lost
    its connection sends the last one as `Last-Event-ID` and misses nothing.
    """
    await platform.functions.get(namespace, name)
    after = max(int(cursor or 0), last_event_id)
    reader = _Log(platform, namespace, name, since, after, level, version, limit)
    if not follow:
        lines = await reader.lines()
        return LinePage(items=[line_out(line) for line in lines], next=str(lines[-1].seq) if lines else cursor)

    async def still_allowed() -> None:
        await authenticate(request, platform)
        await platform.functions.get(namespace, name)

    return streams.follow(platform, reader.read, still_allowed)


@dataclass(slots=True)
class _Log:
    """The place of one reader in the log of one function."""

    services: Services
    namespace: str
    name: str
    since: float | None
    after: int
    level: str | None
    version: int | None
    limit: int

    async def lines(self) -> list[LogLine]:
        """The next lines; the first time, without a place or a time, the last ones."""
        lines = await self.services.records.logs(
            self.namespace,
            self.name,
            since=self.since,
            after_seq=self.after,
            level=self.level,
            version=self.version,
            limit=self.limit,
        )
        if lines:
            self.after = lines[-1].seq
        elif self.since is None:
            self.since = 0.0  # an empty log: whatever comes now is to be read from its beginning
        return lines

    async def read(self) -> tuple[list[streams.Event], bool]:
        """For a follower: `limit` is about the first lines only."""
        lines, asked = await self.lines(), self.limit
        self.limit = _READ_LINES
        return [streams.Event(line_out(line).model_dump_json(), id=line.seq) for line in lines], len(lines) == asked
