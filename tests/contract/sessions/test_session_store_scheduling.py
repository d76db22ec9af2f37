"""Sessions on a timetable, on a real Postgres: scheduled, changed, listed, explained."""

import asyncio

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.messages import (
    Actor,
    CheckIn,
    ExplainNoRoll,
    ListSessions,
    ReadSession,
    SessionPage,
    SessionStored,
)
from tests.contract.session_talk import (
    ADA,
    ANN,
    BOB,
    EVE,
    NAMES,
    ROBOT,
    ROOT,
    Service,
    a,
    a_course,
    a_session,
    statements,
    to_archive,
    to_create,
    to_end,
    to_start,
)

pytestmark = pytest.mark.asyncio


async def test_a_session_is_scheduled_and_read_as_it_was_answered(service: Service) -> None:
    await a_course(service)

    stored: SessionStored = await service.do(to_create(description="Ideals", meeting_link="https://example.org"))

    session = stored.session
    assert (session.starts_at, session.ends_at) == ("2026-11-24T08:00:00.000Z", "2026-11-24T09:30:00.000Z")
    assert (session.status, session.teacher_ids, session.time_zone) == (
        "scheduled",
        ("ada",),
        "Europe/Berlin",
    )
    assert session.check_in == CheckIn(late_after_minutes=5)
    assert await service.do(a(ReadSession, ANN, session_id=session.id)) == session


async def test_scheduling_is_event_number_one_of_the_session(service: Service) -> None:
    await a_course(service)

    stored: SessionStored = await service.do(to_create())

    [event] = service.events
    assert (event.type, event.sequence) == ("rollcall.session.scheduled.v1", 1)
    assert (event.id, event.source) == (f"session:{stored.session.id}:1", f"/sessions/{stored.session.id}")
    assert event.data.session == stored.session
    assert service.left[0].channels == (NAMES.course_channel("c1"),)


async def test_a_redelivered_creation_is_answered_as_the_first_was(service: Service) -> None:
    await a_course(service)
    command = to_create(idempotency_key="k")
    first = await service.do(command)

    assert await service.do(command) == first
    assert service.types == ["session.scheduled"]


async def test_the_same_key_and_body_is_the_same_session_though_the_command_is_another(
    service: Service,
) -> None:
    await a_course(service)
    first: SessionStored = await service.do(to_create(idempotency_key="k"))

    again: SessionStored = await service.do(to_create(idempotency_key="k"))

    assert again == first
    assert service.types == ["session.scheduled"]


async def test_the_same_key_with_another_body_is_a_conflict_but_keys_are_ones_own(service: Service) -> None:
    await a_course(service)
    await service.do(to_create(idempotency_key="k"))

    assert await service.code(to_create(idempotency_key="k", fingerprint="g")) == "conflict"
    assert await service.code(to_create(idempotency_key="k", fingerprint="g", by=ROOT)) is None


async def test_two_replicas_with_the_same_key_at_once_make_one_session(patient_engine: AsyncEngine) -> None:
    service = Service(patient_engine)
    await a_course(service)
    other = Service(service.engine)
    commands = [to_create(idempotency_key=f"k{number % 5}") for number in range(40)]

    answers = await asyncio.gather(service.do_all(commands[:20]), other.do_all(commands[20:]))

    stored: list[SessionStored] = [answer for half in answers for answer in half]
    assert len({answer.session.id for answer in stored}) == 5
    assert len(service.events + other.events) == 5


async def test_an_archived_course_takes_no_session(service: Service) -> None:
    await a_course(service)
    await service.do(to_archive())

    assert await service.code(to_create()) == "conflict"


async def test_who_is_not_of_the_course_may_neither_schedule_nor_read_its_sessions(service: Service) -> None:
    await a_course(service, students=("ann",))
    session = await a_session(service)

    creations = [await service.code(to_create(by=actor)) for actor in (BOB, ANN, ROBOT)]
    reads = [a(ReadSession, actor, session_id=session.id) for actor in (ADA, ROOT, ROBOT, ANN, BOB, EVE)]
    lists = [
        await service.code(a(ListSessions, actor, course_id="c1", status=None, limit=9))
        for actor in (ADA, ROOT, ROBOT, ANN, BOB, EVE)
    ]

    assert creations == ["forbidden"] * 3
    allowed = [None, None, None, None, "forbidden", "forbidden"]
    assert [getattr(answer, "code", None) for answer in await service.do_all(reads)] == allowed
    assert lists == allowed


async def test_sessions_are_listed_newest_first_page_by_page_and_by_state(service: Service) -> None:
    for course_id in ("c1", "c2"):
        await a_course(service, course_id, students=("ann",) if course_id == "c1" else ())
    made = [await a_session(service, course_id, date=f"2026-11-{day}") for day in (24, 26, 25) for course_id in ("c1", "c2")]
    await service.do(to_start(made[0]))

    async def days(actor: Actor, course_id: str | None = None, status: str | None = None) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        cursor = None
        while True:
            page: SessionPage = await service.do(
                a(ListSessions, actor, course_id=course_id, status=status, limit=2, cursor=cursor)
            )
            found += [(session.starts_at[8:10], session.course_id) for session in page.items]
            cursor = page.next_cursor
            if cursor is None:
                return found

    assert await days(ADA, "c1") == [("26", "c1"), ("25", "c1"), ("24", "c1")]
    assert await days(ANN) == [("26", "c1"), ("25", "c1"), ("24", "c1")]
    assert await days(EVE) == await days(BOB) == []
    for actor in (ADA, ROOT, ROBOT):
        assert sorted(await days(actor)) == sorted((day, c) for day in ("24", "25", "26") for c in ("c1", "c2"))
    assert await days(ADA, status="active") == await days(ADA, "c1", "active") == [("24", "c1")]
    assert await days(ADA, "c2", "active") == []


async def test_a_cursor_that_is_none_is_invalid(service: Service) -> None:
    command = a(ListSessions, ADA, course_id=None, status=None, limit=2, cursor="yesterday")

    assert await service.code(command) == "invalid"


async def test_sessions_are_looked_up_together(service: Service) -> None:
    """Five hundred students who are too early cost one round trip."""
    await a_course(service)
    session = await a_session(service)
    asked = [a(ExplainNoRoll, ANN, session_id=session.id, for_staff=False) for _ in range(500)]
    asked.append(a(ExplainNoRoll, EVE, session_id=session.id, for_staff=False))
    asked.append(a(ExplainNoRoll, ANN, session_id="nowhere", for_staff=False))

    with statements(service.engine) as sent:
        answers = await service.do_all(asked)

    assert len(sent) == 1
    assert [answer.code for answer in answers[:499]] == ["session_not_active"] * 499
    assert [answer.code for answer in answers[500:]] == ["not_enrolled", "session_not_found"]


async def test_why_there_is_no_roll(service: Service) -> None:
    await a_course(service)
    scheduled, active, over = [await a_session(service) for _ in range(3)]
    for session in (active, over):
        await service.do(to_start(session))
    await service.do(to_end(over))

    async def why(session_id: str, actor: Actor, *, for_staff: bool = False) -> tuple[str, bool]:
        [refused] = await service.do_all([a(ExplainNoRoll, actor, session_id=session_id, for_staff=for_staff)])
        return refused.code, refused.retryable

    assert await why("nowhere", ANN) == ("session_not_found", False)
    assert await why(scheduled.id, ANN) == ("session_not_active", False)
    assert await why(active.id, ANN) == ("session_not_active", True)
    assert await why(over.id, ANN) == ("session_completed", False)
    assert await why(active.id, EVE) == await why(active.id, ADA) == ("not_enrolled", False)
    assert await why(active.id, ADA, for_staff=True) == ("session_not_active", True)
    assert await why(active.id, ROBOT, for_staff=True) == ("session_not_active", True)
    assert await why(active.id, BOB, for_staff=True) == ("forbidden", False)
    assert await why(active.id, ANN, for_staff=True) == ("forbidden", False)
