"""Long answers of the engine, event by event: pulls and builds. Leaving early ends the work in the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from headrace.drivers.engine import explain
from headrace.errors import EngineUnavailable

_CONNECT_S = 5.0
_LONGEST_EVENT = 1 << 20  # bytes


async def events(
    socket: str, path: str, params: Mapping[str, str], body: Path | None = None
) -> AsyncGenerator[dict[str, Any], None]:
    """POST `path` with the tar archive `body`; the JSON objects that come back.

    Raises `EngineUnavailable` when the engine is not there or breaks off; an answer that refuses comes as one event
    `{"error": text}`, as failures on the way do.
    """
    transport = httpx.AsyncHTTPTransport(uds=socket)
    timeout = httpx.Timeout(None, connect=_CONNECT_S)
    headers = {} if body is None else {"content-type": "application/x-tar"}
    content = None if body is None else _pieces(body)
    try:
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=timeout) as client,
            client.stream("POST", path, params=dict(params), headers=headers, content=content) as answer,
        ):
            if answer.is_error:
                text = (await answer.aread()).decode("utf-8", "replace")
                yield {"error": _message(text)}
                return
            async for event in _objects(answer.aiter_bytes()):
                yield event
    except (httpx.TransportError, OSError) as error:
        raise EngineUnavailable(f"{path.rsplit('/', 1)[-1]} failed: {explain(error, socket)}") from error


async def _pieces(path: Path) -> AsyncGenerator[bytes, None]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, 1 << 20):
            yield piece


async def _objects(pieces: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any], None]:
    """One JSON object a line."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _LONGEST_EVENT:
            raise EngineUnavailable("the engine sent an event that is too long.")
        for line in lines:
            if line.strip():
                yield _object(line)
    if rest.strip():
        yield _object(rest)


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"stream": line.decode("utf-8", "replace")}


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:300]
