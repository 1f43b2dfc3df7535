"""Builds versions: installs what they depend on, tries them out, and says READY, or FAILED and why.

A build may stop at any point, with its worker, and start again from the beginning in another. So each step first looks
whether it has been done: a layer is there under its digest or it is not, the state of a version only moves forward.
Every write carries the lease of the job; when it is refused, somebody else builds this version now and we are silent.

What the function did wrong fails the version at once. What the platform can't do now is tried again, later and later,
for about ten minutes; after that the version fails too, so that nothing is stuck for ever.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from pathlib import Path

from headrace import runtimes
from headrace.drivers import guest
from headrace.drivers.base import BuildSpec, Driver
from headrace.errors import BuildFailed, FunctionError, HeadraceError, Invalid, NotFound
from headrace.jobs.base import Job
from headrace.jobs.worker import backoff_s
from headrace.model import Version, VersionState
from headrace.releases import dependencies, durable
from headrace.releases.buildlog import BuildLog, scrubbed
from headrace.releases.nodes import NodeClient
from headrace.settings import Settings
from headrace.store.sql import clean_text
from headrace.store.versions import Versions

logger = logging.getLogger(__name__)

_MAX_ATTEMPTS = 20  # with the worker's backoff about ten minutes
_MAX_SURPRISES = 5  # attempts that end in an error nobody thought of
_LONGEST_REASON = 2000  # characters
_KINDS = {"asgi": "ASGI application loads", "handler": "handler loads", "image": "image serves"}
_UNDER_WAY = VersionState.PENDING, VersionState.BUILDING, VersionState.PROBING


class _LeaseLost(Exception):
    """Somebody else has the job now, or its version is gone."""


class Builder:
    def __init__(self, versions: Versions, driver: Driver, nodes: NodeClient, settings: Settings) -> None:
        self._versions = versions
        self._driver = driver
        self._nodes = nodes
        self._settings = settings

    async def run(self, job: Job) -> None:
        """Bring the version of the job to its end. Raises what is worth another attempt."""
        try:
            version = await self._versions.by_id(job.payload["version_id"])
            if version.state in _UNDER_WAY:
                async with BuildLog(self._versions, version.id) as log:
                    await self._attempt(job, version, log)
        except NotFound:
            if not await self._deleted(job):
                raise  # the node did not find what it needed; the version itself is there
            logger.info("the version of build job %d was deleted meanwhile", job.id)
        except _LeaseLost:
            logger.warning("build job %d belongs to somebody else now", job.id)

    async def _deleted(self, job: Job) -> bool:
        try:
            await self._versions.by_id(job.payload["version_id"])
        except NotFound:
            return True
        return False

    async def _attempt(self, job: Job, version: Version, log: BuildLog) -> None:
        try:
            if job.attempts > _MAX_ATTEMPTS:
                raise BuildFailed(f"given up: {_MAX_ATTEMPTS} attempts to build it were cut off. Deploy it again.")
            if job.attempts > 1:
                log.line(f"Attempt {job.attempts}.")
            await self._build(job, version, log)
        except (NotFound, _LeaseLost):
            raise
        except Exception as error:
            reason = _verdict(job, error)
            if reason is None:
                log.line(f"{_words(error)} The next attempt is in {backoff_s(job.attempts):g} s.")
                raise
            _explain(log, reason, error)
            if not isinstance(error, HeadraceError):
                logger.exception("building %s failed", version)
            await self._advance(job, version, VersionState.FAILED, reason=reason)

    async def _build(self, job: Job, version: Version, log: BuildLog) -> None:
        await self._advance(job, version, VersionState.BUILDING)
        platform = await self._driver.prepare(version.config.runtime)
        layer = await self._install(version, platform, log)
        await self._advance(job, version, VersionState.PROBING, layer=layer)
        log.line("Starting an instance to try it.")
        found = await self._nodes.probe(version.id)
        log.line(f"Ready: the {_KINDS.get(found['kind'], found['kind'])}, an instance started in {found['ms']:.0f} ms.")
        await self._advance(job, version, VersionState.READY)
        try:
            await self._nodes.refresh(version.function_id)
        except HeadraceError as error:
            logger.warning("%s is ready, but not all nodes know it yet: %s", version, error)

    async def _install(self, version: Version, platform: str, log: BuildLog) -> str | None:
        """The digest of the layer with the version's dependencies, installed if it was not there; None without any.

        `platform`: what the driver says that it is made on.
        """
        runtime, code = runtimes.get(version.config.runtime), self._settings.code_dir(version.digest)
        if runtime.carried is not None:
            return await self._image(version, code, log)
        rules = runtime.dependencies
        for name, advice in (rules.foreign if rules is not None else {}).items():
            if (code / name).is_file():
                log.line(f"{name} is not read: {advice}.")
        wanted = await asyncio.to_thread(dependencies.read, code, rules)
        if rules is None or wanted is None:
            log.line("Nothing to install.")
            return None
        layer = wanted.layer(runtime.name, platform, version.digest)
        final = self._settings.layer_dir(layer)
        if await asyncio.to_thread(durable.present, final):
            log.line(f"The dependencies in {rules.file} are installed already.")
            return layer
        log.line(f"Installing the dependencies in {rules.file}.")
        if rules.unlocked and not wanted.files.keys() & set(rules.locks):
            log.line(rules.unlocked)
        out_dir = await asyncio.to_thread(durable.fresh, final.parent)
        try:
            await self._driver.build(BuildSpec(secrets.token_hex(8), runtime.name, code, out_dir), log.installer)
            await _to_the_end(lambda: durable.keep(out_dir, final))
        finally:
            await asyncio.to_thread(durable.remove, out_dir)
        return layer

    async def _image(self, version: Version, code: Path, log: BuildLog) -> str:
        """The digest of the layer that pins the version's image, found, pulled or built."""
        image = version.config.image
        shelf = self._settings.layer_dir("any").parent
        out_dir = await asyncio.to_thread(durable.fresh, shelf)
        try:
            spec = BuildSpec(secrets.token_hex(8), version.config.runtime, code, out_dir, image)
            await self._driver.build(spec, log.installer)
            layer = await asyncio.to_thread(guest.layer_of, out_dir)
            await _to_the_end(lambda: durable.keep(out_dir, self._settings.layer_dir(layer)))
        finally:
            await asyncio.to_thread(durable.remove, out_dir)
        return layer

    async def _advance(
        self, job: Job, version: Version, to: VersionState, *, reason: str | None = None, layer: str | None = None
    ) -> None:
        if not await self._versions.advance(version.id, to, job.lease, reason=reason, layer=layer):
            raise _LeaseLost


async def _to_the_end(work: Callable[[], None]) -> None:
    """Do `work` in a thread. When cancelled, wait for its end all the same: nobody may tidy up beneath it."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(task)
    finally:
        await asyncio.wait([task])


def _verdict(job: Job, error: Exception) -> str | None:
    """Why the version has failed; None when another attempt may help."""
    if isinstance(error, FunctionError | Invalid):
        return _words(error)
    attempts = _MAX_ATTEMPTS if isinstance(error, HeadraceError) and error.retryable else _MAX_SURPRISES
    return None if job.attempts < attempts else f"Given up after {job.attempts} attempts. {_words(error)}"


def _words(error: Exception) -> str:
    if isinstance(error, BuildFailed):
        text = scrubbed(error.detail)
    elif isinstance(error, HeadraceError):
        text = error.detail
    else:
        text = f"Building failed inside the platform ({type(error).__name__}); the worker's log says more."
    return clean_text(text)[:_LONGEST_REASON]


def _explain(log: BuildLog, reason: str, error: Exception) -> None:
    """The end of the log of a failed version: the stack of what its code raised, if any, and the reason."""
    raised = error.ids.get("error") if isinstance(error, FunctionError) else None
    if isinstance(raised, dict) and raised.get("stack"):
        log.line(str(raised["stack"]))
    log.line(f"Failed: {reason}")
