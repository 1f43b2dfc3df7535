"""The opening handshake of a WebSocket (RFC 6455, 4.2) on HTTP/1.1."""

from __future__ import annotations

import base64
import binascii
import re

from websockets.utils import accept_key

from headrace.errors import CallerError, UpgradeRequired
from headrace.web.head import Headers

SUBPROTOCOL = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # what its name may be
_VERSION = b"13"


def asks(headers: Headers) -> bool:
    """The request wants to become a WebSocket."""
    wanted = connected = False
    for name, value in headers:
        if name == b"upgrade":
            wanted = wanted or b"websocket" in _words(value)
        elif name == b"connection":
            connected = connected or b"upgrade" in _words(value)
    return wanted and connected


def check(method: str, version: str, headers: Headers) -> tuple[str, ...]:
    """The subprotocols that the client offers. Raises `CallerError` for a handshake that is none."""
    if method != "GET" or version != "1.1":
        raise CallerError("a WebSocket is opened by GET over HTTP/1.1: send that.")
    versions = [value.strip() for name, value in headers if name == b"sec-websocket-version"]
    if versions != [_VERSION]:
        raise UpgradeRequired("WebSockets are spoken here in version 13: send Sec-WebSocket-Version: 13.")
    _key(headers)
    offered: list[str] = []
    for name, value in headers:
        if name == b"sec-websocket-protocol":
            offered += (word.strip() for word in value.decode("latin-1").split(","))
    return tuple(word for word in offered if SUBPROTOCOL.fullmatch(word))


def answer(request: Headers, subprotocol: str | None, headers: Headers) -> bytes:
    """The answer that opens the socket, with `headers` in it."""
    fields = [
        (b"upgrade", b"websocket"),
        (b"connection", b"Upgrade"),
        (b"sec-websocket-accept", accept_key(_key(request)).encode()),
        *headers,
    ]
    if subprotocol is not None:
        fields.append((b"sec-websocket-protocol", subprotocol.encode("latin-1")))
    lines = b"".join(b"%b: %b\r\n" % field for field in fields)
    return b"HTTP/1.1 101 Switching Protocols\r\n" + lines + b"\r\n"


def _key(headers: Headers) -> str:
    keys = [value.strip() for name, value in headers if name == b"sec-websocket-key"]
    try:
        if len(keys) == 1 and len(base64.b64decode(keys[0], validate=True)) == 16:
            return keys[0].decode()
    except binascii.Error:
        pass
    raise CallerError("the upgrade needs one Sec-WebSocket-Key of 16 bytes in base64: send a random one.")


def _words(value: bytes) -> list[bytes]:
    return [word.strip() for word in value.lower().split(b",")]
