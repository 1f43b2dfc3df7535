"""What control and worker ask of the nodes, all at once.

A node that can't be reached is dead or starting. It reads everything from the database before it serves, so changes
need not be brought to it, and nobody waits for it. A node that is there but does not answer may be serving what was
before: that is an error, because what changed can't be promised to be in force.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from headrace import peer
from headrace.errors import HeadraceError, NodeUnavailable
from headrace.model import Node
from headrace.store.nodes import Nodes

logger = logging.getLogger(__name__)

_LIVE_S = 30.0  # a node that did not report for so long is not asked
_CHANGE_S = 10.0
_SHOW_S = 3.0
_START_S = 75.0  # starting an instance and loading code into it; the node itself gives up before
_PATIENCE_S = 10.0  # how long a probe waits for a first node
_LOOK_AGAIN_S = 0.2


class NodeClient:
    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    async def refresh(self, function_id: int) -> None:
        """Have every node take over what the database says about the function; returns when all serve it.

        Raises `NodeUnavailable` when a node is there but does not confirm.
        """
        await self._change("refresh", {"function_id": function_id})

    async def refresh_tokens(self) -> None:
        """The same for tokens."""
        await self._change("refresh_tokens", {})

    async def warm(self, function_id: int, version: int) -> None:
        """Have an instance of the version ready on every node.

        Raises the function's own failure (`LoadFailed`, ...) if there is one, else that of the platform. Nodes that
        can't be reached don't count.
        """
        question = {"function_id": function_id, "version": version}
        nodes = await self._nodes.live(_LIVE_S)
        answers = await asyncio.gather(
            *(peer.ask(node.address, "warm", question, _START_S) for node in nodes), return_exceptions=True
        )
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        for failure in sorted(failures, key=_blame):
            if not isinstance(failure, NodeUnavailable):
                raise failure

    async def probe(self, version_id: int) -> dict[str, Any]:
        """Start the version on one node: `{"kind": "handler"|"asgi", "ms": float}`.

        Raises what the node says (`LoadFailed` with `type`, `message` and `stack`, ...), or `NodeUnavailable` when
        no node can be reached within ten seconds.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE_S
        while True:
            for node in sorted(await self._nodes.live(_LIVE_S), key=lambda node: -node.seen_at):
                try:
                    return await peer.ask(node.address, "probe", {"version_id": version_id}, _START_S)
                except NodeUnavailable as error:
                    logger.info("node %s can't try version id %d: %s", node.id, version_id, error)
            if loop.time() >= until:
                raise NodeUnavailable("no node runs that could try the version: start one, or wait until it is up.")
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def status(self) -> list[dict[str, Any]]:
        """What each node says about itself; those that don't answer are left out."""
        return await self._show("status")

    async def metrics(self) -> str:
        """The metrics of all nodes that answer, in the Prometheus text format."""
        return merged(str(answer.get("text", "")) for answer in await self._show("metrics"))

    async def _change(self, op: str, question: dict[str, Any]) -> None:
        nodes = await self._nodes.live(_LIVE_S)
        outcomes = await asyncio.gather(*(_confirm(node, op, question) for node in nodes), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _show(self, op: str) -> list[dict[str, Any]]:
        nodes = await self._nodes.live(_LIVE_S)
        answers = await asyncio.gather(
            *(peer.ask(node.address, op, {}, _SHOW_S) for node in nodes), return_exceptions=True
        )
        shown = []
        for node, answer in zip(nodes, answers, strict=True):
            if isinstance(answer, HeadraceError):
                logger.info("node %s does not tell its %s: %s", node.id, op, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                shown.append(answer)
        return shown


async def _confirm(node: Node, op: str, question: dict[str, Any]) -> None:
    try:
        async with asyncio.timeout(_CHANGE_S):
            await peer.ask(node.address, op, question, 2 * _CHANGE_S)
    except NodeUnavailable as error:
        logger.info("node %s is not told to %s, it will read it when it starts: %s", node.id, op, error)
    except TimeoutError:
        raise _unconfirmed(node, f"it does not answer within {_CHANGE_S:g} s") from None
    except HeadraceError as error:
        raise _unconfirmed(node, error.detail) from error


def _unconfirmed(node: Node, why: str) -> NodeUnavailable:
    return NodeUnavailable(
        f"the change is stored, but node {node.id} has not confirmed it ({why}): it follows by itself as soon as it "
        "can; until then it may serve what was before.",
        node=node.id,
    )


def _blame(failure: BaseException) -> int:
    """Sorts surprises first, then what the function did, then what the platform did."""
    if not isinstance(failure, HeadraceError):
        return 0
    return 1 if failure.fault == "function" else 2


def merged(texts: Iterable[str]) -> str:
    """Several Prometheus texts as one, where each family of metrics must be in one piece."""
    families: dict[str, tuple[dict[str, None], list[str]]] = {}
    for text in texts:
        comments, samples = families.setdefault("", ({}, []))
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                comments, samples = families.setdefault(line.split(" ", 3)[2], ({}, []))
                comments[line] = None
            elif line:
                samples.append(line)
    return "".join(f"{line}\n" for comments, samples in families.values() for line in [*comments, *samples])
