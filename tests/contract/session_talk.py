"""How the suites of session-service speak: replicas of the service, commands, and what attendance-service says to it."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from alembic.config import Config
from msgspec import json
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from session_service import handlers
from session_service.batches import beginning
from session_service.closing_time import end_due
from session_service.saga import repeat_unreported
from session_service.store import Store
from session_service.tables import SCHEMA
from shared.clock import rfc3339
from shared.errors import Refused
from shared.live import Names
from shared.memory_bus import MemoryBus
from shared.messages import (
    Actor,
    ArchiveCourse,
    CancelSession,
    Cause,
    ChangeSession,
    CheckIn,
    Command,
    CreateSession,
    EndSession,
    EnrolStudent,
    Event,
    EventData,
    PutCourse,
    PutRoster,
    ReadSession,
    RemoveStudent,
    ReopenSession,
    ReplyTo,
    RollClosed,
    RollOpened,
    Session,
    SessionStored,
    StartSession,
    Statistics,
    Student,
    decode_event,
)
from shared.outbox import Outbox, OutboxRow

C = TypeVar("C", bound=Command)

NINE = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
ADA = Actor("ada", "Ada", "teacher")
BOB = Actor("bob", "Bob", "teacher")
ANN = Actor("ann", "Ann", "student")
EVE = Actor("eve", "Eve", "student")
ROOT = Actor("root", "Root", "admin")
ROBOT = Actor("robot", "Robot", "service")
NAMES = Names("test")
GRACE = timedelta(minutes=15)

numbers = itertools.count(1)


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
        outcome = await self.table[type(events[0].data)](events)
        self.left.extend(outcome.events)

    async def repeat(self) -> list[Event[EventData]]:
        """Let the saga look once; return what it repeats."""
        begin = beginning(self.store, NAMES, lambda: self.now)
        return [read(row) for row in await repeat_unreported(begin)]

    async def end_due(self, grace: timedelta = GRACE) -> list[Event[Any]]:
        """Let the clock end what is over; return what leaves."""
        begin = beginning(self.store, NAMES, lambda: self.now)
        return [read(row) for row in await end_due(begin, grace)]

    async def of(self, session: Session) -> Session:
        """The session as it is now."""
        found: Session = await self.do(a(ReadSession, ROOT, session_id=session.id))
        return found

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


def to_reopen(session: Session, by: Actor = ADA, reason: str = "too early") -> ReopenSession:
    return a(ReopenSession, by, session_id=session.id, reason=reason)


def to_cancel(session: Session, by: Actor = ADA) -> CancelSession:
    return a(CancelSession, by, session_id=session.id)


def to_change(session: Session, by: Actor = ADA, **fields: Any) -> ChangeSession:
    return a(ChangeSession, by, session_id=session.id, **fields)


def to_enrol(student_id: str, name: str = "", course_id: str = "c1", by: Actor = ADA, **fields: Any) -> EnrolStudent:
    return a(EnrolStudent, by, course_id=course_id, student=Student(student_id=student_id, name=name, **fields))


def to_remove(student_id: str, course_id: str = "c1", by: Actor = ADA) -> RemoveStudent:
    return a(RemoveStudent, by, course_id=course_id, student_id=student_id)


def to_archive(course_id: str = "c1", by: Actor = ADA) -> ArchiveCourse:
    return a(ArchiveCourse, by, course_id=course_id)


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


def opened(session_id: str, version: int = 2, reason: str | None = None) -> Event[RollOpened]:
    """What attendance-service says when the roll is open, or open again, having heard of that version of the session."""
    data = RollOpened(
        first_seq=1,
        session_id=session_id,
        course_id="c1",
        session=json.decode(json.encode(A_SESSION), type=Session),
        statistics=NOBODY,
        opened_by="Ada",
        opened_by_id="ada",
        opened_at=rfc3339(NINE),
        session_version=version,
        reason=reason,
    )
    return Event(id=f"{session_id}:1", source=f"/rolls/{session_id}", time=rfc3339(NINE), sequence=1, data=data)


def closed(session_id: str, version: int = 3, cause: Cause = "ended", at: datetime = NINE) -> Event[RollClosed]:
    """What attendance-service says when the roll is closed, having heard of that version of the session."""
    data = RollClosed(
        first_seq=2,
        session_id=session_id,
        course_id="c1",
        cause=cause,
        statistics=NOBODY,
        ended_by="Bob",
        ended_by_id="bob",
        ended_at=rfc3339(at),
        session_version=version,
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
