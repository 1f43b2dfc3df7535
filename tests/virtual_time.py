"""An event loop whose time jumps to the next timer instead of passing, and the clock that goes with it.

def test_something() -> None:
    async def scenario() -> None:
        await asyncio.sleep(3600)  # at once
    run(scenario())
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

START = 1_700_000_000.0  # what `LoopClock.now` says at the loop's start; a multiple of ten seconds


class _Jumping(selectors.SelectSelector):
    """Never waits: when nothing is ready, the loop's time moves on by what it would have waited."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise AssertionError("everything waits for something that never comes")
            self.passed += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.passed

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """At once, here: a thread would take real time while this loop's time jumps."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done


class LoopClock:
    """A `headrace.clock.Clock` on the running loop's time."""

    def now(self) -> float:
        return START + self.monotonic()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """Run `scenario` on a loop of its own in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(scenario)
