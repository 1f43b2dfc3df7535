"""Nodes as they last reported themselves: where control and worker find them."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import delete, select

from headrace.clock import Clock
from headrace.model import Node
from headrace.store import tables
from headrace.store.sql import Database, upsert


class Nodes:
    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def announce(self, node: Node) -> None:
        """Store the node's report, seen now."""
        values = asdict(node) | {"seen_at": self._clock.now()}
        async with self._database.begin(durable=False) as connection:
            statement = upsert(connection, tables.nodes).values(values)
            changed = {name: statement.excluded[name] for name in values if name != "id"}
            await connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changed))

    async def live(self, within_s: float) -> list[Node]:
        """The nodes that reported within the last `within_s` seconds, by id."""
        c = tables.nodes.c
        query = select(tables.nodes).where(c.seen_at >= self._clock.now() - within_s).order_by(c.id)
        async with self._database.connect() as connection:
            return [Node(*row) for row in await connection.execute(query)]

    async def remove(self, id: str) -> None:
        """Forget the node; nothing happens when it is not known."""
        async with self._database.begin() as connection:
            await connection.execute(delete(tables.nodes).where(tables.nodes.c.id == id))
