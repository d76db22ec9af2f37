"""The whole service, over a bus; and when Postgres does not play along."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from msgspec import Raw, json
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from session_service.__main__ import serve
from shared.clock import utc_now
from shared.errors import Unavailable
from shared.live import Names
from shared.memory_bus import MemoryBus
from shared.messages import (
    ATTENDANCE_EVENTS,
    SESSION_COMMANDS,
    Answer,
    CourseStored,
    ReadCourse,
    ReplyTo,
    decode_answers,
    decode_event,
    encode,
)
from tests.contract.bus_talk import send_once
from tests.contract.session_talk import (
    GRACE,
    NINE,
    ROOT,
    Service,
    a,
    an_active_session,
    statements,
    to_end,
    to_put,
)

pytestmark = pytest.mark.asyncio


async def test_a_lock_that_is_not_had_in_time_is_unavailable_and_nothing_is_done(service: Service) -> None:
    session = await an_active_session(service)
    async with service.store.unit() as unit:
        await unit.sessions.lock(session.id)

        with pytest.raises(Unavailable):
            await service.do(to_end(session))

    assert service.events == []
    assert await service.code(to_end(session)) is None


async def test_the_service_answers_over_the_bus_and_tells_the_world(engine: AsyncEngine, redis_url: str) -> None:
    """A command in, its answer out; its event once to other services and once to who listens live."""
    bus, redis, names = MemoryBus(), Redis.from_url(redis_url), Names("test_session_store")
    answers: list[Answer] = []
    queue = await bus.receive_answers(lambda body: answers.extend(decode_answers(body)))
    live = redis.pubsub()
    await live.subscribe(names.course_channel("c1"))
    deadline = utc_now() + timedelta(seconds=10)
    command = to_put(reply_to=ReplyTo(queue, "1"), deadline=deadline)

    async with asyncio.timeout(10), serve(bus, engine, redis, names, utc_now, auto_end=None) as ready:
        assert await ready()
        sending = asyncio.create_task(send_once(bus, SESSION_COMMANDS, encode(command)))
        [delivery] = await bus.inbox(ATTENDANCE_EVENTS).take(9)
        await delivery.ack()
        await sending
        heard = await live.get_message(timeout=5)
        while heard is None or heard["type"] != "message":
            heard = await live.get_message(timeout=5)

    [answer] = answers
    assert isinstance(answer.result, Raw)
    event: Any = decode_event(delivery.body)
    assert event.data.course == json.decode(answer.result, type=CourseStored).course
    assert heard["data"] == delivery.body
    await live.aclose()  # type: ignore[no-untyped-call]
    await redis.aclose()
    await bus.close()


async def test_what_comes_while_no_replica_runs_waits_for_the_next(engine: AsyncEngine, redis_url: str) -> None:
    """A service that is told to stop stops, and takes nothing after that."""
    bus, redis, names = MemoryBus(), Redis.from_url(redis_url), Names("test_session_store")
    deadline = utc_now() + timedelta(seconds=10)
    reading = a(ReadCourse, ROOT, course_id="c1", deadline=deadline)
    async with asyncio.timeout(10):
        async with serve(bus, engine, redis, names, utc_now, auto_end=None):
            pass
        sending = asyncio.create_task(send_once(bus, SESSION_COMMANDS, encode(reading)))
        done, _ = await asyncio.wait({sending}, timeout=0.05)
        assert not done

        async with serve(bus, engine, redis, names, utc_now, auto_end=None):
            await sending

    await redis.aclose()
    await bus.close()


async def test_the_service_ends_what_nobody_ends_though_another_replica_started_it(engine: AsyncEngine, redis_url: str) -> None:
    """By the clock it was given; the event leaves as every other does."""
    gone = Service(engine)
    session = await an_active_session(gone)
    bus, redis, names = MemoryBus(), Redis.from_url(redis_url), Names("test_session_store")
    inbox = bus.inbox(ATTENDANCE_EVENTS)
    heard: list[Any] = []

    async with asyncio.timeout(20), serve(bus, engine, redis, names, lambda: NINE + timedelta(hours=3), auto_end=GRACE):
        while "rollcall.session.ended.v1" not in [event.type for event in heard]:
            for delivery in await inbox.take(9):
                heard.append(decode_event(delivery.body))
                await delivery.ack()

    [ended] = [event for event in heard if event.type == "rollcall.session.ended.v1"]
    assert (ended.source, ended.data.cause) == (f"/sessions/{session.id}", "automatic")
    await redis.aclose()
    await bus.close()


async def test_with_the_automatic_end_off_nothing_ends_by_itself(engine: AsyncEngine, redis_url: str) -> None:
    """The job is done at once, instead of looking for ever."""
    session = await an_active_session(Service(engine))
    bus, redis, names = MemoryBus(), Redis.from_url(redis_url), Names("test_session_store")
    with statements(engine) as sent:
        async with asyncio.timeout(20), serve(bus, engine, redis, names, lambda: NINE + timedelta(days=9), auto_end=None):
            saga_looks = 0
            while saga_looks < 3:
                await asyncio.sleep(0.05)
                saga_looks = sum("repeated_at = " in statement for statement in sent)

    assert not any("planned_by" in statement or "s.ends_at <=" in statement for statement in sent)
    assert (await Service(engine).of(session)).status == "active"
    await redis.aclose()
    await bus.close()
