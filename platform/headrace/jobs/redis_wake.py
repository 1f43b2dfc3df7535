"""The wake-up by Redis, for workers on several machines. It carries hints: without it sleepers look by themselves."""

from __future__ import annotations

import asyncio
import logging

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

_REDIS_TIMEOUT_S = 2.0
_REDIS_HEALTH_S = 30


class RedisWake:
    """For several machines: a message on the channel of `tag`. Without Redis every wait lasts until its timeout."""

    def __init__(self, url: str, tag: str) -> None:
        self._name = f"headrace:{tag}:wake"
        self._client = Redis.from_url(
            url,
            socket_connect_timeout=_REDIS_TIMEOUT_S,
            socket_timeout=_REDIS_TIMEOUT_S,
            health_check_interval=_REDIS_HEALTH_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._channel: PubSub | None = None
        self._away = False

    async def wait(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        try:
            if self._channel is None:
                await self._subscribe()
                return
            while (left := until - loop.time()) > 0:
                if await self._channel.get_message(ignore_subscribe_messages=True, timeout=left):
                    await self._skip_the_rest(self._channel)
                    return
        except (RedisError, OSError) as error:
            self._note(error)
            await self._unsubscribe()
            await asyncio.sleep(until - loop.time())

    async def poke(self) -> None:
        try:
            await self._client.publish(self._name, b"")
            self._note(None)
        except (RedisError, OSError) as error:
            self._note(error)

    async def close(self) -> None:
        await self._unsubscribe()
        await self._client.aclose()

    async def _subscribe(self) -> None:
        channel = self._client.pubsub()
        self._channel = channel
        await channel.subscribe(self._name)
        self._note(None)

    async def _unsubscribe(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.aclose()  # type: ignore[no-untyped-call]

    async def _skip_the_rest(self, channel: PubSub) -> None:
        """Pokes that came together are one."""
        while await channel.get_message(ignore_subscribe_messages=True, timeout=0) is not None:
            pass

    def _note(self, error: Exception | None) -> None:
        """Say once that Redis went away, and once that it is back."""
        away = error is not None
        if away != self._away:
            self._away = away
            if away:
                logger.warning("Redis does not answer (%s): new work starts with a delay until it is back", error)
            else:
                logger.info("Redis answers again")
