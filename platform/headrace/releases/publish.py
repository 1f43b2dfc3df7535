"""Moves aliases: publish, rollback, split, delete.

First every node gets the versions ready, then the store moves the pointer in one guarded transaction, then every node
takes it over, and only then the answer is given: a request accepted after it never runs what was left. If the process
dies in between, the pointer has moved or it has not; nodes find out by themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from headrace.errors import Conflict, FunctionError, HeadraceError
from headrace.model import Move, VersionState, check_traffic
from headrace.releases.nodes import NodeClient
from headrace.store.aliases import Aliases
from headrace.store.functions import Functions
from headrace.store.versions import Versions

logger = logging.getLogger(__name__)


class Publisher:
    """Raises `NotFound` for what is not there, `Conflict` with the current state when the move can't be made (then
    nothing has changed), `NodeUnavailable` when it was made but a node has not confirmed it.
    """

    def __init__(self, functions: Functions, versions: Versions, aliases: Aliases, nodes: NodeClient) -> None:
        self._functions = functions
        self._versions = versions
        self._aliases = aliases
        self._nodes = nodes

    async def publish(
        self, namespace: str, name: str, version: int, alias: str, if_generation: int | None, *, actor: str
    ) -> Move:
        """Lead all of the alias to one version."""
        function_id = await self._prepare(namespace, name, {version: 100})
        move = await self._aliases.move(
            namespace, name, alias, {version: 100}, action="publish", actor=actor, if_generation=if_generation
        )
        await self._nodes.refresh(function_id)
        return move

    async def split(
        self, namespace: str, name: str, alias: str, traffic: dict[int, int], if_generation: int | None, *, actor: str
    ) -> Move:
        """Split the alias between versions. Raises `Invalid` unless the whole weights sum to 100."""
        check_traffic(traffic)
        function_id = await self._prepare(namespace, name, traffic)
        move = await self._aliases.move(
            namespace, name, alias, traffic, action="traffic", actor=actor, if_generation=if_generation
        )
        await self._nodes.refresh(function_id)
        return move

    async def rollback(
        self, namespace: str, name: str, alias: str, to: int | None, if_generation: int | None, *, actor: str
    ) -> Move:
        """Lead the alias to the version `to`, or (None) to where it pointed before its last move."""
        if to is None:
            traffic, expected = await self._before(namespace, name, alias, if_generation)
        else:
            traffic, expected = {to: 100}, if_generation
        function_id = await self._prepare(namespace, name, traffic)
        move = await self._aliases.move(
            namespace, name, alias, traffic, action="rollback", actor=actor, if_generation=expected
        )
        await self._nodes.refresh(function_id)
        return move

    async def delete_alias(self, namespace: str, name: str, alias: str, *, actor: str) -> Move:
        """Remove the alias; its URL answers 404 from then on."""
        function = await self._functions.get(namespace, name)
        move = await self._aliases.delete(namespace, name, alias, actor)
        await self._nodes.refresh(function.id)
        return move

    async def _before(
        self, namespace: str, name: str, alias: str, if_generation: int | None
    ) -> tuple[dict[int, int], int | None]:
        """Where the alias pointed before its last move, and the generation at which that is so.

        The move is bound to that generation: two rollbacks at once must not undo each other.
        """
        last = (await self._aliases.history(namespace, name, alias, 1, None)).items[0]
        traffic = await self._aliases.before(namespace, name, alias)
        return traffic, last.generation if if_generation is None else if_generation

    async def _prepare(self, namespace: str, name: str, traffic: Mapping[int, int]) -> int:
        """Warm the versions on all nodes; the id of the function. Refused when one of them does not load any more.

        A version that is not ready is left to the store to refuse, and one of weight 0 need not be warm. What the
        platform can't do now is no reason to keep somebody from rolling back: then the first call starts the instance.
        """
        function = await self._functions.get(namespace, name)
        versions = [await self._versions.get(namespace, name, number) for number in traffic]
        ready = [v.number for v in versions if traffic[v.number] and v.state is VersionState.READY]
        await asyncio.gather(*(self._warm(function.id, name, number) for number in ready))
        return function.id

    async def _warm(self, function_id: int, name: str, number: int) -> None:
        try:
            await self._nodes.warm(function_id, number)
        except FunctionError as error:
            raise Conflict(
                f"version {number} of {name} does not start ({error.detail}), so nothing was moved: correct the code "
                "and deploy it again.",
                **{**error.ids, "version": number, "reason": error.code},
            ) from error
        except HeadraceError as error:
            logger.warning("version %d of %s is not warm, its first call will start it: %s", number, name, error)
