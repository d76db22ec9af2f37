"""Courses on a real Postgres: made, changed, put away, read by those who may."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.clock import rfc3339
from shared.errors import Refused
from shared.messages import (
    Actor,
    CoursePage,
    CourseStored,
    ListCourses,
    ListSessions,
    News,
    PutRoster,
    ReadCourse,
    ReadRoster,
    ReadStanding,
    Standing,
    Student,
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
    an_active_session,
    to_archive,
    to_create,
    to_end,
    to_put,
    to_reopen,
    to_start,
    value,
)

pytestmark = pytest.mark.asyncio


async def test_a_course_is_made_once_and_then_changed(service: Service) -> None:
    made: CourseStored = await service.do(to_put(by=ADA))
    service.now += timedelta(days=1)
    changed: CourseStored = await service.do(to_put(by=ADA, title="Geometry"))

    assert (made.created, made.course.title, made.course.archived) == (True, "Algebra", False)
    assert (changed.created, changed.course.title) == (False, "Geometry")
    assert changed.course.created_at == made.course.created_at < changed.course.updated_at
    assert await service.do(a(ReadCourse, ADA, course_id="c1")) == changed.course


async def test_who_may_listen_is_read_with_the_versions_it_is_as_of(service: Service) -> None:
    """For the gateways, about those who listen there; nobody else may ask about others."""
    await service.do(to_put(by=ADA))
    await service.do(
        a(PutRoster, ADA, course_id="c1", students=tuple(Student(student_id=id, name=id) for id in ("ann", "ben")))
    )

    some: Standing = await service.do(a(ReadStanding, ROBOT, course_id="c1", student_ids=("eve", "ann")))
    none: Standing = await service.do(a(ReadStanding, ROBOT, course_id="c1", student_ids=()))

    assert (some.teacher_ids, some.enrolled, some.version, some.roster_version) == (("ada",), ("ann",), 1, 1)
    assert (none.teacher_ids, none.enrolled) == (("ada",), ())
    for actor in (ADA, ANN):
        assert await service.code(a(ReadStanding, actor, course_id="c1", student_ids=())) == "forbidden"
    assert await service.code(a(ReadStanding, ROBOT, course_id="nowhere", student_ids=())) == "course_not_found"


async def test_each_change_of_a_course_is_one_event_numbered_by_its_version(service: Service) -> None:
    await service.do(to_put())
    await service.do(to_put(title="Geometry"))

    assert [(event.id, event.source, event.sequence, event.data.first_seq) for event in service.events] == [
        ("course:c1:1", "/courses/c1", 1, 1),
        ("course:c1:2", "/courses/c1", 2, 2),
    ]
    assert service.events[1].data.course.title == "Geometry"
    assert service.left[0].channels == (NAMES.course_channel("c1"),)


async def test_a_course_put_as_it_is_changes_nothing_and_says_nothing(service: Service) -> None:
    """So a redelivery is harmless; it cannot tell any more that it was the one that made the course."""
    command = to_put()
    first: CourseStored = await service.do(command)
    service.now += timedelta(hours=1)

    again: CourseStored = await service.do(command)

    assert (again.course, again.created) == (first.course, False)
    assert service.types == ["course.changed"]


async def test_two_replicas_that_make_a_course_at_once_make_one(patient_engine: AsyncEngine) -> None:
    service = Service(patient_engine)
    other = Service(service.engine)

    answers = await asyncio.gather(service.do(to_put()), other.do(to_put(title="Geometry")))

    assert sorted(answer.created for answer in answers) == [False, True]
    assert sorted(event.sequence for event in service.events + other.events) == [1, 2]


async def test_who_is_not_of_a_course_may_neither_read_nor_change_it(service: Service) -> None:
    await a_course(service, students=("ann",))

    assert await service.code(to_put(by=BOB)) == "forbidden"
    assert await service.code(to_put(by=ANN)) == "forbidden"
    assert await service.code(to_put(by=ROBOT)) == "forbidden"
    reads = [a(ReadCourse, actor, course_id="c1") for actor in (ADA, ROOT, ROBOT, ANN, BOB, EVE)]
    codes = [isinstance(answer, Refused) and answer.code for answer in await service.do_all(reads)]
    assert codes == [False, False, False, False, "forbidden", "forbidden"]


async def test_a_course_that_is_not_there_is_not_found(service: Service) -> None:
    commands = (
        a(ReadCourse, ROOT, course_id="c9"),
        a(PutRoster, ROOT, course_id="c9", students=()),
        a(ReadRoster, ROOT, course_id="c9", limit=10),
        to_create("c9", by=ROOT),
        a(ListSessions, ROOT, course_id="c9", status=None, limit=10),
    )

    assert [await service.code(command) for command in commands] == ["course_not_found"] * 5


async def test_a_refusal_in_a_batch_leaves_its_neighbours_alone(service: Service) -> None:
    answers = await service.do_all([to_put("c3"), to_put("c2", by=ANN), to_put("c1", time_zone="Mars"), to_put("c4")])

    assert [getattr(answer, "code", "ok") for answer in answers] == ["ok", "forbidden", "invalid", "ok"]
    assert answers[2].details == ({"field": "time_zone", "message": "Must be a time zone like Europe/Berlin"},)
    assert await value(service.engine, "SELECT count(*) FROM sessions.courses") == 2


async def test_everyone_lists_their_own_courses_page_by_page(service: Service) -> None:
    for number in range(5):
        await a_course(service, f"c{number}", students=("ann",) if number % 2 else ())
    await service.do(to_put("b1", teacher_ids=("bob",)))

    async def listed(actor: Actor) -> list[str]:
        ids: list[str] = []
        cursor = None
        while True:
            page: CoursePage = await service.do(a(ListCourses, actor, limit=2, cursor=cursor))
            ids += [course.id for course in page.items]
            cursor = page.next_cursor
            if cursor is None:
                return ids

    assert await listed(ADA) == ["c0", "c1", "c2", "c3", "c4"]
    assert await listed(BOB) == ["b1"]
    assert await listed(ANN) == ["c1", "c3"]
    assert await listed(EVE) == []
    assert await listed(Actor("ada", "Ada", "student")) == []
    assert await listed(ROOT) == await listed(ROBOT) == ["b1", "c0", "c1", "c2", "c3", "c4"]


# Putting away


async def test_an_archived_course_is_read_but_not_listed(service: Service) -> None:
    await a_course(service, "c1")
    await a_course(service, "c2")
    service.now += timedelta(days=1)

    stored: CourseStored = await service.do(to_archive())

    assert stored == CourseStored(course=stored.course, created=False, news=News(course_id="c1"))
    assert (stored.course.archived, stored.course.updated_at) == (True, rfc3339(service.now))
    for actor in (ADA, ANN, ROOT, ROBOT):
        assert await service.do(a(ReadCourse, actor, course_id="c1")) == stored.course
        listed: CoursePage = await service.do(a(ListCourses, actor, limit=9))
        assert [course.id for course in listed.items] == ["c2"]


async def test_archiving_is_one_event_and_archiving_again_none(service: Service) -> None:
    await a_course(service)

    first, again = await service.do(to_archive()), await service.do(to_archive(by=ROOT))

    assert first == again
    assert [(event.type, event.sequence) for event in service.events] == [("rollcall.course.changed.v1", 2)]
    assert service.events[0].data.course.archived


async def test_only_staff_may_archive_a_course(service: Service) -> None:
    await a_course(service)

    for actor in (BOB, ANN, EVE, ROBOT):
        assert await service.code(to_archive(by=actor)) == "forbidden"
    assert await service.code(to_archive("c9", by=ROOT)) == "course_not_found"
    assert service.events == []


async def test_an_archived_course_takes_no_change_but_its_session_goes_on(service: Service) -> None:
    session = await an_active_session(service)
    await service.do(to_archive())

    assert await service.code(to_put(title="Geometry")) == "conflict"
    assert await service.code(to_create()) == "conflict"
    for command in (to_end(session), to_reopen(session), to_end(session)):
        assert await service.code(command) is None


# What attendance-service must have heard


async def test_who_teaches_a_course_is_to_be_waited_for_once_it_has_a_roll(service: Service) -> None:
    """Also when all of them are closed: a substitute corrects a closed roll."""
    await a_course(service)
    session = await a_session(service)

    async def news(**fields: Any) -> News:
        stored: CourseStored = await service.do(to_put(**fields))
        return stored.news

    assert await news(teacher_ids=("ada", "bob")) == News(course_id="c1")
    await service.do(to_start(session))
    assert await news(teacher_ids=("ada",)) == News(course_id="c1", course_version=3)
    await service.do(to_end(session))
    assert await news(teacher_ids=("ada", "bob")) == News(course_id="c1", course_version=4)


async def test_teachers_put_again_are_told_again_while_somebody_waits_for_them(service: Service) -> None:
    """What attendance-service was never told, nobody would wait for with success."""
    await an_active_session(service)
    await service.do(to_put(teacher_ids=("ada", "bob")))

    again: CourseStored = await service.do(to_put(teacher_ids=("ada", "bob")))

    assert again.news == News(course_id="c1", course_version=2)
    first, second = service.left
    assert (first.event.id, first.event.body) == (second.event.id, second.event.body)
