"""What attendance-service keeps in Redis: the head of each roll, and live events on the roll's and the course's channels.

All of it can be rebuilt; losing it costs speed, not truth.
"""

from collections.abc import Sequence

from redis.asyncio import Redis

from shared.errors import Unavailable
from shared.live import AWAY, Names
from shared.outbox import OutboxRow

HEAD_TTL_SECONDS = 24 * 3600
# Of each row: its number, what is said, on how many channels, and these. Published first, all of it: a Redis that is full
# still does that. Two replicas may publish out of order: a head only ever moves forward.
_PUBLISH_AND_MOVE = """
local at = 2
for _ = 1, #KEYS do
    local last = at + 2 + tonumber(ARGV[at + 2])
    for channel = at + 3, last do redis.call('PUBLISH', ARGV[channel], ARGV[at + 1]) end
    at = last + 1
end
at = 2
for _, head in ipairs(KEYS) do
    local known = tonumber(redis.call('HGET', head, 'seq') or '0')
    if known < tonumber(ARGV[at]) then redis.call('HSET', head, 'seq', ARGV[at]) end
    redis.call('EXPIRE', head, ARGV[1])
    at = at + 3 + tonumber(ARGV[at + 2])
end
"""


class LiveRolls:
    """Tells the gateways that host listeners what was committed."""

    def __init__(self, redis: Redis, names: Names) -> None:
        self._redis = redis
        self._names = names

    async def broadcast(self, rows: Sequence[OutboxRow]) -> None:
        """Publish the rows on their channels and move the heads, in one command; raise Unavailable without Redis."""
        heads: list[str] = []
        told: list[str | int | bytes] = [HEAD_TTL_SECONDS]
        for row in rows:
            session_id, _, seq = row.event.id.removeprefix("roll:").rpartition(":")
            heads.append(self._names.roll_head(session_id))
            told += (seq, row.event.body, len(row.channels), *row.channels)
        try:
            await self._redis.eval(_PUBLISH_AND_MOVE, len(heads), *heads, *told)
        except AWAY as error:
            raise Unavailable(f"Redis: {error}") from error
