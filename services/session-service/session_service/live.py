"""What session-service says in Redis: live events on the channels of courses and their sessions. It keeps nothing there."""

from collections.abc import Sequence

from redis.asyncio import Redis

from shared.live import publish_live
from shared.outbox import OutboxRow


async def broadcast(redis: Redis, rows: Sequence[OutboxRow]) -> None:
    """Publish events on their live channels, in one round trip; raise Unavailable when Redis is away."""
    await publish_live(redis, ((channel, row.event.body) for row in rows for channel in row.channels))
