"""Rosters on a real Postgres: replaced or changed by one student, and told to every session that is active."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from shared.messages import (
    News,
    PutRoster,
    ReadRoster,
    RosterPage,
    RosterStored,
    Student,
)
from tests.contract.session_talk import (
    ADA,
    ANN,
    BOB,
    ROBOT,
    ROOT,
    Service,
    a,
    a_course,
    a_session,
    some_students,
    statements,
    to_put,
    to_start,
    value,
)

pytestmark = pytest.mark.asyncio

NOTHING = News(course_id="c1")


async def test_a_roster_is_replaced_and_the_change_counted(service: Service) -> None:
    await a_course(service, students=("ann", "ben", "cid"))
    roster = (
        Student(student_id="ann", name="Ann"),
        Student(student_id="ben", name="Ben", email="ben@example.org"),
        Student(student_id="dee", name="Dee", roll_number="7"),
    )

    stored = await service.do(a(PutRoster, ADA, course_id="c1", students=roster))

    assert stored == RosterStored(added=1, updated=1, removed=1, news=NOTHING)
    page: RosterPage = await service.do(a(ReadRoster, ROBOT, course_id="c1", limit=10))
    assert page == RosterPage(items=roster, next_cursor=None)


async def test_a_roster_put_again_changes_nothing_not_even_its_version(service: Service) -> None:
    await service.do(to_put())
    command = a(PutRoster, ADA, course_id="c1", students=some_students(3))

    first, again = await service.do(command), await service.do(command)

    assert (first, again) == (
        RosterStored(added=3, updated=0, removed=0, news=NOTHING),
        RosterStored(added=0, updated=0, removed=0, news=NOTHING),
    )
    assert await value(service.engine, "SELECT roster_version FROM sessions.courses") == 1


async def test_an_empty_roster_empties_the_course(service: Service) -> None:
    await a_course(service)

    stored = await service.do(a(PutRoster, ADA, course_id="c1", students=()))

    assert stored == RosterStored(added=0, updated=0, removed=2, news=NOTHING)


async def test_a_change_of_a_roster_tells_nobody_while_no_session_is_active(service: Service) -> None:
    await a_course(service)

    await service.do(a(PutRoster, ADA, course_id="c1", students=some_students(3)))

    assert service.left == []


async def test_a_roster_is_for_staff_and_read_by_services(service: Service) -> None:
    await a_course(service)

    def codes(answers: Sequence[Any]) -> list[str]:
        return [getattr(answer, "code", "ok") for answer in answers]

    actors = (ADA, ROOT, ROBOT, BOB, ANN)
    writes = [a(PutRoster, actor, course_id="c1", students=()) for actor in actors]
    reads = [a(ReadRoster, actor, course_id="c1", limit=9) for actor in actors]
    assert codes(await service.do_all(writes)) == ["ok", "ok", "forbidden", "forbidden", "forbidden"]
    assert codes(await service.do_all(reads)) == ["ok", "ok", "ok", "forbidden", "forbidden"]


async def test_a_roster_is_read_page_by_page_in_the_order_of_ids(service: Service) -> None:
    await a_course(service, students=("b", "a", "B", "c-1", "c.1"))

    first: RosterPage = await service.do(a(ReadRoster, ADA, course_id="c1", limit=3))
    second: RosterPage = await service.do(a(ReadRoster, ADA, course_id="c1", limit=3, cursor=first.next_cursor))

    assert [student.student_id for student in first.items + second.items] == ["B", "a", "b", "c-1", "c.1"]
    assert second.next_cursor is None


async def test_a_roster_of_10_000_takes_as_many_statements_as_one_of_10(service: Service) -> None:
    """And so does the start of a session with that roster. Time is bounded only against a plan gone wrong."""
    counts = []
    for course_id, size in (("small", 10), ("large", 10_000)):
        await service.do(to_put(course_id))
        session = await a_session(service, course_id)
        students = some_students(size)
        changed = tuple(Student(student_id=s.student_id, name=s.name + "!") for s in students[size // 2 :])
        with statements(service.engine) as sent:
            async with asyncio.timeout(20):
                await service.do(a(PutRoster, ADA, course_id=course_id, students=students))
                stored = await service.do(a(PutRoster, ADA, course_id=course_id, students=changed))
                await service.do(to_start(session))
        counts.append(len(sent))
        assert stored == RosterStored(added=0, updated=size // 2, removed=size // 2, news=News(course_id=course_id))
        assert len(service.events[-1].data.roster) == size // 2

    assert counts[0] == counts[1] <= 20


async def test_a_roster_that_names_a_student_twice_is_refused_whole(service: Service) -> None:
    await a_course(service)
    twice = (Student(student_id="x", name="X"), Student(student_id="x", name="Y"))

    assert await service.code(a(PutRoster, ADA, course_id="c1", students=twice)) == "invalid"
    assert await value(service.engine, "SELECT count(*) FROM sessions.enrolments") == 2
