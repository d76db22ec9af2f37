"""What attendance-service keeps in Redis: the head of each roll, and live events on the roll's and the course's channels.

All of it can be rebuilt; losing it costs speed, not truth.
"""

from collections.abc import Sequence

from redis.asyncio import Redis

from shared.errors import Unavailable
from shared.live import AWAY, Names
from shared.outbox import OutboxRow

HEAD_TTL_SECONDS = 24 * 3600
# The numbers of all rows, and then of each row what is said, on how many channels, and these. Published first, all of it: a
# Redis that is full still does that. Two replicas may publish out of order: a head only ever moves forward.
_PUBLISH_AND_MOVE = """
local at = #KEYS + 2
for _ = 1, #KEYS do
    local last = at + 1 + tonumber(ARGV[at + 1])
    for channel = at + 2, last do redis.call('PUBLISH', ARGV[channel], ARGV[at]) end
    at = last + 1
end
for row, head in ipairs(KEYS) do
    local known, seq = tonumber(redis.call('HGET', head, 'seq') or '0'), ARGV[row + 1]
    if known < tonumber(seq) then redis.call('HSET', head, 'seq', seq) end
    redis.call('EXPIRE', head, ARGV[1])
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
        seqs: list[str] = []
        told: list[str | int | bytes] = []
        for row in rows:
            session_id, _, seq = row.event.id.removeprefix("roll:").rpartition(":")
            heads.append(self._names.roll_head(session_id))
            seqs.append(seq)
            told += (row.event.body, len(row.channels), *row.channels)
        try:
            await self._redis.eval(_PUBLISH_AND_MOVE, len(rows), *heads, HEAD_TTL_SECONDS, *seqs, *told)
        except AWAY as error:
            raise Unavailable(f"Redis: {error}") from error
