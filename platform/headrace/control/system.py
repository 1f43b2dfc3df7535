"""The platform itself: is it alive, is it ready, what does it consist of."""

from __future__ import annotations

import asyncio
import shutil
from datetime import datetime
from importlib.metadata import version
from typing import Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from headrace.control.auth import Guarded, everywhere, needs
from headrace.control.problems import READS, problems
from headrace.control.services import Platform, Services
from headrace.errors import NodeUnavailable, StoreUnavailable
from headrace.model import InstanceState

router = APIRouter(route_class=Guarded, tags=["system"])
open_router = APIRouter(tags=["system"])

_EXAMPLE: JsonDict = {
    "version": "0.1.0",
    "database": "sqlite",
    "redis": False,
    "driver": "docker",
    "disk": {"total_bytes": 270553174016, "free_bytes": 82877960192},
    "queue": {"waiting": 0},
    "nodes": [
        {
            "id": "ec726adb",
            "url": "http://127.0.0.1:7780",
            "started_at": "2026-01-31T12:00:00Z",
            "serving": True,
            "functions": 1,
            "in_flight": 0,
            "sockets": 0,
            "dropped_invocations": 0,
            "dropped_lines": 0,
            "waiting": 1,
            "memory_mb": {"limit": 12000, "reserved": 160},
            "instances": [
                {
                    "id": "81119002dbd1638b",
                    "state": "ready",
                    "namespace": "default",
                    "function": "hello",
                    "version": 1,
                    "in_flight": 0,
                    "memory_mb": 128,
                },
                {
                    "id": "5f0c2a9be1d47730",
                    "state": "waiting",
                    "namespace": None,
                    "function": None,
                    "version": None,
                    "in_flight": 0,
                    "memory_mb": 32,
                },
            ],
            "recovery": {"adopted": 1, "shelved": 2, "removed": 0},
        }
    ],
}


class HealthOut(BaseModel):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: Literal["ok"] = Field(description="Always `ok`.")


class DiskOut(BaseModel):
    """The file system that holds Headrace's home."""

    total_bytes: int
    free_bytes: int


class QueueOut(BaseModel):
    """Background work."""

    waiting: int = Field(description="Jobs that nobody works on yet.")


class RecoveryOut(BaseModel):
    """What a node found of its predecessor when it started."""

    adopted: int = Field(description="Instances that went on serving.")
    shelved: int = Field(description="Generic instances that wait again.")
    removed: int = Field(description="Instances that nobody could use.")


class InstanceOut(BaseModel):
    """One sandbox. One in state `waiting` is generic: started, connected, and of no version yet."""

    id: str
    state: InstanceState
    namespace: str | None
    function: str | None
    version: int | None
    in_flight: int = Field(description="Calls running in it.")
    memory_mb: int


class MemoryOut(BaseModel):
    """Memory for instances, MiB."""

    limit: int
    reserved: int = Field(description="The limits of all instances together.")


class NodeOut(BaseModel):
    """What a node says about itself."""

    id: str
    url: str = Field(description="Where functions are called.")
    started_at: datetime
    serving: bool = Field(description="Does it take calls? Not while it starts, not while it stops.")
    functions: int = Field(description="Functions it has routes for.")
    in_flight: int = Field(description="Calls running now.")
    sockets: int = Field(0, description="Open WebSockets.")
    dropped_invocations: int = Field(description="Records lost because they could not be written.")
    dropped_lines: int = Field(description="Log lines lost because they could not be written.")
    waiting: int = Field(description="Generic instances that wait for a version.")
    memory_mb: MemoryOut
    instances: list[InstanceOut]
    recovery: RecoveryOut


class SystemOut(BaseModel):
    """The platform as it is now."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    version: str = Field(description="Release of Headrace.")
    database: Literal["sqlite", "postgresql"]
    redis: bool = Field(description="Is Redis configured?")
    driver: str = Field(description="What runs instances: `docker`, or `process`, which isolates nothing.")
    disk: DiskOut
    queue: QueueOut
    nodes: list[NodeOut] = Field(description="The nodes that answer.")


@router.get(
    "/system",
    summary="Show the system",
    response_model=SystemOut,
    dependencies=[needs("read"), Depends(everywhere)],
    responses=problems(*READS),
)
async def get_system(platform: Platform) -> Any:
    """Release, database, disk, waiting jobs, and the nodes with their instances and what they recovered."""
    settings = platform.settings
    disk = await asyncio.to_thread(shutil.disk_usage, settings.home)
    return SystemOut(
        version=version("headrace"),
        database="postgresql" if settings.database.startswith("postgresql") else "sqlite",
        redis=bool(settings.redis_url),
        driver=settings.driver,
        disk=DiskOut(total_bytes=disk.total, free_bytes=disk.free),
        queue=QueueOut(waiting=await platform.queue.waiting()),
        nodes=[NodeOut.model_validate(status) for status in await platform.statuses.get()],
    )


@open_router.get("/healthz", summary="Is the process alive?", response_model=HealthOut)
async def healthz() -> Any:
    """Answers as long as the process serves requests. Needs no token."""
    return HealthOut(status="ok")


@open_router.get(
    "/readyz",
    summary="Is the platform ready?",
    response_model=HealthOut,
    responses=problems(StoreUnavailable, NodeUnavailable),
)
async def readyz(platform: Platform) -> Any:
    """Answers 200 when functions can be deployed and called: the database answers, and so does a node. No token."""
    await _check_database(platform)
    if not any(status["serving"] for status in await platform.statuses.get()):
        raise NodeUnavailable("not ready: no node answers; it may still be starting, else its log says why.")
    return HealthOut(status="ok")


async def _check_database(services: Services) -> None:
    try:
        await services.functions.revision()
    except StoreUnavailable as error:
        raise StoreUnavailable(f"not ready: {error.detail}") from None
