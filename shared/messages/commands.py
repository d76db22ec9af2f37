"""Commands: imperative, each for the queue of the service that owns the data."""

from datetime import datetime
from typing import ClassVar, Final, TypeAlias

from msgspec import UNSET, Struct, UnsetType

from shared.messages.shapes import Actor, CheckIn, CheckInPatch, News, SessionStatus, Status, Student

SESSION_COMMANDS: Final = "session.commands"
ATTENDANCE_COMMANDS: Final = "attendance.commands"


class ReplyTo(Struct, frozen=True):
    """Where an answer goes: the asking gateway's queue, and the number under which it waits there."""

    queue: str
    correlation_id: str


class Command(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag=True):
    """A request to change or read something. Not begun by `deadline`, it is dropped; sent twice, it is done once."""

    queue: ClassVar[str]
    alone: ClassVar[bool] = False
    """Whether it is a batch of its own: it may take long, and nobody beside it is to wait for it."""

    command_id: str
    actor: Actor
    received_at: datetime
    deadline: datetime
    reply_to: ReplyTo | None = None
    redelivered: bool = False
    """Whether the broker has delivered it before, so that its caller may have been answered already; the worker says so."""


class SessionCommand(Command, frozen=True, kw_only=True):
    """A command for session-service."""

    queue: ClassVar[str] = SESSION_COMMANDS


class RecordsCommand(Command, frozen=True, kw_only=True):
    """A command for attendance-service."""

    queue: ClassVar[str] = ATTENDANCE_COMMANDS


class AttendanceCommand(RecordsCommand, frozen=True, kw_only=True):
    """A command for attendance-service about one roll."""

    session_id: str


class PutCourse(SessionCommand, frozen=True, kw_only=True):
    """Make a course, or change its title, teachers or time zone."""

    course_id: str
    title: str
    teacher_ids: tuple[str, ...]
    time_zone: str


class ArchiveCourse(SessionCommand, frozen=True, kw_only=True):
    """Put a course away: it takes no more changes and no more sessions."""

    course_id: str


class ReadCourse(SessionCommand, frozen=True, kw_only=True):
    """Read one course."""

    course_id: str


class ReadStanding(SessionCommand, frozen=True, kw_only=True):
    """Read who teaches a course and which of these students are enrolled; asked by the gateway, about who listens there."""

    course_id: str
    student_ids: tuple[str, ...]


class ListCourses(SessionCommand, frozen=True, kw_only=True):
    """List the courses the actor teaches or is enrolled in (an admin or service: all), by id after `cursor`."""

    limit: int
    cursor: str | None = None


class PutRoster(SessionCommand, frozen=True, kw_only=True):
    """Replace a course's whole roster."""

    alone: ClassVar[bool] = True

    course_id: str
    students: tuple[Student, ...]


class EnrolStudent(SessionCommand, frozen=True, kw_only=True):
    """Put one student on a course's roster, or change what it says of them. An empty name is none."""

    alone: ClassVar[bool] = True

    course_id: str
    student: Student


class RemoveStudent(SessionCommand, frozen=True, kw_only=True):
    """Take one student off a course's roster."""

    alone: ClassVar[bool] = True

    course_id: str
    student_id: str


class ReadOutline(SessionCommand, frozen=True, kw_only=True):
    """Read what a course's summary needs from here: the whole roster, and how many sessions are still to come."""

    course_id: str


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


class ChangeSession(SessionCommand, frozen=True, kw_only=True):
    """Change a session that is not over; what is unset stays as it is, what is None is taken away."""

    session_id: str
    title: str | UnsetType = UNSET
    description: str | UnsetType | None = UNSET
    date: str | UnsetType = UNSET
    start_time: str | UnsetType = UNSET
    end_time: str | UnsetType = UNSET
    time_zone: str | UnsetType = UNSET
    meeting_link: str | UnsetType | None = UNSET
    check_in: CheckInPatch | UnsetType = UNSET


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


class CancelSession(SessionCommand, frozen=True, kw_only=True):
    """Cancel a session that is not over; answered by session-service, the roll closes after."""

    session_id: str


class ReopenSession(SessionCommand, frozen=True, kw_only=True):
    """Take an end or a submission back; answered by attendance-service once the roll is open again."""

    session_id: str
    reason: str


class ExplainNoRoll(SessionCommand, frozen=True, kw_only=True):
    """Say why a session has no roll: always refused, with the code the actor should see for what they asked.

    `for_staff` tells a teacher's request from a student's join.
    """

    session_id: str
    for_staff: bool


class JoinRoll(AttendanceCommand, frozen=True, kw_only=True):
    """Check the actor in on a roll."""


class Mark(Struct, frozen=True, kw_only=True):
    """What a teacher says of one student. Remarks left unset stay with the status they were made for."""

    student_id: str
    status: Status
    remarks: str | UnsetType | None = UNSET


class MarkRecord(AttendanceCommand, frozen=True, kw_only=True):
    """Set one record. Done once for each (actor, `command_id`), and then answered alike."""

    mark: Mark
    reason: str | None = None
    expected_seq: int | None = None


class MarkRecords(AttendanceCommand, frozen=True, kw_only=True):
    """Set many records in one commit, all or nothing; no student twice."""

    alone: ClassVar[bool] = True

    marks: tuple[Mark, ...]
    reason: str | None = None


class ClearMark(AttendanceCommand, frozen=True, kw_only=True):
    """Take a mark away: the record is again what the student's own join made of it, or absent."""

    student_id: str
    reason: str | None = None


class SubmitRoll(AttendanceCommand, frozen=True, kw_only=True):
    """Submit a roll; one that is open is closed by it, which ends the session."""


class SyncRoll(AttendanceCommand, frozen=True, kw_only=True):
    """Read the records that changed after `since_seq` (None: all); a student gets their own only."""

    since_seq: int | None


class ReadHistory(AttendanceCommand, frozen=True, kw_only=True):
    """Read a page of a roll's history after `since_seq`, oldest first."""

    since_seq: int
    limit: int


class ReadRoll(AttendanceCommand, frozen=True, kw_only=True):
    """Read a whole roll."""


class ReadChanges(AttendanceCommand, frozen=True, kw_only=True):
    """Read what happened on a roll after `since_seq`, for a gateway that missed live events."""

    since_seq: int


class ReadOwnRecords(RecordsCommand, frozen=True, kw_only=True):
    """Read the actor's own records with their history, newest session first, after `cursor` (a session id)."""

    course_id: str | None
    limit: int
    cursor: str | None = None


class ReadActiveSessions(RecordsCommand, frozen=True, kw_only=True):
    """Read which of a course's rolls are open; asked by the gateway, once session-service has let the caller in."""

    course_id: str


class SummarizeCourse(RecordsCommand, frozen=True, kw_only=True):
    """Count every student's records on a course's taken rolls; asked by the gateway, as above."""

    course_id: str


class AwaitNews(RecordsCommand, frozen=True, kw_only=True):
    """Ask whether session-service's news have arrived: refused as `unavailable` while one of them has not."""

    news: News


AnyCommand: TypeAlias = (
    PutCourse
    | ArchiveCourse
    | ReadCourse
    | ReadStanding
    | ListCourses
    | PutRoster
    | EnrolStudent
    | RemoveStudent
    | ReadOutline
    | ReadRoster
    | CreateSession
    | ChangeSession
    | ReadSession
    | ListSessions
    | StartSession
    | EndSession
    | CancelSession
    | ReopenSession
    | ExplainNoRoll
    | JoinRoll
    | MarkRecord
    | MarkRecords
    | ClearMark
    | SubmitRoll
    | SyncRoll
    | ReadHistory
    | ReadRoll
    | ReadChanges
    | ReadOwnRecords
    | ReadActiveSessions
    | SummarizeCourse
    | AwaitNews
)
