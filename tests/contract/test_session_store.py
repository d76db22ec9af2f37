"""session-service on a real Postgres: its handlers are given what a worker gives them, without a bus."""

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from alembic import command as alembic
from alembic.config import Config
from msgspec import Raw, json
from redis.asyncio import Redis
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from session_service import handlers, rules
from session_service.__main__ import serve
from session_service.batches import beginning
from session_service.saga import LONGEST_SILENCE, SESSIONS_AT_ONCE, SILENCE, repeat_unreported
from session_service.store import Store
from session_service.tables import SCHEMA
from shared.clock import rfc3339, utc_now
from shared.database import open_engine
from shared.errors import Refused, Unavailable
from shared.live import Names
from shared.memory_bus import MemoryBus
from shared.messages import (
    ATTENDANCE_EVENTS,
    SESSION_COMMANDS,
    Actor,
    Answer,
    CheckIn,
    Command,
    CoursePage,
    CourseStored,
    CreateSession,
    EndSession,
    Event,
    EventData,
    ExplainNoRoll,
    ListCourses,
    ListSessions,
    PutCourse,
    PutRoster,
    ReadCourse,
    ReadRoster,
    ReadSession,
    ReplyTo,
    RollClosed,
    RollOpened,
    RosterPage,
    RosterStored,
    Session,
    SessionPage,
    SessionStored,
    StartSession,
    Statistics,
    Student,
    decode_answers,
    decode_event,
    encode,
)
from shared.outbox import Outbox, OutboxRow
from tests.conftest import NewDatabase

pytestmark = pytest.mark.asyncio

C = TypeVar("C", bound=Command)

NINE = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
ADA = Actor("ada", "Ada", "teacher")
BOB = Actor("bob", "Bob", "teacher")
ANN = Actor("ann", "Ann", "student")
EVE = Actor("eve", "Eve", "student")
ROOT = Actor("root", "Root", "admin")
ROBOT = Actor("robot", "Robot", "service")
NAMES = Names("test")

numbers = itertools.count(1)


# The world of a test


class Service:
    """One replica of session-service, and the time as it sees it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.now = NINE
        self.store = Store(engine, Outbox(SCHEMA, MemoryBus(), nobody_listens))
        self.table = handlers.table(self.store, NAMES, lambda: self.now)
        self.left: list[OutboxRow] = []
        """What left with the commits so far."""

    async def do_all(self, commands: Sequence[Command]) -> list[Any]:
        """Handle a batch; return what each command is answered, None where nothing is."""
        outcome = await self.table[type(commands[0])](commands)
        self.left.extend(outcome.events)
        answers = {to.correlation_id: answer for to, answer in outcome.answers}
        assert len(answers) == len(outcome.answers), "a command is answered once"
        return [answers.get(command.reply_to.correlation_id) for command in commands if command.reply_to]

    async def do(self, command: Command) -> Any:
        """Handle one command; return what it is answered, or raise the refusal."""
        [answer] = await self.do_all([command])
        if isinstance(answer, Refused):
            raise answer
        return answer

    async def code(self, command: Command) -> str | None:
        """Handle one command; return the code it is refused with, None when it is not."""
        [answer] = await self.do_all([command])
        return answer.code if isinstance(answer, Refused) else None

    async def hear(self, *events: Event[Any]) -> None:
        """Handle events of one kind."""
        await self.table[type(events[0].data)](events)

    async def repeat(self) -> list[Event[EventData]]:
        """Let the saga look once; return what it repeats."""
        begin = beginning(self.store, NAMES, lambda: self.now)
        return [read(row) for row in await repeat_unreported(begin)]

    @property
    def events(self) -> list[Event[Any]]:
        """The events that left, oldest first."""
        return [read(row) for row in self.left]

    @property
    def types(self) -> list[str]:
        """Their types."""
        return [event.type.removeprefix("rollcall.").removesuffix(".v1") for event in self.events]


async def nobody_listens(rows: Sequence[OutboxRow]) -> None:
    """Stands in for Redis."""


def read(row: OutboxRow) -> Event[EventData]:
    found = decode_event(row.event.body, row.event.reply_to)
    assert found is not None
    return found


def a(kind: type[C], actor: Actor, **fields: Any) -> C:
    """A command, on its way from one gateway."""
    number = str(next(numbers))
    envelope = {
        "command_id": number,
        "actor": actor,
        "received_at": NINE,
        "deadline": NINE + timedelta(seconds=2),
        "reply_to": ReplyTo("gateway", number),
    }
    return kind(**{**envelope, **fields})


def to_put(course_id: str = "c1", by: Actor = ROOT, **fields: Any) -> PutCourse:
    course = {"title": "Algebra", "teacher_ids": ("ada",), "time_zone": "Europe/Berlin"}
    return a(PutCourse, by, course_id=course_id, **{**course, **fields})


def to_create(course_id: str = "c1", by: Actor = ADA, **fields: Any) -> CreateSession:
    session = {
        "session_id": f"{next(numbers):024x}",
        "title": "Rings",
        "description": None,
        "date": "2026-11-24",
        "start_time": "09:00",
        "end_time": "10:30",
        "time_zone": None,
        "meeting_link": None,
        "check_in": CheckIn(late_after_minutes=5),
        "idempotency_key": None,
        "fingerprint": "f",
    }
    return a(CreateSession, by, course_id=course_id, **{**session, **fields})


def to_start(session: Session, by: Actor = ADA) -> StartSession:
    return a(StartSession, by, session_id=session.id)


def to_end(session: Session, by: Actor = ADA) -> EndSession:
    return a(EndSession, by, session_id=session.id)


def some_students(count: int) -> tuple[Student, ...]:
    return tuple(Student(student_id=f"s{number:05}", name=f"Student {number}") for number in range(count))


async def a_course(service: Service, course_id: str = "c1", students: Sequence[str] = ("ann", "ben")) -> str:
    """A course of Ada's with these students."""
    await service.do(to_put(course_id))
    roster = tuple(Student(student_id=student, name=student.title()) for student in students)
    await service.do(a(PutRoster, ROOT, course_id=course_id, students=roster))
    service.left.clear()
    return course_id


async def a_session(service: Service, course_id: str = "c1", **fields: Any) -> Session:
    """A scheduled session of that course."""
    stored: SessionStored = await service.do(to_create(course_id, **fields))
    service.left.clear()
    return stored.session


async def an_active_session(service: Service, course_id: str = "c1") -> Session:
    """A session that has just been started, of a course that is made for it."""
    await a_course(service, course_id)
    session = await a_session(service, course_id)
    await service.do(to_start(session))
    service.left.clear()
    return session


def opened(session_id: str, at: datetime = NINE) -> Event[RollOpened]:
    """What attendance-service says when the roll is open."""
    data = RollOpened(
        first_seq=1,
        session_id=session_id,
        course_id="c1",
        session=json.decode(json.encode(A_SESSION), type=Session),
        statistics=NOBODY,
        opened_by="Ada",
        opened_by_id="ada",
        opened_at=rfc3339(at),
    )
    return Event(id=f"{session_id}:1", source=f"/rolls/{session_id}", time=rfc3339(at), sequence=1, data=data)


def closed(session_id: str, at: datetime = NINE) -> Event[RollClosed]:
    """What attendance-service says when the roll is closed."""
    data = RollClosed(
        first_seq=2,
        session_id=session_id,
        course_id="c1",
        cause="ended",
        statistics=NOBODY,
        ended_by="Ada",
        ended_by_id="ada",
        ended_at=rfc3339(at),
    )
    return Event(id=f"{session_id}:2", source=f"/rolls/{session_id}", time=rfc3339(at), sequence=2, data=data)


NOBODY = Statistics(total_students=0, present_count=0, absent_count=0, late_count=0, excused_count=0, attendance_rate=None)
A_SESSION: dict[str, Any] = {
    **dict.fromkeys(("id", "course_id", "title", "topic", "time_zone", "starts_at", "ends_at"), "x"),
    **dict.fromkeys(("date", "start_time", "end_time", "created_at", "updated_at"), "x"),
    **dict.fromkeys(("description", "meeting_link", "started_at", "ended_at")),
    "status": "active",
    "teacher_ids": [],
    "check_in": {},
}


def migrations(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", "session_service:migrations")
    config.attributes["url"] = url
    return config


@pytest.fixture(scope="module")
def migrated(new_database: NewDatabase) -> Iterator[str]:
    """The name of a database with our schema in it, to be copied."""
    with new_database() as url:
        alembic.upgrade(migrations(url), "head")
        yield url.rpartition("/")[2]


@pytest_asyncio.fixture
async def engine(new_database: NewDatabase, migrated: str) -> AsyncIterator[AsyncEngine]:
    """A migrated database of the test's own."""
    with new_database(template=migrated) as url:
        engine = open_engine(url, application="test")
        yield engine
        await engine.dispose()


@pytest_asyncio.fixture
async def service(engine: AsyncEngine) -> Service:
    """A replica on it; a test that wants two makes another on the same engine."""
    return Service(engine)


@pytest_asyncio.fixture
async def patient_engine(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """The same database without a limit on waiting for locks: what fails is a circle, not a slow machine."""
    patient = create_async_engine(engine.url, pool_size=10)
    yield patient
    await patient.dispose()


@contextmanager
def statements(engine: AsyncEngine) -> Iterator[list[str]]:
    """Collect the statements sent meanwhile."""
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", note)


async def value(engine: AsyncEngine, query: str, **parameters: Any) -> Any:
    async with engine.connect() as connection:
        return await connection.scalar(text(query), parameters)


@asynccontextmanager
async def waiting_for_a_lock(engine: AsyncEngine) -> AsyncIterator[None]:
    """Return from the block only once another connection waits for a lock."""
    yield
    waiting = """SELECT count(*) FROM pg_stat_activity
        WHERE wait_event_type = 'Lock' AND datname = current_database()"""
    async with asyncio.timeout(5):
        while not await value(engine, waiting):  # noqa: ASYNC110 (Postgres tells nobody when it waits)
            await asyncio.sleep(0.005)


# The schema


async def test_replicas_that_migrate_at_once_make_the_schema_once(database: str) -> None:
    """Each in a process of its own: Alembic keeps its context in a module."""
    migrate = f"""
from alembic import command
from alembic.config import Config

config = Config()
config.set_main_option("script_location", "session_service:migrations")
config.attributes["url"] = {database!r}
command.upgrade(config, "head")
"""
    replicas = [await asyncio.create_subprocess_exec(sys.executable, "-c", migrate) for _ in range(3)]

    assert [await replica.wait() for replica in replicas] == [0, 0, 0]
    engine = open_engine(database, application="test")
    try:
        assert await value(engine, "SELECT count(*) FROM sessions.alembic_version") == 1
    finally:
        await engine.dispose()


async def test_a_downgrade_takes_everything_away(database: str) -> None:
    await asyncio.to_thread(alembic.upgrade, migrations(database), "head")

    await asyncio.to_thread(alembic.downgrade, migrations(database), "base")

    engine = open_engine(database, application="test")
    try:
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'sessions' AND tablename <> 'alembic_version'"
        assert await value(engine, tables) == 0
    finally:
        await engine.dispose()


# Courses


async def test_a_course_is_made_once_and_then_changed(service: Service) -> None:
    made: CourseStored = await service.do(to_put(by=ADA))
    service.now += timedelta(days=1)
    changed: CourseStored = await service.do(to_put(by=ADA, title="Geometry"))

    assert (made.created, made.course.title, made.course.archived) == (True, "Algebra", False)
    assert (changed.created, changed.course.title) == (False, "Geometry")
    assert changed.course.created_at == made.course.created_at < changed.course.updated_at
    assert await service.do(a(ReadCourse, ADA, course_id="c1")) == changed.course


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


# Rosters


async def test_a_roster_is_replaced_and_the_change_counted(service: Service) -> None:
    await a_course(service, students=("ann", "ben", "cid"))
    roster = (
        Student(student_id="ann", name="Ann"),
        Student(student_id="ben", name="Ben", email="ben@example.org"),
        Student(student_id="dee", name="Dee", roll_number="7"),
    )

    stored = await service.do(a(PutRoster, ADA, course_id="c1", students=roster))

    assert stored == RosterStored(added=1, updated=1, removed=1)
    page: RosterPage = await service.do(a(ReadRoster, ROBOT, course_id="c1", limit=10))
    assert page == RosterPage(items=roster, next_cursor=None)


async def test_a_roster_put_again_changes_nothing_not_even_its_version(service: Service) -> None:
    await service.do(to_put())
    command = a(PutRoster, ADA, course_id="c1", students=some_students(3))

    first, again = await service.do(command), await service.do(command)

    assert (first, again) == (
        RosterStored(added=3, updated=0, removed=0),
        RosterStored(added=0, updated=0, removed=0),
    )
    assert await value(service.engine, "SELECT roster_version FROM sessions.courses") == 1


async def test_an_empty_roster_empties_the_course(service: Service) -> None:
    await a_course(service)

    stored = await service.do(a(PutRoster, ADA, course_id="c1", students=()))

    assert stored == RosterStored(added=0, updated=0, removed=2)


async def test_a_change_of_a_roster_tells_nobody_about_anybody(service: Service) -> None:
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
        assert stored == RosterStored(added=0, updated=size // 2, removed=size // 2)
        assert len(service.events[-1].data.roster) == size // 2

    assert counts[0] == counts[1] <= 15


async def test_a_roster_that_names_a_student_twice_is_refused_whole(service: Service) -> None:
    await a_course(service)
    twice = (Student(student_id="x", name="X"), Student(student_id="x", name="Y"))

    assert await service.code(a(PutRoster, ADA, course_id="c1", students=twice)) == "invalid"
    assert await value(service.engine, "SELECT count(*) FROM sessions.enrolments") == 2


# Scheduling


async def test_a_session_is_scheduled_and_read_as_it_was_answered(service: Service) -> None:
    await a_course(service)

    stored: SessionStored = await service.do(to_create(description="Ideals", meeting_link="https://example.org"))

    session = stored.session
    assert stored.created
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

    assert (again.session, again.created) == (first.session, False)
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
    assert sum(answer.created for answer in stored) == 5
    assert len(service.events + other.events) == 5


async def test_an_archived_course_takes_no_session(service: Service) -> None:
    await a_course(service)
    async with service.engine.begin() as connection:
        await connection.execute(text("UPDATE sessions.courses SET archived_at = now()"))

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


# Starting


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

    [event] = service.events
    assert (event.id, event.sequence, event.time) == (f"session:{session.id}:2", 2, rfc3339(NINE))
    assert (event.reply_to, event.data.started_by) == (again.reply_to, "Ada")
    assert [student.student_id for student in event.data.roster] == ["s00000"]
    assert await value(service.engine, "SELECT version FROM sessions.sessions") == 2


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
        await unit.courses.lock("c1")
        async with waiting_for_a_lock(service.engine):
            starting = asyncio.create_task(service.do(to_start(session)))
        await unit.courses.change_roster("c1", rules.compare_rosters([], some_students(1)))

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

    for turn in (to_start, to_end):
        for _ in range(5):
            await asyncio.gather(
                *(replica.do_all([turn(s) for s in order]) for replica, order in zip(replicas, orders, strict=True)),
                service.hear(*(opened(session.id) for session in sessions[::-1])),
                *(
                    service.do_all([a(PutRoster, ROOT, course_id=s.course_id, students=()) for s in order])
                    for order in orders[:2]
                ),
            )

    versions = "SELECT array_agg(DISTINCT version) FROM sessions.sessions"
    assert await value(service.engine, versions) == [3]


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
    async with service.engine.begin() as connection:
        query = text("UPDATE sessions.sessions SET status = 'cancelled' WHERE id = :id")
        await connection.execute(query, {"id": cancelled.id})

    assert await service.code(to_start(over)) == "session_completed"
    assert await service.code(to_start(cancelled)) == "session_cancelled"
    assert await service.code(to_end(scheduled)) == "session_not_active"
    assert await service.code(to_end(cancelled)) == "session_cancelled"
    for kind in (StartSession, EndSession, ReadSession):
        assert await service.code(a(kind, ROOT, session_id="nowhere")) == "session_not_found"


# Ending


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


# The saga


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


async def test_a_report_of_the_roll_is_kept_once_and_changes_no_version(service: Service) -> None:
    session = await an_active_session(service)
    later = NINE + timedelta(minutes=3)

    await service.hear(opened(session.id, NINE), opened(session.id, later))
    await service.hear(opened(session.id, later))
    await service.hear(closed(session.id, later))

    kept = "SELECT ARRAY[roll_opened_at, roll_closed_at] FROM sessions.sessions"
    assert await value(service.engine, kept) == [NINE, later]
    assert await value(service.engine, "SELECT version FROM sessions.sessions") == 2


async def test_a_report_about_no_session_of_ours_is_passed_over(service: Service) -> None:
    session = await an_active_session(service)

    await service.hear(opened("nowhere"), opened(session.id))

    assert await value(service.engine, "SELECT roll_opened_at FROM sessions.sessions") == NINE


# Why there is no roll


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


# The whole service, and when Postgres does not play along


async def test_a_lock_that_is_not_had_in_time_is_unavailable_and_nothing_is_done(service: Service) -> None:
    session = await an_active_session(service)
    async with service.store.unit() as unit:
        await unit.sessions.lock(session.id)

        with pytest.raises(Unavailable):
            await service.do(to_end(session))

    assert service.events == []
    assert await service.code(to_end(session)) is None


async def test_the_service_answers_over_the_bus_and_tells_the_world(engine: AsyncEngine, redis_url: str) -> None:
    """A command in, its answer out; its event once to other services and once to who listens live."""
    bus, redis, names = MemoryBus(), Redis.from_url(redis_url), Names("test_session_store")
    answers: list[Answer] = []
    queue = await bus.receive_answers(lambda body: answers.extend(decode_answers(body)))
    live = redis.pubsub()
    await live.subscribe(names.course_channel("c1"))
    deadline = utc_now() + timedelta(seconds=10)
    command = to_put(reply_to=ReplyTo(queue, "1"), deadline=deadline)

    async with asyncio.timeout(10), serve(bus, engine, redis, names, utc_now) as ready:
        assert await ready()
        sending = asyncio.create_task(bus.send(SESSION_COMMANDS, encode(command)))
        [delivery] = await bus.inbox(ATTENDANCE_EVENTS).take(9)
        await delivery.ack()
        await sending
        heard = await live.get_message(timeout=5)
        while heard is None or heard["type"] != "message":
            heard = await live.get_message(timeout=5)

    [answer] = answers
    assert isinstance(answer.result, Raw)
    event: Any = decode_event(delivery.body)
    assert event.data.course == json.decode(answer.result, type=CourseStored).course
    assert heard["data"] == delivery.body
    await live.aclose()  # type: ignore[no-untyped-call]
    await redis.aclose()
    await bus.close()


async def test_what_comes_while_no_replica_runs_waits_for_the_next(engine: AsyncEngine, redis_url: str) -> None:
    """A service that is told to stop stops, and takes nothing after that."""
    bus, redis, names = MemoryBus(), Redis.from_url(redis_url), Names("test_session_store")
    deadline = utc_now() + timedelta(seconds=10)
    reading = a(ReadCourse, ROOT, course_id="c1", deadline=deadline)
    async with asyncio.timeout(10):
        async with serve(bus, engine, redis, names, utc_now):
            pass
        sending = asyncio.create_task(bus.send(SESSION_COMMANDS, encode(reading)))
        done, _ = await asyncio.wait({sending}, timeout=0.05)
        assert not done

        async with serve(bus, engine, redis, names, utc_now):
            await sending

    await redis.aclose()
    await bus.close()
