"""What attendance-service keeps in Redis: the head of each roll, and live events on the roll's and the course's channels.

All of it can be rebuilt; losing it costs speed, not truth.
"""

from collections.abc import Sequence

from redis.asyncio import Redis

from shared.errors import Unavailable
from shared.live import AWAY, Names
from shared.outbox import OutboxRow

HEAD_TTL_SECONDS = 24 * 3600
# Published first: a Redis that is full still does that. Two replicas may publish out of order: a head only ever moves forward.
_PUBLISH_AND_MOVE = """
for channel = 4, #ARGV do redis.call('PUBLISH', ARGV[channel], ARGV[3]) end
local known = tonumber(redis.call('HGET', KEYS[1], 'seq') or '0')
if known < tonumber(ARGV[1]) then redis.call('HSET', KEYS[1], 'seq', ARGV[1]) end
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""


class LiveRolls:
    """Tells the gateways that host listeners what was committed."""

    def __init__(self, redis: Redis, names: Names) -> None:
        self._redis = redis
        self._names = names

    async def broadcast(self, rows: Sequence[OutboxRow]) -> None:
        """Publish the rows on their channels and move the heads, in one round trip; raise Unavailable without Redis."""
        pipeline = self._redis.pipeline(transaction=False)
        for row in rows:
            session_id, _, seq = row.event.id.removeprefix("roll:").rpartition(":")
            head = self._names.roll_head(session_id)
            pipeline.eval(_PUBLISH_AND_MOVE, 1, head, seq, HEAD_TTL_SECONDS, row.event.body, *row.channels)
        try:
            await pipeline.execute()
        except AWAY as error:
            raise Unavailable(f"Redis: {error}") from error
