"""What the suites of attendance-service say to it: its handlers are given what a worker gives them, without a bus."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from unittest.mock import patch

from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.event import listen, remove
from sqlalchemy.ext.asyncio import AsyncEngine

from attendance_service import handlers
from attendance_service.rules import Entry, Record
from attendance_service.store import RollStore
from attendance_service.tables import SCHEMA
from shared.clock import rfc3339
from shared.database import Statement
from shared.errors import Refused
from shared.live import Names
from shared.memory_bus import MemoryBus
from shared.messages import (
    Actor,
    Cause,
    CheckIn,
    ClearMark,
    Course,
    CourseChanged,
    Enrolled,
    Event,
    EventData,
    JoinRoll,
    Mark,
    MarkRecord,
    MarkRecords,
    RecordsCommand,
    ReplyTo,
    RollChanged,
    Session,
    SessionCancelled,
    SessionChanged,
    SessionEnded,
    SessionStarted,
    Status,
    decode_event,
)
from shared.outbox import Outbox, OutboxRow
from shared.worker import Outcome
from tests.roll_replay import replayed, standing

C = TypeVar("C", bound=RecordsCommand)
D = TypeVar("D", bound=EventData)

NINE = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
ADA = Actor("ada", "Ada", "teacher")
BOB = Actor("bob", "Bob", "teacher")
ROOT = Actor("root", "Root", "admin")
ROBOT = Actor("robot", "Robot", "service")
ANN = Actor("ann", "Ann", "student")
NAMES = Names("test")
STUDENTS = ("ann", "ben", "cid")

numbers = itertools.count(1)


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

    async def refusal(self, message: Any) -> Refused:
        """Handle one message that is refused."""
        [answer] = await self.do_all([message])
        assert isinstance(answer, Refused), answer
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


# Commands


def asking(kind: type[C], actor: Actor, **fields: Any) -> C:
    """A command, on its way from one gateway."""
    reply_to = a_reply()
    envelope = {
        "command_id": f"k{reply_to.correlation_id}",
        "actor": actor,
        "received_at": NINE + timedelta(minutes=1),
        "deadline": NINE + timedelta(minutes=2),
        "reply_to": reply_to,
    }
    return kind(**{**envelope, **fields})


def a(kind: type[C], actor: Actor, session_id: str = "5e55", **fields: Any) -> C:
    """A command about one roll."""
    return asking(kind, actor, session_id=session_id, **fields)


def to_join(student_id: str, session_id: str = "5e55", **fields: Any) -> JoinRoll:
    return a(JoinRoll, Actor(student_id, student_id.title(), "student"), session_id, **fields)


def to_mark(student_id: str, status: Status, by: Actor = ADA, session_id: str = "5e55", **fields: Any) -> MarkRecord:
    """A mark; `remarks` go to the mark, other fields to the command."""
    said = {"remarks": fields.pop("remarks")} if "remarks" in fields else {}
    return a(MarkRecord, by, session_id, mark=Mark(student_id=student_id, status=status, **said), **fields)


def to_mark_all(*marks: tuple[str, Status], by: Actor = ADA, session_id: str = "5e55", **fields: Any) -> MarkRecords:
    rows = tuple(Mark(student_id=student_id, status=status) for student_id, status in marks)
    return a(MarkRecords, by, session_id, marks=rows, **fields)


def to_clear(student_id: str, by: Actor = ADA, session_id: str = "5e55", **fields: Any) -> ClearMark:
    return a(ClearMark, by, session_id, student_id=student_id, **fields)


# Events


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


def a_roster(students: Iterable[str]) -> tuple[Enrolled, ...]:
    return tuple(Enrolled(student, student.title()) for student in students)


def said(data: D, version: int, session_id: str) -> Event[D]:
    """An event of a session, as session-service sends it on a caller's behalf."""
    return Event(
        id=f"session:{session_id}:{version}",
        source=f"/sessions/{session_id}",
        time=rfc3339(NINE),
        sequence=version,
        data=data,
        reply_to=a_reply(),
    )


def started(
    session_id: str = "5e55",
    students: Iterable[str] = STUDENTS,
    *,
    version: int = 2,
    roster_version: int = 1,
    course_version: int = 1,
    reason: str | None = None,
    **changes: Any,
) -> Event[SessionStarted]:
    """What session-service says when a session has been started, or with a reason reopened."""
    data = SessionStarted(
        first_seq=version,
        session=a_session(session_id, **changes),
        roster=a_roster(students),
        roster_version=roster_version,
        course_version=course_version,
        started_by="Ada",
        started_by_id="ada",
        reason=reason,
    )
    return said(data, version, session_id)


def ended(session_id: str = "5e55", cause: Cause = "ended", *, version: int = 3, **changes: Any) -> Event[SessionEnded]:
    """What session-service says when a session has ended."""
    over = {"status": "completed", "ended_at": rfc3339(NINE + timedelta(minutes=45)), **changes}
    by = ("Rollcall", "system") if cause == "automatic" else ("Ada", "ada")
    session = a_session(session_id, **over)
    data = SessionEnded(first_seq=version, session=session, cause=cause, ended_by=by[0], ended_by_id=by[1])
    return said(data, version, session_id)


def cancelled(session_id: str = "5e55", *, version: int = 3, **changes: Any) -> Event[SessionCancelled]:
    """What session-service says when a session was cancelled."""
    session = a_session(session_id, **{"status": "cancelled", **changes})
    data = SessionCancelled(first_seq=version, session=session, cancelled_by="Root", cancelled_by_id="root")
    return said(data, version, session_id)


def changed(
    session_id: str = "5e55",
    *,
    version: int = 3,
    students: Iterable[str] | None = None,
    roster_version: int = 1,
    turn_version: int = 2,
    removed: Iterable[str] = (),
    **changes: Any,
) -> Event[SessionChanged]:
    """What session-service says when a session was changed or, with `students`, its roster."""
    data = SessionChanged(
        first_seq=version,
        session=a_session(session_id, **changes),
        roster=None if students is None else a_roster(students),
        roster_version=roster_version,
        turn_version=turn_version,
        removed=tuple(removed),
        changed_by="Ada",
        changed_by_id="ada",
    )
    return said(data, version, session_id)


def taught_by(*teacher_ids: str, version: int = 2, course_id: str = "c1") -> Event[CourseChanged]:
    """What session-service says when a course's teachers have changed."""
    course = Course(
        id=course_id,
        title="Algebra",
        teacher_ids=teacher_ids,
        time_zone="UTC",
        archived=False,
        created_at=rfc3339(NINE),
        updated_at=rfc3339(NINE),
    )
    return Event(
        id=f"course:{course_id}:{version}",
        source=f"/courses/{course_id}",
        time=rfc3339(NINE),
        sequence=version,
        data=CourseChanged(first_seq=version, course=course),
    )


def some_students(count: int) -> list[str]:
    return [f"s{number:05}" for number in range(count)]


async def an_open_roll(service: Service, session_id: str = "5e55", students: Iterable[str] = STUDENTS, **changes: Any) -> str:
    await service.do(started(session_id, students, **changes))
    service.left.clear()
    return session_id


# Looking


@contextmanager
def statements(engine: AsyncEngine) -> Iterator[list[str]]:
    """Collect the statements sent meanwhile, also those that go past SQLAlchemy."""
    sent: list[str] = []
    fetch = Statement.fetch

    async def note_and_fetch(statement: Statement, connection: Any, parameters: Mapping[str, Any]) -> list[Any]:
        sent.append(statement.written)
        return await fetch(statement, connection, parameters)

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        sent.extend([statement] * (len(parameters) if executemany else 1))

    listen(engine.sync_engine, "before_cursor_execute", note)
    try:
        with patch.object(Statement, "fetch", note_and_fetch):
            yield sent
    finally:
        remove(engine.sync_engine, "before_cursor_execute", note)


async def rows(engine: AsyncEngine, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(query), parameters)]


async def value(engine: AsyncEngine, query: str, **parameters: Any) -> Any:
    [[found]] = await rows(engine, query, **parameters)
    return found


async def record_of(service: Service, student_id: str, session_id: str = "5e55") -> Record:
    async with service.engine.connect() as connection:
        query = text("SELECT * FROM attendance.records WHERE session_id = :session AND student_id = :student")
        row = (await connection.execute(query, {"session": session_id, "student": student_id})).mappings().one()
        return Record(**row)


async def lines_of(engine: AsyncEngine, session_id: str = "5e55") -> list[Entry]:
    """The roll's whole history."""
    async with engine.connect() as connection:
        query = text("SELECT * FROM attendance.history WHERE session_id = :id ORDER BY seq")
        return [Entry(**row) for row in (await connection.execute(query, {"id": session_id})).mappings()]


async def all_is_well(engine: AsyncEngine, session_id: str = "5e55") -> None:
    """History has no gaps, the counters are what the records say, and history replays to the records."""
    entries = await lines_of(engine, session_id)
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT * FROM attendance.records WHERE session_id = :id"), {"id": session_id})
        records = {row["student_id"]: Record(**row) for row in found.mappings()}
    [head] = await rows(
        engine, "SELECT seq, absent, present, late, excused FROM attendance.rolls WHERE session_id = :id", id=session_id
    )
    assert [entry.seq for entry in entries] == list(range(1, head[0] + 1))
    statuses = [record.status for record in records.values()]
    assert head[1:] == tuple(statuses.count(status) for status in ("absent", "present", "late", "excused"))
    later = {entry.student_id for entry in entries if entry.kind == "enrolled"}
    told = replayed(entries, records.keys() - later)
    assert told == {student: standing(record) for student, record in records.items()}


def heard(events: Iterable[Event[Any]]) -> list[tuple[int, str | None]]:
    """What somebody who listens learns of records, in order: (number, student)."""
    return [(c.seq, c.student_id) for each in events if isinstance(each.data, RollChanged) for c in each.data.changes]


def alike(answer: Any) -> Any:
    """What a caller sees of an answer: a repeat of a join differs only in how far the roll is by then, and who may listen."""
    return answer.code if isinstance(answer, Refused) else replace(answer, roll_seq=0, enrolled=True)
