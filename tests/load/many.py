"""Registers many functions through the REST API, a few requests at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import httpx
from measure import Unavailable

from stack import Headrace

_AT_ONCE = 8
_LIMIT_S = 600.0


async def register_many(platform: Headrace, count: int, say: Callable[[str], None]) -> float:
    """Create `many-00000` and so on, and see that the list holds them all; functions per second."""
    names = iter(f"many-{number:05d}" for number in range(count))
    began = time.monotonic()
    headers = {"Authorization": f"Bearer {platform.token}"}
    async with httpx.AsyncClient(base_url=f"{platform.control}/v1", headers=headers, timeout=60) as api:
        async with asyncio.timeout(_LIMIT_S):
            await asyncio.gather(*(_register(api, names, say) for _ in range(_AT_ONCE)))
        rate = count / (time.monotonic() - began)
        await _see_all(api, count)
    return rate


async def _register(api: httpx.AsyncClient, names: Iterator[str], say: Callable[[str], None]) -> None:
    for name in names:
        answer = await api.put(f"/functions/{name}", json={"description": "one of many"})
        if answer.status_code != 201:
            raise Unavailable(f"{name} was not registered: {answer.status_code} {answer.text}")
        if name.endswith("000"):
            say(name)


async def _see_all(api: httpx.AsyncClient, count: int) -> None:
    seen, cursor = 0, ""
    while True:
        page = (await api.get("/functions", params={"limit": 100, **({"cursor": cursor} if cursor else {})})).json()
        seen += sum(item["name"].startswith("many-") for item in page["items"])
        cursor = page["next"]
        if not cursor:
            break
    if seen != count:
        raise Unavailable(f"{count} functions were registered and the list holds {seen}.")
