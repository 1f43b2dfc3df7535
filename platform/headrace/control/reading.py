"""Request bodies: bounded while they arrive, and JSON that holds nothing the platform can't store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from python_multipart.multipart import parse_options_header

from headrace.errors import CallerError, ClientGone, Invalid, TooLarge

JSON_LIMIT = 1 << 20  # bytes of a plain JSON body
STALL_S = 30.0  # a body that stops arriving for this long is given up
DEEPEST = 32  # levels of lists and objects in a JSON body


def media_type(request: Request) -> tuple[str, dict[bytes, bytes]]:
    """The type of the body in lower case (empty: not given) and its parameters."""
    kind, options = parse_options_header(request.headers.get("content-type"))
    return kind.decode("latin-1").strip().lower(), options


def is_json(kind: str) -> bool:
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def pieces(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it arrives.

    Raises `TooLarge` as soon as it is announced or seen to be over `limit` bytes, `ClientGone` when it ends early
    or stops arriving.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > limit):
        raise _too_large(limit)
    seen, more = 0, True
    while more:
        try:
            async with asyncio.timeout(STALL_S):
                message = await request.receive()
        except TimeoutError:
            raise ClientGone(f"the body stopped arriving for {STALL_S:g} s; send it again.") from None
        if message["type"] == "http.disconnect":
            raise ClientGone("the connection ended before the body did; send it again.")
        piece: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        seen += len(piece)
        if seen > limit:
            raise _too_large(limit)
        if piece:
            yield piece


async def whole(request: Request, limit: int) -> bytes:
    """The whole body; errors as in `pieces`."""
    body = bytearray()
    async for piece in pieces(request, limit):
        body += piece
    return bytes(body)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is over {limit:,} bytes; send less.", limit_bytes=limit)


def parse_json(raw: bytes) -> Any:
    """The value in `raw`. Raises `CallerError` unless it is JSON in UTF-8, `Invalid` for what can't be kept."""
    try:
        value = json.loads(raw.decode(), parse_float=_number, parse_constant=_not_a_number, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise CallerError(f"the body is not UTF-8 (byte {error.start}); encode it as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise CallerError(f"the body is not JSON: {error}; correct it there.") from None
    except ValueError:  # int() refuses to read thousands of digits
        raise CallerError("the body holds a number with too many digits; shorten it.") from None
    except RecursionError:
        raise _too_deep() from None
    _check(value)
    return value


def _number(text: str) -> int | float:
    """JSON has one kind of numbers: 3.0 is the integer 3."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _not_a_number(name: str) -> Any:
    raise CallerError(f"the body holds {name}, which is not JSON; send a number.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Invalid(f"the body names {twice[:80]!r} twice in one object; keep one of them.")
    return found


def _check(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise _too_deep()
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, list):
                below += item
            elif isinstance(item, dict):
                below += item.values()
                below += item.keys()
        level = below


def _check_text(text: str) -> None:
    if "\0" in text:
        raise Invalid("the body holds a NUL character in a text; remove it (an archive may carry any bytes).")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Invalid("the body holds half of a surrogate pair; send valid Unicode text.") from None


def _too_deep() -> Invalid:
    return Invalid(f"the body is nested over {DEEPEST} levels deep; flatten it.")
