"""How much each user has asked lately, on all gateways together.

Each gateway counts by itself and lets nobody wait. Once a second it adds what it counted to the user's bucket in Redis, and
learns how full that is with what the others counted: whoever asks too much of all of them together is refused by all of
them within about a second. Without Redis each gateway's own count is the limit.
"""

import asyncio
from collections.abc import Mapping
from itertools import islice
from time import monotonic
from typing import Final

import structlog
from redis.asyncio import Redis

from gateway.limits import Buckets, Limit
from shared.live import AWAY, Names, uncancelled

log = structlog.get_logger()

USER_LIMIT: Final = Limit(burst=400, per_second=100)
"""A teacher may mark a class of 400 one by one at once; who sends 100 a second for long is no person."""
SHARE_SECONDS: Final = 1.0
SHARED_FROM: Final = 10
"""Who asked less within a second is not worth a word to Redis: a school that joins at once costs it nothing."""
_CHUNK: Final = 200

# The same leaky bucket, by the clock of Redis: one for all gateways. The level may exceed the burst, as each gateway
# let some through before it knew.
_ADD: Final = """
local now = redis.call('TIME')
now = now[1] + now[2] / 1e6
local bucket = redis.call('HMGET', KEYS[1], 'level', 'at')
local level = math.max(0, (tonumber(bucket[1]) or 0) - (now - (tonumber(bucket[2]) or now)) * ARGV[2]) + ARGV[1]
redis.call('HSET', KEYS[1], 'level', tostring(level), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], math.ceil(level / ARGV[2]) + 1)
return tostring(level)
"""


class Usage:
    """Counts what users ask of this gateway; raises Refused, `rate_limited`, for who asks too much of all."""

    def __init__(self, redis: Redis, names: Names, limit: Limit = USER_LIMIT) -> None:
        self._redis = redis
        self._names = names
        self._users = Buckets(limit)

    def count(self, user_id: str) -> None:
        """Count one command or request; raise Refused when it is one too many. Waits for nothing."""
        self._users.take(user_id, monotonic())

    async def run(self) -> None:
        """Add up with the other gateways, for ever; whoever starts this guards it."""
        while True:
            await asyncio.sleep(SHARE_SECONDS)
            try:
                await self.share()
            except AWAY as error:
                log.warning("usage.unshared", reason=str(error))

    async def share(self) -> None:
        """Tell Redis what was counted since, and learn what all have counted; what cannot be told is let go."""
        said = iter(self._users.say(SHARED_FROM).items())
        self._users.forget_idle(monotonic())
        # A pipeline is packed in one go, in which the loop stands still: some at a time.
        while chunk := dict(islice(said, _CHUNK)):
            await uncancelled(self._add(chunk))

    async def _add(self, counts: Mapping[str, int]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for user_id, count in counts.items():
            pipeline.eval(_ADD, 1, self._names.rate(user_id), count, self._users.limit.per_second)
        levels = await pipeline.execute()
        now = monotonic()
        for user_id, level in zip(counts, levels, strict=True):
            self._users.learn(user_id, float(level), now)
