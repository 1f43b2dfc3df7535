"""Words that several nouns of the API share: parameters, times, lists."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Header, Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.config import JsonDict
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from headrace.model import NAME_PATTERN

LARGEST_ID = 2_147_483_647
TEXT_PATTERN = r"^[^\x00]*$"
WINDOW_PATTERN = r"^[1-9][0-9]{0,4}[smhd]$"
_RFC3339 = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})[Tt](\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,18}))?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)

T = TypeVar("T")


class Body(BaseModel):
    """A request body: no unknown keys, no guessing ("3" is not 3)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def page_of(example: JsonDict) -> ConfigDict:
    """The config of a page, with an example of one item."""
    return ConfigDict(json_schema_extra={"examples": [{"items": [example], "next": None}]})


class NotNull:
    """For an optional parameter: it is left out, never sent as null, and its schema says so."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler(schema)
        kinds = [kind for kind in described.pop("anyOf") if kind != {"type": "null"}]
        assert len(kinds) == 1
        return {**kinds[0], **described}


NOT_NULL = NotNull()


def timestamp(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def parse_time(text: Any) -> float:
    """Seconds since the epoch of an RFC 3339 time."""
    found = _RFC3339.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError("write it as an RFC 3339 time such as 2026-01-31T12:00:00Z ('+' in a URL is %2B)")
    *numbers, fraction, zone = found.groups()
    year, month, day, hour, minute, second = map(int, numbers)
    zone = zone.upper().replace("Z", "+00:00")
    try:  # second 60 is a leap second; Python has none
        at = datetime.fromisoformat(
            f"{max(year, 1):04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{min(second, 59):02}{zone}"
        )
    except ValueError as error:
        raise ValueError(f"there is no such time: {error}") from None
    return (at - _EPOCH).total_seconds() + float(f"0.{fraction or 0}")


def _parse_flag(text: Any) -> Any:
    if text in (True, "true", "1"):
        return True
    if text in (False, "false", "0"):
        return False
    raise ValueError("write true or false, 1 or 0")


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

FunctionName = Annotated[str, Path(pattern=NAME_PATTERN, description="Name of the function.", examples=["hello"])]
AliasName = Annotated[str, Path(pattern=NAME_PATTERN, description="Name of the alias.", examples=["live"])]
VersionNumber = Annotated[int, Path(ge=1, le=LARGEST_ID, description="Number of the version.", examples=[1])]
TokenId = Annotated[int, Path(ge=1, le=LARGEST_ID, description="Id of the token.", examples=[2])]
InvocationId = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Id from `Headrace-Invocation`.", examples=["0a1b2c3d4e5f"])
]
Limit = Annotated[int, Query(ge=1, le=200, description="Most items to answer.")]
Cursor = Annotated[
    str | None,
    NOT_NULL,
    Query(
        min_length=1,
        max_length=200,
        pattern=r"^[A-Za-z0-9_-]+$",
        description="`next` of the page before; leave it out for the first page.",
    ),
]
Flag = Annotated[
    bool,
    BeforeValidator(_parse_flag),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 1}]}),
]
Follow = Annotated[Flag, Query(description="Go on sending lines as they come, as server-sent events.")]
LastEventId = Annotated[
    int, Header(ge=0, le=2**53, description="`id` of the last event received: go on after it.", examples=[0])
]
Time = Annotated[float, BeforeValidator(parse_time), WithJsonSchema({"type": "string", "format": "date-time"})]
Since = Annotated[Time | None, NOT_NULL, Query(description="Not before this time, RFC 3339.")]
Until = Annotated[Time | None, NOT_NULL, Query(description="Before this time, RFC 3339.")]
VersionFilter = Annotated[int | None, NOT_NULL, Query(ge=1, le=LARGEST_ID, description="Only this version.")]
Traffic = Annotated[
    dict[str, int],
    Field(description="Whole weights by version number; they sum to 100.", examples=[{"3": 90, "4": 10}]),
]


class PageOut(BaseModel, Generic[T]):
    """A part of a list."""

    items: list[T]
    next: str | None = Field(description="`cursor` of the page that follows; null at the end.")


def traffic_out(traffic: dict[int, int]) -> dict[str, int]:
    return {str(number): weight for number, weight in sorted(traffic.items())}
