"""Functions and versions as they come and go; whoever needs to know is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.jobs.wake import Wake
from headrace.model import Function, Version, VersionConfig
from headrace.releases.bundle import Stored
from headrace.releases.nodes import NodeClient
from headrace.store.functions import Functions
from headrace.store.versions import Versions


class Releases:
    def __init__(self, functions: Functions, versions: Versions, nodes: NodeClient, wake: Wake) -> None:
        self._functions = functions
        self._versions = versions
        self._nodes = nodes
        self._wake = wake

    async def put_function(self, namespace: str, name: str, changes: Mapping[str, Any]) -> tuple[Function, bool]:
        """Create the function, or change the settings named; the nodes serve by them. True: it is new."""
        function, created = await self._functions.put(namespace, name, changes)
        await self._nodes.refresh(function.id)
        return function, created

    async def submit(self, namespace: str, name: str, stored: Stored, config: VersionConfig) -> tuple[Version, bool]:
        """A new version, to be built soon, or the one that exists with this code and config. True: it is new."""
        version, created = await self._versions.submit(
            namespace, name, stored.digest, config, stored.size_bytes, reuse=config.pinned
        )
        if created:
            await self._wake.poke()
        return version, created

    async def delete_version(self, namespace: str, name: str, number: int) -> Version:
        """Retire the version; its instances stop. Raises `Conflict` while an alias points at it or it is built."""
        version = await self._versions.retire(namespace, name, number)
        await self._nodes.refresh(version.function_id)
        return version

    async def delete_function(self, namespace: str, name: str) -> None:
        """Delete the function with all it has; its instances stop."""
        function = await self._functions.delete(namespace, name)
        await self._nodes.refresh(function.id)
