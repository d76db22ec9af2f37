"""attendance-service on a real Postgres: its handlers are given what a worker gives them, without a bus."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from alembic import command as alembic
from alembic.config import Config
from msgspec import Raw, json
from msgspec.structs import replace
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.event import listen, remove
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from attendance_service import handlers, store
from attendance_service.__main__ import serve
from attendance_service.store import RollStore
from attendance_service.tables import SCHEMA
from shared.clock import rfc3339, utc_now
from shared.database import open_engine
from shared.errors import NO_ROLL, NotYet, Refused, Unavailable
from shared.live import Names
from shared.memory_bus import MemoryBus
from shared.messages import (
    ATTENDANCE_COMMANDS,
    Actor,
    Answer,
    AttendanceCommand,
    Cause,
    ChangesRead,
    CheckIn,
    Enrolled,
    Event,
    EventData,
    JoinRoll,
    ReadChanges,
    ReadRoll,
    ReplyTo,
    RollChanged,
    RollJoined,
    RollRead,
    Session,
    SessionEnded,
    SessionStarted,
    decode_answers,
    decode_event,
    encode,
)
from shared.outbox import Outbox, OutboxRow
from shared.worker import Outcome
from tests.conftest import NewDatabase

C = TypeVar("C", bound=AttendanceCommand)

NINE = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
ADA = Actor("ada", "Ada", "teacher")
BOB = Actor("bob", "Bob", "teacher")
ROOT = Actor("root", "Root", "admin")
ROBOT = Actor("robot", "Robot", "service")
NAMES = Names("test")

numbers = itertools.count(1)


# The world of a test


class Service:
    """One replica of attendance-service, and the time as it sees it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.now = NINE
        self.outbox = Outbox(SCHEMA, MemoryBus(), nobody_listens)
        self.table = handlers.table(RollStore(engine, self.outbox), NAMES, lambda: self.now)
        self.left: list[OutboxRow] = []
        """What left with the commits so far."""

    async def handle(self, messages: Sequence[Any]) -> Outcome:
        """Handle a batch of one kind."""
        first = messages[0]
        outcome = await self.table[type(first.data) if isinstance(first, Event) else type(first)](messages)
        self.left.extend(outcome.events)
        return outcome

    async def do_all(self, messages: Sequence[Any]) -> list[Any]:
        """Handle a batch; return what each is answered, None where nothing is."""
        outcome = await self.handle(messages)
        answers = {to.correlation_id: answer for to, answer in outcome.answers}
        assert len(answers) == len(outcome.answers), "a command is answered once"
        return [answers.get(message.reply_to.correlation_id) if message.reply_to else None for message in messages]

    async def do(self, message: Any) -> Any:
        """Handle one message; return what it is answered, or raise the refusal."""
        [answer] = await self.do_all([message])
        if isinstance(answer, Refused):
            raise answer
        return answer

    async def code(self, message: Any) -> str | None:
        """Handle one message; return the code it is refused with, None when it is not."""
        [answer] = await self.do_all([message])
        return answer.code if isinstance(answer, Refused) else None

    @property
    def events(self) -> list[Event[Any]]:
        """The events that left, oldest first."""
        return [read(row) for row in self.left]


async def nobody_listens(rows: Sequence[OutboxRow]) -> None:
    """Stands in for Redis."""


def read(row: OutboxRow) -> Event[EventData]:
    found = decode_event(row.event.body, row.event.reply_to)
    assert found is not None
    return found


def a_reply() -> ReplyTo:
    return ReplyTo("gateway", str(next(numbers)))


def a(kind: type[C], actor: Actor, session_id: str = "5e55", **fields: Any) -> C:
    """A command, on its way from one gateway."""
    reply_to = a_reply()
    envelope = {
        "command_id": f"k{reply_to.correlation_id}",
        "actor": actor,
        "session_id": session_id,
        "received_at": NINE + timedelta(minutes=1),
        "deadline": NINE + timedelta(minutes=2),
        "reply_to": reply_to,
    }
    return kind(**{**envelope, **fields})


def to_join(student_id: str, session_id: str = "5e55", **fields: Any) -> JoinRoll:
    return a(JoinRoll, Actor(student_id, student_id.title(), "student"), session_id, **fields)


def a_session(session_id: str = "5e55", **changes: Any) -> Session:
    session = Session(
        id=session_id,
        course_id="c1",
        title="Rings",
        topic="Rings",
        description='quotes " and \\ and ü',
        status="active",
        date="1795478400000",
        start_time="09:00",
        end_time="10:30",
        time_zone="UTC",
        starts_at=rfc3339(NINE),
        ends_at=rfc3339(NINE + timedelta(minutes=90)),
        meeting_link=None,
        teacher_ids=("ada",),
        check_in=CheckIn(late_after_minutes=5, closes_after_minutes=60),
        started_at=rfc3339(NINE),
        ended_at=None,
        created_at=rfc3339(NINE),
        updated_at=rfc3339(NINE),
    )
    return replace(session, **changes)


def started(session_id: str = "5e55", students: Iterable[str] = ("ann", "ben", "cid")) -> Event[SessionStarted]:
    """What session-service says when a session has been started."""
    roster = tuple(Enrolled(student, student.title()) for student in students)
    data = SessionStarted(first_seq=2, session=a_session(session_id), roster=roster, started_by="Ada", started_by_id="ada")
    return Event(
        id=f"session:{session_id}:2",
        source=f"/sessions/{session_id}",
        time=rfc3339(NINE),
        sequence=2,
        data=data,
        reply_to=a_reply(),
    )


def ended(session_id: str = "5e55", cause: Cause = "ended") -> Event[SessionEnded]:
    """What session-service says when a session has ended."""
    session = a_session(session_id, status="completed", ended_at=rfc3339(NINE + timedelta(minutes=45)))
    data = SessionEnded(first_seq=3, session=session, cause=cause, ended_by="Ada", ended_by_id="ada")
    return Event(
        id=f"session:{session_id}:3",
        source=f"/sessions/{session_id}",
        time=rfc3339(NINE),
        sequence=3,
        data=data,
        reply_to=a_reply(),
    )


def some_students(count: int) -> list[str]:
    return [f"s{number:05}" for number in range(count)]


async def an_open_roll(service: Service, session_id: str = "5e55", students: Iterable[str] = ("ann", "ben", "cid")) -> str:
    await service.do(started(session_id, students))
    service.left.clear()
    return session_id


@pytest.fixture(scope="module")
def migrated(new_database: NewDatabase) -> Iterator[str]:
    """The name of a database with our schema in it, to be copied."""
    config = Config()
    config.set_main_option("script_location", "attendance_service:migrations")
    with new_database() as url:
        config.attributes["url"] = url
        alembic.upgrade(config, "head")
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
    return Service(engine)


@pytest_asyncio.fixture
async def replicas(engine: AsyncEngine) -> AsyncIterator[list[Service]]:
    """Two replicas, each with connections of its own and without a limit on waiting: what fails is a circle, not slowness."""
    engines = [create_async_engine(engine.url, pool_size=4, pool_timeout=60) for _ in range(2)]
    yield [Service(each) for each in engines]
    for each in engines:
        await each.dispose()


@contextmanager
def statements(engine: AsyncEngine) -> Iterator[list[str]]:
    """Collect the statements sent meanwhile."""
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        sent.extend([statement] * (len(parameters) if executemany else 1))

    listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        remove(engine.sync_engine, "before_cursor_execute", note)


async def rows(engine: AsyncEngine, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(query), parameters)]


async def value(engine: AsyncEngine, query: str, **parameters: Any) -> Any:
    [[found]] = await rows(engine, query, **parameters)
    return found


async def all_is_well(engine: AsyncEngine, session_id: str = "5e55") -> None:
    """History has no gaps, the counters are what the records say, and history replays to the records."""
    history = await rows(
        engine,
        "SELECT seq, student_id, before, after FROM attendance.history WHERE session_id = :id ORDER BY seq",
        id=session_id,
    )
    [head] = await rows(
        engine, "SELECT seq, absent, present, late, excused FROM attendance.rolls WHERE session_id = :id", id=session_id
    )
    records = dict(
        (student, (status, seq))
        for student, status, seq in await rows(
            engine, "SELECT student_id, status, seq FROM attendance.records WHERE session_id = :id", id=session_id
        )
    )
    assert [line[0] for line in history] == list(range(1, head[0] + 1))
    statuses = [status for status, _ in records.values()]
    assert head[1:] == tuple(statuses.count(status) for status in ("absent", "present", "late", "excused"))
    replayed = dict.fromkeys(records, ("absent", 1))
    for seq, student, before, after in history:
        if student is not None:
            assert replayed[student][0] == before
            replayed[student] = (after, seq)
    assert replayed == records


def heard(events: Iterable[Event[Any]]) -> list[tuple[int, str | None]]:
    """What somebody who listens learns of records, in order: (number, student)."""
    return [(c.seq, c.student_id) for each in events if isinstance(each.data, RollChanged) for c in each.data.changes]


# The schema


# Opening


async def test_a_started_session_opens_its_roll_and_is_answered_with_it(service: Service) -> None:
    service.now += timedelta(seconds=1)

    roll: RollRead = await service.do(started())

    assert (roll.session, roll.seq) == (a_session(), 1)
    assert [(r.student_id, r.student_name, r.status, r.source, r.seq) for r in roll.records] == [
        (student, student.title(), "absent", "system", 1) for student in ("ann", "ben", "cid")
    ]
    assert (roll.statistics.total_students, roll.statistics.absent_count, roll.statistics.attendance_rate) == (3, 3, 0)
    [event] = service.events
    assert (event.id, event.type, event.sequence, event.data.first_seq) == (
        "roll:5e55:1",
        "rollcall.roll.opened.v1",
        1,
        1,
    )
    assert (event.data.opened_by, event.data.opened_at) == ("Ada", rfc3339(service.now))
    assert service.left[0].channels == (NAMES.roll_channel("5e55"), NAMES.course_channel("c1"))
    assert service.left[0].event.reply_to is None
    await all_is_well(service.engine)


async def test_a_session_told_of_twice_opens_once_and_says_so_again_to_the_letter(service: Service) -> None:
    first = await service.do(started())
    service.now += timedelta(minutes=5)

    again = await service.do(started(students=("eve",)))

    assert again == first
    assert service.left[1].event.body == service.left[0].event.body
    assert service.left[1].channels == service.left[0].channels
    assert await value(service.engine, "SELECT count(*) FROM attendance.history") == 1
    assert await value(service.engine, "SELECT count(*) FROM attendance.records") == 3
    assert await value(service.engine, "SELECT count(*) FROM attendance.outbox") == 2


async def test_a_session_told_of_twice_in_one_batch_opens_once_and_answers_both(service: Service) -> None:
    answers = await service.do_all([started("b"), started("a"), started("b")])

    assert [answer.session.id for answer in answers] == ["b", "a", "b"]
    assert [event.id for event in service.events] == ["roll:a:1", "roll:b:1", "roll:b:1"]


async def test_a_roll_that_has_moved_on_is_answered_as_it_is_and_its_opening_said_as_it_was(service: Service) -> None:
    await service.do(started())
    await service.do(to_join("ann"))

    again: RollRead = await service.do(started())

    assert (again.seq, again.statistics.present_count) == (2, 1)
    assert service.left[-1].event.body == service.left[0].event.body


async def test_two_replicas_that_open_a_roll_at_once_open_it_once(replicas: list[Service]) -> None:
    replicas[1].now += timedelta(seconds=9)
    sessions = [f"r{number}" for number in range(10)]

    await asyncio.gather(
        replicas[0].do_all([started(session, some_students(50)) for session in sessions]),
        replicas[1].do_all([started(session, some_students(50)) for session in reversed(sessions)]),
    )

    bodies = [{row.event.id: row.event.body for row in replica.left} for replica in replicas]
    assert bodies[0] == bodies[1]
    assert len(bodies[0]) == 10
    for session in sessions:
        await all_is_well(replicas[0].engine, session)


async def test_an_event_without_a_reply_address_answers_nobody(service: Service) -> None:
    outcome = await service.handle([replace(started(), reply_to=None)])

    assert outcome.answers == []
    assert len(outcome.events) == 1


async def test_a_roll_of_ten_thousand_opens_in_as_many_statements_as_a_small_one(service: Service) -> None:
    counts = []
    for session, size in (("small", 3), ("large", 10_000)):
        with statements(service.engine) as sent:
            roll: RollRead = await service.do(started(session, some_students(size)))
        counts.append(len(sent))
        assert len(roll.records) == size

    assert counts[0] == counts[1] <= 12
    await all_is_well(service.engine, "large")


async def test_a_roll_with_nobody_on_it_opens(service: Service) -> None:
    roll: RollRead = await service.do(started(students=()))

    assert (roll.records, roll.statistics.attendance_rate) == ((), None)


# Joining


async def test_a_join_is_answered_and_told(service: Service) -> None:
    await an_open_roll(service)

    joined = await service.do(to_join("ann"))

    at = rfc3339(NINE + timedelta(minutes=1))
    assert joined == RollJoined(session_id="5e55", status="present", joined_at=at, seq=2, roll_seq=2)
    [event] = service.events
    assert (event.id, event.source, event.sequence, event.data.first_seq) == ("roll:5e55:2", "/rolls/5e55", 2, 2)
    [change] = event.data.changes
    assert (change.student_id, change.student_name, change.before, change.after) == ("ann", "Ann", "absent", "present")
    assert (change.kind, change.source, change.joined_at, change.at) == ("joined", "self", at, at)
    assert service.left[0].channels == (NAMES.roll_channel("5e55"),)
    await all_is_well(service.engine)


async def test_hundreds_of_joins_in_several_rolls_are_one_commit_and_one_event_for_each_roll(service: Service) -> None:
    students = some_students(120)
    sessions = ["r1", "r2", "r3", "r4"]
    for session in sessions:
        await an_open_roll(service, session, students)
    batch = [to_join(student, session) for student in students for session in sessions]
    random.Random(1).shuffle(batch)

    answers = await service.do_all(batch)

    assert [(event.data.first_seq, event.sequence) for event in service.events] == [(2, 121)] * 4
    assert sorted(event.data.session_id for event in service.events) == sessions
    for event in service.events:
        mine = [c for c in batch if c.session_id == event.data.session_id]
        assert heard([event]) == [(number, command.actor.id) for number, command in enumerate(mine, 2)]
        assert event.data.statistics.present_count == 120
    by_roll = {(answer.session_id, answer.seq) for answer in answers}
    assert by_roll == {(session, seq) for session in sessions for seq in range(2, 122)}
    transactions = "SELECT count(DISTINCT CAST(xmin AS text)) FROM attendance.records"
    assert await value(service.engine, transactions) == 1
    for session in sessions:
        await all_is_well(service.engine, session)


async def test_a_batch_takes_as_many_statements_as_a_single_join(service: Service) -> None:
    students = some_students(300)
    for session in ("r1", "r2", "r3"):
        await an_open_roll(service, session, students)
    await service.do(to_join(students[0], "r1"))
    counts = []
    for batch in ([(1, "r1")], [(n, session) for n in range(2, 172) for session in ("r1", "r2", "r3")]):
        with statements(service.engine) as sent:
            await service.do_all([to_join(students[number], session) for number, session in batch])
        counts.append(len(sent))

    assert counts[0] == counts[1] <= 6


def alike(answer: Any) -> Any:
    """What a caller sees of an answer: a repeat differs only in how far the roll is by then."""
    return answer.code if isinstance(answer, Refused) else replace(answer, roll_seq=0)


async def test_a_redelivered_batch_changes_nothing_and_answers_alike(service: Service) -> None:
    await an_open_roll(service)
    batch = [to_join("ann"), to_join("ben"), to_join("eve")]
    first = await service.do_all(batch)
    before = await rows(service.engine, "SELECT r.*, CAST(r.xmin AS text) FROM attendance.records AS r ORDER BY student_id")
    service.left.clear()

    again = await service.do_all(batch)

    assert [alike(answer) for answer in again] == [alike(answer) for answer in first]
    assert service.left == []
    after = await rows(service.engine, "SELECT r.*, CAST(r.xmin AS text) FROM attendance.records AS r ORDER BY student_id")
    assert after == before
    await all_is_well(service.engine)


async def test_a_join_twice_in_one_batch_counts_once_and_answers_alike(service: Service) -> None:
    await an_open_roll(service)
    later = NINE + timedelta(minutes=9)

    first, other, again = await service.do_all([to_join("ann"), to_join("ben"), to_join("ann", received_at=later)])

    assert alike(first) == alike(again)
    assert (first.seq, other.seq) == (2, 3)
    assert heard(service.events) == [(2, "ann"), (3, "ben")]
    await all_is_well(service.engine)


async def test_a_refusal_in_a_batch_leaves_its_neighbours_alone(service: Service) -> None:
    await an_open_roll(service)
    await an_open_roll(service, "over")
    await service.do(ended("over"))
    late, too_late = (NINE + timedelta(minutes=minute) for minute in (5, 60))
    service.left.clear()

    answers = await service.do_all(
        [
            to_join("ann"),
            to_join("eve"),
            to_join("ann", "nowhere"),
            to_join("ann", "over"),
            a(JoinRoll, Actor("ben", "Ben", "service")),
            to_join("cid", received_at=too_late),
            to_join("ben", received_at=late),
        ]
    )

    codes = [answer.code if isinstance(answer, Refused) else answer.status for answer in answers]
    assert codes == ["present", "not_enrolled", NO_ROLL, "session_completed", "forbidden", "check_in_closed", "late"]
    assert heard(service.events) == [(2, "ann"), (3, "ben")]
    await all_is_well(service.engine)


async def test_a_batch_of_refusals_alone_writes_nothing(service: Service) -> None:
    await an_open_roll(service)

    with statements(service.engine) as sent:
        await service.do_all([to_join("eve"), to_join("ann", "nowhere")])

    assert not [statement for statement in sent if "INSERT" in statement or "UPDATE attendance" in statement]
    assert service.left == []


async def test_nobody_is_answered_when_the_commit_fails(service: Service) -> None:
    """And nothing is done, nor leaves: the redelivery does it all."""
    await an_open_roll(service)
    async with service.engine.begin() as connection:
        for statement in (
            """CREATE FUNCTION attendance.fail() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$""",
            """CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON attendance.outbox
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION attendance.fail()""",
        ):
            await connection.execute(text(statement))
    batch = [to_join("ann"), to_join("ben")]

    with pytest.raises(Unavailable):
        await service.handle(batch)

    assert service.left == []
    assert await value(service.engine, "SELECT seq FROM attendance.rolls") == 1
    await all_is_well(service.engine)
    async with service.engine.begin() as connection:
        await connection.execute(text("DROP TRIGGER fail ON attendance.outbox"))
    assert [answer.seq for answer in await service.do_all(batch)] == [2, 3]


async def test_what_left_with_a_commit_is_in_the_outbox(service: Service) -> None:
    await an_open_roll(service)

    await service.do(to_join("ann"))

    row = service.left[0]
    query = "SELECT type, channels, body, reply_queue FROM attendance.outbox WHERE event_id = 'roll:5e55:2'"
    assert await rows(service.engine, query) == [(row.event.type, list(row.channels), row.event.body, None)]


async def test_replicas_that_join_the_same_rolls_at_once_number_without_gaps(replicas: list[Service]) -> None:
    students = some_students(80)
    sessions = ["r1", "r2", "r3"]
    for session in sessions:
        await an_open_roll(replicas[0], session, students)
    shuffled = random.Random(2)
    tasks = []
    for number in range(40):
        # Batches overlap: every student joins each roll twice, here and there.
        chosen = [student for index, student in enumerate(students) if index % 20 in (number % 20, (number + 1) % 20)]
        batch = [to_join(student, session) for student in chosen for session in sessions]
        shuffled.shuffle(batch)
        tasks.append(replicas[number % 2].do_all(batch))

    answers = [answer for batch in await asyncio.gather(*tasks) for answer in batch]

    events = [event for replica in replicas for event in replica.events]
    for session in sessions:
        await all_is_well(replicas[0].engine, session)
        told = sorted(heard(event for event in events if event.data.session_id == session))
        assert [seq for seq, _ in told] == list(range(2, 82))
        assert {student for _, student in told} == set(students)
        answered = {answer.seq for answer in answers if answer.session_id == session}
        assert answered == set(range(2, 82))
    for event in events:
        assert [change.seq for change in event.data.changes] == list(range(event.data.first_seq, event.sequence + 1))


async def test_joins_and_the_close_at_once_agree_on_who_was_in_time(replicas: list[Service]) -> None:
    students = some_students(60)
    await an_open_roll(replicas[0], students=students)
    joins = [replicas[n % 2].do_all([to_join(s) for s in students[n * 6 : n * 6 + 6]]) for n in range(10)]

    *batches, _, _ = await asyncio.gather(*joins, replicas[0].do(ended()), replicas[1].do(ended()))

    answers = [answer for batch in batches for answer in batch]
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    assert {answer.code for answer in refused} <= {"session_completed"}
    seq, present = (await rows(replicas[0].engine, "SELECT seq, present FROM attendance.rolls"))[0]
    assert present == 60 - len(refused)
    assert seq == 2 + present
    await all_is_well(replicas[0].engine)


async def test_a_lock_that_is_not_had_in_time_is_unavailable_and_nothing_is_done(service: Service) -> None:
    await an_open_roll(service)
    async with service.engine.begin() as other:
        await other.execute(text("SELECT 1 FROM attendance.rolls FOR UPDATE"))

        with pytest.raises(Unavailable):
            await service.do(to_join("ann"))

    assert (await service.do(to_join("ann"))).seq == 2


# Closing


async def test_an_end_before_the_roll_is_open_comes_too_early(service: Service) -> None:
    with pytest.raises(NotYet):
        await service.do(ended())

    await an_open_roll(service, "there")
    with pytest.raises(NotYet):
        await service.do_all([ended("there"), ended()])
    assert await value(service.engine, "SELECT status FROM attendance.rolls") == "open"


async def test_an_ended_session_closes_its_roll_and_is_answered_with_it(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_join("ann"))
    service.left.clear()
    service.now += timedelta(minutes=45)
    told = ended(cause="automatic")

    roll: RollRead = await service.do(told)

    assert (roll.session, roll.seq, roll.statistics.present_count) == (told.data.session, 3, 1)
    [event] = service.events
    assert (event.id, event.type, event.sequence, event.data.first_seq) == (
        "roll:5e55:3",
        "rollcall.roll.closed.v1",
        3,
        3,
    )
    assert (event.data.cause, event.data.ended_by, event.data.ended_at) == ("automatic", "Ada", told.data.session.ended_at)
    assert event.data.statistics == roll.statistics
    assert service.left[0].channels == (NAMES.roll_channel("5e55"), NAMES.course_channel("c1"))
    assert await service.code(to_join("ben")) == "session_completed"
    await all_is_well(service.engine)


async def test_a_session_that_ends_twice_closes_once_and_says_so_again_to_the_letter(service: Service) -> None:
    await an_open_roll(service)
    first = await service.do(ended())
    service.now += timedelta(minutes=5)

    again, other = await service.do_all([ended(cause="automatic"), ended()])

    assert again == other == first
    assert [row.event.body for row in service.left] == [service.left[0].event.body] * 3
    assert await value(service.engine, "SELECT count(*) FROM attendance.history WHERE kind = 'closed'") == 1


async def test_an_end_twice_in_one_batch_closes_once_and_answers_both(service: Service) -> None:
    await an_open_roll(service)

    answers = await service.do_all([ended(), ended()])

    assert answers[0] == answers[1]
    assert [event.id for event in service.events] == ["roll:5e55:2", "roll:5e55:2"]
    await all_is_well(service.engine)


async def test_a_student_who_joined_is_answered_alike_after_the_close(service: Service) -> None:
    await an_open_roll(service)
    first = await service.do(to_join("ann"))
    await service.do(ended())

    assert alike(await service.do(to_join("ann"))) == alike(first)
    assert await service.code(to_join("ben")) == "session_completed"


# Reading


async def test_staff_read_a_roll_and_nobody_else(service: Service) -> None:
    await an_open_roll(service)
    await service.do(to_join("ann"))
    actors = [ADA, ROOT, ROBOT, BOB, Actor("ann", "Ann", "student"), Actor("ada", "Ada", "student")]

    answers = await service.do_all([a(ReadRoll, actor) for actor in actors])

    for answer in answers[:3]:
        assert (answer.seq, [record.status for record in answer.records]) == (2, ["present", "absent", "absent"])
    assert [answer.code for answer in answers[3:]] == ["forbidden"] * 3
    assert [await service.code(a(ReadChanges, actor, since_seq=0)) for actor in actors] == [None] * 3 + ["forbidden"] * 3


async def test_a_roll_asked_for_by_many_is_read_once_for_all(service: Service) -> None:
    for session in ("r1", "r2"):
        await an_open_roll(service, session)
    batch = [a(ReadRoll, ADA, session) for session in ("r1", "r2") * 20]

    with statements(service.engine) as sent:
        answers = await service.do_all(batch)

    assert [answer.session.id for answer in answers] == ["r1", "r2"] * 20
    assert len(sent) <= 6


async def test_a_roll_that_is_not_there_is_refused_for_the_gateway_to_explain(service: Service) -> None:
    for command in (to_join("ann"), a(ReadRoll, ADA), a(ReadChanges, ROBOT, since_seq=0)):
        assert await service.code(command) == NO_ROLL


async def all_changes(service: Service, since: int) -> tuple[list[Event[Any]], list[int]]:
    """Ask as a gateway does, until there is no more; return the events and how far each answer reached."""
    events: list[Event[Any]] = []
    reached = []
    while True:
        answer: ChangesRead = await service.do(a(ReadChanges, ROBOT, since_seq=since))
        reached.append(answer.seq)
        if not answer.events:
            return events, reached
        found = [decode_event(raw) for raw in answer.events]
        events += [event for event in found if event is not None]
        since = answer.seq


@pytest.mark.parametrize("page", [1, 3, 1000])
async def test_what_was_missed_is_read_as_the_events_that_were_published(
    service: Service, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(handlers, "CHANGES_PER_PAGE", page)
    await service.do(started(students=some_students(9)))
    for batch in (("s00000", "s00001"), ("s00002",), ("s00003", "s00004", "s00005", "s00006")):
        await service.do_all([to_join(student) for student in batch])
    await service.do(ended())
    published = service.events

    for since in range(10):
        missed, reached = await all_changes(service, since)

        covered = [seq for event in missed for seq in range(event.data.first_seq, event.sequence + 1)]
        assert covered == list(range(since + 1, 10))
        assert heard(missed) == [line for line in heard(published) if line[0] > since]
        assert [e for e in missed if not isinstance(e.data, RollChanged)] == [
            e for e in published if not isinstance(e.data, RollChanged) and e.sequence > since
        ]
        assert reached[-1] == 9
        assert {each.source for each in missed} <= {"/rolls/5e55"}
    changes = {c.seq: c for e in published if isinstance(e.data, RollChanged) for c in e.data.changes}
    assert {
        c.seq: c for e in (await all_changes(service, 0))[0] if isinstance(e.data, RollChanged) for c in e.data.changes
    } == (changes)


async def test_who_is_ahead_missed_nothing(service: Service) -> None:
    await an_open_roll(service)

    answer: ChangesRead = await service.do(a(ReadChanges, ROBOT, since_seq=99))

    assert answer.events == ()


async def test_a_roll_is_read_as_it_stood_at_one_moment(replicas: list[Service]) -> None:
    """While others join, the numbers, the records and the statistics of each answer belong together."""
    reader, writer = replicas
    students = some_students(200)
    await an_open_roll(writer, students=students)

    async def write() -> None:
        for number in range(0, 200, 5):
            await writer.do_all([to_join(student) for student in students[number : number + 5]])

    writing = asyncio.create_task(write())
    seen = set()
    while not writing.done():
        roll: RollRead = await reader.do(a(ReadRoll, ADA))
        present = sum(record.status == "present" for record in roll.records)
        assert roll.statistics.present_count == present == roll.seq - 1
        seen.add(roll.seq)
    await writing
    assert len(seen) > 1


# Plans


@pytest.mark.parametrize("analysed", [False, True])
async def test_the_hot_statements_use_an_index_also_on_tables_freshly_filled(engine: AsyncEngine, analysed: bool) -> None:
    """Before the first ANALYZE the planner guesses, and a scan of a full table would cost each batch seconds."""
    async with engine.begin() as connection:
        for table in ("rolls", "records", "history"):
            await connection.execute(text(f"ALTER TABLE attendance.{table} SET (autovacuum_enabled = false)"))
        session = json.encode(a_session()).decode()
        await connection.execute(
            text(
                """INSERT INTO attendance.rolls (session_id, course_id, session, status, seq, absent, present, late, excused,
                opened_at, opening) SELECT 'r' || n, 'c1', CAST(:session AS jsonb), 'open', 1, 20, 0, 0, 0, now(), ''
                FROM generate_series(1, 3000) AS n"""
            ),
            {"session": session},
        )
        await connection.execute(
            text(
                """INSERT INTO attendance.records (session_id, student_id, student_name, status, source, seq)
                SELECT 'r' || n, 's' || m, 'S', 'absent', 'system', 1
                FROM generate_series(1, 3000) AS n, generate_series(1, 20) AS m"""
            )
        )
        await connection.execute(
            text(
                """INSERT INTO attendance.history (session_id, seq, at, kind, source, actor, actor_name)
                SELECT 'r' || n, m, now(), 'joined', 'self', 'a', 'A'
                FROM generate_series(1, 3000) AS n, generate_series(1, 20) AS m"""
            )
        )
        if analysed:
            await connection.execute(text("ANALYZE attendance.rolls, attendance.records, attendance.history"))
    sessions = [f"r{number}" for number in range(1, 257) for _ in range(2)]
    students = [f"s{1 + number % 20}" for number in range(512)]
    rolls = sorted(set(sessions))
    ones = [1] * len(rolls)
    heads: dict[str, Any] = {name: ones for name in ("seq", "absent", "present", "late", "excused")}
    for statement, parameters in (
        (store._LOCK_ROLLS, {"ids": rolls}),
        (store._TOUCHED_RECORDS, {"sessions": sessions, "students": students}),
        (store._WRITE_ROLLS, {"ids": rolls, "status": ["open"] * len(rolls), "cause": [None] * len(rolls), **heads}),
        (store._READ_RECORDS, {"session_id": "r1"}),
        (store._READ_HISTORY, {"session_id": "r1", "since": 3, "limit": 1000}),
    ):
        async with engine.connect() as connection:
            plan = [row[0] for row in await connection.execute(text(f"EXPLAIN {statement.text}"), parameters)]
        assert not [line for line in plan if "Seq Scan" in line], "\n".join([statement.text, *plan])


# The whole service


async def test_the_service_answers_over_the_bus_and_tells_who_listens(engine: AsyncEngine, redis_url: str) -> None:
    """A command in, its answer out after the commit; its event once to who listens live, and the head moves."""
    bus, redis, names = MemoryBus(), Redis.from_url(redis_url), Names("test_roll_store")
    answers: list[Answer] = []
    queue = await bus.receive_answers(lambda body: answers.extend(decode_answers(body)))
    live = redis.pubsub()
    await live.subscribe(names.roll_channel("5e55"))
    await an_open_roll(Service(engine))
    command = to_join("ann", reply_to=ReplyTo(queue, "1"), deadline=utc_now() + timedelta(seconds=10))

    async with asyncio.timeout(10), serve(bus, engine, redis, names, utc_now) as ready:
        assert await ready()
        await bus.send(ATTENDANCE_COMMANDS, encode(command))
        heard = await live.get_message(timeout=5)
        while heard is None or heard["type"] != "message":
            heard = await live.get_message(timeout=5)

    [answer] = answers
    assert isinstance(answer.result, Raw)
    assert json.decode(answer.result, type=RollJoined).seq == 2
    told = decode_event(heard["data"])
    assert told is not None
    assert told.id == "roll:5e55:2"
    assert await redis.hget(names.roll_head("5e55"), "seq") == b"2"
    assert await redis.ttl(names.roll_head("5e55")) > 0
    await live.aclose()  # type: ignore[no-untyped-call]
    await redis.aclose()
    await bus.close()
