"""What HTTP answers with, described: the shapes of the OpenAPI document. Pure.

Where the socket answers alike, the body is made in `views` and only described here; the unit tests hold the two together.
"""

from msgspec import Struct, field

from shared.messages import (
    Change,
    ChangeKind,
    Course,
    OwnRecord,
    OwnRecords,
    Record,
    Session,
    Source,
    Statistics,
    Status,
    Student,
    Time,
)


class CourseList(Struct, frozen=True, kw_only=True):
    """A page of courses, by id."""

    items: tuple[Course, ...]
    next_cursor: str | None


class RosterList(Struct, frozen=True, kw_only=True):
    """A page of a roster, by student id."""

    items: tuple[Student, ...]
    next_cursor: str | None


class SessionList(Struct, frozen=True, kw_only=True):
    """A page of sessions, newest first."""

    items: tuple[Session, ...]
    next_cursor: str | None


class RosterCounts(Struct, frozen=True, kw_only=True):
    """What a change of a roster changed."""

    added: int
    updated: int
    removed: int


class SocketsCut(Struct, frozen=True, kw_only=True):
    """How many sockets a user had, on all gateways."""

    user_id: str
    cut: int


class Roll(Struct, frozen=True, kw_only=True):
    """A whole roll, as of `seq`."""

    session_id: str
    session: Session
    records: tuple[Record, ...] = field(name="attendanceRecords")
    statistics: Statistics
    seq: int


class RollAnswer(Roll, frozen=True, kw_only=True):
    """A whole roll, as of `seq`."""

    server_time: Time


class Started(RollAnswer, frozen=True, kw_only=True):
    """A roll that is open."""

    total_students: int = field(name="totalStudents")


class Ended(Struct, frozen=True, kw_only=True):
    """A roll that is closed."""

    session_id: str
    final_data: Roll = field(name="finalData")
    server_time: Time


class Cancelled(Struct, frozen=True, kw_only=True):
    """A session that is cancelled."""

    session_id: str
    session: Session
    server_time: Time


class Submitted(Struct, frozen=True, kw_only=True):
    """A roll that is submitted; a repeat says what the first one said."""

    session_id: str
    submitted_by: str
    submitted_by_id: str
    submitted_at: Time
    statistics: Statistics
    seq: int
    server_time: Time


class Marked(Struct, frozen=True, kw_only=True):
    """A record as the mark left it, and the roll's numbers then."""

    session_id: str
    student_id: str
    status: Status
    record: Record = field(name="attendanceRecord")
    statistics: Statistics
    updated_by: str
    updated_by_id: str
    updated_at: Time
    seq: int
    server_time: Time


class HistoryItem(Struct, frozen=True, kw_only=True):
    """One change of a roll; `student_id` is null when it is the roll's own."""

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


class HistoryList(Struct, frozen=True, kw_only=True):
    """A page of a roll's history, oldest first."""

    items: tuple[HistoryItem, ...]
    next_cursor: str | None


class OwnAttendance(Struct, frozen=True, kw_only=True):
    """One of the caller's own records, with its history."""

    session: Session
    record: Record = field(name="attendanceRecord")
    history: tuple[HistoryItem, ...]


class OwnAttendanceList(Struct, frozen=True, kw_only=True):
    """A page of the caller's own records, newest session first."""

    items: tuple[OwnAttendance, ...]
    next_cursor: str | None


def history_item(change: Change) -> HistoryItem:
    """Show a change as history does: without what travels beside it for those who listen."""
    return HistoryItem(**{name: getattr(change, name) for name in HistoryItem.__struct_fields__})


def own_attendance(records: OwnRecords) -> OwnAttendanceList:
    """Show a student their own records."""

    def shown(own: OwnRecord) -> OwnAttendance:
        return OwnAttendance(session=own.session, record=own.record, history=tuple(map(history_item, own.history)))

    return OwnAttendanceList(items=tuple(map(shown, records.items)), next_cursor=records.next_cursor)
