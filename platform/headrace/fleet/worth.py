"""Which idle instance to give up when memory is short: the one whose return would cost the least per MiB kept.

GreedyDual-Size-Frequency (Cherkasova, 1998), as FaasCache applies it to keep-alive (Fuerst and Sharma, ASPLOS 2021):
worth = clock + frequency x start cost / memory. The clock is the worth of what was given up last, so what was
popular long ago ages: everything used since then starts from a higher clock.
"""

from __future__ import annotations


class Clock:
    """Grows with each eviction; `now` is what a use at this moment starts from."""

    def __init__(self) -> None:
        self.now = 0.0

    def gave_up(self, worth: float) -> None:
        self.now = max(self.now, worth)


def worth(used_at: float, calls: int, start_ms: float, memory_mb: int) -> float:
    """`used_at`: the clock at the last use; `calls`: how many it served; `start_ms`: what starting it again costs."""
    return used_at + calls * start_ms / memory_mb
