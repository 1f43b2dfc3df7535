"""Notes in memory: a FastAPI application as a function, with a streamed endpoint and a chat over WebSocket."""

import asyncio
import itertools
import json
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, HTTPException, Query, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field


@asynccontextmanager
async def lifespan(app):
    app.state.starts = getattr(app.state, "starts", 0) + 1
    app.state.notes = {}
    app.state.ids = itertools.count(1)
    app.state.chat = set()
    print("notes opened")
    yield
    print("notes closed with", len(app.state.notes), "notes")


app = FastAPI(title="Notes", lifespan=lifespan)


class NoteIn(BaseModel):
    text: str = Field(min_length=1, max_length=10_000, examples=["water the plants"])
    tags: list[str] = Field(default=[], max_length=20)


class Note(NoteIn):
    id: int


@app.get("/")
async def about(request: Request):
    """How many notes there are, and how often the lifespan has run in this instance (once)."""
    state = request.app.state
    return {"notes": len(state.notes), "starts": state.starts, "chatting": len(state.chat)}


@app.post("/notes", status_code=201)
async def create(note: NoteIn, request: Request) -> Note:
    made = Note(id=next(request.app.state.ids), **note.model_dump())
    request.app.state.notes[made.id] = made
    print("note", made.id, "created")
    return made


@app.get("/notes")
async def search(request: Request, tag: str | None = None) -> list[Note]:
    return [note for note in request.app.state.notes.values() if tag is None or tag in note.tags]


@app.get("/notes/{id}")
async def read(id: int, request: Request) -> Note:
    return found(request, id)


@app.put("/notes/{id}")
async def replace(id: int, note: NoteIn, request: Request) -> Note:
    found(request, id)
    request.app.state.notes[id] = Note(id=id, **note.model_dump())
    return request.app.state.notes[id]


@app.delete("/notes/{id}", status_code=204)
async def delete(id: int, request: Request) -> None:
    found(request, id)
    del request.app.state.notes[id]


def found(request: Request, id: int) -> Note:
    note = request.app.state.notes.get(id)
    if note is None:
        raise HTTPException(404, f"There is no note {id}.")
    return note


@app.get("/ticks")
async def ticks(count: Annotated[int, Query(ge=1, le=1000)] = 5, every_ms: Annotated[int, Query(ge=0, le=10_000)] = 200):
    """Server-sent events, one at a time."""

    async def events():
        for number in range(1, count + 1):
            yield f"data: {json.dumps({'tick': number, 'of': count})}\n\n"
            await asyncio.sleep(every_ms / 1000)

    return StreamingResponse(events(), media_type="text/event-stream")


@app.websocket("/chat")
async def chat(socket: WebSocket):
    """What one says, everybody in the room hears."""
    name = socket.query_params.get("name", "somebody")[:40]
    room = socket.app.state.chat
    await socket.accept()
    room.add(socket)
    await tell(room, f"{name} came in")
    try:
        while True:
            await tell(room, f"{name}: {await socket.receive_text()}")
    except WebSocketDisconnect:
        room.discard(socket)
        await tell(room, f"{name} left")


async def tell(room, text):
    for socket in list(room):
        try:
            await socket.send_text(text)
        except (RuntimeError, WebSocketDisconnect):
            room.discard(socket)
