"""Versions: immutable code and config under a number, and how their building went."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.config import JsonDict
from starlette.responses import PlainTextResponse

from headrace.control import reading, streams, uploads
from headrace.control.auth import Guarded, Namespace, authenticate, needs
from headrace.control.problems import READS_ONE, WRITES, problems
from headrace.control.schemas import (
    TEXT_PATTERN,
    Body,
    Cursor,
    Follow,
    FunctionName,
    LastEventId,
    Limit,
    PageOut,
    VersionNumber,
    page_of,
    timestamp,
)
from headrace.control.services import Platform, Services
from headrace.errors import (
    BundleRejected,
    CallerError,
    Conflict,
    NoCapacity,
    NodeUnavailable,
    UnsupportedMedia,
)
from headrace.model import Version, VersionConfig, VersionState
from headrace.releases.bundle import Stored

router = APIRouter(route_class=Guarded, tags=["versions"])

INLINE_LIMIT = 8 << 20  # bytes of a JSON body with files in it
_ENDED = (VersionState.READY, VersionState.FAILED, VersionState.RETIRED)
_HELLO = 'def handler(event, context):\n    return {"hello": "world"}\n'
_EXAMPLE: JsonDict = {
    "function": "hello",
    "namespace": "default",
    "number": 1,
    "state": "ready",
    "reason": None,
    "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "config": VersionConfig().model_dump(mode="json"),
    "size_bytes": 58,
    "created_at": "2026-01-31T12:00:00Z",
    "built_at": "2026-01-31T12:00:01Z",
}

FileName = Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=TEXT_PATTERN)]
FileText = Annotated[str, StringConstraints(pattern=TEXT_PATTERN)]


class VersionIn(Body):
    """A version from text files. For binary files, send an archive as multipart form."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"files": {"handler.py": _HELLO}, "config": {"memory_mb": 128}}]}
    )

    files: dict[FileName, FileText] = Field(
        default_factory=dict,
        max_length=1000,
        description="Text by path, relative and with '/' between folders. None with `image` in the config.",
        examples=[{"handler.py": _HELLO}],
    )
    config: VersionConfig = Field(default_factory=VersionConfig, description="How the version runs.")


class VersionForm(BaseModel):
    """A version from an archive."""

    model_config = ConfigDict(extra="forbid")

    bundle: bytes = Field(
        description="A zip or tar.gz archive, up to 50 MiB.", json_schema_extra={"type": "string", "format": "binary"}
    )
    config: VersionConfig = Field(default_factory=VersionConfig, description="How the version runs, as JSON.")


class VersionOut(BaseModel):
    """A version as it is now."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    function: str
    namespace: str
    number: int
    state: VersionState = Field(description="pending, building, probing, then ready or failed; retired when deleted.")
    reason: str | None = Field(description="Why it failed, and what to do.")
    digest: str = Field(description="SHA-256 of the files in it.")
    config: VersionConfig
    size_bytes: int = Field(description="Size of the files, unpacked.")
    created_at: datetime
    built_at: datetime | None = Field(description="When it became ready or failed.")


class VersionPage(PageOut[VersionOut]):
    """Versions, newest first."""

    model_config = page_of(_EXAMPLE)


_NEW: dict[int | str, dict[str, Any]] = {
    202: {
        "model": VersionOut,
        "description": "The version is new and being built: see its `state` and build log.",
        "headers": {"Location": {"description": "Address of the version.", "schema": {"type": "string"}}},
    }
}
_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/VersionIn"}},
            "multipart/form-data": {
                "schema": {"$ref": "#/components/schemas/VersionForm"},
                "encoding": {"config": {"contentType": "application/json"}},
            },
        },
    }
}
_TEXT_OR_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The log; with `follow=true` an event per line, then `event: end` with state and reason.",
        "content": {
            "text/plain": {"schema": {"type": "string"}, "example": "Nothing to install.\nLoaded in 12 ms.\n"},
            streams.MEDIA_TYPE: {
                "schema": streams.event_schema({"type": "string"}),
                "example": 'data: Loaded in 12 ms.\nid: 2\n\nevent: end\ndata: {"state": "ready", "reason": null}\n\n',
            },
        },
    }
}


@router.post(
    "/functions/{name}/versions",
    summary="Upload a version",
    response_model=VersionOut,
    dependencies=[needs("deploy")],
    responses=problems(*WRITES, BundleRejected, NoCapacity) | _NEW,
    response_description="The same files with the same config are this version already.",
    openapi_extra=_UPLOAD_BODY,
)
async def create_version(
    platform: Platform, request: Request, name: FunctionName, namespace: Namespace, response: Response
) -> Any:
    """Make a version from an archive (multipart form) or from text files (JSON); creates the function if it is new.

    The answer comes at once, the building goes on: publish the version when its state is `ready`.
    """
    with platform.uploads.enter():
        stored, config = await _store(platform, request)
    version, created = await platform.releases.submit(namespace, name, stored, config)
    if created:
        response.status_code = 202
        response.headers["Location"] = f"/v1/functions/{name}/versions/{version.number}?namespace={namespace}"
    return _out(version)


@router.get(
    "/functions/{name}/versions",
    summary="List versions",
    response_model=VersionPage,
    dependencies=[needs("read")],
    responses=problems(*READS_ONE),
)
async def list_versions(
    platform: Platform, name: FunctionName, namespace: Namespace, limit: Limit = 50, cursor: Cursor = None
) -> Any:
    """The versions of a function, newest first."""
    page = await platform.versions.list(namespace, name, limit, cursor)
    return VersionPage(items=[_out(version) for version in page.items], next=page.next)


@router.get(
    "/functions/{name}/versions/{number}",
    summary="Show a version",
    response_model=VersionOut,
    dependencies=[needs("read")],
    responses=problems(*READS_ONE),
)
async def get_version(platform: Platform, name: FunctionName, number: VersionNumber, namespace: Namespace) -> Any:
    """One version: its state, why it failed, its config."""
    return _out(await platform.versions.get(namespace, name, number))


@router.delete(
    "/functions/{name}/versions/{number}",
    summary="Delete a version",
    status_code=204,
    dependencies=[needs("deploy")],
    responses=problems(*READS_ONE, Conflict, NodeUnavailable),
    response_description="It is gone.",
)
async def delete_version(platform: Platform, name: FunctionName, number: VersionNumber, namespace: Namespace) -> None:
    """Retire a version. Its number is never used again. Refused while an alias points at it or it is being built."""
    await platform.releases.delete_version(namespace, name, number)


@router.get(
    "/functions/{name}/versions/{number}/build-log",
    summary="Read a build log",
    response_class=PlainTextResponse,
    dependencies=[needs("read")],
    responses=problems(*READS_ONE, NoCapacity) | _TEXT_OR_EVENTS,
)
async def build_log(
    *,
    platform: Platform,
    request: Request,
    name: FunctionName,
    number: VersionNumber,
    namespace: Namespace,
    follow: Follow = False,
    last_event_id: LastEventId = 0,
) -> Any:
    """What building the version wrote; with `follow` as it happens, until the version is ready or has failed."""
    version = await platform.versions.get(namespace, name, number)
    if not follow:
        lines, _ = await platform.versions.read_log(version.id)
        return PlainTextResponse("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))

    async def still_allowed() -> None:
        await authenticate(request, platform)

    return streams.follow(platform, _BuildLog(platform, version, last_event_id).read, still_allowed)


class _BuildLog:
    """The place of one follower in one build log."""

    def __init__(self, services: Services, version: Version, after: int) -> None:
        self._services = services
        self._version = version
        self._after = after

    async def read(self) -> tuple[list[streams.Event], bool]:
        version = await self._services.versions.by_id(self._version.id)
        lines, position = await self._services.versions.read_log(version.id, self._after)
        events = [streams.Event(line) for line in lines]
        if events:
            events[-1] = streams.Event(lines[-1], id=position)
        self._after = position
        if version.state in _ENDED:
            events.append(streams.end(state=version.state, reason=version.reason))
        return events, False


async def _store(services: Services, request: Request) -> tuple[Stored, VersionConfig]:
    kind, options = reading.media_type(request)
    if kind == "multipart/form-data":
        async with uploads.received(request, options, services.settings) as upload:
            config = _config(upload.config)
            return await services.bundles.from_archive(upload.bundle, config), config
    if reading.is_json(kind):
        body = await _inline(request)
        return await services.bundles.from_files(body.files, body.config), body.config
    raise UnsupportedMedia("send a multipart form with the part 'bundle', or JSON with 'files'.")


async def _inline(request: Request) -> VersionIn:
    raw = await reading.whole(request, INLINE_LIMIT)
    value = await asyncio.to_thread(reading.parse_json, raw)
    try:
        return VersionIn.model_validate(value, strict=True)
    except ValidationError as error:
        raise _refused(error, "body") from None


def _config(raw: bytes | None) -> VersionConfig:
    if raw is None:
        return VersionConfig()
    try:
        value = reading.parse_json(raw)
    except CallerError as error:
        raise type(error)(f"in the part 'config': {error.detail}") from None
    try:
        return VersionConfig.model_validate(value, strict=True)
    except ValidationError as error:
        raise _refused(error, "body", "config") from None


def _refused(error: ValidationError, *place: str) -> RequestValidationError:
    return RequestValidationError([{**item, "loc": (*place, *item["loc"])} for item in error.errors()])


def _out(version: Version) -> VersionOut:
    return VersionOut(
        function=version.function,
        namespace=version.namespace,
        number=version.number,
        state=version.state,
        reason=version.reason,
        digest=version.digest,
        config=version.config,
        size_bytes=version.size_bytes,
        created_at=timestamp(version.created_at),
        built_at=None if version.built_at is None else timestamp(version.built_at),
    )
