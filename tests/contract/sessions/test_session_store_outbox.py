"""What waits in the outbox: it is gone when the service goes, can be seen in the metrics, and Redis does not hold it up."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from session_service.__main__ import serve
from shared import outbox
from shared.bus import OutgoingEvent
from shared.clock import utc_now
from shared.database import transaction
from shared.live import Names
from shared.memory_bus import MemoryBus
from shared.messages import ATTENDANCE_EVENTS, SESSION_COMMANDS, encode
from shared.outbox import Outbox, OutboxRow
from tests.contract.bus_talk import send_once
from tests.contract.session_talk import to_put

pytestmark = pytest.mark.asyncio

NOBODY_CARES = OutboxRow(OutgoingEvent("e1", "rollcall.nobody.cares.v1", b"{}"), ("a channel",))


async def waiting(engine: AsyncEngine) -> int:
    async with transaction(engine) as connection:
        return int(await connection.scalar(text("SELECT count(*) FROM sessions.outbox")) or 0)


async def nobody_listens(_: Sequence[OutboxRow]) -> None:
    """Redis is well."""


async def test_a_service_that_stops_leaves_nothing_for_others_to_publish_again(
    engine: AsyncEngine, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "SWEEP_SECONDS", 60)
    bus, redis = MemoryBus(), Redis.from_url(redis_url)
    async with asyncio.timeout(20):
        async with serve(bus, engine, redis, Names("test_outbox"), utc_now, auto_end=None):
            command = to_put(deadline=utc_now() + timedelta(seconds=10))
            sending = asyncio.create_task(send_once(bus, SESSION_COMMANDS, encode(command)))
            [delivery] = await bus.inbox(ATTENDANCE_EVENTS).take(9)
            assert await waiting(engine) == 1
            await delivery.ack()
            await sending
        assert await waiting(engine) == 0
    await redis.aclose()
    await bus.close()


async def test_how_long_the_oldest_event_has_waited_is_a_metric(engine: AsyncEngine) -> None:
    """Young enough to be left to whoever wrote it, but already counted."""
    left_behind = Outbox("sessions", MemoryBus(), nobody_listens)
    async with transaction(engine) as connection:
        await left_behind.add(connection, [NOBODY_CARES])

    await left_behind.sweep_once(engine)

    assert 0 < (REGISTRY.get_sample_value("rollcall_outbox_age_seconds", {"schema": "sessions"}) or 0) < 60


async def test_a_frozen_redis_holds_no_batch_up(engine: AsyncEngine) -> None:
    thawed, told = asyncio.Event(), asyncio.Event()

    async def frozen(_: Sequence[OutboxRow]) -> None:
        await thawed.wait()
        told.set()

    box = Outbox("sessions", MemoryBus(), frozen)
    async with asyncio.timeout(10):
        await box.publish([NOBODY_CARES])
        assert not told.is_set()

        thawed.set()
        await told.wait()


async def test_a_frozen_redis_holds_no_sweep_up(engine: AsyncEngine) -> None:
    """The rows are gone, and their transaction with its locks is over, before Redis is told; it is told all the same."""
    thawed, told = asyncio.Event(), asyncio.Event()
    left: list[int] = []

    async def frozen(_: Sequence[OutboxRow]) -> None:
        left.append(await waiting(engine))
        await thawed.wait()
        told.set()

    box = Outbox("sessions", MemoryBus(), frozen)
    async with asyncio.timeout(20):
        async with transaction(engine) as connection:
            await box.add(connection, [NOBODY_CARES])
        async with transaction(engine) as connection:
            await connection.execute(text("UPDATE sessions.outbox SET created_at = created_at - interval '1 minute'"))
        assert await box.sweep_once(engine) == 1
        assert not told.is_set()

        thawed.set()
        await told.wait()
    assert left == [0]


class HangingBus(MemoryBus):
    """A broker that confirms nothing."""

    async def publish(self, events: Sequence[OutgoingEvent]) -> None:
        await asyncio.get_running_loop().create_future()


async def test_the_sweep_leaves_alone_what_is_on_its_way_from_here(engine: AsyncEngine) -> None:
    """However long the broker takes."""
    box = Outbox("sessions", HangingBus(), nobody_listens)
    async with transaction(engine) as connection:
        await box.add(connection, [NOBODY_CARES])
    await box.publish([NOBODY_CARES])
    async with transaction(engine) as connection:
        await connection.execute(text("UPDATE sessions.outbox SET created_at = created_at - interval '1 minute'"))

    async with asyncio.timeout(10):
        assert await box.sweep_once(engine) == 0


async def test_what_was_published_is_taken_away_at_the_end_though_the_broker_hangs(engine: AsyncEngine) -> None:
    box = Outbox("sessions", MemoryBus(), nobody_listens)
    async with transaction(engine) as connection:
        await box.add(connection, [NOBODY_CARES])
    await box.publish([NOBODY_CARES])
    await box.settled()
    box._bus = HangingBus()
    await box.publish([OutboxRow(OutgoingEvent("e2", "rollcall.nobody.cares.v1", b"{}"), ())])

    async with asyncio.timeout(10):
        await box.finish(engine)

    assert await waiting(engine) == 0
