"""Times as people write and read them: `10m` back from now, `3 min ago`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from headrace.errors import Invalid

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(text: str) -> float:
    """`90s`, `10m`, `2h`, `7d` as seconds; raises `Invalid` saying how to write it."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise Invalid(f"{text!r} is not a duration: write a number and its unit, such as 90s, 10m, 2h or 7d.")
    return float(found[1]) * _SECONDS[found[2]]


def moment(text: str, now: datetime) -> str:
    """A duration before `now`, or a time as it is, in RFC 3339 UTC."""
    if _DURATION.fullmatch(text.strip()):
        return rfc3339(now - timedelta(seconds=seconds(text)))
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(
            f"{text!r} is not a time: write how long ago, such as 10m or 2h, or a time such as 2026-01-31T08:00:00Z."
        ) from None
    return rfc3339(when.astimezone(UTC))


def rfc3339(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def ago(text: str | None, now: datetime) -> str:
    """How long before `now` the RFC 3339 time `text` was."""
    if not text:
        return "-"
    passed = (now - datetime.fromisoformat(text)).total_seconds()
    for unit, length, least in (("d", 86_400, 2), ("h", 3600, 2), ("min", 60, 1)):
        if passed >= least * length:
            return f"{passed / length:.0f} {unit} ago"
    return f"{max(passed, 0):.0f} s ago"


def clock_time(text: str) -> str:
    """The time of day of an RFC 3339 time, in the zone of this machine, with milliseconds."""
    return datetime.fromisoformat(text).astimezone().strftime("%H:%M:%S.%f")[:-3]
