"""attendance-service as a process: `python -m attendance_service`. The only place where its parts meet."""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from attendance_service import handlers
from attendance_service.live import LiveRolls
from attendance_service.store import RollStore
from attendance_service.tables import NEWEST, SCHEMA
from shared.amqp.bus import open_amqp
from shared.bus import Bus
from shared.clock import Clock, utc_now
from shared.database import answers, open_database
from shared.live import Names, open_redis
from shared.messages import ATTENDANCE_COMMANDS, ATTENDANCE_EVENTS
from shared.outbox import Outbox
from shared.process import configure_logging, guarded, run, serving_health, until_told_to_stop
from shared.settings import Settings
from shared.worker import Worker, working

HEALTH_PORT = 8082
NEEDS = ("ROLLCALL_AMQP_URL", "ROLLCALL_REDIS_URL", "ROLLCALL_DATABASE_URL")


@asynccontextmanager
async def serve(
    bus: Bus, engine: AsyncEngine, redis: Redis, names: Names, clock: Clock
) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    """Do attendance-service's work for the length of the block; yield what tells whether it is ready.

    At the end of the block the batches in hand are finished first.
    """
    outbox = Outbox(SCHEMA, bus, LiveRolls(redis, names).broadcast)
    table = handlers.table(RollStore(engine, outbox), names, clock)
    workers = [Worker(bus, queue, table, outbox.publish, clock) for queue in (ATTENDANCE_COMMANDS, ATTENDANCE_EVENTS)]

    async def ready() -> bool:
        return bus.connected and await answers(engine)

    async def sweep() -> None:
        await outbox.sweep(engine)

    async with guarded(sweep), working(workers):
        yield ready
    await outbox.finish(engine)


async def main() -> None:
    """Run the service until it is told to stop."""
    settings = Settings.from_env(os.environ, needs=NEEDS, health_port=HEALTH_PORT)
    configure_logging(settings.log_level)
    async with (
        open_database(settings.database_url, schema=SCHEMA, newest=NEWEST) as engine,
        open_redis(settings.redis_url) as redis,
        open_amqp(settings.amqp_url) as bus,
        serve(bus, engine, redis, Names(settings.redis_prefix), utc_now) as ready,
        serving_health(settings.host, settings.health_port, ready),
    ):
        await until_told_to_stop()


if __name__ == "__main__":
    sys.exit(run(main))
