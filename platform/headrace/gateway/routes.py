"""From the name in a URL to the version that answers: a snapshot per function, swapped in one assignment.

A URL names a function and what of it: `hello`, `hello@2`, `hello@beta`, `hello.team`, `hello.team@2`. The
first lookup of a spelling is resolved and kept; later ones cost one dict access, whatever the number of functions.
Replacing a function forgets its spellings, so the next call sees the new state and none before it a half of it.
"""

from __future__ import annotations

import random
import re
from bisect import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate

from headrace import errors
from headrace.gateway.pool import Pool
from headrace.model import DEFAULT_NAMESPACE, LIVE, Function, Target, Version

_MOST_SPELLINGS = 100_000
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")  # one spelling per version


@dataclass(frozen=True, slots=True)
class Runnable:
    """A version with its pool and what the hot path needs of it, ready to use."""

    version: Version
    pool: Pool
    timeout_s: float
    timeout_ms: int
    version_header: tuple[bytes, bytes]


class Route:
    """What one spelling stands for: one version, or a weighted choice of several."""

    __slots__ = ("_choices", "_ends", "chooses", "function", "hashes", "prefix", "private", "runnable")

    def __init__(self, function: Function, prefix: str, choices: list[tuple[Runnable, int]]) -> None:
        self.function = function
        self.prefix = prefix  # path of the function's root, without a trailing slash
        self.private = function.access == "private"
        self.hashes = function.balancing == "hash"
        self.runnable = choices[0][0] if len(choices) == 1 else None
        self.chooses = self.runnable is None and function.sticky  # each caller stays with its version
        self._choices = [runnable for runnable, _ in choices]
        self._ends = list(accumulate(weight for _, weight in choices))

    def choose(self, key: str | None) -> Runnable:
        """The version for this call, by weight; the same one for the same `key`."""
        if self.runnable is not None:
            return self.runnable
        total = self._ends[-1]
        if key is None:
            point = random.randrange(total)  # noqa: S311 - balancing, not cryptography
        else:
            salted = f"{self.function.id}\0{key}".encode("utf-8", "surrogatepass")
            point = int.from_bytes(blake2b(salted, digest_size=8).digest(), "big") % total
        return self._choices[bisect(self._ends, point)]


class Routes:
    """All functions of this node. `pool_of` gives the pool of a version, the same one for as long as it is routed."""

    def __init__(self, pool_of: Callable[[Target, Version], Pool]) -> None:
        self._pool_of = pool_of
        self._targets: dict[int, Target] = {}
        self._ids: dict[tuple[str, str], int] = {}
        self._spellings: dict[str, Route] = {}
        self._spelt: dict[int, list[str]] = {}  # the keys of _spellings, by function

    def __len__(self) -> int:
        return len(self._targets)

    def target(self, function_id: int) -> Target | None:
        return self._targets.get(function_id)

    def targets(self) -> Iterable[Target]:
        return self._targets.values()

    def ids(self) -> set[int]:
        return set(self._targets)

    def put(self, target: Target) -> bool:
        """Swap one function's state in; False for an older revision than the present one, which is ignored."""
        present = self._targets.get(target.function.id)
        if present is not None and present.revision > target.revision:
            return False
        self._targets[target.function.id] = target
        self._ids[target.function.namespace, target.function.name] = target.function.id
        self._forget(target.function)
        return True

    def drop(self, function_id: int) -> Target | None:
        target = self._targets.pop(function_id, None)
        if target is not None:
            key = (target.function.namespace, target.function.name)
            if self._ids.get(key) == function_id:
                del self._ids[key]
            self._forget(target.function)
        return target

    def lookup(self, spelling: str) -> Route:
        """The route of `name[.namespace][@version or alias]`. Raises `NotFound` saying what is missing."""
        route = self._spellings.get(spelling)
        if route is None:
            route = self._resolve(spelling)
            if len(self._spellings) >= _MOST_SPELLINGS:
                self._spellings.clear()
                self._spelt.clear()
            self._spellings[spelling] = route
            self._spelt.setdefault(route.function.id, []).append(spelling)
        return route

    def function_id(self, spelling: str) -> int | None:
        """The function that `spelling` names, whatever it asks of it; None for an unknown one."""
        name, _, namespace = spelling.partition("@")[0].partition(".")
        return self._ids.get((namespace or DEFAULT_NAMESPACE, name))

    def _resolve(self, spelling: str) -> Route:
        place, _, which = spelling.partition("@")
        name = place.partition(".")[0]
        id = self.function_id(spelling)
        if id is None or spelling.endswith(("@", ".")):
            raise errors.NotFound(f"there is no function {place[:130]!r}: check the name, or deploy it.")
        target = self._targets[id]
        if _NUMBER.fullmatch(which):
            traffic = {int(which): 100}
        else:
            found = target.aliases.get(which or LIVE)
            if not found:
                what = f"no alias {which[:70]!r}" if which else "no published version yet"
                raise errors.NotFound(f"function {place!r} has {what}: publish a version first.", function=name)
            traffic = found
        choices = [(self._runnable(target, number), weight) for number, weight in traffic.items()]
        return Route(target.function, f"/fn/{spelling}", choices)

    def _runnable(self, target: Target, number: int) -> Runnable:
        version = target.versions.get(number)
        if version is None:
            raise errors.NotFound(
                f"version {number} of {target.function.name!r} does not exist or is not ready.",
                function=target.function.name,
            )
        timeout_s = version.config.timeout_s
        header = (b"headrace-version", b"%d" % number)
        return Runnable(version, self._pool_of(target, version), timeout_s, int(timeout_s * 1000), header)

    def _forget(self, function: Function) -> None:
        for spelling in self._spelt.pop(function.id, ()):
            self._spellings.pop(spelling, None)
