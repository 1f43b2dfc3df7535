"""Publishes and rollbacks under constant load: what fails, what the wrong version answers, what it costs.

Two versions say their own number. A request sent after a move was answered must be answered by the version that was
moved to, or by one that a move begun since leads to; never by the one that was left. In the quiet stretches the
control API is asked as often as it is in the others, so that the difference is the moves' own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import uvloop
from measure import Options, Report, Unavailable, quantile
from steady import Client, Sample

from stack import Headrace, headrace

MOVES = 200
STRETCHES = 4
SHARE = 0.7  # of what the client and the platform together can do
CONNECTIONS = 32
P99_OF_QUIET = 2

_PAUSE_S = 0.05  # between two moves
_CARRIED_MS = 50.0  # a median above this: requests pile up, the load is more than the machine carries just now
_EASIER = 0.75
_TRIES = 8
_SOURCE = "def handler(event, context):\n    return {{'version': int(context.function_version)}}  # {0}\n"
_SHOWN = 5  # failures


def run(options: Options) -> Report:
    with headrace() as platform:
        return uvloop.run(_run(platform, options.seconds, options.say))


async def _run(platform: Headrace, seconds: float, say: Callable[[str], None]) -> Report:
    name = "moving"
    for number in (1, 2):
        platform.deploy(name, {"handler.py": _SOURCE.format(number)}, {"idle_s": 600})
    platform.ask("POST", f"/functions/{name}/publish", {"version": 1})
    address = urlsplit(platform.url(name))
    client = Client(str(address.hostname), address.port or 80, address.path, CONNECTIONS)
    await client.open()
    try:
        async with httpx.AsyncClient(
            base_url=f"{platform.control}/v1", headers={"Authorization": f"Bearer {platform.token}"}, timeout=60
        ) as api:
            return await _Moving(name, client, api, say).run(seconds)
    finally:
        await client.close()


class _Moving:
    def __init__(self, name: str, client: Client, api: httpx.AsyncClient, say: Callable[[str], None]) -> None:
        self._name = name
        self._client = client
        self._api = api
        self._say = say
        self._targets = [1]  # the version that each move led to; the first is the start
        self._move_ms: list[float] = []
        self._saturation = 0.0

    async def run(self, seconds: float) -> Report:
        await self._warm_both(seconds)
        rate = await self._find_rate(seconds)
        samples: dict[str, list[Sample]] = {"quiet": [], "moves": []}
        for stretch in range(STRETCHES):
            for phase, ask in (("quiet", self._look), ("moves", self._move)):
                samples[phase] += await self._stretch(rate, ask)
            self._say(f"stretch {stretch + 1} of {STRETCHES}: {len(self._targets) - 1} moves")
        return self._report(rate, samples)

    async def _warm_both(self, seconds: float) -> None:
        """Both versions get the instances that the load needs."""
        for _ in range(2):
            await self._client.saturate(seconds)
            await self._move()
        self._move_ms = []

    async def _find_rate(self, seconds: float) -> float:
        """`SHARE` of saturation, or less when the machine does not carry that."""
        loop = asyncio.get_running_loop()
        self._saturation = await self._client.saturate(seconds)
        rate = self._saturation * SHARE
        for _ in range(_TRIES):
            self._client.samples, ends = [], loop.time() + seconds
            await self._client.steady(rate, lambda ends=ends: loop.time() >= ends)  # type: ignore[misc]
            middle = quantile([sample.latency_ms for sample in self._client.samples], 0.5)
            self._say(f"{rate:,.0f} requests/s of {self._saturation:,.0f} at saturation: p50 {middle:.1f} ms")
            if middle < _CARRIED_MS:
                self._client.samples = []
                return rate
            rate *= _EASIER
        raise Unavailable("the machine is too busy with other things for a constant load: try again later.")

    async def _stretch(self, rate: float, ask: Callable[[], object]) -> list[Sample]:
        """Constant load while `ask` is done a share of `MOVES` times; its samples."""
        asking = asyncio.create_task(self._repeat(ask))
        await self._client.steady(rate, asking.done)
        await asking
        samples, self._client.samples = self._client.samples, []
        return samples

    async def _repeat(self, ask: Callable[[], object]) -> None:
        for _ in range(MOVES // STRETCHES):
            await ask()  # type: ignore[misc]
            await asyncio.sleep(_PAUSE_S)

    async def _look(self) -> None:
        (await self._api.get(f"/functions/{self._name}/aliases")).raise_for_status()

    async def _move(self) -> None:
        """Publish version 2, or roll back to version 1, in turn."""
        forward = self._targets[-1] == 1
        self._targets.append(2 if forward else 1)
        self._client.seen = len(self._targets) - 1
        began = asyncio.get_running_loop().time()
        if forward:
            answer = await self._api.post(f"/functions/{self._name}/publish", json={"version": 2})
        else:
            answer = await self._api.post(f"/functions/{self._name}/rollback", json={})
        self._move_ms.append((asyncio.get_running_loop().time() - began) * 1000)
        if answer.status_code != 200 or answer.json()["traffic"] != {str(self._targets[-1]): 100}:
            raise Unavailable(f"a move was answered with {answer.status_code}: {answer.text}")
        self._client.mark = len(self._targets) - 1

    def _report(self, rate: float, samples: dict[str, list[Sample]]) -> Report:
        report = Report("moves", ("phase", "requests", "p50 ms", "p99 ms", "max ms", "failed", "wrong version"))
        for phase, found in samples.items():
            latencies = [sample.latency_ms for sample in found]
            failed = [sample for sample in found if sample.status != 200]
            wrong = [sample for sample in found if sample.status == 200 and not self._right(sample)]
            middle, high, most = (quantile(latencies, q) for q in (0.5, 0.99, 1.0))
            report.rows.append((phase, len(found), middle, high, most, len(failed), len(wrong)))
            for sample in [*failed, *wrong][:_SHOWN]:
                allowed = self._targets[sample.mark : sample.seen + 1]
                report.failures.append(f"{phase}: status {sample.status}, {sample!r}, versions allowed: {allowed}")
        amiss = sum(row[5] + row[6] for row in report.rows)
        report.at_most("requests that failed or met the wrong version", amiss, 0)
        quiet, moving = (
            quantile([sample.latency_ms for sample in samples[phase]], 0.99) for phase in ("quiet", "moves")
        )
        report.at_most("p99 during moves, of quiet", moving / quiet, P99_OF_QUIET)
        share = rate / self._saturation
        report.notes.append(f"{len(self._move_ms)} moves at {rate:,.0f} requests/s, {share:.2f} of saturation")
        middle, high = quantile(self._move_ms, 0.5), quantile(self._move_ms, 0.99)
        report.notes.append(f"a move takes p50 {middle:.1f} ms, p99 {high:.1f} ms")
        return report

    def _right(self, sample: Sample) -> bool:
        """Header and body name one version, and it was live at some time between sending and answer."""
        return sample.version == sample.said and sample.said in self._targets[sample.mark : sample.seen + 1]
