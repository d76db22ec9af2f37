"""Single students, and rosters that change while sessions are active, on a real Postgres: nobody falls between two events."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy.event import listen, remove
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from session_service import rules
from shared.clock import rfc3339
from shared.messages import (
    Command,
    Enrolled,
    Event,
    News,
    Outline,
    PutRoster,
    ReadOutline,
    ReadRoster,
    RosterPage,
    RosterStored,
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
    some_students,
    to_archive,
    to_cancel,
    to_end,
    to_enrol,
    to_remove,
    to_reopen,
    to_start,
    value,
    waiting_for_a_lock,
)

pytestmark = pytest.mark.asyncio

RACES = 100


def who(event: Event[Any]) -> list[str]:
    """The students whom an event names."""
    return [student.student_id for student in event.data.roster or ()]


async def roster(service: Service) -> list[Student]:
    page: RosterPage = await service.do(a(ReadRoster, ADA, course_id="c1", limit=200))
    return list(page.items)


# One student


async def test_a_student_is_enrolled_once_changed_and_removed_once(service: Service) -> None:
    await a_course(service, students=())
    steps: list[tuple[Command, tuple[int, int, int]]] = [
        (to_enrol("eve", "Eve", email="eve@example.org"), (1, 0, 0)),
        (to_enrol("eve", "Eve", email="eve@example.org"), (0, 0, 0)),
        (to_enrol("eve", "Evelyn"), (0, 1, 0)),
        (to_remove("eve"), (0, 0, 1)),
        (to_remove("eve"), (0, 0, 0)),
    ]

    for command, (added, updated, removed) in steps:
        stored = await service.do(command)
        assert stored == RosterStored(added=added, updated=updated, removed=removed, news=News(course_id="c1"))

    assert await roster(service) == []
    assert await value(service.engine, "SELECT roster_version FROM sessions.courses") == 3
    assert service.events == []


async def test_enrolling_somebody_by_their_id_alone_forgets_nothing_that_is_known_of_them(service: Service) -> None:
    await a_course(service, students=())
    known = Student(student_id="eve", name="Eve", email="eve@example.org", roll_number="7")
    await service.do(a(PutRoster, ADA, course_id="c1", students=(known,)))

    stored = await service.do(to_enrol("eve"))
    await service.do(to_enrol("walk-in"))

    assert (stored.added, stored.updated) == (0, 0)
    assert await roster(service) == [known, Student(student_id="walk-in", name="")]


async def test_only_staff_may_enrol_and_remove(service: Service) -> None:
    await a_course(service)

    for actor in (BOB, ANN, EVE, ROBOT):
        assert await service.code(to_enrol("eve", by=actor)) == "forbidden"
        assert await service.code(to_remove("ann", by=actor)) == "forbidden"
    assert await service.code(to_enrol("eve", course_id="c9", by=ROOT)) == "course_not_found"
    assert await service.code(to_remove("eve", course_id="c9", by=ROOT)) == "course_not_found"
    assert len(await roster(service)) == 2


async def test_the_roster_of_an_archived_course_stays_as_it_is(service: Service) -> None:
    session = await an_active_session(service)
    await service.do(to_archive())
    service.left.clear()

    for command in (to_enrol("eve"), to_enrol("ann", "Ann"), to_remove("ann"), a(PutRoster, ADA, course_id="c1", students=())):
        assert await service.code(command) == "conflict"
    assert (await service.of(session)).status == "active"
    assert service.events == []


async def test_an_outline_is_the_whole_roster_and_what_is_still_to_come(service: Service) -> None:
    session = await an_active_session(service)
    over, cancelled, _ = [await a_session(service) for _ in range(3)]
    await service.do(to_start(over))
    await service.do(to_end(over))
    await service.do(to_cancel(cancelled))
    await service.do(a(PutRoster, ADA, course_id="c1", students=some_students(300)))

    outline: Outline = await service.do(a(ReadOutline, ADA, course_id="c1"))

    assert (outline.course.id, outline.roster, outline.remaining_sessions) == ("c1", some_students(300), 2)
    await service.do(to_end(session))
    assert (await service.do(a(ReadOutline, ROBOT, course_id="c1"))).remaining_sessions == 1
    for actor in (BOB, ANN, EVE):
        assert await service.code(a(ReadOutline, actor, course_id="c1")) == "forbidden"
    assert await service.code(a(ReadOutline, ROOT, course_id="c9")) == "course_not_found"


# While sessions are active


async def test_every_active_session_is_told_of_a_new_roster_and_no_other(service: Service) -> None:
    first = await an_active_session(service)
    second, over, _ = [await a_session(service) for _ in range(3)]
    for session in (second, over):
        await service.do(to_start(session))
    await service.do(to_end(over))
    service.left.clear()
    service.now += timedelta(minutes=1)

    stored: RosterStored = await service.do(a(PutRoster, ADA, course_id="c1", students=some_students(1)))

    assert stored.news == News(course_id="c1", roster_version=2, session_versions={first.id: 3, second.id: 3})
    assert [(event.type, event.id) for event in service.events] == [
        ("rollcall.session.changed.v1", f"session:{first.id}:3"),
        ("rollcall.session.changed.v1", f"session:{second.id}:3"),
    ]
    for event in service.events:
        assert (event.data.roster, event.data.roster_version) == ((Enrolled("s00000", "Student 0"),), 2)
        assert (event.data.removed, event.data.changed_by, event.data.changed_by_id) == (("ann", "ben"), "Ada", "ada")
        assert (event.data.session.updated_at, event.reply_to) == (rfc3339(service.now), None)
    assert service.left[0].channels == (NAMES.course_channel("c1"),)


async def test_one_student_more_or_less_is_told_with_the_whole_roster(service: Service) -> None:
    session = await an_active_session(service)

    answers = [await service.do(command) for command in (to_enrol("eve", "Eve"), to_remove("ann"), to_enrol("ben", "Benno"))]

    assert [(who(event), event.data.roster_version, event.data.removed) for event in service.events] == [
        (["ann", "ben", "eve"], 2, ()),
        (["ben", "eve"], 3, ("ann",)),
        (["ben", "eve"], 4, ()),
    ]
    assert service.events[-1].data.roster[0].student_name == "Benno"
    assert [answer.news.session_versions for answer in answers] == [{session.id: n} for n in (3, 4, 5)]


async def test_a_command_that_changes_nothing_says_nothing_but_still_what_to_wait_for(service: Service) -> None:
    """The first answer may have been lost; whoever sends again waits for the same."""
    await an_active_session(service)
    first = await service.do(to_enrol("eve", "Eve"))
    service.left.clear()

    again = await service.do(to_enrol("eve", "Eve"))

    assert (again.added, again.news) == (0, first.news)
    assert service.events == []


async def test_what_a_roster_change_says_carries_no_email_address(service: Service) -> None:
    await an_active_session(service)

    await service.do(to_enrol("eve", "Eve", email="eve@example.org"))

    assert b"example.org" not in service.left[-1].event.body


async def test_a_roster_of_a_course_without_an_active_session_says_nothing(service: Service) -> None:
    session = await an_active_session(service)
    await a_session(service)
    await service.do(to_end(session))
    service.left.clear()

    stored: RosterStored = await service.do(to_enrol("eve", "Eve"))

    assert (stored.news, service.events) == (News(course_id="c1"), [])


# At once


@pytest_asyncio.fixture
async def replicas(engine: AsyncEngine) -> AsyncIterator[tuple[Service, Service]]:
    """Two replicas with connections of their own, without a limit on waiting for locks."""
    engines = [create_async_engine(engine.url, pool_size=4) for _ in range(2)]
    yield Service(engines[0]), Service(engines[1])
    for each in engines:
        await each.dispose()


async def race(first: Service, one: Command, second: Service, other: Command, *, step: int) -> None:
    """Do a command, and another one from the first's statement number `step` on, or after it where it has fewer."""
    reached = asyncio.Event()
    sent = itertools.count(1)

    def note(*_: Any) -> None:
        if next(sent) >= step:
            reached.set()

    async def do_first() -> None:
        await first.do(one)
        reached.set()

    async def do_second() -> None:
        await reached.wait()
        await second.do(other)

    listen(first.engine.sync_engine, "before_cursor_execute", note)
    try:
        await asyncio.gather(do_first(), do_second())
    finally:
        remove(first.engine.sync_engine, "before_cursor_execute", note)


@pytest.mark.parametrize("moves", ["enrols", "leaves"])
@pytest.mark.parametrize("begin", ["start", "reopen"])
async def test_who_enrols_or_leaves_while_a_session_begins_is_told_of_in_its_beginning_or_in_a_change_after_it(
    replicas: tuple[Service, Service], begin: str, moves: str
) -> None:
    """A hundred times each, from two replicas, each overtaken at every step; and each session's numbers have no gap."""
    starting, enrolling = replicas
    await a_course(starting)
    outcomes = set()
    for number in range(RACES):
        session = await a_session(starting)
        if begin == "reopen":
            await starting.do(to_start(session))
            await starting.do(to_end(session))
        await starting.do(to_enrol(f"l{number}"))
        starting.left.clear()
        enrolling.left.clear()
        command = to_start(session) if begin == "start" else to_reopen(session)
        student, leaver = f"w{number}", f"l{number}"
        change = to_enrol(student) if moves == "enrols" else to_remove(leaver)
        sides = (starting, command), (enrolling, change)
        (first, one), (second, other) = sides if number % 2 else sides[::-1]

        await race(first, one, second, other, step=number // 2 % 9)

        [started] = starting.events
        changes = [event for event in enrolling.events if event.source == f"/sessions/{session.id}"]
        assert [event.sequence for event in changes] == [started.sequence + 1] * len(changes)
        if moves == "enrols":
            assert (student in who(started)) != any(student in who(event) for event in changes)
        else:
            gone = [event for event in changes if leaver in event.data.removed]
            assert len(gone) == (leaver in who(started))
            assert not any(leaver in who(event) for event in changes)
        outcomes.add(bool(changes))
        await starting.do(to_end(session))
    assert outcomes == {True, False}


async def test_two_replicas_that_change_the_same_roster_lose_nobody(replicas: tuple[Service, Service]) -> None:
    session = await an_active_session(replicas[0])
    replicas[0].left.clear()

    await asyncio.gather(
        *(replica.do_all([to_enrol(f"{name}{n}") for n in range(20)]) for replica, name in zip(replicas, "xy", strict=True)),
        replicas[0].do(to_remove("ann")),
    )

    events = sorted((event for replica in replicas for event in replica.events), key=lambda event: event.sequence)
    assert [event.sequence for event in events] == list(range(3, 44))
    assert [event.data.roster_version for event in events] == list(range(2, 43))
    assert who(events[-1]) == sorted(["ben", *(f"{name}{n}" for name in "xy" for n in range(20))])
    assert (await replicas[0].of(session)).status == "active"


async def test_a_roster_change_waits_for_an_end_and_then_says_nothing(patient_engine: AsyncEngine) -> None:
    service = Service(patient_engine)
    session = await an_active_session(service)
    async with service.store.unit() as unit:
        locked = rules.found_session(await unit.sessions.lock(session.id))
        async with waiting_for_a_lock(service.engine):
            enrolling = asyncio.create_task(service.do(to_enrol("eve")))
        await unit.sessions.save(rules.end_session(locked, ADA, service.now))

    assert (await enrolling).news == News(course_id="c1")
    assert service.events == []
