"""How much each user asks of all gateways together, added up in a real Valkey."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.limits import Limit
from gateway.usage import SHARED_FROM, Usage
from rollcall.launcher import free_port
from shared.errors import Refused
from shared.live import Names, open_redis

LIMIT = Limit(burst=100, per_second=0.5)
"""Leaks so slowly that a test may take its time."""


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with open_redis(redis_url) as redis:
        yield redis


@pytest.fixture
def names() -> Names:
    return Names(f"test-{uuid4().hex}")


def ask(usage: Usage, user_id: str, times: int) -> int:
    """Ask that often; return how often it was let through."""
    for time in range(times):
        try:
            usage.count(user_id)
        except Refused as refused:
            assert (refused.code, bool(refused.retry_after_ms)) == ("rate_limited", True)
            return time
    return times


async def test_who_asks_too_much_of_all_gateways_together_is_refused_by_each(redis: Redis, names: Names) -> None:
    """None of them has let through what one alone may."""
    gateways = [Usage(redis, names, LIMIT) for _ in range(3)]
    for gateway in gateways:
        assert ask(gateway, "ann", 40) == 40
        await gateway.share()

    assert ask(gateways[2], "ann", 1) == 0
    for gateway in gateways[:2]:
        # It hears of the others as soon as there is something to tell.
        assert ask(gateway, "ann", SHARED_FROM) == SHARED_FROM
        await gateway.share()
        assert ask(gateway, "ann", 1) == 0
    assert ask(gateways[0], "ben", LIMIT.burst) == LIMIT.burst


async def test_what_is_let_through_while_redis_adds_up_is_counted_too(redis: Redis, names: Names) -> None:
    usage = Usage(redis, names, LIMIT)
    ask(usage, "ann", 60)
    sharing = asyncio.create_task(usage.share())
    await asyncio.sleep(0)  # told, and not yet answered
    assert ask(usage, "ann", 30) == 30
    await sharing

    assert 10 <= ask(usage, "ann", 100) <= 12


async def test_a_bucket_in_redis_leaks_and_goes(redis: Redis, names: Names) -> None:
    quick = Limit(burst=100, per_second=200)
    usage = Usage(redis, names, quick)
    ask(usage, "ann", 100)
    await usage.share()
    key = names.rate("ann")
    assert key == f"{names.prefix}:rate:{{ann}}"
    assert 0 < await redis.ttl(key) <= 2
    async with asyncio.timeout(10):
        while await redis.exists(key):  # noqa: ASYNC110 (Valkey tells nobody that a key has gone)
            await asyncio.sleep(0.05)


async def test_who_asks_little_costs_redis_nothing_and_is_forgotten(redis: Redis, names: Names) -> None:
    usage = Usage(redis, names, Limit(burst=100, per_second=1e9))
    for number in range(1000):
        ask(usage, f"s{number}", SHARED_FROM - 1)
    await usage.share()

    assert not await redis.exists(*(names.rate(f"s{number}") for number in range(1000)))
    assert len(usage._users) == 0


async def test_many_who_ask_much_are_told_in_pieces(redis: Redis, names: Names) -> None:
    usage, other = Usage(redis, names, LIMIT), Usage(redis, names, LIMIT)
    for number in range(500):
        ask(usage, f"s{number}", 90)
    await usage.share()

    for number in range(0, 500, 50):
        ask(other, f"s{number}", SHARED_FROM)
    await other.share()
    assert ask(other, "s450", 5) <= 1
    assert ask(other, "s1", 90) == 90


async def test_without_redis_each_gateway_counts_alone_and_nobody_waits(names: Names) -> None:
    nowhere = Redis(port=free_port())
    usage = Usage(nowhere, names, Limit(LIMIT.burst, per_second=0.01))
    assert ask(usage, "ann", 2 * LIMIT.burst) == LIMIT.burst
    with pytest.raises((RedisError, OSError)):
        await usage.share()

    assert ask(usage, "ann", 10) <= 1
    assert ask(usage, "ben", 10) == 10
    await nowhere.aclose()
