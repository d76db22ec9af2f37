"""Every message that travels between processes: commands in, answers back, events out. Pure data, no I/O and no clock.

Commands are imperative and go to the queue of the service that owns the data. Events are past tense, CloudEvents 1.0,
and outlive every process; the shapes inside them (`Session`, `Record`, `Statistics`, `Change`) are the contract's and
reach clients as they are. Times seen outside are strings already written by `clock.rfc3339`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar, Final, Generic, Literal, TypeAlias, TypeVar

from msgspec import UNSET, Raw, Struct, UnsetType, json

Role: TypeAlias = Literal["student", "teacher", "admin", "service"]
SessionStatus: TypeAlias = Literal["scheduled", "active", "completed", "cancelled"]
RollStatus: TypeAlias = Literal["open", "closed", "submitted"]
Status: TypeAlias = Literal["absent", "present", "late", "excused"]
Source: TypeAlias = Literal["system", "self", "teacher", "admin"]
Cause: TypeAlias = Literal["ended", "submitted", "automatic", "cancelled"]
ChangeKind: TypeAlias = Literal[
    "opened",
    "joined",
    "marked",
    "cleared",
    "redecided",
    "enrolled",
    "closed",
    "submitted",
    "reopened",
    "cancelled",
]
Time: TypeAlias = str

SESSION_COMMANDS: Final = "session.commands"
ATTENDANCE_COMMANDS: Final = "attendance.commands"
SESSION_EVENTS: Final = "session.events"
ATTENDANCE_EVENTS: Final = "attendance.events"
EVENT_QUEUES: Final[dict[str, Sequence[str]]] = {
    SESSION_EVENTS: ("rollcall.roll.opened.v1", "rollcall.roll.closed.v1", "rollcall.roll.submitted.v1"),
    ATTENDANCE_EVENTS: ("rollcall.session.*.v1", "rollcall.course.changed.v1"),
}
"""Which types (topic patterns) each service's queue of events receives."""

# Shapes of the contract


class Actor(Struct, frozen=True):
    """Who asks: the token's `sub` (or `uid`), `name` and `role`."""

    id: str
    name: str
    role: Role


class CheckIn(Struct, frozen=True, kw_only=True):
    """How students may check in; minutes count from the actual start."""

    late_after_minutes: int | None = 10
    closes_after_minutes: int | None = None
    code: None = None
    area: None = None
    networks: None = None


class Session(Struct, frozen=True, kw_only=True):
    """One class meeting, as clients and other services see it."""

    id: str
    course_id: str
    title: str
    topic: str
    description: str | None
    status: SessionStatus
    date: str
    start_time: str
    end_time: str
    time_zone: str
    starts_at: Time
    ends_at: Time
    meeting_link: str | None
    teacher_ids: tuple[str, ...]
    check_in: CheckIn
    started_at: Time | None
    ended_at: Time | None
    created_at: Time
    updated_at: Time


class Record(Struct, frozen=True, kw_only=True):
    """One student's row on a roll (the contract's attendanceRecord)."""

    session_id: str
    student_id: str
    student_name: str
    status: Status
    remarks: str | None
    source: Source
    marked_by: str | None
    marked_at: Time | None
    joined_at: Time | None
    seq: int


class Statistics(Struct, frozen=True, kw_only=True, rename="camel"):
    """A roll in numbers; `attendance_rate` is a percentage with two decimals, None when nobody is left to count."""

    total_students: int
    present_count: int
    absent_count: int
    late_count: int
    excused_count: int
    attendance_rate: float | None


class Change(Struct, frozen=True, kw_only=True):
    """One history item, with the student's name and first join beside it; `student_id` is None for the roll itself."""

    seq: int
    at: Time
    kind: ChangeKind
    student_id: str | None
    before: Status | None
    after: Status | None
    source: Source
    actor: str
    actor_name: str
    reason: str | None
    remarks: str | None
    command_id: str | None
    student_name: str | None
    joined_at: Time | None


class Student(Struct, frozen=True, kw_only=True):
    """One line of a roster."""

    student_id: str
    name: str
    email: str | None = None
    roll_number: str | None = None


class Enrolled(Struct, frozen=True):
    """A student as events carry them: no e-mail addresses in any event."""

    student_id: str
    student_name: str


class Course(Struct, frozen=True, kw_only=True):
    """A course without its roster."""

    id: str
    title: str
    teacher_ids: tuple[str, ...]
    time_zone: str
    archived: bool
    created_at: Time
    updated_at: Time


# Commands


class ReplyTo(Struct, frozen=True):
    """Where an answer goes: the asking gateway's queue, and the number under which it waits there."""

    queue: str
    correlation_id: str


class Command(Struct, frozen=True, kw_only=True, tag_field="type", tag=True):
    """A request to change or read something. Not begun by `deadline`, it is dropped; sent twice, it is done once."""

    queue: ClassVar[str]

    command_id: str
    actor: Actor
    received_at: datetime
    deadline: datetime
    reply_to: ReplyTo | None = None


class SessionCommand(Command, frozen=True, kw_only=True):
    """A command for session-service."""

    queue: ClassVar[str] = SESSION_COMMANDS


class AttendanceCommand(Command, frozen=True, kw_only=True):
    """A command for attendance-service; every one is about one roll."""

    queue: ClassVar[str] = ATTENDANCE_COMMANDS

    session_id: str


class PutCourse(SessionCommand, frozen=True, kw_only=True):
    """Make a course, or change its title, teachers or time zone."""

    course_id: str
    title: str
    teacher_ids: tuple[str, ...]
    time_zone: str


class ReadCourse(SessionCommand, frozen=True, kw_only=True):
    """Read one course."""

    course_id: str


class ListCourses(SessionCommand, frozen=True, kw_only=True):
    """List the courses the actor teaches or is enrolled in (an admin or service: all), by id after `cursor`."""

    limit: int
    cursor: str | None = None


class PutRoster(SessionCommand, frozen=True, kw_only=True):
    """Replace a course's whole roster."""

    course_id: str
    students: tuple[Student, ...]


class ReadRoster(SessionCommand, frozen=True, kw_only=True):
    """List a course's roster by student id after `cursor`."""

    course_id: str
    limit: int
    cursor: str | None = None


class CreateSession(SessionCommand, frozen=True, kw_only=True):
    """Schedule a session. `fingerprint` tells one body from another under the same `idempotency_key`."""

    session_id: str
    course_id: str
    title: str
    description: str | None
    date: str
    start_time: str
    end_time: str
    time_zone: str | None
    meeting_link: str | None
    check_in: CheckIn
    idempotency_key: str | None
    fingerprint: str


class ReadSession(SessionCommand, frozen=True, kw_only=True):
    """Read one session."""

    session_id: str


class ListSessions(SessionCommand, frozen=True, kw_only=True):
    """List sessions the actor may see, newest first, after `cursor`."""

    course_id: str | None
    status: SessionStatus | None
    limit: int
    cursor: str | None = None


class StartSession(SessionCommand, frozen=True, kw_only=True):
    """Start a session; answered by attendance-service once the roll is open."""

    session_id: str


class EndSession(SessionCommand, frozen=True, kw_only=True):
    """End a session; answered by attendance-service once the roll is closed."""

    session_id: str


class ExplainNoRoll(SessionCommand, frozen=True, kw_only=True):
    """Say why a session has no roll: always refused, with the code the actor should see for what they asked.

    `for_staff` tells a teacher's request from a student's join.
    """

    session_id: str
    for_staff: bool


class JoinRoll(AttendanceCommand, frozen=True, kw_only=True):
    """Check the actor in on a roll."""


class ReadRoll(AttendanceCommand, frozen=True, kw_only=True):
    """Read a whole roll."""


class ReadChanges(AttendanceCommand, frozen=True, kw_only=True):
    """Read what happened on a roll after `since_seq`, for a gateway that missed live events."""

    since_seq: int


AnyCommand: TypeAlias = (
    PutCourse
    | ReadCourse
    | ListCourses
    | PutRoster
    | ReadRoster
    | CreateSession
    | ReadSession
    | ListSessions
    | StartSession
    | EndSession
    | ExplainNoRoll
    | JoinRoll
    | ReadRoll
    | ReadChanges
)

# Answers


class Refusal(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a command was refused, in the words of the contract."""

    code: str
    message: str
    retryable: bool
    details: tuple[dict[str, Any], ...] = ()


class Answer(Struct, frozen=True, kw_only=True):
    """What became of one command: a result whose type the asker knows, or a refusal."""

    correlation_id: str
    result: Raw | UnsetType = UNSET
    error: Refusal | UnsetType = UNSET


class CourseStored(Struct, frozen=True, kw_only=True):
    """Answer to `PutCourse`."""

    course: Course
    created: bool


class RosterStored(Struct, frozen=True, kw_only=True):
    """Answer to `PutRoster`."""

    added: int
    updated: int
    removed: int


class SessionStored(Struct, frozen=True, kw_only=True):
    """Answer to `CreateSession`."""

    session: Session
    created: bool


class CoursePage(Struct, frozen=True, kw_only=True):
    """Answer to `ListCourses`."""

    items: tuple[Course, ...]
    next_cursor: str | None


class RosterPage(Struct, frozen=True, kw_only=True):
    """Answer to `ReadRoster`."""

    items: tuple[Student, ...]
    next_cursor: str | None


class SessionPage(Struct, frozen=True, kw_only=True):
    """Answer to `ListSessions`."""

    items: tuple[Session, ...]
    next_cursor: str | None


class RollJoined(Struct, frozen=True, kw_only=True):
    """Answer to `JoinRoll`; a repeat carries what the first join carried, and in `roll_seq` how far the roll is now."""

    session_id: str
    status: Status
    joined_at: Time
    seq: int
    roll_seq: int


class RollRead(Struct, frozen=True, kw_only=True):
    """A whole roll at `seq`: the answer to `ReadRoll`, and to a start or an end once it has reached the roll."""

    session: Session
    records: tuple[Record, ...]
    statistics: Statistics
    seq: int


class ChangesRead(Struct, frozen=True, kw_only=True):
    """Answer to `ReadChanges`: the live events that were missed, oldest first, each as it was published."""

    events: tuple[Raw, ...]
    seq: int


# Events


class EventData(Struct, frozen=True, kw_only=True):
    """The `data` of an event; `first_seq` is the first number of its commit in its source."""

    type: ClassVar[str]

    first_seq: int


class CourseChanged(EventData, frozen=True, kw_only=True):
    """A course was made or changed."""

    type: ClassVar[str] = "rollcall.course.changed.v1"

    course: Course


class SessionScheduled(EventData, frozen=True, kw_only=True):
    """A session was created."""

    type: ClassVar[str] = "rollcall.session.scheduled.v1"

    session: Session


class SessionStarted(EventData, frozen=True, kw_only=True):
    """A session was started; `roster` is who stands absent when the roll opens."""

    type: ClassVar[str] = "rollcall.session.started.v1"

    session: Session
    roster: tuple[Enrolled, ...]
    started_by: str
    started_by_id: str


class SessionEnded(EventData, frozen=True, kw_only=True):
    """A session was ended; its roll closes."""

    type: ClassVar[str] = "rollcall.session.ended.v1"

    session: Session
    cause: Cause
    ended_by: str
    ended_by_id: str


class RollOpened(EventData, frozen=True, kw_only=True):
    """A roll was opened: everybody on the session's roster stands absent."""

    type: ClassVar[str] = "rollcall.roll.opened.v1"

    session_id: str
    course_id: str
    session: Session
    statistics: Statistics
    opened_by: str
    opened_by_id: str
    opened_at: Time


class RollChanged(EventData, frozen=True, kw_only=True):
    """Records of a roll changed, in one commit: one change for each number from `first_seq` on."""

    type: ClassVar[str] = "rollcall.roll.changed.v1"

    session_id: str
    course_id: str
    changes: tuple[Change, ...]
    statistics: Statistics


class RollClosed(EventData, frozen=True, kw_only=True):
    """A roll was closed."""

    type: ClassVar[str] = "rollcall.roll.closed.v1"

    session_id: str
    course_id: str
    cause: Cause
    statistics: Statistics
    ended_by: str
    ended_by_id: str
    ended_at: Time


EVENT_TYPES: Final[dict[str, type[EventData]]] = {
    data.type: data
    for data in (
        CourseChanged,
        SessionScheduled,
        SessionStarted,
        SessionEnded,
        RollOpened,
        RollChanged,
        RollClosed,
    )
}


D_co = TypeVar("D_co", bound=EventData, covariant=True)


class Event(Struct, Generic[D_co], frozen=True, kw_only=True):
    """One domain event of one commit. `sequence` is its last number in `source`; the id is the same in every repeat.

    `reply_to` travels beside it, not in it: whom the event's effect answers.
    """

    id: str
    source: str
    time: Time
    sequence: int
    data: D_co
    reply_to: ReplyTo | None = None

    @property
    def type(self) -> str:
        """The CloudEvents type, also the routing key."""
        return self.data.type


class _CloudEvent(Struct, frozen=True, kw_only=True):
    """The envelope on the wire: CloudEvents 1.0, structured JSON."""

    specversion: str = "1.0"
    id: str
    source: str
    type: str
    time: Time
    sequence: str
    datacontenttype: str = "application/json"
    data: Raw


T = TypeVar("T")

_encoder = json.Encoder()
_commands = json.Decoder(list[AnyCommand])
_answers = json.Decoder(list[Answer])
_envelope = json.Decoder(_CloudEvent)
_data = {name: json.Decoder(data) for name, data in EVENT_TYPES.items()}


def encode(message: Struct) -> bytes:
    """Write a command, an answer or a result as JSON."""
    return _encoder.encode(message)


def decode(kind: type[T], body: bytes | Raw) -> T:
    """Read a result as the type the asker expects; raise msgspec.ValidationError when it is none."""
    return json.decode(body, type=kind)


def decode_commands(body: bytes) -> list[AnyCommand]:
    """Read one command message (a JSON array of commands); raise msgspec.MsgspecError when it is none."""
    return _commands.decode(body)


def decode_answers(body: bytes) -> list[Answer]:
    """Read one message of answers (a JSON array)."""
    return _answers.decode(body)


def encode_event(event: Event[EventData]) -> bytes:
    """Write an event as a CloudEvent; the sequence is zero-padded so that it sorts as text."""
    return _encoder.encode(
        _CloudEvent(
            id=event.id,
            source=event.source,
            type=event.type,
            time=event.time,
            sequence=f"{event.sequence:020d}",
            data=Raw(_encoder.encode(event.data)),
        )
    )


def decode_event(body: bytes | Raw, reply_to: ReplyTo | None = None) -> Event[EventData] | None:
    """Read a CloudEvent; None for a type this version does not know. Raise msgspec.MsgspecError when malformed."""
    envelope = _envelope.decode(body)
    data = _data.get(envelope.type)
    if data is None:
        return None
    return Event(
        id=envelope.id,
        source=envelope.source,
        time=envelope.time,
        sequence=int(envelope.sequence),
        data=data.decode(envelope.data),
        reply_to=reply_to,
    )
