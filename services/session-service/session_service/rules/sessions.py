"""The rules of sessions as things on a timetable: scheduling one, changing it, explaining it. Pure."""

from datetime import date, datetime
from typing import Any

from msgspec import UNSET, Struct
from msgspec.structs import replace

from session_service.rules.authority import check_staff, check_staff_reader
from session_service.rules.courses import Course, check_not_archived
from session_service.timetable import meeting
from shared.errors import Refused
from shared.messages import Cause, ChangeSession, CheckIn, CreateSession, ExplainNoRoll, News, SessionStatus


class Turn(Struct, frozen=True, kw_only=True):
    """When a session was started, reopened or ended, by whom, and the version that this made."""

    at: datetime
    version: int
    by: str
    by_id: str


class Reopening(Turn, frozen=True, kw_only=True):
    """Why a session was opened again."""

    reason: str


class End(Turn, frozen=True, kw_only=True):
    """How a session ended; one that was cancelled has an end too, also when it never began."""

    cause: Cause


class Session(Struct, frozen=True, kw_only=True):
    """A session as stored, with its course's teachers; `version` counts changes and numbers events.

    Of each kind of turn it keeps the last. `roll_version` is the newest version of it that its roll has reported; 0: none.
    """

    id: str
    course_id: str
    teacher_ids: tuple[str, ...]
    course_version: int
    """The version at which the course had these teachers."""
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
    reopened: Reopening | None = None
    ended: End | None = None
    roll_version: int = 0
    created_at: datetime
    updated_at: datetime

    @property
    def started_at(self) -> datetime | None:
        """When it actually began, the first time."""
        return self.started.at if self.started else None

    @property
    def ended_at(self) -> datetime | None:
        """When it actually ended; None while it has not begun, or goes on again."""
        over = self.status in ("completed", "cancelled")
        return self.ended.at if over and self.started and self.ended else None

    @property
    def last_turn(self) -> Turn | None:
        """The newest of its turns."""
        turns = (turn for turn in (self.started, self.reopened, self.ended) if turn)
        return max(turns, key=lambda turn: turn.version, default=None)

    @property
    def turn_version(self) -> int:
        """The version of its newest turn, which its roll is to report; 0 while there is no roll."""
        return self.last_turn.version if self.started and self.last_turn else 0


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
        course_version=course.version,
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


def created_before(session: Session, command: CreateSession) -> None:
    """Raise Refused when the session with this command's id or key was made from another body."""
    if (session.created_by_id, session.fingerprint) != (command.actor.id, command.fingerprint):
        raise Refused("conflict", "The Idempotency-Key has been used for another request")


def change_session(session: Session, command: ChangeSession, now: datetime) -> Session:
    """Change a session that is not over; the same object back when nothing changes.

    Raise Refused with all that is wrong with its times, which are read anew as soon as one of them is given.
    """
    check_staff(command.actor, session.teacher_ids)
    check_not_over(session)
    given = _given(command, "title", "description", "start_time", "end_time", "time_zone", "meeting_link")
    wanted = replace(session, **given)
    if command.check_in is not UNSET:
        patch = _given(command.check_in, *command.check_in.__struct_fields__)
        wanted = replace(wanted, check_in=replace(session.check_in, **patch))
    if command.date is not UNSET or not given.keys().isdisjoint(("start_time", "end_time", "time_zone")):
        day = session.date.isoformat() if command.date is UNSET else command.date
        on, starts_at, ends_at = meeting(day, wanted.start_time, wanted.end_time, wanted.time_zone)
        wanted = replace(wanted, date=on, starts_at=starts_at, ends_at=ends_at)
    return session if wanted == session else replace(wanted, version=session.version + 1, updated_at=now)


def _given(said: Struct, *names: str) -> dict[str, Any]:
    """Tell what was said of these fields; what was left out is not in it."""
    return {name: value for name in names if (value := getattr(said, name)) is not UNSET}


def with_new_roster(session: Session, now: datetime) -> Session:
    """Count a change of the course's roster as one of a session that is active."""
    return replace(session, version=session.version + 1, updated_at=now)


def check_not_over(session: Session) -> None:
    """Raise Refused for a session that is completed or cancelled."""
    if session.status == "completed":
        raise Refused("session_completed")
    if session.status == "cancelled":
        raise Refused("session_cancelled")


def session_news(session: Session) -> News:
    """Tell what attendance-service must have heard of a session: nothing, unless it has a roll that takes changes."""
    followed = session.started is not None and session.status in ("active", "cancelled")
    return News(course_id=session.course_id, session_versions={session.id: session.version} if followed else {})


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
