"""Which idle instance to give up when memory is short: the one whose next call is least likely to pay for its memory.

Keep-alive as caching, after FaasCache (Fuerst and Sharma, ASPLOS 2021): frequency x start cost / memory. That ranks
by GreedyDual, where age only counts in evictions; here it counts in seconds, as in Hyperbolic Caching (Blankstein,
Sen and Freedman, USENIX ATC 2017), because the gaps between calls of one function are heavy-tailed (Shahrad et al.,
USENIX ATC 2020): the longer the silence, the less likely is a call in the next second, in inverse proportion for a
Pareto tail. The logarithm damps frequency, which would otherwise keep for hours what was popular in the morning.
"""

from __future__ import annotations

from math import log2

_SETTLED_S = 1.0  # ages below this are alike


def worth(idle_s: float, calls: int, start_ms: float, memory_mb: int) -> float:
    """`idle_s`: since its last call; `calls`: that its version's instances served; `start_ms`: to start it again.

    One that was started ahead of its first call counts as called once.
    """
    return log2(2 + calls) * start_ms / memory_mb / (idle_s + _SETTLED_S)
