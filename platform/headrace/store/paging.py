"""Lists in parts. A cursor names the last row a reader has seen, so rows that come or go never shift the rest."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Row

from headrace.errors import Invalid
from headrace.model import Page

MOST = 1000
LARGEST = 2**63 - 1  # that both databases hold
_LARGEST_NUMBER = 2**31 - 1  # of a version or a generation

T = TypeVar("T")


def check_limit(limit: int, most: int = MOST) -> int:
    """Return `limit`; raise `Invalid` unless it is between 1 and `most`."""
    if not 1 <= limit <= most:
        raise Invalid(f"limit {limit} is out of range: use 1 to {most}.")
    return limit


def encode(*values: str | int | float) -> str:
    """The cursor of the row that `values` identify: opaque, URL-safe."""
    return base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")


def decode(cursor: str, *kinds: type) -> tuple[Any, ...]:
    """The values inside `cursor`; raise `Invalid` unless they are of these kinds (`str`, `int`, `float`)."""
    try:
        values = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        values = None
    if (
        not isinstance(values, list)
        or len(values) != len(kinds)
        or not all(_fits(value, kind) for value, kind in zip(values, kinds, strict=True))
    ):
        raise _foreign()
    return tuple(values)


def decode_number(cursor: str) -> int:
    """The one number inside `cursor`, of a column of 32 bits; raise `Invalid` unless there is such a number."""
    number: int = decode(cursor, int)[0]
    if not 0 <= number <= _LARGEST_NUMBER:
        raise _foreign()
    return number


def _foreign() -> Invalid:
    return Invalid("cursor is not one that this list gave: start again without it.")


def _fits(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, float) and math.isfinite(value)
    if kind is int:
        return type(value) is int and abs(value) <= LARGEST
    return isinstance(value, str) and value.isascii() and "\0" not in value


def page(
    rows: Sequence[Row[Any]], limit: int, make: Callable[[Row[Any]], T], key: Callable[[Row[Any]], tuple[Any, ...]]
) -> Page[T]:
    """The page made of `rows`, which were asked for with `limit + 1` to see whether more follow."""
    shown = rows[:limit]
    return Page([make(row) for row in shown], encode(*key(shown[-1])) if len(rows) > limit else None)
