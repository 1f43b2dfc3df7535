"""Threads for plain handlers: as many as run at once, started when they are needed.

Cheaper than `run_in_executor`: no future and no wake-up of the loop, because the thread that ran a call also sends
its answer. Only the loop's thread submits, so the one thing shared is the list of waiting threads.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, Callable


class Workers:
    """At most `limit` daemon threads; work beyond that waits for one to come free."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._pid = os.getpid()
        self._jobs: SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = SimpleQueue()
        self._waiting: deque[None] = deque()  # one entry per thread that will take the next job

    def submit(self, work: Callable[..., None], *args: Any) -> None:
        """Run `work(*args)`, which must not raise, in a thread and a context of its own.

        Raises `RuntimeError` when there is no thread and the sandbox allows none to start.
        """
        try:
            self._waiting.pop()
        except IndexError:
            if self._count < self._limit:
                self._grow()
        self._jobs.put((work, args))

    def _grow(self) -> None:
        thread = threading.Thread(target=self._run, name=f"call-{self._count + 1}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._count:
                raise
            return  # the job waits for a thread that exists
        self._count += 1

    def _run(self) -> None:
        while True:
            work, args = self._jobs.get()
            copy_context().run(work, *args)
            del work, args  # or the last call would live on until the next
            if os.getpid() != self._pid:
                os._exit(0)  # the work forked, and this is the child: it has nothing to serve
            self._waiting.append(None)
