"""The function of the HTTP tests: an ASGI application in which each path is a thing that HTTP can do, or go wrong."""

import asyncio
import json
import os

PIECE = bytes(range(256)) * 256
COUNTS = {"cancelled": 0, "uploads": 0, "broken uploads": 0, "calls": 0}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    path = scope["path"].rpartition("/")[2]
    COUNTS["calls"] += path != "counts"
    await PATHS.get(path, echo)(scope, receive, send)


async def answer(send, body, status=200, headers=()):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def piece(send, body):
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def read(receive):
    """The whole request body; None when it broke off."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            return body


async def echo(scope, receive, send):
    body = await read(receive)
    told = {name: scope[name] for name in ("method", "scheme", "http_version", "path", "client")}
    told["headers"] = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
    told["body"] = None if body is None else body.decode("latin-1")
    await answer(send, json.dumps(told).encode(), headers=[(b"content-type", b"application/json")])


async def counts(scope, receive, send):
    await answer(send, json.dumps(COUNTS).encode())


async def file(scope, receive, send):
    """0123456789 with ranges, and the tag "v1"."""
    asked = dict(scope["headers"])
    tag = [(b"etag", b'"v1"'), (b"accept-ranges", b"bytes")]
    if asked.get(b"if-none-match") == b'"v1"':
        await answer(send, b"", 304, [*tag, (b"content-length", b"10")])
    elif b"range" in asked and asked.get(b"if-range", b'"v1"') == b'"v1"':
        first, _, last = asked[b"range"].removeprefix(b"bytes=").partition(b"-")
        where = b"bytes %s-%s/10" % (first, last)
        await answer(send, b"0123456789"[int(first) : int(last) + 1], 206, [*tag, (b"content-range", where)])
    else:
        await answer(send, b"0123456789", 200, [*tag, (b"content-length", b"10")])


async def nothing(scope, receive, send):
    await answer(send, b"this is no body", 204)


async def many(scope, receive, send):
    headers = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-many", b"1"), (b"x-many", b"2")]
    headers += [(b"connection", b"x-many"), (b"keep-alive", b"5"), (b"trailer", b"x-late"), (b"te", b"trailers")]
    await answer(send, b"ok", headers=headers)


async def trailers(scope, receive, send):
    """A body, then trailers, of which some have no business there."""
    await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
    await send({"type": "http.response.body", "body": b"body"})
    late = [(b"X-Sum", b"b33f"), (b"content-length", b"3"), (b"set-cookie", b"a=1"), (b"headrace-version", b"9")]
    await send({"type": "http.response.trailers", "headers": late[:1], "more_trailers": True})
    await send({"type": "http.response.trailers", "headers": late[1:]})


async def early(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]})
    await asyncio.sleep(1)
    await send({"type": "http.response.body", "body": b"late"})


async def down(scope, receive, send):
    """As many pieces of 64 KiB as the query says; with a length when it starts with `l`, dead at the end with `d`."""
    how, size = scope["query_string"][:1], int(scope["query_string"].strip(b"ld"))
    headers = [(b"content-length", b"%d" % ((size + 1) * len(PIECE)))] if how == b"l" else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(size):
        await piece(send, PIECE)
    if how in (b"l", b"d"):
        await asyncio.sleep(0.3)
        os._exit(9)
    await send({"type": "http.response.body", "body": b""})


async def up(scope, receive, send):
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            COUNTS["broken uploads"] += 1
            return
        size += len(message["body"])
        if not message["more_body"]:
            COUNTS["uploads"] += 1
            await answer(send, b"%d" % size)
            return


async def wait(scope, receive, send):
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        COUNTS["cancelled"] += 1
        raise


async def endless(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    try:
        while True:
            await piece(send, b"x")
            await asyncio.sleep(0.05)
    finally:
        COUNTS["cancelled"] += 1


PATHS = {
    "counts": counts,
    "file": file,
    "nothing": nothing,
    "many": many,
    "trailers": trailers,
    "early": early,
    "down": down,
    "up": up,
    "wait": wait,
    "endless": endless,
}
