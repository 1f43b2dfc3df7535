"""What a handler's return value means, as an answer: the rules of payload 2.0, and a clear error for the rest."""

from __future__ import annotations

import json
import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from . import wire

HEADERS_LIMIT = 128 << 10  # bytes of an answer's headers, as JSON
CLOSED_STATUSES = (204, 304)  # answers that have no body
# Set by the platform for every connection; what user code says about them would only be wrong.
PLATFORM_HEADERS = frozenset(
    ("connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)

_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"
_BINARY = "application/octet-stream"
_WHAT = (
    "Return a dict with `statusCode` (and `headers`, `body`, `isBase64Encoded`), any JSON value, str, bytes, "
    "or a generator of str or bytes."
)

_is_name = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_find_forbidden = re.compile(r"[^\t\x20-\x7e\x80-\xff]").search
_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_to_ascii_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class BadResponse(Exception):
    """The handler returned something that is no answer; the message says what, and what to return."""

    __module__ = "builtins"  # stacks show its bare name


class Answer(NamedTuple):
    """`head` is the encoded header of REPLY or HEAD. `body` is bytes, or an iterator, plain or async.

    An empty `head` belongs to an iterator: its first piece decides (`stream_head`), and whether there is one at all.
    """

    head: bytes
    body: Any


def encode_head(status: int, headers: list[tuple[str, str]]) -> bytes:
    """The header of REPLY or HEAD; raises `BadResponse` when it is too long for a frame."""
    head = wire.dumps({"s": status, "h": headers})
    if len(head) > HEADERS_LIMIT:
        raise BadResponse(f"the headers of the answer take {len(head)} bytes; the limit is {HEADERS_LIMIT}.")
    return head


_JSON_OK = encode_head(200, [("content-type", _JSON)])
_TEXT_OK = encode_head(200, [("content-type", _TEXT)])
_BINARY_OK = encode_head(200, [("content-type", _BINARY)])


def answer(value: Any, http: bool) -> Answer:
    """The answer that `value` stands for. `http` is False for calls that carry a plain JSON payload."""
    if isinstance(value, dict):
        if http and "statusCode" in value:
            return _explicit(value)
    elif isinstance(value, str):
        if http:
            return Answer(_TEXT_OK, _utf8(value))
    elif isinstance(value, (bytes, bytearray, memoryview)):
        return Answer(_BINARY_OK, bytes(value))
    elif isinstance(value, (Iterator, AsyncIterator)):
        return Answer(b"", value)
    return Answer(_JSON_OK, to_json(value))


def stream_head(first: Any) -> bytes:
    """The head of a streamed answer that is a bare iterator and starts with the piece `first`."""
    return _TEXT_OK if isinstance(first, str) else _BINARY_OK


def to_json(value: Any) -> bytes:
    """`value` as JSON; raises `BadResponse` naming the part that JSON cannot hold."""
    try:
        text = _to_json(value)
        try:
            return text.encode()
        except UnicodeEncodeError:
            return _to_ascii_json(value).encode()  # lone surrogates, which only an escape can carry
    except (TypeError, ValueError, RecursionError) as error:
        culprit = _culprit(value, "", 0) or f"a value that JSON cannot hold ({error})"
        raise BadResponse(f"the handler returned {culprit}. {_WHAT}") from None


def _culprit(value: Any, path: str, depth: int) -> str:
    """Which part of `value` JSON refuses, in words; empty for what it takes."""
    where = path and f" at {path}"
    parts: Iterable[tuple[Any, Any]] = ()
    if depth > 20:
        return "a structure that contains itself or is nested too deeply for JSON"
    if isinstance(value, dict):
        odd = next((key for key in value if not isinstance(key, (str, int, float, type(None)))), None)
        if odd is not None:
            return f"a dict{where} with a key of type {type(odd).__name__}, which JSON cannot hold"
        parts = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    elif isinstance(value, float):
        return f"{value}{where}, a number that JSON does not have" if value - value != 0 else ""
    elif not isinstance(value, (str, int, type(None))):
        return f"a value of type {type(value).__name__}{where}, which JSON cannot hold"
    found = (_culprit(item, f"{path}[{key!r}]", depth + 1) for key, item in parts)
    return next(filter(None, found), "")


def _explicit(value: dict[str, Any]) -> Answer:
    body, media = _body(value)
    status, single = value["statusCode"], value.get("headers") or {}
    many, cookies = value.get("multiValueHeaders") or {}, value.get("cookies") or []
    if not isinstance(single, dict) or not isinstance(many, dict):
        raise BadResponse("`headers` and `multiValueHeaders` have to be dicts from header names to values.")
    try:
        if many or cookies:
            raise TypeError
        head, closed = _common_head(status, tuple(single.items()), media)
    except TypeError:
        head, closed = _full_head(status, _headers(single, many, cookies), media)
    return Answer(head, b"" if closed else body)


@lru_cache(maxsize=256)
def _common_head(status: Any, headers: tuple[tuple[Any, Any], ...], media: str) -> tuple[bytes, bool]:
    """`_full_head` for headers of nothing but str, else `TypeError`: functions answer with the same few again."""
    if not all(isinstance(value, str) for _, value in headers):
        raise TypeError
    return _full_head(status, _headers(dict(headers), {}, []), media)


def _full_head(status: Any, headers: list[tuple[str, str]], media: str) -> tuple[bytes, bool]:
    """The encoded head, with `media` as the content type when there is none; and whether no body may follow."""
    number = checked_status(status)
    if number in CLOSED_STATUSES:
        return encode_head(number, headers), True
    if media and not any(name == "content-type" for name, _ in headers):
        headers.append(("content-type", media))
    return encode_head(number, headers), False


def checked_status(status: Any) -> int:
    """`status` as a number; raises `BadResponse` for what is none."""
    if isinstance(status, str) and status.isdecimal():
        status = int(status)
    if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 599:
        raise BadResponse(f"`statusCode` is {status!r:.80}: return a whole number from 200 to 599.")
    return int(status)


def _headers(single: dict[Any, Any], many: dict[Any, Any], cookies: Any) -> list[tuple[str, str]]:
    headers: list[tuple[str, str]] = []
    for name, item in single.items():
        if name not in many:
            headers.append((header_name(name), _header_value(name, item)))
    for name, items in many.items():
        if not isinstance(items, (list, tuple)):
            raise BadResponse(f"`multiValueHeaders` maps each name to a list of values; {name!r:.80} does not.")
        headers.extend((header_name(name), _header_value(name, item)) for item in items)
    if not isinstance(cookies, (list, tuple)):
        raise BadResponse("`cookies` has to be a list of strings such as 'name=value; Path=/'.")
    headers.extend(("set-cookie", _header_value("set-cookie", item)) for item in cookies)
    return [header for header in headers if header[0] not in PLATFORM_HEADERS]


@lru_cache(maxsize=512)
def header_name(name: Any) -> str:
    """`name` in lower case; raises `BadResponse` for what is no header name."""
    if not isinstance(name, str) or not _is_name(name):
        raise BadResponse(f"{name!r:.80} is no header name: use letters, digits and '-'.")
    return name.lower()


def _header_value(name: Any, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, str):
        raise BadResponse(f"header {name!r:.80} has a value of type {type(value).__name__}: return a str.")
    return header_value(name, value)


def header_value(name: str, value: str) -> str:
    """`value` without outer spaces; raises `BadResponse` for what would break out of its header."""
    found = None if value.isascii() and value.isprintable() else _find_forbidden(value)
    if found:
        raise BadResponse(
            f"header {name!r:.80} contains {found.group()!r}: line breaks, control characters and characters beyond "
            "Latin-1 are not allowed in a header; encode the value, for example with urllib.parse.quote."
        )
    return value.strip()


def _body(value: dict[str, Any]) -> tuple[Any, str]:
    body = value.get("body")
    if isinstance(body, str):
        return (decoded(body), _BINARY) if value.get("isBase64Encoded") else (_utf8(body), _TEXT)
    if body is None:
        return b"", ""
    if isinstance(body, (bytes, bytearray, memoryview)):
        return (decoded(bytes(body)) if value.get("isBase64Encoded") else bytes(body)), _BINARY
    if isinstance(body, (Iterator, AsyncIterator)):
        return body, _TEXT
    return to_json(body), _JSON


def decoded(body: str | bytes) -> bytes:
    """What base64 holds; raises `BadResponse`."""
    try:
        return a2b_base64(body)
    except (Base64Error, ValueError) as error:
        raise BadResponse(f"`isBase64Encoded` is true but `body` is not base64: {error}.") from None


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def piece(item: Any) -> bytes:
    """One piece of a streamed body; raises `BadResponse` for anything but str or bytes."""
    if isinstance(item, str):
        return _utf8(item)
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    raise BadResponse(f"the streamed body yielded a value of type {type(item).__name__}: yield str or bytes.")
