"""The turns of a session's life on a real Postgres: each done once, each one event, whoever asks and however often."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from session_service import rules
from shared.clock import rfc3339
from shared.messages import (
    EndSession,
    EnrolStudent,
    PutRoster,
    ReadSession,
    RemoveStudent,
    SessionStored,
    StartSession,
    Student,
)
from tests.contract.session_talk import (
    ADA,
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
    opened,
    some_students,
    to_cancel,
    to_create,
    to_end,
    to_put,
    to_start,
    value,
    waiting_for_a_lock,
)

pytestmark = pytest.mark.asyncio


async def test_a_start_is_an_event_with_the_roster_and_the_reply_address_and_answers_nobody(
    service: Service,
) -> None:
    await a_course(service)
    session = await a_session(service)
    command = to_start(session)

    assert await service.do(command) is None

    [event] = service.events
    assert (event.type, event.sequence) == ("rollcall.session.started.v1", 2)
    assert (event.id, event.source) == (f"session:{session.id}:2", f"/sessions/{session.id}")
    assert event.reply_to == command.reply_to
    assert [(student.student_id, student.student_name) for student in event.data.roster] == [
        ("ann", "Ann"),
        ("ben", "Ben"),
    ]
    assert (event.data.started_by, event.data.started_by_id) == ("Ada", "ada")
    assert (event.data.session.status, event.data.session.started_at) == ("active", rfc3339(NINE))
    assert await service.do(a(ReadSession, ADA, session_id=session.id)) == event.data.session


async def test_what_a_start_says_carries_no_email_address(service: Service) -> None:
    await service.do(to_put())
    roster = (Student(student_id="ann", name="Ann", email="ann@example.org"),)
    await service.do(a(PutRoster, ADA, course_id="c1", students=roster))
    session = await a_session(service)

    await service.do(to_start(session))

    assert b"example.org" not in service.left[-1].event.body


async def test_an_event_is_in_the_outbox_when_its_change_is_committed(service: Service) -> None:
    await a_course(service)
    session = await a_session(service)

    await service.do(to_start(session))

    row = "SELECT count(*) FROM sessions.outbox WHERE event_id = :id AND reply_queue = 'gateway'"
    assert await value(service.engine, row, id=f"session:{session.id}:2") == 1


async def test_a_start_sent_again_is_the_same_event_with_the_roster_of_now_for_the_new_asker(
    service: Service,
) -> None:
    session = await an_active_session(service)
    await service.do(a(PutRoster, ADA, course_id="c1", students=some_students(1)))
    service.now += timedelta(minutes=5)
    again = to_start(session, by=ROOT)

    assert await service.do(again) is None

    event = service.events[-1]
    assert (event.id, event.sequence, event.time) == (f"session:{session.id}:2", 2, rfc3339(NINE))
    assert (event.reply_to, event.data.started_by) == (again.reply_to, "Ada")
    assert ([student.student_id for student in event.data.roster], event.data.roster_version) == (["s00000"], 2)
    assert await value(service.engine, "SELECT version FROM sessions.sessions") == 3


async def test_two_starts_at_once_are_one_start_and_both_askers_hear_of_it(
    patient_engine: AsyncEngine,
) -> None:
    service = Service(patient_engine)
    await a_course(service)
    session = await a_session(service)
    other = Service(service.engine)
    other.now += timedelta(seconds=1)
    commands = to_start(session), to_start(session, by=ROOT)

    await asyncio.gather(service.do(commands[0]), other.do(commands[1]))

    [first], [second] = service.events, other.events
    assert (first.id, first.time, first.data) == (second.id, second.time, second.data)
    assert {first.reply_to, second.reply_to} == {command.reply_to for command in commands}


async def test_a_start_and_a_new_roster_wait_for_each_other(patient_engine: AsyncEngine) -> None:
    """Whoever enrols is on the roster of the start, or finds the session active: never neither."""
    service = Service(patient_engine)
    await a_course(service)
    session = await a_session(service)
    async with service.store.unit() as unit:
        course = rules.found_course(await unit.courses.lock("c1"))
        async with waiting_for_a_lock(service.engine):
            starting = asyncio.create_task(service.do(to_start(session)))
        await unit.courses.change_roster(course, rules.compare_rosters([], some_students(1)))

    await starting

    assert "s00000" in [student.student_id for student in service.events[-1].data.roster]


async def test_batches_that_start_and_end_across_replicas_do_not_wait_in_a_circle(
    patient_engine: AsyncEngine,
) -> None:
    service = Service(patient_engine)
    sessions = []
    for number in range(6):
        await a_course(service, f"c{number}")
        sessions.append(await a_session(service, f"c{number}"))
    replicas = [Service(service.engine) for _ in range(4)]
    orders = [sessions, sessions[::-1], sessions[3:] + sessions[:3], sessions[::-2] + sessions[::2]]
    changes: list[tuple[type[Any], dict[str, Any]]] = [
        (PutRoster, {"students": ()}),
        (PutRoster, {"students": some_students(2)}),
        (EnrolStudent, {"student": Student(student_id="eve", name="Eve")}),
        (RemoveStudent, {"student_id": "eve"}),
    ]

    for turn in (to_start, to_end):
        for _ in range(5):
            await asyncio.gather(
                *(replica.do_all([turn(s) for s in order]) for replica, order in zip(replicas, orders, strict=True)),
                service.hear(*(opened(session.id) for session in sessions[::-1])),
                *(
                    replica.do_all([a(kind, ROOT, course_id=s.course_id, **fields) for s in order])
                    for replica, order, (kind, fields) in zip(replicas, orders, changes, strict=True)
                ),
            )

    everything = [event for replica in replicas for event in replica.events]
    for session in sessions:
        numbers = {event.sequence for event in everything if event.source == f"/sessions/{session.id}"}
        assert numbers == set(range(2, len(numbers) + 2))
    statuses = "SELECT array_agg(DISTINCT status) FROM sessions.sessions"
    assert await value(service.engine, statuses) == ["completed"]


async def test_only_staff_may_start_and_end_a_session(service: Service) -> None:
    await a_course(service)
    session = await a_session(service)

    for actor in (BOB, ANN, EVE, ROBOT):
        assert await service.code(to_start(session, by=actor)) == "forbidden"
        assert await service.code(to_end(session, by=actor)) == "forbidden"
    assert service.events == []


async def test_what_cannot_be_started_or_ended_is_refused_with_its_reason(service: Service) -> None:
    await a_course(service)
    scheduled, over, cancelled = [await a_session(service) for _ in range(3)]
    await service.do(to_start(over))
    await service.do(to_end(over))
    await service.do(to_cancel(cancelled))

    assert await service.code(to_start(over)) == "session_completed"
    assert await service.code(to_start(cancelled)) == "session_cancelled"
    assert await service.code(to_end(scheduled)) == "session_not_active"
    assert await service.code(to_end(cancelled)) == "session_cancelled"
    for kind in (StartSession, EndSession, ReadSession):
        assert await service.code(a(kind, ROOT, session_id="nowhere")) == "session_not_found"


async def test_an_end_is_an_event_with_its_cause_and_the_reply_address_and_answers_nobody(
    service: Service,
) -> None:
    session = await an_active_session(service)
    service.now += timedelta(hours=1)
    command = to_end(session)

    assert await service.do(command) is None

    [event] = service.events
    assert (event.id, event.sequence) == (f"session:{session.id}:3", 3)
    assert (event.type, event.reply_to) == ("rollcall.session.ended.v1", command.reply_to)
    assert (event.data.cause, event.data.ended_by, event.data.ended_by_id) == ("ended", "Ada", "ada")
    assert (event.data.session.status, event.data.session.ended_at) == ("completed", rfc3339(service.now))


async def test_an_end_sent_again_is_the_same_event_for_the_new_asker(service: Service) -> None:
    session = await an_active_session(service)
    await service.do(to_end(session))
    service.now += timedelta(minutes=5)
    again = to_end(session, by=ROOT)

    await service.do(again)

    first, second = service.events
    assert (second.id, second.time, second.data) == (first.id, first.time, first.data)
    assert second.reply_to == again.reply_to


async def test_the_numbers_of_a_session_have_no_gaps(service: Service) -> None:
    await a_course(service)
    stored: SessionStored = await service.do(to_create())
    for turn in (to_start, to_start, to_end, to_end):
        await service.do(turn(stored.session))

    assert [event.sequence for event in service.events] == [1, 2, 2, 3, 3]
