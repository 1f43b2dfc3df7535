from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cli_kit import Stream
from headrace.cli import times
from headrace.cli.output import Output, bytes_text, ms_text, sparkline, traffic_text
from headrace.errors import Invalid

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def output(*, terminal: bool = False) -> tuple[Output, Stream, Stream]:
    out, err = Stream(terminal=terminal), Stream(terminal=terminal)
    return Output(Stream(), out, err), out, err


def test_a_plain_table_is_aligned_for_people_and_awk() -> None:
    out, stdout, _ = output()
    out.table(["name", "count"], [["a", "1"], ["longer", "1000"]], right=["count"])
    assert stdout.data == b"name    count\na           1\nlonger   1000\n"


def test_a_table_on_a_terminal_is_drawn_and_shows_markup_as_it_is() -> None:
    out, stdout, _ = output(terminal=True)
    out.table(["name"], [["[red]x[/red]\x1b[2J"]])
    text = stdout.data.decode()
    assert "─" in text
    assert "[red]x[/red]\\x1b[2J" in text


def test_work_is_a_line_per_step_without_a_terminal() -> None:
    out, stdout, stderr = output()
    with out.working("Packing") as work:
        work.step("Uploading")
        work.note("done")
    assert (stdout.data, stderr.data) == (b"", b"Packing\nUploading\ndone\n")


def test_work_on_a_terminal_leaves_only_what_was_noted() -> None:
    out, _, stderr = output(terminal=True)
    with out.working("Packing") as work:
        work.step("Uploading")
        work.note("done")
    kept, shown = stderr.data.split(b"done")
    assert b"Uploading" not in kept
    assert b"Uploading" in shown
    assert stderr.data.endswith(b"\x1b[1A\x1b[2K")  # the line of the spinner is taken back


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([0, 0], "▁▁"), ([0, 1, 2, 4, 8], "▁▂▃▅█"), ([5], "█")],
)
def test_sparkline(values: list[float], line: str) -> None:
    assert sparkline(values) == line


def test_words_for_numbers() -> None:
    assert [bytes_text(count) for count in (0, 1023, 2048, 5 << 20, 3 << 30)] == [
        "0 B",
        "1023 B",
        "2.0 KiB",
        "5.0 MiB",
        "3.0 GiB",
    ]
    assert [ms_text(value) for value in (None, 0.5, 99.9, 100.4, 12_345)] == [
        "-",
        "0.50 ms",
        "99.90 ms",
        "100 ms",
        "12.3 s",
    ]
    assert [traffic_text(traffic) for traffic in ({}, {"3": 100}, {"3": 90, "4": 10})] == ["-", "3", "3: 90 %, 4: 10 %"]


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        (None, "-"),
        ("2026-01-31T11:59:58Z", "2 s ago"),
        ("2026-01-31T12:00:05Z", "0 s ago"),
        ("2026-01-31T11:58:00Z", "2 min ago"),
        ("2026-01-31T10:30:00Z", "90 min ago"),
        ("2026-01-31T08:00:00Z", "4 h ago"),
        ("2026-01-28T12:00:00Z", "3 d ago"),
    ],
)
def test_ago(text: str | None, ago: str) -> None:
    assert times.ago(text, NOW) == ago


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90s", "2026-01-31T11:58:30.000Z"),
        ("1.5h", "2026-01-31T10:30:00.000Z"),
        ("2d", "2026-01-29T12:00:00.000Z"),
        ("2026-01-31T08:00:00+02:00", "2026-01-31T06:00:00.000Z"),
    ],
)
def test_moment(text: str, moment: str) -> None:
    assert times.moment(text, NOW) == moment


def test_a_duration_needs_its_unit() -> None:
    with pytest.raises(Invalid, match="90s, 10m, 2h or 7d"):
        times.seconds("10")
