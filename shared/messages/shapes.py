"""The shapes of the contract, as commands, answers and events carry them and clients see them; camelCase where they do.

Times are strings already written by `clock.rfc3339`.
"""

from typing import Literal, TypeAlias

from msgspec import UNSET, Struct, UnsetType, field

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


class CheckInPatch(Struct, frozen=True, kw_only=True):
    """A change of how students may check in: what is unset stays as it is, what is None is taken away."""

    late_after_minutes: int | UnsetType | None = UNSET
    closes_after_minutes: int | UnsetType | None = UNSET
    code: UnsetType | None = UNSET
    area: UnsetType | None = UNSET
    networks: UnsetType | None = UNSET


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


class StudentSummary(Struct, frozen=True, kw_only=True, rename="camel"):
    """How often one student stood where on a course's taken rolls."""

    student_id: str = field(name="student_id")
    student_name: str = field(name="student_name")
    present_count: int
    absent_count: int
    late_count: int
    excused_count: int


class ActiveSession(Struct, frozen=True, kw_only=True, rename="camel"):
    """A session whose roll is open, as course watchers see it; `student_count` is how many have joined so far."""

    session_id: str
    title: str
    student_count: int
    started_at: Time


class Course(Struct, frozen=True, kw_only=True):
    """A course without its roster."""

    id: str
    title: str
    teacher_ids: tuple[str, ...]
    time_zone: str
    archived: bool
    created_at: Time
    updated_at: Time


class News(Struct, frozen=True, kw_only=True):
    """How far attendance-service must have heard before what was just answered holds there too; 0 and empty: no matter."""

    course_id: str
    course_version: int = 0
    roster_version: int = 0
    session_versions: dict[str, int] = {}
    """The version of each active session concerned."""
