"""Answers: what a command is answered, or why it is refused."""

from typing import Any, Literal

from msgspec import UNSET, Raw, Struct, UnsetType

from shared.messages.shapes import (
    ActiveSession,
    Change,
    Course,
    News,
    Record,
    Session,
    Statistics,
    Status,
    Student,
    StudentSummary,
    Time,
)


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
    """Answer to `PutCourse` and `ArchiveCourse`."""

    course: Course
    created: bool
    news: News


class RosterStored(Struct, frozen=True, kw_only=True):
    """Answer to `PutRoster`, `EnrolStudent` and `RemoveStudent`."""

    added: int
    updated: int
    removed: int
    news: News


class Standing(Struct, frozen=True, kw_only=True):
    """Answer to `ReadStanding`: who teaches the course, and which of those asked about are enrolled, as of these versions."""

    teacher_ids: tuple[str, ...]
    enrolled: tuple[str, ...]
    version: int
    roster_version: int


class Outline(Struct, frozen=True, kw_only=True):
    """Answer to `ReadOutline`; `remaining_sessions` are scheduled or active."""

    course: Course
    roster: tuple[Student, ...]
    remaining_sessions: int


class SessionStored(Struct, frozen=True, kw_only=True):
    """Answer to `CreateSession`, `ChangeSession` and `CancelSession`."""

    session: Session
    news: News


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
    """Answer to `JoinRoll`; a repeat carries what the first join carried, and `roll_seq` says as of which number.

    Who joined and then left the course is answered like anybody, but not `enrolled`: they hear no more of the roll.
    """

    session_id: str
    status: Status
    joined_at: Time
    seq: int
    roll_seq: int
    course_id: str
    enrolled: bool = True


class MarkStored(Struct, frozen=True, kw_only=True):
    """Answer to `MarkRecord` and `ClearMark`: the record as this command left it, and the roll's numbers then.

    `seq` is the record's; who last changed it is named, which for a mark that was so already is somebody else.
    """

    record: Record
    statistics: Statistics
    updated_by: str
    updated_by_id: str
    updated_at: Time
    seq: int


class MarksStored(Struct, frozen=True, kw_only=True):
    """Answer to `MarkRecords`: every record named, in that order, and the roll's numbers; `seq` is the roll's."""

    session_id: str
    records: tuple[Record, ...]
    statistics: Statistics
    updated_by: str
    updated_by_id: str
    updated_at: Time
    seq: int


class Submission(Struct, frozen=True, kw_only=True):
    """Answer to `SubmitRoll`; a repeat carries what the first one carried."""

    session_id: str
    submitted_by: str
    submitted_by_id: str
    submitted_at: Time
    statistics: Statistics
    seq: int


class RollSynced(Struct, frozen=True, kw_only=True):
    """Answer to `SyncRoll`; `joined` says whether the asker has joined, also where their record is not among those told."""

    mode: Literal["changes", "whole"]
    as_staff: bool
    joined: bool
    session: Session
    records: tuple[Record, ...]
    statistics: Statistics
    seq: int


class HistoryPage(Struct, frozen=True, kw_only=True):
    """Answer to `ReadHistory`; `next_seq` is where the next page begins, None on the last."""

    items: tuple[Change, ...]
    next_seq: int | None


class OwnRecord(Struct, frozen=True, kw_only=True):
    """One of a student's own records, with everything that ever happened to it."""

    session: Session
    record: Record
    history: tuple[Change, ...]


class OwnRecords(Struct, frozen=True, kw_only=True):
    """Answer to `ReadOwnRecords`."""

    items: tuple[OwnRecord, ...]
    next_cursor: str | None


class ActiveSessions(Struct, frozen=True, kw_only=True):
    """Answer to `ReadActiveSessions`, oldest first."""

    items: tuple[ActiveSession, ...]


class CourseSummary(Struct, frozen=True, kw_only=True):
    """Answer to `SummarizeCourse`, by student id; a roll is taken once it is closed, unless it was cancelled."""

    taken_sessions: int
    students: tuple[StudentSummary, ...]


class Heard(Struct, frozen=True, kw_only=True):
    """Answer to `AwaitNews`."""


class RollRead(Struct, frozen=True, kw_only=True):
    """A whole roll at `seq`: the answer to `ReadRoll`, and to a start or an end once it has reached the roll."""

    session: Session
    records: tuple[Record, ...]
    statistics: Statistics
    seq: int


class ChangesRead(Struct, frozen=True, kw_only=True):
    """Answer to `ReadChanges`: the live events that were missed, oldest first; `seq` is how far they reach."""

    events: tuple[Raw, ...]
    seq: int
