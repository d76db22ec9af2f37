"""Reopening and cancelling on a real Postgres: what each makes of a session, says to the world, and leaves to wait for."""

from datetime import timedelta
from typing import Any

import pytest

from session_service.saga import SILENCE
from shared.clock import rfc3339
from shared.messages import CancelSession, ChangeSession, News, ReopenSession, Session, SessionStored
from tests.contract.session_talk import (
    ANN,
    BOB,
    EVE,
    NINE,
    ROBOT,
    ROOT,
    Service,
    a,
    a_course,
    a_session,
    an_active_session,
    closed,
    opened,
    to_cancel,
    to_end,
    to_enrol,
    to_reopen,
)

pytestmark = pytest.mark.asyncio


async def an_ended_session(service: Service) -> Session:
    """A session that was started, an hour later ended, and whose roll has reported both."""
    session = await an_active_session(service)
    service.now += timedelta(hours=1)
    await service.do(to_end(session))
    await service.hear(closed(session.id, 3))
    service.left.clear()
    return session


# Reopening


async def test_a_reopening_is_a_start_with_a_reason_and_answers_nobody(service: Service) -> None:
    session = await an_ended_session(service)
    service.now += timedelta(minutes=3)
    command = to_reopen(session, reason="the bell rang early")

    assert await service.do(command) is None

    [event] = service.events
    assert (event.id, event.sequence, event.reply_to) == (f"session:{session.id}:4", 4, command.reply_to)
    assert (event.type, event.data.reason) == ("rollcall.session.started.v1", "the bell rang early")
    assert (event.data.started_by, event.data.started_by_id) == ("Ada", "ada")
    assert [student.student_id for student in event.data.roster] == ["ann", "ben"]
    assert event.data.session == await service.of(session)


async def test_a_reopened_session_is_active_since_its_first_start_and_has_no_end(service: Service) -> None:
    session = await an_ended_session(service)

    await service.do(to_reopen(session))

    now = await service.of(session)
    assert (now.status, now.started_at, now.ended_at) == ("active", rfc3339(NINE), None)
    assert now.updated_at == rfc3339(service.now)


async def test_an_active_session_can_be_reopened_for_its_roll_may_have_been_submitted(service: Service) -> None:
    """The submission has not been heard of here yet; what it says then is about the time before."""
    session = await an_active_session(service)

    await service.do(to_reopen(session))

    assert [(event.sequence, event.data.reason) for event in service.events] == [(3, "too early")]
    await service.hear(closed(session.id, 2, "submitted"))
    assert (await service.of(session)).status == "active"


async def test_who_enrolled_while_it_was_over_is_on_the_roster_of_the_reopening(service: Service) -> None:
    session = await an_ended_session(service)
    await service.do(to_enrol("eve", "Eve"))

    await service.do(to_reopen(session))

    [event] = service.events
    assert [student.student_id for student in event.data.roster] == ["ann", "ben", "eve"]
    assert event.data.roster_version == 2


async def test_only_staff_may_reopen_and_cancel(service: Service) -> None:
    session = await an_ended_session(service)
    scheduled = await a_session(service)

    for actor in (BOB, ANN, EVE, ROBOT):
        assert await service.code(to_reopen(session, by=actor)) == "forbidden"
        assert await service.code(to_cancel(scheduled, by=actor)) == "forbidden"
    assert service.events == []


async def test_what_cannot_be_reopened_or_cancelled_is_refused_with_its_reason(service: Service) -> None:
    over = await an_ended_session(service)
    scheduled, cancelled = [await a_session(service) for _ in range(2)]
    await service.do(to_cancel(cancelled))

    assert await service.code(to_reopen(scheduled)) == "session_not_active"
    assert await service.code(to_reopen(cancelled)) == "session_cancelled"
    assert await service.code(to_cancel(over)) == "session_completed"
    for kind, fields in ((ReopenSession, {"reason": "r"}), (CancelSession, {}), (ChangeSession, {})):
        assert await service.code(a(kind, ROOT, session_id="nowhere", **fields)) == "session_not_found"


async def test_a_silent_roll_is_told_of_the_reopening_again_with_its_reason(service: Service) -> None:
    session = await an_ended_session(service)
    await service.do(to_reopen(session))
    [first] = service.events
    service.now += SILENCE

    [again] = await service.repeat()

    assert (again.id, again.time, again.data) == (first.id, first.time, first.data)
    assert again.reply_to is None
    await service.hear(opened(session.id, 4, "too early"))
    service.now += timedelta(days=1)
    assert await service.repeat() == []


async def test_what_was_never_opened_is_told_of_its_start_and_then_only_of_its_newest_turn(service: Service) -> None:
    session = await an_active_session(service)
    await service.do(to_end(session))
    await service.do(to_reopen(session))
    service.now += SILENCE

    first, second = await service.repeat()

    data: Any = first.data
    assert (first.sequence, data.reason, data.session.status) == (2, None, "active")
    assert (data.session.started_at, data.session.ended_at) == (rfc3339(NINE), None)
    data = second.data
    assert (second.sequence, data.reason) == (4, "too early")


# Cancelling


async def test_a_cancelled_plan_awaits_nothing_and_was_never_over(service: Service) -> None:
    await a_course(service)
    session = await a_session(service)

    stored: SessionStored = await service.do(to_cancel(session))

    assert stored.news == News(course_id="c1")
    assert (stored.session.status, stored.session.started_at, stored.session.ended_at) == ("cancelled", None, None)
    assert stored.session == await service.of(session)
    [event] = service.events
    assert (event.type, event.sequence) == ("rollcall.session.cancelled.v1", 2)
    assert (event.data.session, event.data.cancelled_by, event.data.cancelled_by_id) == (stored.session, "Ada", "ada")
    service.now += timedelta(days=1)
    assert await service.repeat() == []


async def test_cancelling_an_active_session_is_answered_here_and_followed_by_its_roll(service: Service) -> None:
    session = await an_active_session(service)
    service.now += timedelta(minutes=5)

    stored: SessionStored = await service.do(to_cancel(session))

    assert stored.news == News(course_id="c1", session_versions={session.id: 3})
    assert (stored.session.status, stored.session.ended_at) == ("cancelled", rfc3339(service.now))
    [event] = service.events
    assert (event.id, event.reply_to) == (f"session:{session.id}:3", None)
    await service.hear(opened(session.id))
    service.now += SILENCE
    [again] = await service.repeat()
    assert (again.id, again.time, again.data) == (event.id, event.time, event.data)
    await service.hear(closed(session.id, 3, "cancelled"))
    service.now += timedelta(days=1)
    assert await service.repeat() == []


async def test_cancelling_again_answers_alike_and_says_nothing(service: Service) -> None:
    session = await an_active_session(service)
    first = await service.do(to_cancel(session))
    service.left.clear()

    assert await service.do(to_cancel(session, by=ROOT)) == first
    assert service.events == []


async def test_a_session_whose_start_was_lost_is_told_of_it_before_its_cancelling(service: Service) -> None:
    session = await an_active_session(service)
    await service.do(to_cancel(session))
    service.now += SILENCE

    events = await service.repeat()

    assert [(event.type, event.sequence) for event in events] == [
        ("rollcall.session.started.v1", 2),
        ("rollcall.session.cancelled.v1", 3),
    ]
    data: Any = events[0].data
    assert (data.session.status, data.session.ended_at) == ("active", None)
