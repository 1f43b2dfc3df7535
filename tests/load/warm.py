"""hello at full speed, beside servers that answer the same bytes."""

from __future__ import annotations

import httpx
from measure import Load, Options, Report, Unavailable, compare, interleaved, middle, ratio, tail
from references import Answer, running

from stack import example, headrace

ROUNDS = 5
OF_BARE = 0.33  # all of these at 32 connections
OF_WORKERD = 1.4
OF_FRAMEWORK = 12
TAIL = 6  # p99 / p50
BEYOND_BARE_US = 120  # p50 at 1 connection


def run(connections: int, options: Options) -> Report:
    with headrace() as platform:
        files, config = example("hello")
        platform.deploy("hello", files, config)
        found = httpx.get(platform.url("hello"))
        if found.status_code != 200:
            raise Unavailable(f"hello answers {found.status_code}: {found.text}")
        answer = Answer(found.text, found.headers["content-type"])
        with running(answer, True, options.say) as references:
            subjects: dict[str, str | list[str]] = {"headrace": platform.url("hello"), **references}
            loads = interleaved(subjects, ROUNDS, connections, options.seconds, options.say)
    report = compare(f"warm-{connections}", loads, "bare")
    if connections == 1:
        beyond = (middle(loads["headrace"], "p50_ms") - middle(loads["bare"], "p50_ms")) * 1000
        report.at_most("p50 beyond bare Granian's, us", beyond, BEYOND_BARE_US)
    else:
        _judge(report, loads)
    return report


def _judge(report: Report, loads: dict[str, list[Load]]) -> None:
    for reference, target in (("bare", OF_BARE), ("workerd", OF_WORKERD), ("functions-framework", OF_FRAMEWORK)):
        if reference in loads:
            report.at_least(f"req/s of {reference}", ratio(loads["headrace"], loads[reference]), target)
    report.at_most("tail, p99/p50", tail(loads["headrace"]), TAIL)
