"""session-service as a process: `python -m session_service`. The only place where its parts meet."""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from session_service import closing_time, handlers, saga
from session_service.batches import beginning
from session_service.live import broadcast
from session_service.store import Store
from session_service.tables import NEWEST, SCHEMA
from shared.amqp.bus import open_amqp
from shared.bus import Bus
from shared.clock import Clock, utc_now
from shared.database import answers, open_database
from shared.live import Names, open_redis
from shared.messages import SESSION_COMMANDS, SESSION_EVENTS
from shared.outbox import Outbox
from shared.process import configure_logging, guarded, run, serving_health, until_told_to_stop
from shared.settings import Settings
from shared.worker import Worker, working

HEALTH_PORT = 8081
NEEDS = ("ROLLCALL_AMQP_URL", "ROLLCALL_REDIS_URL", "ROLLCALL_DATABASE_URL")


@asynccontextmanager
async def serve(
    bus: Bus, engine: AsyncEngine, redis: Redis, names: Names, clock: Clock, *, auto_end: timedelta | None
) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    """Do session-service's work for the length of the block; yield what tells whether it is ready.

    Sessions that nobody ends are ended `auto_end` after their planned end, never when it is None. At the end of the
    block the batches in hand are finished first.
    """
    outbox = Outbox(SCHEMA, bus, partial(broadcast, redis))
    store = Store(engine, outbox)
    begin = beginning(store, names, clock)
    table = handlers.table(store, names, clock)
    queues = SESSION_COMMANDS, SESSION_EVENTS
    workers = [Worker(bus, queue, table, outbox.publish, clock) for queue in queues]

    async def ready() -> bool:
        return bus.connected and await answers(engine)

    async def sweep() -> None:
        await outbox.sweep(engine)

    async def repeat() -> None:
        await saga.repeat_for_ever(begin, outbox)

    async def end() -> None:
        if auto_end is not None:
            await closing_time.end_for_ever(begin, outbox, auto_end)

    async with guarded(sweep, repeat, end), working(workers):
        yield ready
    await outbox.finish(engine)


async def main() -> None:
    """Open what is needed, work until told to stop."""
    settings = Settings.from_env(os.environ, needs=NEEDS, health_port=HEALTH_PORT)
    configure_logging(settings.log_level)
    async with (
        open_database(settings.database_url, schema=SCHEMA, newest=NEWEST) as engine,
        open_redis(settings.redis_url) as redis,
        open_amqp(settings.amqp_url) as bus,
        serve(bus, engine, redis, Names(settings.redis_prefix), utc_now, auto_end=settings.auto_end) as ready,
        serving_health(settings.host, settings.health_port, ready),
    ):
        await until_told_to_stop()


if __name__ == "__main__":
    sys.exit(run(main))
