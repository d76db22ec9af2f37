"""The rules of courses and sessions, pure: who may do what, and what a command makes of a course or session.

Nothing here does I/O or reads a clock. A rule takes things as they stand and returns what becomes of them, or
raises `Refused` with a code of the contract; it has decided before anything is written.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime

from msgspec import Struct
from msgspec.structs import replace

from session_service.timetable import meeting, zone_fault
from shared.errors import Refused
from shared.messages import (
    Actor,
    Cause,
    CheckIn,
    CreateSession,
    ExplainNoRoll,
    PutCourse,
    SessionStatus,
    Student,
)


class Course(Struct, frozen=True, kw_only=True):
    """A course as stored; `version` counts its changes, `roster_version` those of its roster."""

    id: str
    title: str
    teacher_ids: tuple[str, ...]
    time_zone: str
    archived_at: datetime | None = None
    version: int = 1
    roster_version: int = 0
    created_at: datetime
    updated_at: datetime


class Turn(Struct, frozen=True, kw_only=True):
    """When a session was started or ended, by whom, and the version that this made."""

    at: datetime
    version: int
    by: str
    by_id: str


class End(Turn, frozen=True, kw_only=True):
    """How a session ended."""

    cause: Cause


class Session(Struct, frozen=True, kw_only=True):
    """A session as stored, with its course's teachers; `version` counts changes and numbers events."""

    id: str
    course_id: str
    teacher_ids: tuple[str, ...]
    title: str
    description: str | None
    status: SessionStatus = "scheduled"
    date: date
    start_time: str
    end_time: str
    time_zone: str
    starts_at: datetime
    ends_at: datetime
    meeting_link: str | None
    check_in: CheckIn
    version: int = 1
    created_by_id: str
    idempotency_key: str | None
    fingerprint: str
    started: Turn | None = None
    ended: End | None = None
    roll_opened_at: datetime | None = None
    roll_closed_at: datetime | None = None
    created_at: datetime
    updated_at: datetime

    @property
    def started_at(self) -> datetime | None:
        """When it actually began."""
        return self.started.at if self.started else None

    @property
    def ended_at(self) -> datetime | None:
        """When it actually ended."""
        return self.ended.at if self.ended else None


class RosterChange(Struct, frozen=True, kw_only=True):
    """What a new roster makes of the old one."""

    added: tuple[Student, ...]
    updated: tuple[Student, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.updated or self.removed)


# Authority


def is_staff(actor: Actor, teacher_ids: Sequence[str]) -> bool:
    """Whether the actor may act on a course with these teachers."""
    return actor.role == "admin" or (actor.role == "teacher" and actor.id in teacher_ids)


def reads_everything(actor: Actor) -> bool:
    """Whether the actor may read every course, roster and session."""
    return actor.role in ("admin", "service")


def check_staff(actor: Actor, teacher_ids: Sequence[str]) -> None:
    """Raise Refused unless the actor may change what belongs to a course with these teachers."""
    if not is_staff(actor, teacher_ids):
        raise Refused("forbidden")


def check_staff_reader(actor: Actor, teacher_ids: Sequence[str]) -> None:
    """Raise Refused unless the actor may read what only staff (and services) may."""
    if not (is_staff(actor, teacher_ids) or reads_everything(actor)):
        raise Refused("forbidden")


def check_reader(actor: Actor, teacher_ids: Sequence[str], *, enrolled: bool) -> None:
    """Raise Refused unless the actor may read a course and its sessions; enrolment decides, not the role."""
    if not enrolled:
        check_staff_reader(actor, teacher_ids)


# Courses


def found_course(course: Course | None) -> Course:
    """Raise Refused when there is no such course."""
    if course is None:
        raise Refused("course_not_found")
    return course


def put_course(course: Course | None, command: PutCourse, now: datetime) -> Course:
    """Decide what becomes of a course, or make one; the same object back when nothing changes.

    A teacher may make a course that lists them, and change one that lists them already.
    """
    check_staff(command.actor, command.teacher_ids if course is None else course.teacher_ids)
    if fault := zone_fault(command.time_zone):
        raise Refused("invalid", details=[fault])
    teacher_ids = tuple(dict.fromkeys(command.teacher_ids))
    if course is None:
        return Course(
            id=command.course_id,
            title=command.title,
            teacher_ids=teacher_ids,
            time_zone=command.time_zone,
            created_at=now,
            updated_at=now,
        )
    check_not_archived(course)
    wanted = replace(course, title=command.title, teacher_ids=teacher_ids, time_zone=command.time_zone)
    return course if wanted == course else replace(wanted, version=course.version + 1, updated_at=now)


def check_not_archived(course: Course) -> None:
    """Raise Refused for a course that has been put away."""
    if course.archived_at is not None:
        raise Refused("conflict", "The course is archived")


def compare_rosters(old: Sequence[Student], new: Sequence[Student]) -> RosterChange:
    """Decide what a new roster adds, updates and removes; raise Refused when it names a student twice."""
    before: Mapping[str, Student] = {student.student_id: student for student in old}
    after: dict[str, Student] = {}
    faults = []
    for student in new:
        if student.student_id in after:
            faults.append({"field": "student_id", "message": f"{student.student_id} is on the roster twice"})
        after[student.student_id] = student
    if faults:
        raise Refused("invalid", details=faults)
    return RosterChange(
        added=tuple(student for id, student in after.items() if id not in before),
        updated=tuple(student for id, student in after.items() if id in before and student != before[id]),
        removed=tuple(id for id in before if id not in after),
    )


# Sessions


def found_session(session: Session | None) -> Session:
    """Raise Refused when there is no such session."""
    if session is None:
        raise Refused("session_not_found")
    return session


def create_session(course: Course, command: CreateSession, now: datetime) -> Session:
    """Schedule a session, in the course's time zone where the command names none.

    Raise Refused with all that is wrong with its times.
    """
    check_staff(command.actor, course.teacher_ids)
    check_not_archived(course)
    time_zone = command.time_zone or course.time_zone
    day, starts_at, ends_at = meeting(command.date, command.start_time, command.end_time, time_zone)
    return Session(
        id=command.session_id,
        course_id=course.id,
        teacher_ids=course.teacher_ids,
        title=command.title,
        description=command.description,
        date=day,
        start_time=command.start_time,
        end_time=command.end_time,
        time_zone=time_zone,
        starts_at=starts_at,
        ends_at=ends_at,
        meeting_link=command.meeting_link,
        check_in=command.check_in,
        created_by_id=command.actor.id,
        idempotency_key=command.idempotency_key,
        fingerprint=command.fingerprint,
        created_at=now,
        updated_at=now,
    )


def created_before(session: Session, command: CreateSession) -> bool:
    """Say whether it was this very command, delivered before, that made the session.

    Else another command with the same key and body did; raise Refused when the body was another one.
    """
    if (session.created_by_id, session.fingerprint) != (command.actor.id, command.fingerprint):
        raise Refused("conflict", "The Idempotency-Key has been used for another request")
    return session.id == command.session_id


def start_session(session: Session, actor: Actor, now: datetime) -> Session:
    """Start a scheduled session; one that is active already comes back as it is."""
    check_staff(actor, session.teacher_ids)
    check_not_over(session)
    if session.status == "active":
        return session
    version = session.version + 1
    started = Turn(at=now, version=version, by=actor.name, by_id=actor.id)
    return replace(session, status="active", version=version, started=started, updated_at=now)


def end_session(session: Session, actor: Actor, now: datetime) -> Session:
    """End an active session; one that has ended already comes back as it is."""
    check_staff(actor, session.teacher_ids)
    if session.status == "completed":
        return session
    check_not_over(session)
    if session.started is None:
        raise Refused("session_not_active")
    # This replica's clock may be behind that of the one that started it.
    at = max(now, session.started.at)
    version = session.version + 1
    ended = End(at=at, version=version, by=actor.name, by_id=actor.id, cause="ended")
    return replace(session, status="completed", version=version, ended=ended, updated_at=at)


def check_not_over(session: Session) -> None:
    """Raise Refused for a session that is completed or cancelled."""
    if session.status == "completed":
        raise Refused("session_completed")
    if session.status == "cancelled":
        raise Refused("session_cancelled")


def explain_no_roll(session: Session | None, command: ExplainNoRoll, *, enrolled: bool) -> Refused:
    """Say what the actor is told about a session without a roll; only who may know its state hears it."""
    if session is None:
        return Refused("session_not_found")
    try:
        if command.for_staff:
            check_staff_reader(command.actor, session.teacher_ids)
        elif not enrolled:
            return Refused("not_enrolled")
        check_not_over(session)
    except Refused as refusal:
        return refusal
    return Refused("session_not_active", retryable=session.status == "active")
