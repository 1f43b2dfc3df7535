"""A FastAPI application in the shim: what its framework does around its answers."""

from __future__ import annotations

from pathlib import Path

import fastapi

from headrace import wire
from shim_kit import logged, waiting_shim

FASTAPI = """
import asyncio
from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import StreamingResponse

handler = FastAPI()
release = asyncio.Event()

@handler.get("/fails")
async def fails():
    raise LookupError("the cause")

@handler.get("/threaded")
def threaded():
    raise LookupError("the cause")

async def work():
    await release.wait()
    raise LookupError("in the background")

@handler.get("/background")
async def background(tasks: BackgroundTasks):
    tasks.add_task(work)
    return "done"

@handler.get("/stream")
async def stream():
    async def pieces():
        yield "a"
        await asyncio.sleep(0.01)
        yield "b"
    return StreamingResponse(pieces())

@handler.get("/release")
async def let_go():
    release.set()
"""


async def test_fastapi_answers_with_its_page_and_tells_the_failure(tmp_path: Path) -> None:
    layer = Path(fastapi.__file__).parent.parent
    async with waiting_shim(tmp_path, {"handler.py": FASTAPI}, layer=layer) as shim:
        assert (await shim.load()).type == wire.LOADED
        for path in ("/fails", "/threaded"):
            answer = await shim.call(path)
            assert (answer.status, answer.body) == (500, b"Internal Server Error")
            assert answer.error is not None
            assert (answer.error["type"], answer.error["message"]) == ("LookupError", "the cause")
            assert 'raise LookupError("the cause")' in answer.error["stack"]
        streamed = await shim.call("/stream")
        assert (streamed.body, streamed.error, streamed.after) == (b"ab", None, None)
        answer = await shim.call("/background")
        assert (answer.json(), answer.error) == ("done", None)
        await shim.call("/release")
        await logged(shim.link.instance, "LookupError: in the background")
