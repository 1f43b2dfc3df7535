"""Buckets keep their promise, summaries add up, and the Prometheus text can be read by its own rules."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import Invalid
from headrace.model import MetricSlot
from headrace.telemetry.metrics import (
    BUCKETS,
    HIGHEST_MS,
    LOWEST_MS,
    MOST_POINTS,
    RELATIVE_ERROR,
    Family,
    Histogram,
    bounds,
    bucket,
    render,
    summarise,
)

durations = st.floats(LOWEST_MS, HIGHEST_MS, exclude_max=True)


def of(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


# -- histogram


@given(durations)
def test_a_duration_lies_within_its_bucket(ms: float) -> None:
    low, high = bounds(bucket(ms))
    assert low <= ms < high


def test_buckets_cover_the_range_without_gap_or_overlap() -> None:
    assert bounds(0) == (0.0, LOWEST_MS)
    assert bounds(BUCKETS - 1) == (HIGHEST_MS, math.inf)
    for number in range(1, BUCKETS):
        assert bounds(number)[0] == bounds(number - 1)[1]
        assert bucket(bounds(number)[0]) == number
        assert bucket(math.nextafter(bounds(number)[0], 0)) == number - 1


@pytest.mark.parametrize(
    ("ms", "number"), [(0.0, 0), (-1.0, 0), (HIGHEST_MS, BUCKETS - 1), (math.inf, BUCKETS - 1), (math.nan, BUCKETS - 1)]
)
def test_what_is_outside_the_range_has_the_first_or_last_bucket(ms: float, number: int) -> None:
    assert bucket(ms) == number
    assert of([ms]).percentile(0.5) is not None


def test_bucket_numbers_are_stored_and_never_change() -> None:
    assert [bucket(ms) for ms in (0.001, 0.5, 1.0, 3.7, 100.0, 30_000.0)] == [1, 145, 161, 190, 266, 398]


@given(st.lists(durations, min_size=1, max_size=200), st.floats(0, 1))
def test_percentile_is_the_nearest_rank_within_five_percent(values: list[float], q: float) -> None:
    exact = sorted(values)[max(math.ceil(q * len(values)), 1) - 1]
    answer = of(values).percentile(q)
    assert answer is not None
    assert abs(answer - exact) <= exact * RELATIVE_ERROR * (1 + 1e-9)
    assert RELATIVE_ERROR <= 0.05


def test_percentile_of_nothing_is_none() -> None:
    assert Histogram().percentile(0.99) is None


@given(st.lists(durations), st.lists(durations), st.lists(durations))
def test_merging_is_associative_and_the_same_as_recording_all(a: list[float], b: list[float], c: list[float]) -> None:
    left = of(a)
    left.merge(of(b).counts)
    left.merge(of(c).counts)
    inner = of(b)
    inner.merge(of(c).counts)
    right = of(a)
    right.merge(inner.counts)
    assert left == right == of(c + a + b)
    assert left.total == len(a) + len(b) + len(c)


@given(st.lists(durations))
def test_below_counts_what_is_shorter_than_powers_of_two(values: list[float]) -> None:
    edges = [0.25, 1.0, 2.0, 1024.0]
    assert of(values).below(edges) == [sum(value < edge for value in values) for edge in edges]


# -- summaries


def slot(at: float, *values: float, version: int = 1, node: str = "n1", **fields: Any) -> MetricSlot:
    defaults: dict[str, Any] = {
        "outcomes": {"ok": len(values)},
        "cold_starts": 0,
        "throttled": 0,
        "histogram": dict(of(list(values)).counts),
        "max_ms": max(values, default=0.0),
        "concurrency": 0,
        "instances": 0,
    }
    return MetricSlot(at, node, "default", "hello", version, **{**defaults, **fields})


def test_summary_adds_counts_and_keeps_peaks() -> None:
    slots = [
        slot(1000, *[2.0] * 98, outcomes={"ok": 97, "timeout": 1}, cold_starts=1, concurrency=3, instances=1),
        slot(1010, 40.0, 80.0, outcomes={"ok": 1, "function_error": 1, "rejected": 4}, throttled=4, concurrency=2),
        slot(1010, node="n2", concurrency=4, instances=2),
    ]
    totals = summarise(slots, 1000, 1060, 60, by_version=False)["totals"]
    assert totals == {
        "invocations": 104,
        "errors": {"function_error": 1, "rejected": 4, "timeout": 1},
        "cold_starts": 1,
        "throttled": 4,
        "p50_ms": pytest.approx(2.0, rel=0.05),
        "p95_ms": pytest.approx(2.0, rel=0.05),
        "p99_ms": pytest.approx(40.0, rel=0.05),
        "max_ms": 80.0,
        "concurrency": 6,  # both nodes at 1010
        "instances": 2,
    }


def test_series_has_every_step_and_each_slot_in_its_own() -> None:
    series = summarise([slot(1030, 1.0), slot(1090, 1.0, 1.0)], 1025, 1150, 60, by_version=False)["series"]
    assert [(point["at"], point["invocations"]) for point in series] == [(1020, 1), (1080, 2), (1140, 0)]
    assert series[2]["p99_ms"] is None
    assert series[2]["max_ms"] is None


def test_window_takes_the_slot_it_begins_in_and_not_the_one_it_ends_before() -> None:
    slots = [slot(990, 1.0), slot(1000, 1.0), slot(1050, 1.0), slot(1060, 1.0)]
    answer = summarise(slots, 1005, 1060, 60, by_version=False)
    assert answer["totals"]["invocations"] == sum(point["invocations"] for point in answer["series"]) == 2


def test_by_version_splits_and_totals_join() -> None:
    slots = [slot(1000, 1.0, 1.0, instances=1), slot(1000, 9.0, version=2, instances=2)]
    answer = summarise(slots, 1000, 1010, 10, by_version=True)
    assert {number: part["totals"]["invocations"] for number, part in answer["versions"].items()} == {1: 2, 2: 1}
    assert answer["versions"][2]["series"][0]["max_ms"] == 9.0
    assert answer["totals"]["invocations"] == 3
    assert answer["totals"]["instances"] == 3
    assert "versions" not in summarise(slots, 1000, 1010, 10, by_version=False)


def test_percentiles_never_exceed_the_exact_maximum() -> None:
    totals = summarise([slot(0, 1.0)], 0, 10, 10, by_version=False)["totals"]
    assert totals["p99_ms"] == totals["max_ms"] == 1.0


@pytest.mark.parametrize("step_s", [0, -10, 1, 15, math.nan])
def test_a_step_that_slots_cannot_fill_is_refused(step_s: float) -> None:
    with pytest.raises(Invalid, match="multiple of 10 seconds"):
        summarise([], 0, 600, step_s, by_version=False)


def test_a_series_that_would_be_too_long_is_refused_with_the_step_to_use() -> None:
    with pytest.raises(Invalid, match="use step_s 420 or more") as refused:
        summarise([], 0, 7 * 86_400, 60, by_version=False)
    assert str(MOST_POINTS) in refused.value.detail
    assert len(summarise([], 0, 7 * 86_400, 420, by_version=False)["series"]) == 1_440


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(Invalid, match="window is empty"):
        summarise([], 10, 10, 10, by_version=False)


# -- Prometheus text

_LINE = re.compile(
    r"""(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
        (?:\{(?P<labels>(?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*",?)*)\})?
        [ ](?P<value>NaN|[+-]Inf|-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)""",
    re.VERBOSE,
)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"')
_UNESCAPED = {r"\\": "\\", r"\n": "\n", r"\"": '"'}


def parse(text: str) -> list[tuple[str, dict[str, str], float]]:
    """The samples of a page in the text format, strictly by its rules."""
    assert text == "" or text.endswith("\n")
    samples = []
    for line in text.split("\n")[:-1]:
        if line.startswith(("# HELP ", "# TYPE ")):
            continue
        found = _LINE.fullmatch(line)
        assert found is not None, line
        labels = {
            name: re.sub(r'\\[\\n"]', lambda escape: _UNESCAPED[escape[0]], value)
            for name, value in _LABEL.findall(found["labels"] or "")
        }
        samples.append((found["name"], labels, float(found["value"])))
    return samples


def test_text_of_a_counter_and_a_gauge() -> None:
    calls = Family("headrace_calls_total", "counter", "Finished calls.")
    calls.add(3, function="hello", version=2)
    load = Family("headrace_load", "gauge", "A line\nand a \\ in the help.")
    load.add(0.25)
    assert render([calls, load]) == (
        "# HELP headrace_calls_total Finished calls.\n"
        "# TYPE headrace_calls_total counter\n"
        'headrace_calls_total{function="hello",version="2"} 3\n'
        "# HELP headrace_load A line\\nand a \\\\ in the help.\n"
        "# TYPE headrace_load gauge\n"
        "headrace_load 0.25\n"
    )
    assert render([]) == ""


@given(st.dictionaries(st.sampled_from(["a", "b_c", "D1"]), st.text()), st.floats(allow_nan=False))
def test_any_label_and_value_survives_the_text(labels: dict[str, str], value: float) -> None:
    family = Family("m", "gauge", "Help.")
    family.add(value, **labels)
    assert parse(render([family])) == [("m", labels, value)]


def test_not_a_number_has_its_own_spelling() -> None:
    family = Family("m", "gauge", "Help.")
    family.add(math.nan)
    assert render([family]).endswith("m NaN\n")


def test_histogram_text_is_cumulative_and_in_seconds() -> None:
    family = Family("headrace_seconds", "histogram", "Durations.")
    family.add_histogram(of([0.1, 3.0, 3.0, 100_000.0]), 100_006.1, function="hello")
    samples = parse(render([family]))
    buckets = [(labels["le"], value) for name, labels, value in samples if name == "headrace_seconds_bucket"]
    edges = [float(edge) for edge, _ in buckets]
    assert edges == sorted(edges)
    found = dict(buckets)
    assert (found["0.00025"], found["0.002"], found["0.004"], found["65.536"], found["+Inf"]) == (1, 1, 3, 3, 4)
    assert [value for _, value in buckets] == sorted(value for _, value in buckets)
    assert samples[-2:] == [
        ("headrace_seconds_sum", {"function": "hello"}, 100.0061),
        ("headrace_seconds_count", {"function": "hello"}, 4.0),
    ]
