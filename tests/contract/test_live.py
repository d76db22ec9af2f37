"""The subscription connection, on a real Valkey."""

import asyncio
import time

import pytest

from shared.errors import Unavailable
from shared.live import Listener, open_redis, publish_live
from tests.system.rig import unique


async def nothing() -> None:
    """Do nothing on a reconnect."""


async def test_without_a_connection_nobody_waits_for_a_subscription(redis_url: str) -> None:
    """A join must not take longer because Redis is away; the channel is listened to once it is back."""
    heard: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    channel = unique("channel")
    async with open_redis(redis_url) as redis:
        listener = Listener(redis, unique("beat"), lambda *message: heard.put_nowait(message), nothing)
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            await listener.subscribe(channel)
        assert time.monotonic() - begun < 1

        running = asyncio.create_task(listener.run())
        async with asyncio.timeout(5):
            while await redis.pubsub_numsub(channel) != [(channel.encode(), 1)]:
                pass
            await publish_live(redis, [(channel, b"news")])
            assert await heard.get() == (channel, b"news")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
