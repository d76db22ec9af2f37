"""What gateways say to each other about cuts, on a real Valkey: who has said goodbye is not waited for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from uuid import uuid4

import pytest
from msgspec import json
from redis.asyncio import Redis

from gateway import cuts as cuts_module
from gateway.cuts import Cuts, Gone, Here, Word
from shared.live import Listener, Names, open_redis


@asynccontextmanager
async def running(redis: Redis, names: Names, gateway_id: str) -> AsyncIterator[Cuts]:
    """Run one gateway's part."""

    async def hang_up(_: str) -> None:
        raise AssertionError("nobody is cut off here")

    listener = Listener(redis, names.heartbeat_channel(gateway_id))
    cuts = Cuts(redis, names, listener, gateway_id, lambda _: (), hang_up)
    tasks = [asyncio.create_task(listener.run()), asyncio.create_task(cuts.run())]
    try:
        yield cuts
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_a_gateway_that_has_said_goodbye_says_no_more_that_it_is_there(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be waited for, for half a minute, and every cut be told `unavailable`."""
    monkeypatch.setattr(cuts_module, "BEAT_SECONDS", 0.02)
    names = Names(f"test-{uuid4().hex}")
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        redis = await stack.enter_async_context(open_redis(redis_url))
        heard = await stack.enter_async_context(redis.pubsub(ignore_subscribe_messages=True))
        await heard.subscribe(names.cuts_channel())

        async def next_word() -> Word:
            while (message := await heard.get_message(timeout=1)) is None:
                pass
            word: Word = json.decode(message["data"], type=Word)
            return word

        await stack.enter_async_context(running(redis, names, "stays"))
        goes = await stack.enter_async_context(running(redis, names, "goes"))
        while await next_word() != Here("goes"):
            pass

        await goes.leave()

        while await next_word() != Gone("goes"):
            pass
        assert [await next_word() for _ in range(10)] == [Here("stays")] * 10
