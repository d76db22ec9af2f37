"""The saga on a real Postgres: what a roll does not report it is told again, by one replica, further and further apart."""

import asyncio
import itertools
from datetime import timedelta
from typing import Any

import pytest

from session_service.saga import LONGEST_SILENCE, SESSIONS_AT_ONCE, SILENCE
from shared.messages import (
    ReadSession,
)
from tests.contract.session_talk import (
    ADA,
    NINE,
    Service,
    a,
    a_course,
    a_session,
    an_active_session,
    closed,
    opened,
    to_end,
    to_start,
    value,
)

pytestmark = pytest.mark.asyncio


async def test_a_silent_roll_is_told_of_the_start_again_until_it_opens(service: Service) -> None:
    session = await an_active_session(service)
    assert await service.repeat() == []

    service.now += SILENCE
    [event] = await service.repeat()

    assert (event.id, event.reply_to) == (f"session:{session.id}:2", None)
    assert len(event.data.roster) == 2  # type: ignore[attr-defined]
    await service.hear(opened(session.id))
    service.now += timedelta(days=1)
    assert await service.repeat() == []


async def test_a_silent_roll_is_told_of_the_end_again_until_it_closes(service: Service) -> None:
    session = await an_active_session(service)
    await service.hear(opened(session.id))
    await service.do(to_end(session))
    assert await service.repeat() == []

    service.now += SILENCE
    [event] = await service.repeat()

    assert event.id == f"session:{session.id}:3"
    await service.hear(closed(session.id))
    service.now += timedelta(days=1)
    assert await service.repeat() == []


async def test_a_session_that_ended_before_its_roll_opened_tells_of_both(service: Service) -> None:
    """Else attendance-service would wait for ever for the roll that it is to close."""
    session = await an_active_session(service)
    await service.do(to_end(session))
    started = (await service.do_all([a(ReadSession, ADA, session_id=session.id)]))[0]
    service.now += SILENCE

    events = await service.repeat()

    assert [event.sequence for event in events] == [2, 3]
    data: Any = events[0].data
    assert (data.session.status, data.session.ended_at) == ("active", None)
    assert started.status == "completed"


async def test_repeats_are_further_and_further_apart(service: Service) -> None:
    await an_active_session(service)
    repeated_after = []

    for second in range(1, 121):
        service.now = NINE + timedelta(seconds=second)
        if await service.repeat():
            repeated_after.append(second)

    assert repeated_after == [2, 4, 8, 16, 32, 62, 92]
    assert max(b - a for a, b in itertools.pairwise(repeated_after)) == LONGEST_SILENCE.total_seconds()


async def test_an_end_is_repeated_soon_though_the_start_was_repeated_long(service: Service) -> None:
    session = await an_active_session(service)
    for _ in range(6):
        service.now += LONGEST_SILENCE
        await service.repeat()
    await service.hear(opened(session.id))
    await service.do(to_end(session))

    service.now += SILENCE

    assert len(await service.repeat()) == 1


async def test_two_replicas_do_not_repeat_the_same_thing(service: Service) -> None:
    await a_course(service)
    for _ in range(5):
        await service.do(to_start(await a_session(service)))
    replicas = [Service(service.engine) for _ in range(4)]
    for replica in replicas:
        replica.now += SILENCE

    repeated = await asyncio.gather(*(replica.repeat() for replica in replicas))

    ids = [event.id for events in repeated for event in events]
    assert len(ids) == len(set(ids)) == 5


async def test_what_another_replica_is_repeating_is_passed_over_not_waited_for(service: Service) -> None:
    await an_active_session(service)
    service.now += SILENCE
    async with service.store.unit() as unit:
        taken = await unit.sessions.take_unreported(service.now, wait=SILENCE, longest=SILENCE, limit=9)
        assert len(taken) == 1

        assert await service.repeat() == []


async def test_a_repeat_is_in_the_outbox(service: Service) -> None:
    session = await an_active_session(service)
    service.now += SILENCE

    await service.repeat()

    row = "SELECT count(*) FROM sessions.outbox WHERE event_id = :id AND reply_queue IS NULL"
    assert await value(service.engine, row, id=f"session:{session.id}:2") == 1


async def test_a_look_repeats_no_more_than_a_page_the_longest_silent_first(service: Service) -> None:
    await a_course(service, students=())
    sessions = [await a_session(service) for _ in range(SESSIONS_AT_ONCE + 1)]
    for session in sessions:
        await service.do(to_start(session))
        service.now += timedelta(milliseconds=1)
    service.now += SILENCE

    looks = [[event.source for event in await service.repeat()] for _ in range(3)]

    sources = [f"/sessions/{session.id}" for session in sessions]
    assert [sorted(look) for look in looks] == [sources[:SESSIONS_AT_ONCE], sources[SESSIONS_AT_ONCE:], []]


async def test_what_a_roll_has_reported_never_goes_back_and_changes_no_version(service: Service) -> None:
    session = await an_active_session(service)

    await service.hear(opened(session.id, 5), opened(session.id, 2))
    await service.hear(opened(session.id, 4))
    await service.hear(closed(session.id, 3))

    kept = "SELECT ARRAY[roll_version, version] FROM sessions.sessions"
    assert await value(service.engine, kept) == [5, 2]


async def test_a_report_about_no_session_of_ours_is_passed_over(service: Service) -> None:
    session = await an_active_session(service)

    await service.hear(opened("nowhere"), opened(session.id))

    assert await value(service.engine, "SELECT roll_version FROM sessions.sessions") == 2
