"""The frames between a node and an instance: a sans-I/O codec.

Standard library only and Python 3.9 syntax, because the very same file runs inside the Python shim. The
protocol itself, for other languages, is `runtime-images/PROTOCOL.md`; its golden vectors are in `tests/golden`.

A frame is a 13-byte prefix in network order (payload length u32, type u8, stream u32, header length u32) and
the payload: a header (JSON object, UTF-8, may be empty) followed by a body (raw bytes, the rest). Stream 0
belongs to the instance; the node numbers every call with a stream of its own, never reused on a connection.
"""

from __future__ import annotations

import json
from struct import Struct
from typing import Any, NamedTuple

PROTOCOL = 1

# Frame types. The value is on the wire and never changes its meaning.
HELLO = 1  # instance -> node: {"protocol", "runtime", "pid", "instance", "loaded", "kind"?}
LOAD = 2  # node -> instance: what to run, see PROTOCOL.md
LOADED = 3  # instance -> node: {"kind", "ms"}
LOAD_FAILED = 4  # instance -> node: {"type", "message", "stack"}
CALL = 5  # node -> instance: a whole request, or its start when {"more": true}
REPLY = 6  # instance -> node: a whole answer; {"e": {...}} when the function failed
HEAD = 7  # instance -> node: status and headers of a streamed answer
BODY = 8  # both ways: a piece of a streamed body
END = 9  # both ways: the streamed body is complete, or broken when {"e": {...}}
WINDOW = 10  # both ways: {"n"} more body bytes may be sent on this stream
LOG = 11  # instance -> node: {"t", "s", "l"}, body: the text
CANCEL = 12  # node -> instance: nobody waits for this call any more
PING = 13
PONG = 14
DRAIN = 15  # node -> instance: finish the running calls, shut down, exit
WS_ACCEPT = 16
WS_MESSAGE = 17
WS_CLOSE = 18
WS_GROUP = 19  # instance -> node: put a connection of the function into a group, or take it out

MAX_PAYLOAD = 1 << 20  # bytes of header and body together; more is a protocol error
INLINE = 64 << 10  # a body up to this many bytes travels inside CALL or REPLY
CHUNK = 256 << 10  # longest body of one BODY frame a sender makes
WINDOW_SIZE = 1 << 20  # body bytes a sender may have in flight on a stream before the first WINDOW

_LONG = 64 << 10

_PREFIX = Struct(">IBII")
PREFIX_SIZE = _PREFIX.size
_pack = _PREFIX.pack
_unpack_from = _PREFIX.unpack_from
_from_json = json.JSONDecoder().raw_decode  # half the time of json.loads
_to_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False).encode


class ProtocolError(Exception):
    """The peer does not speak this protocol; the connection is of no use any more."""


class Frame(NamedTuple):
    type: int
    stream: int
    header: bytes
    body: bytes


_new_tuple = tuple.__new__  # what `Frame(...)` does, without the call in between


def encode(type: int, stream: int = 0, header: bytes = b"", body: bytes | memoryview = b"") -> bytes:
    """One frame as bytes. `header` is JSON already encoded (see `dumps`), or empty."""
    size = len(header)
    return _pack(size + len(body), type, stream, size) + header + body


def prefix(type: int, stream: int, header: bytes, size: int) -> bytes:
    """What comes before the `size` bytes of a body that is sent as it is, without being copied behind its prefix."""
    return _pack(len(header) + size, type, stream, len(header)) + header


def dumps(header: dict[str, Any]) -> bytes:
    """A header as bytes. Lone surrogates, which UTF-8 cannot carry, become '?'."""
    return _to_json(header).encode("utf-8", "replace")


def loads(header: bytes) -> dict[str, Any]:
    """The header of a received frame. Raises `ProtocolError` for anything but a JSON object."""
    if not header:
        return {}
    try:
        text = header.decode()
        value, end = _from_json(text) if text[0] == "{" else (None, -1)
        if end != len(text):
            value = json.loads(text)  # white space around it, or no JSON object
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"frame header is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError("frame header is not a JSON object")
    return value


class Decoder:
    """Turns received bytes, cut anywhere, into frames.

    Holds at most one incomplete frame; one over `longest` bytes of payload is refused from its prefix alone. The body
    of a frame that came in several reads is copied once, when it is complete. With `apart`, a BODY that came in several
    reads comes out as several BODY frames, which say the same, and nothing is copied.
    """

    __slots__ = ("_apart", "_begun", "_longest", "_missing", "_parts", "_passing")

    def __init__(self, longest: int = MAX_PAYLOAD, apart: bool = False) -> None:
        self._longest = longest
        self._apart = apart
        self._parts: list[Any] = []  # of the incomplete frame; of its body alone when `_begun`
        self._missing = 0  # bytes without which no further frame can be complete
        self._begun: tuple[int, int, bytes] | None = None  # its type, stream and header
        self._passing: tuple[int, int] | None = None  # a BODY that comes out as it comes: stream, bytes missing

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, in order. Raises `ProtocolError`."""
        frames: list[Frame] = []
        offset = 0
        if self._parts or self._passing is not None:
            data, offset = self._go_on(data, frames)
        end = len(data)
        while True:
            body_at = offset + PREFIX_SIZE
            if body_at > end:
                missing = body_at - end
                break
            size, type_, stream, header_size = _unpack_from(data, offset)
            if size > self._longest or header_size > size:
                raise ProtocolError(f"frame of type {type_} announces {size} bytes, header {header_size}")
            next_at = body_at + size
            split = body_at + header_size
            apart = self._apart and type_ == BODY
            if next_at > end:
                missing = next_at - end
                if split >= end:
                    break
                if not apart:
                    self._begun = type_, stream, data[body_at:split]
                    offset = split
                    break
                self._passing = stream, missing
                next_at = end
            body = _view(data, split, next_at) if apart else data[split:next_at]
            frames.append(_new_tuple(Frame, (type_, stream, data[body_at:split], body)))
            offset = next_at
        if offset < end:
            self._parts.append(memoryview(data)[offset:])
            self._missing = missing
        return frames

    def _go_on(self, data: bytes, frames: list[Frame]) -> tuple[bytes, int]:
        """Use `data` for the frame that is incomplete; the bytes to go on with, and from where on."""
        end = len(data)
        if self._passing is not None:
            stream, missing = self._passing
            offset = min(missing, end)
            frames.append(Frame(BODY, stream, b"", _view(data, 0, offset)))
            self._passing = (stream, missing - offset) if missing > offset else None
            return data, offset
        if self._missing > end:
            self._parts.append(data)
            self._missing -= end
            return b"", 0
        parts, self._parts = self._parts, []
        if self._begun is None:
            parts.append(data)
            return b"".join(parts), 0
        offset = self._missing
        parts.append(memoryview(data)[:offset])
        frames.append(Frame(*self._begun, b"".join(parts)))
        self._begun = None
        return data, offset

    @property
    def empty(self) -> bool:
        """True between frames: the stream may end here without having cut one."""
        return not self._parts and self._passing is None


def _view(data: bytes, start: int, end: int) -> Any:
    """A part of `data`, without a copy when it is long enough to be worth that all of `data` is kept for it."""
    if end - start == len(data):
        return data
    return memoryview(data)[start:end] if end - start >= _LONG else data[start:end]
