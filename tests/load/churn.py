"""A day of calls in virtual time: keep-alive by worth against fixed idle times that hold as much memory.

What is equal: "average" compares with the longest idle time whose memory, averaged over the day, is no more than that
of keep-alive by worth (its peak may be several times as high: the table shows it); "peak" compares with the longest
idle time that never holds more than the budget, which is what a machine of that size allows. No policy in the table
has seen the trace before, but the idle times were chosen with the whole day known.
"""

from __future__ import annotations

from keepalive import Result, by_worth, fixed_idle, fixed_idle_of, fixed_idle_within, make_trace
from measure import Options, Report

CALLS = 100_000
FUNCTIONS = 300
SEED = 3
SHARES = (0.05, 0.15, 0.4)  # of the memory that one instance of each function would hold
DEFAULT_IDLE_S = 300.0


def run(options: Options) -> Report:
    trace = make_trace(CALLS, FUNCTIONS, SEED)
    whole = sum(kind.memory_mb for kind in trace.kinds)
    columns = ("policy", "cold %", "starting s", "average MiB", "peak MiB", "refused")
    report = Report("churn", columns, [_row(f"idle {DEFAULT_IDLE_S:g} s", fixed_idle(trace, DEFAULT_IDLE_S))])
    for share in SHARES:
        budget = whole * share
        kept = by_worth(trace, budget)
        report.rows.append(_row(f"worth, {budget:,.0f} MiB", kept))
        for equal, (idle_s, fixed) in (
            ("average", fixed_idle_of(trace, kept.memory_mb)),
            ("peak", fixed_idle_within(trace, budget)),
        ):
            report.rows.append(_row(f"idle {idle_s:.0f} s, equal {equal}", fixed))
            what = f"{budget:,.0f} MiB, of idle time with equal {equal}"
            report.at_most(f"{what}: cold calls", (kept.cold + kept.refused) / fixed.cold, 1)
            report.at_most(f"{what}: time starting", kept.start_s / fixed.start_s, 1)
        options.say(f"{budget:,.0f} MiB: {kept.cold_ratio:.1%} cold by worth")
    report.notes.append(f"{CALLS:,} calls, {FUNCTIONS} functions; one instance of each holds {whole:,} MiB")
    return report


def _row(policy: str, result: Result) -> tuple[object, ...]:
    cold = result.cold_ratio * 100
    return policy, cold, result.start_s, result.memory_mb, float(result.peak_mb), result.refused
