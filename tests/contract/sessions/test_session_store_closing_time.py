"""Sessions that end by themselves, on a real Postgres: not a moment too early, by one replica, whoever started them."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from session_service.closing_time import SESSIONS_AT_ONCE
from session_service.saga import SILENCE
from shared.clock import rfc3339
from shared.messages import Event, Session
from tests.contract.session_talk import (
    GRACE,
    NINE,
    Service,
    a_course,
    a_session,
    an_active_session,
    opened,
    to_cancel,
    to_change,
    to_end,
    to_reopen,
    to_start,
    value,
)

pytestmark = pytest.mark.asyncio

MOMENT = timedelta(milliseconds=1)
# Planned from 08:00 to 09:30 in UTC.
HALF_PAST_NINE = NINE + timedelta(minutes=30)
LENGTH = timedelta(minutes=90)


async def a_session_started(service: Service, at: datetime, **fields: Any) -> Session:
    """A session of a course of its own, started at that time."""
    await a_course(service)
    session = await a_session(service, **fields)
    service.now = at
    await service.do(to_start(session))
    service.left.clear()
    return session


async def ended_at(service: Service, due: datetime) -> Event[Any]:
    """Look just before that time, when nothing is to happen, and then at it."""
    service.now = due - MOMENT
    assert await service.end_due() == []
    service.now = due
    [event] = await service.end_due()
    assert await service.end_due() == []
    return event


async def test_a_session_nobody_ends_ends_by_itself(service: Service) -> None:
    session = await a_session_started(service, NINE - timedelta(hours=1))

    event = await ended_at(service, HALF_PAST_NINE + GRACE)

    assert (event.type, event.id) == ("rollcall.session.ended.v1", f"session:{session.id}:3")
    assert (event.data.cause, event.data.ended_by, event.data.ended_by_id) == ("automatic", "Rollcall", "system")
    assert event.data.session == await service.of(session)
    assert (event.data.session.status, event.data.session.ended_at) == ("completed", rfc3339(service.now))
    row = "SELECT count(*) FROM sessions.outbox WHERE event_id = :id AND reply_queue IS NULL"
    assert await value(service.engine, row, id=event.id) == 1


async def test_one_that_began_late_has_its_planned_length(service: Service) -> None:
    await a_session_started(service, NINE)

    await ended_at(service, NINE + LENGTH)


async def test_one_that_began_early_lasts_to_its_planned_end(service: Service) -> None:
    await a_session_started(service, NINE - timedelta(days=3))

    await ended_at(service, HALF_PAST_NINE + GRACE)


async def test_one_that_was_reopened_has_its_planned_length_again(service: Service) -> None:
    session = await a_session_started(service, NINE - timedelta(hours=1))
    await service.do(to_end(session))
    service.now = reopened = NINE + timedelta(days=2)
    await service.do(to_reopen(session))

    event = await ended_at(service, reopened + LENGTH)

    assert event.sequence == 5


async def test_one_that_is_moved_while_it_is_on_ends_after_its_new_end(service: Service) -> None:
    session = await a_session_started(service, NINE - timedelta(hours=1))
    await service.do(to_change(session, end_time="12:00"))

    await ended_at(service, NINE + timedelta(hours=2) + GRACE)


async def test_a_night_longer_than_a_day_is_as_long_as_it_is_wherever_postgres_is(
    service: Service, patient_engine: AsyncEngine
) -> None:
    """23:50 to 23:40 over the night that is an hour longer: 24 hours and 50 minutes, which are not a day and 50 minutes."""
    name = await value(service.engine, "SELECT current_database()")
    async with patient_engine.begin() as connection:
        await connection.execute(text(f"ALTER DATABASE {name} SET timezone = 'Europe/Berlin'"))
    await service.engine.dispose()
    started = datetime(2026, 10, 24, 22, 30, tzinfo=UTC)
    await a_session_started(service, started, date="2026-10-24", start_time="23:50", end_time="23:40")

    await ended_at(service, started + timedelta(hours=24, minutes=50))


async def test_what_is_not_active_is_left_alone(service: Service) -> None:
    await a_course(service)
    _, over, cancelled = [await a_session(service) for _ in range(3)]
    await service.do(to_start(over))
    await service.do(to_end(over))
    await service.do(to_cancel(cancelled))
    service.now += timedelta(days=9)

    assert await service.end_due() == []


async def test_each_session_is_ended_by_one_of_many_replicas(patient_engine: AsyncEngine) -> None:
    service = Service(patient_engine)
    await a_course(service)
    for _ in range(5):
        await service.do(to_start(await a_session(service)))
    replicas = [Service(patient_engine) for _ in range(4)]
    for replica in replicas:
        replica.now += timedelta(days=1)

    ended = await asyncio.gather(*(replica.end_due() for replica in replicas))

    ids = [event.id for events in ended for event in events]
    assert len(ids) == len(set(ids)) == 5


async def test_what_somebody_is_about_to_end_is_passed_over_not_waited_for(service: Service) -> None:
    session = await an_active_session(service)
    service.now += timedelta(days=1)
    async with service.store.unit() as unit:
        await unit.sessions.lock(session.id)

        assert await service.end_due() == []


async def test_a_look_ends_no_more_than_a_page(service: Service) -> None:
    await a_course(service, students=())
    for _ in range(SESSIONS_AT_ONCE + 1):
        await service.do(to_start(await a_session(service)))
    service.now += timedelta(days=1)

    assert [len(await service.end_due()) for _ in range(3)] == [SESSIONS_AT_ONCE, 1, 0]


async def test_those_that_began_late_keep_nobody_from_ending(service: Service) -> None:
    """A page of them, though their planned end is older, is not due yet."""
    await a_course(service, students=())
    punctual = await a_session(service, date="2026-11-25")
    late = [await a_session(service) for _ in range(SESSIONS_AT_ONCE)]
    service.now = datetime(2026, 11, 25, 8, 0, tzinfo=UTC)
    await service.do(to_start(punctual))
    service.now += LENGTH
    for session in late:
        await service.do(to_start(session))
    service.now += GRACE

    [event] = await service.end_due()

    assert event.source == f"/sessions/{punctual.id}"


async def test_an_end_by_hand_afterwards_finds_it_ended(service: Service) -> None:
    session = await an_active_session(service)
    service.now += timedelta(days=1)
    await service.end_due()
    end = to_end(session)

    await service.do(end)

    assert [(event.sequence, event.data.cause, event.reply_to) for event in service.events] == [(3, "automatic", end.reply_to)]


async def test_a_roll_that_is_silent_about_it_is_told_again(service: Service) -> None:
    session = await an_active_session(service)
    await service.hear(opened(session.id))
    service.now += timedelta(days=1)
    [first] = await service.end_due()
    service.now += SILENCE

    [again] = await service.repeat()

    assert (again.id, again.data) == (first.id, first.data)
