"""What rolls report, on a real Postgres: a submission ends its session, in whatever order the news arrive."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from session_service.saga import SILENCE
from shared.clock import rfc3339
from shared.messages import Event, RollClosed, Session
from tests.contract.session_talk import (
    NINE,
    Service,
    an_active_session,
    closed,
    opened,
    to_cancel,
    to_change,
    to_end,
    to_reopen,
    value,
)

pytestmark = pytest.mark.asyncio

SUBMITTED_AT = NINE + timedelta(minutes=40)


def submitted(session: Session, version: int = 2) -> Event[RollClosed]:
    """What attendance-service says when an open roll was submitted."""
    return closed(session.id, version, "submitted", SUBMITTED_AT)


async def test_a_submission_ends_its_session_when_and_by_whom_the_roll_says(service: Service) -> None:
    session = await an_active_session(service)
    service.now += timedelta(hours=2)

    await service.hear(submitted(session))

    now = await service.of(session)
    assert (now.status, now.ended_at) == ("completed", rfc3339(SUBMITTED_AT))
    [event] = service.events
    assert (event.type, event.sequence, event.reply_to) == ("rollcall.session.ended.v1", 3, None)
    assert (event.data.cause, event.data.ended_by, event.data.ended_by_id) == ("submitted", "Bob", "bob")
    assert event.data.session == now


async def test_nothing_more_is_awaited_of_a_roll_that_was_submitted(service: Service) -> None:
    session = await an_active_session(service)
    await service.hear(submitted(session))

    service.now += timedelta(days=1)

    assert await service.repeat() == []
    assert await service.end_due() == []


async def test_a_submission_followed_by_an_end_is_no_error(service: Service) -> None:
    session = await an_active_session(service)
    await service.hear(submitted(session))
    service.left.clear()
    end = to_end(session)

    await service.do(end)

    [event] = service.events
    assert (event.sequence, event.data.cause, event.reply_to) == (3, "submitted", end.reply_to)


@pytest.mark.parametrize(
    ("order", "status", "version"),
    [
        ("report end reopen", "active", 4),
        ("report reopen end", "completed", 5),
        ("end report reopen", "active", 4),
        ("end reopen report", "active", 4),
        ("reopen report end", "completed", 4),
        ("reopen end report", "completed", 4),
    ],
)
async def test_a_submission_an_end_and_a_reopening_in_every_order(
    service: Service, order: str, status: str, version: int
) -> None:
    """The roll was submitted before it heard of anything but the start; every step comes twice."""
    session = await an_active_session(service)
    end, reopening = to_end(session), to_reopen(session)

    for step in order.split():
        for _ in range(2):
            if step == "report":
                await service.hear(submitted(session), submitted(session))
            else:
                await service.do(end if step == "end" else reopening)
    await service.hear(submitted(session))

    assert (await service.of(session)).status == status
    assert await value(service.engine, "SELECT version FROM sessions.sessions") == version
    assert {event.sequence for event in service.events} == set(range(3, version + 1))


async def test_a_roll_that_was_submitted_after_it_heard_of_the_reopening_ends_its_session(service: Service) -> None:
    session = await an_active_session(service)
    await service.do(to_end(session))
    await service.do(to_reopen(session))

    await service.hear(submitted(session, version=4))

    assert (await service.of(session)).status == "completed"
    assert await value(service.engine, "SELECT ARRAY[version, roll_version] FROM sessions.sessions") == [5, 5]


async def test_a_change_after_the_submission_keeps_it_from_nothing(service: Service) -> None:
    """The roll may know of a change that is newer than the start; it is the newest turn that counts."""
    session = await an_active_session(service)
    await service.do(to_change(session, title="Ideals"))

    await service.hear(submitted(session))

    assert (await service.of(session)).status == "completed"
    assert [event.sequence for event in service.events] == [3, 4]


async def test_a_submission_does_not_bring_a_cancelled_session_back(service: Service) -> None:
    session = await an_active_session(service)
    await service.do(to_cancel(session))

    await service.hear(submitted(session))

    assert (await service.of(session)).status == "cancelled"
    await service.hear(closed(session.id, 3, "submitted", SUBMITTED_AT))
    assert (await service.of(session)).status == "cancelled"
    service.now += timedelta(days=1)
    assert await service.repeat() == []


async def test_other_closings_end_nothing(service: Service) -> None:
    session = await an_active_session(service)

    await service.hear(closed(session.id, 2, "ended"), closed("nowhere", 2, "submitted"))

    assert (await service.of(session)).status == "active"
    assert service.events == []


async def test_a_report_of_before_versions_were_told_is_passed_over(service: Service) -> None:
    """The saga asks again, and is answered by a roll that tells them."""
    session = await an_active_session(service)

    await service.hear(opened(session.id, 0))

    service.now += SILENCE
    assert [event.sequence for event in await service.repeat()] == [2]


async def test_two_replicas_that_hear_the_same_submission_end_its_session_once(patient_engine: AsyncEngine) -> None:
    service, other = Service(patient_engine), Service(patient_engine)
    session = await an_active_session(service)

    await asyncio.gather(service.hear(submitted(session)), other.hear(submitted(session)), service.do(to_end(session)))

    ended = service.events + other.events
    assert {event.sequence for event in ended} == {3}
    assert len({event.data.cause for event in ended}) == 1
    assert (await service.of(session)).status == "completed"
