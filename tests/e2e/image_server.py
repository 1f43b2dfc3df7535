"""The program of the test image: HTTP and an echoing WebSocket on $PORT, with the standard library alone."""

import asyncio
import base64
import hashlib
import os
import socket
import sys

NAME = "one"
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


async def serve(reader, writer):
    try:
        while line := await reader.readline():
            _, target, _ = line.split(b" ", 2)
            headers = {}
            while (line := await reader.readline()).strip():
                name, _, value = line.partition(b":")
                headers[name.strip().lower()] = value.strip()
            if b"sec-websocket-key" in headers:
                return await echo(reader, writer, headers[b"sec-websocket-key"])
            await answer(reader, writer, target.decode(), headers)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def answer(reader, writer, target, headers):
    path = target.partition("?")[0]
    body = b""
    if path == "/mirror":
        await start(writer, b"transfer-encoding: chunked")
        async for piece in pieces(reader, headers):
            await chunk(writer, piece)
        return await chunk(writer, b"")
    if path == "/env":
        body = os.environ.get("SECRET", "").encode()
    elif path == "/user":
        with open("/data/mark", "w") as mark:  # a volume can be written
            mark.write("x")
        body = str(os.getuid()).encode()
    elif path == "/lookup":
        body = b"reached" if reaches(target.partition("?")[2]) else b"unreachable"
    elif path == "/hog":
        hoard = [bytearray(os.urandom(1 << 20)) for _ in range(4096)]
        body = str(len(hoard)).encode()
    elif path == "/exit":
        print("going", flush=True)
        os._exit(7)
    else:
        if "quiet" not in sys.argv:
            print("asked for", path, flush=True)
        body = NAME.encode()
    await start(writer, b"content-length: %d" % len(body), body)


def reaches(address):
    try:
        socket.create_connection((address, int(os.environ["PORT"])), 1).close()
    except OSError:
        return False
    return True


async def pieces(reader, headers):
    if b"content-length" in headers:
        left = int(headers[b"content-length"])
        while left and (piece := await reader.read(min(left, 65536))):
            left -= len(piece)
            yield piece
        return
    while size := int(await reader.readline(), 16):
        yield await reader.readexactly(size)
        await reader.readline()
    await reader.readline()


async def start(writer, framing, body=b""):
    writer.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + body)
    await writer.drain()


async def chunk(writer, piece):
    writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    await writer.drain()


async def echo(reader, writer, key):
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n")
    writer.write(b"sec-websocket-accept: " + accept + b"\r\n\r\n")
    while True:
        first, second = await reader.readexactly(2)
        size = second & 127
        if size > 125:
            size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
        mask = await reader.readexactly(4)
        data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(await reader.readexactly(size)))
        head = bytes([first]) + (bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big"))
        writer.write(head + data)
        await writer.drain()
        if first & 15 == 8:
            return


async def main():
    server = await asyncio.start_server(serve, "0.0.0.0", int(os.environ["PORT"]) + int(os.environ.get("BESIDE", "0")))
    async with server:
        await server.serve_forever()


if "ends" in sys.argv:
    print("no database")
    sys.exit(3)
asyncio.run(main())
