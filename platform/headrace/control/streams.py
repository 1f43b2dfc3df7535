"""Following a log: server-sent events for as long as somebody listens.

The store is asked every `poll_s`, only while a follower is there; without a pause as long as it has more than one
read takes. The server cancels the stream when the follower
leaves; the place at the gate is given back in the `finally` of that same generator. A comment every `heartbeat_s`
keeps proxies from cutting the connection, and at the same moments the follower's right to listen is checked again,
so a deleted token or function ends its streams.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.responses import StreamingResponse

from headrace.control.services import Services
from headrace.errors import HeadraceError

MEDIA_TYPE = "text/event-stream"
_RETRY_MS = 1000  # a follower that lost its connection dials again after this


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `data` is one line or more of text; `id` is where a later follower goes on."""

    data: str
    id: int | None = None
    name: str | None = None

    def encode(self) -> bytes:
        lines = [f"event: {self.name}"] if self.name else []
        lines += [f"data: {line}" for line in self.data.replace("\r", "\n").split("\n")]
        if self.id is not None:
            lines.append(f"id: {self.id}")
        return ("\n".join(lines) + "\n\n").encode("utf-8", "replace")


def event_schema(data: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of one event whose `data` is as given."""
    return {
        "type": "object",
        "description": "One event.",
        "properties": {"event": {"type": "string"}, "data": data, "id": {"type": "string"}},
        "required": ["data"],
    }


def end(**why: Any) -> Event:
    """The last event of a stream: there will be no more, do not dial again."""
    return Event(json.dumps(why), name="end")


Read = Callable[[], Awaitable[tuple[list[Event], bool]]]  # the next events, and whether more are there already
Check = Callable[[], Awaitable[Any]]


def follow(services: Services, read: Read, still_allowed: Check) -> StreamingResponse:
    """A response that sends what `read` gives, until an `end` event; raises `NoCapacity` when too many follow."""
    services.followers.check()
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(services, read, still_allowed), media_type=MEDIA_TYPE, headers=headers)


async def _stream(services: Services, read: Read, still_allowed: Check) -> AsyncIterator[bytes]:
    try:
        with services.followers.enter():
            yield f"retry: {_RETRY_MS}\n\n".encode()
            async for piece in _events(services, read, still_allowed):
                yield piece
    except HeadraceError as error:
        yield end(**error.problem()).encode()


async def _events(services: Services, read: Read, still_allowed: Check) -> AsyncIterator[bytes]:
    following, clock = services.following, services.clock
    began = beat = clock.monotonic()
    while clock.monotonic() - began < following.longest_s:
        events, more = await read()
        if events:
            yield b"".join(event.encode() for event in events)
            if events[-1].name == "end":
                return
        if clock.monotonic() - beat >= following.heartbeat_s:
            await still_allowed()
            beat = clock.monotonic()
            yield b": still here\n\n"
        if not more:
            await asyncio.sleep(following.poll_s)
