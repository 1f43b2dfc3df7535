"""The queue of background work, as the worker needs it.

A job is worked on under a lease: a random token in the job's row and a time. Who holds the token may renew, finish
or retry the job; when the time is over, anybody may claim it under a new token, and the old one is worth nothing.
So a job is done at least once, and two workers never both believe that it is theirs for longer than it takes the
late one to ask. Write with the token as a guard, and make every step safe to repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job. `attempts` counts claims, this one included."""

    id: int
    kind: str
    payload: dict[str, Any]
    attempts: int
    lease: str


class JobQueue(Protocol):
    async def claim(self, kinds: Sequence[str], lease_s: float) -> Job | None:
        """The job due first that is free or whose lease ran out, under a new lease; None when there is none."""
        ...

    async def renew(self, job: Job, lease_s: float) -> bool:
        """Hold the job for `lease_s` seconds from now. False: the lease was lost."""
        ...

    async def finish(self, job: Job) -> bool:
        """The job is done and goes away. False: the lease was lost."""
        ...

    async def retry(self, job: Job, after_s: float, error: str) -> bool:
        """Let go of the job; it is due again in `after_s` seconds. False: the lease was lost."""
        ...

    async def waiting(self) -> int:
        """Jobs that nobody works on, due or not."""
        ...
