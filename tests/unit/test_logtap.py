"""The log tap: what instances write, in lines, with bounds that a hostile one can't talk its way around."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.model import Version, VersionConfig, VersionState
from headrace.telemetry.logtap import BURST, LINE, LONGEST, LogTap

VERSION = Version(1, 1, "default", "f", 3, VersionState.READY, None, "d", None, VersionConfig(), 1, 0, 0)


def _take(*frames: tuple[dict[str, Any], bytes]) -> list[tuple[Any, ...]]:
    lines: list[tuple[Any, ...]] = []
    take = LogTap(lines.append).of(VERSION, "i1")
    for header, text in frames:
        take("inv", header, text)
    return lines


def test_a_frame_becomes_lines() -> None:
    lines = _take(({"s": "stderr", "l": "ERROR"}, b"one\ntwo\n"))
    assert [line[1:] for line in lines] == [
        ("default", "f", 3, "inv", "i1", "stderr", "ERROR", "one"),
        ("default", "f", 3, "inv", "i1", "stderr", "ERROR", "two"),
    ]


def test_long_lines_are_cut_and_odd_bytes_replaced() -> None:
    lines = _take(({}, b"x" * (LONGEST + 5) + b"\n\xff\0"))
    assert [len(line[8]) for line in lines] == [LONGEST, 5, 2]
    assert lines[2][8] == "\N{REPLACEMENT CHARACTER}" * 2


@pytest.mark.parametrize("text", [b"\n" * 5000, b"", b"x" * 60_000], ids=["empty lines", "nothing", "text"])
def test_a_flood_is_bounded_by_lines_as_well_as_bytes_and_says_so(text: bytes) -> None:
    lines: list[tuple[Any, ...]] = []
    take = LogTap(lines.append).of(VERSION, "i1")
    for _ in range(100_000 if not text else 200):
        take("inv", {}, text)
    assert sum(LINE + len(line[8]) for line in lines) <= BURST * 1.3


def test_what_was_dropped_is_said_when_there_is_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("headrace.telemetry.logtap.time.monotonic", lambda: now[0])
    lines: list[tuple[Any, ...]] = []
    take = LogTap(lines.append).of(VERSION, "i1")
    for _ in range(10):
        take("inv", {}, b"x" * (1 << 20))
    assert len(lines) < 10 * 65
    now[0] += 60
    take("inv", {}, b"back")
    assert [(line[4], line[6], line[8]) for line in lines[-2:]] == [
        ("", "platform", lines[-2][8]),
        ("inv", "stdout", "back"),
    ]
    assert "dropped" in lines[-2][8]


@pytest.mark.parametrize("header", [{"s": [], "l": {}}, {"t": 10**400}, {"t": "x"}, {"t": -1}, {"s": "nonsense"}])
def test_headers_of_any_kind_are_survived(header: dict[str, Any]) -> None:
    assert [line[6:] for line in _take((header, b"text"))] == [("stdout", "INFO", "text")]
