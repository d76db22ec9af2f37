"""Changing a session that is not over, on a real Postgres."""

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.clock import rfc3339
from shared.messages import CheckIn, CheckInPatch, News, SessionStored
from tests.contract.session_talk import (
    ANN,
    BOB,
    EVE,
    ROBOT,
    Service,
    a_course,
    a_session,
    an_active_session,
    to_cancel,
    to_change,
    to_end,
    to_start,
    value,
)

pytestmark = pytest.mark.asyncio


async def test_a_session_is_changed_and_read_as_it_was_answered(service: Service) -> None:
    await a_course(service)
    session = await a_session(service, description="Ideals", meeting_link="https://example.org")
    service.now += timedelta(hours=1)
    command = to_change(session, title="Fields", description=None, start_time="10:00", time_zone="Asia/Tokyo")

    stored: SessionStored = await service.do(command)

    changed = stored.session
    assert (changed.title, changed.topic, changed.description) == ("Fields", "Fields", None)
    assert (changed.starts_at, changed.ends_at) == ("2026-11-24T01:00:00.000Z", "2026-11-24T01:30:00.000Z")
    assert (changed.meeting_link, changed.check_in) == ("https://example.org", session.check_in)
    assert (changed.created_at, changed.updated_at) == (session.created_at, rfc3339(service.now))
    assert stored.news == News(course_id="c1")
    assert await service.of(session) == changed
    [event] = service.events
    assert (event.type, event.id, event.reply_to) == ("rollcall.session.changed.v1", f"session:{session.id}:2", None)
    assert (event.data.session, event.data.changed_by, event.data.changed_by_id) == (changed, "Ada", "ada")
    assert (event.data.roster, event.data.roster_version, event.data.removed) == (None, 0, ())


async def test_a_session_changed_to_what_it_is_stays_as_it_is(service: Service) -> None:
    await a_course(service)
    session = await a_session(service)
    command = to_change(session, title="Rings", date="2026-11-24", check_in=CheckInPatch(late_after_minutes=5))

    for same in (command, to_change(session)):
        assert (await service.do(same)).session == session

    assert service.events == []
    assert await value(service.engine, "SELECT version FROM sessions.sessions") == 1


async def test_what_changes_on_an_active_session_is_to_be_waited_for_also_by_who_sends_it_again(service: Service) -> None:
    session = await an_active_session(service)
    command = to_change(session, check_in=CheckInPatch(late_after_minutes=None))

    stored: SessionStored = await service.do(command)
    again: SessionStored = await service.do(command)
    same: SessionStored = await service.do(to_change(session, check_in=CheckInPatch(late_after_minutes=None)))

    assert stored.news == again.news == same.news == News(course_id="c1", session_versions={session.id: 3})
    [event] = service.events
    assert event.data.session.check_in == CheckIn(late_after_minutes=None)
    assert event.data.session.status == "active"


async def test_all_that_is_wrong_with_the_times_is_told_and_nothing_changed(service: Service) -> None:
    await a_course(service)
    session = await a_session(service)

    [refused] = await service.do_all([to_change(session, title="Fields", date="x", end_time="y", time_zone="Mars")])

    assert [detail["field"] for detail in refused.details] == ["time_zone", "date", "end_time"]
    assert await service.of(session) == session


async def test_what_is_over_is_changed_no_more(service: Service) -> None:
    session = await an_active_session(service)
    cancelled = await a_session(service)
    await service.do(to_end(session))
    await service.do(to_cancel(cancelled))

    assert await service.code(to_change(session, title="Fields")) == "session_completed"
    assert await service.code(to_change(cancelled, title="Fields")) == "session_cancelled"


async def test_only_staff_may_change_a_session(service: Service) -> None:
    await a_course(service)
    session = await a_session(service)

    for actor in (BOB, ANN, EVE, ROBOT):
        assert await service.code(to_change(session, by=actor, title="Fields")) == "forbidden"


async def test_a_start_told_again_says_what_the_session_is_now(service: Service) -> None:
    """Should the first have been lost, the roll opens with the session as it was changed."""
    session = await an_active_session(service)
    await service.do(to_change(session, title="Fields"))
    service.left.clear()

    await service.do(to_start(session))

    [event] = service.events
    assert (event.sequence, event.data.session.title) == (2, "Fields")


async def test_changes_at_once_are_numbered_without_a_gap(patient_engine: AsyncEngine) -> None:
    replicas = [Service(patient_engine) for _ in range(3)]
    session = await an_active_session(replicas[0])

    await asyncio.gather(
        *(replica.do_all([to_change(session, title=f"{n} {m}") for m in range(5)]) for n, replica in enumerate(replicas))
    )

    assert sorted(event.sequence for replica in replicas for event in replica.events) == list(range(3, 18))
