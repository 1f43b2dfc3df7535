"""An ASGI application that sends and takes streams of any size: a function for Headrace, and the reference alone.

`/down?<MiB>` sends so much in pieces of 64 KiB, `/up` counts what it is sent, `/peak` tells the most memory that its
process ever had, in KiB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PIECE = bytes(range(256)) * 256


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    answer = b""
    if scope["path"].endswith("/down"):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(int(scope["query_string"]) * 16):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    if scope["path"].endswith("/up"):
        answer = b"%d" % await _count(receive)
    elif scope["path"].endswith("/peak"):
        status = Path("/proc/self/status").read_text()
        answer = status.partition("VmHWM:")[2].split()[0].encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": answer})


async def _count(receive: Any) -> int:
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the caller left")
        size += len(message["body"])
        if not message["more_body"]:
            return size
