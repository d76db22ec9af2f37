"""How courses and sessions look outside: shapes of the contract, events, and cursors. Pure, like `rules`."""

from collections.abc import Sequence
from datetime import UTC, datetime, time

from msgspec.structs import replace

from session_service.rules import Course, Session
from shared.clock import parse_rfc3339, rfc3339, rfc3339_or_none
from shared.errors import Refused
from shared.messages import Course as CourseView
from shared.messages import (
    CourseChanged,
    Enrolled,
    Event,
    EventData,
    SessionEnded,
    SessionScheduled,
    SessionStarted,
)
from shared.messages import Session as SessionView


def view_course(course: Course) -> CourseView:
    """Show a course as the contract does."""
    return CourseView(
        id=course.id,
        title=course.title,
        teacher_ids=course.teacher_ids,
        time_zone=course.time_zone,
        archived=course.archived_at is not None,
        created_at=rfc3339(course.created_at),
        updated_at=rfc3339(course.updated_at),
    )


def view_session(session: Session) -> SessionView:
    """Show a session as the contract does; `date` is UTC midnight of its day in epoch milliseconds."""
    midnight = datetime.combine(session.date, time(), UTC)
    return SessionView(
        id=session.id,
        course_id=session.course_id,
        title=session.title,
        topic=session.title,
        description=session.description,
        status=session.status,
        date=str(int(midnight.timestamp()) * 1000),
        start_time=session.start_time,
        end_time=session.end_time,
        time_zone=session.time_zone,
        starts_at=rfc3339(session.starts_at),
        ends_at=rfc3339(session.ends_at),
        meeting_link=session.meeting_link,
        teacher_ids=session.teacher_ids,
        check_in=session.check_in,
        started_at=rfc3339_or_none(session.started_at),
        ended_at=rfc3339_or_none(session.ended_at),
        created_at=rfc3339(session.created_at),
        updated_at=rfc3339(session.updated_at),
    )


def course_changed(course: Course) -> Event[EventData]:
    """Tell that a course was made or changed."""
    data = CourseChanged(first_seq=course.version, course=view_course(course))
    return Event(
        id=f"course:{course.id}:{course.version}",
        source=f"/courses/{course.id}",
        time=rfc3339(course.updated_at),
        sequence=course.version,
        data=data,
    )


def session_scheduled(session: Session) -> Event[EventData]:
    """Tell that a session was created."""
    data = SessionScheduled(first_seq=session.version, session=view_session(session))
    return _session_event(session, data, session.created_at)


def session_started(session: Session, roster: Sequence[Enrolled]) -> Event[EventData]:
    """Tell, the first time or again, that a session was started; it is shown active also when it is over."""
    started = session.started
    if started is None:
        raise ValueError(f"{session.id} was never started")
    if session.status == "completed":
        session = replace(session, status="active", ended=None, updated_at=started.at)
    data = SessionStarted(
        first_seq=started.version,
        session=view_session(session),
        roster=tuple(roster),
        started_by=started.by,
        started_by_id=started.by_id,
    )
    return _session_event(session, data, started.at)


def session_ended(session: Session) -> Event[EventData]:
    """Tell, the first time or again, that a session was ended."""
    ended = session.ended
    if ended is None:
        raise ValueError(f"{session.id} has not ended")
    data = SessionEnded(
        first_seq=ended.version,
        session=view_session(session),
        cause=ended.cause,
        ended_by=ended.by,
        ended_by_id=ended.by_id,
    )
    return _session_event(session, data, ended.at)


def unreported(session: Session, roster: Sequence[Enrolled]) -> list[Event[EventData]]:
    """List what the roll has not answered yet, in order: that the session was started, that it has ended."""
    events = []
    if session.started is not None and session.roll_opened_at is None:
        events.append(session_started(session, roster))
    if session.ended is not None and session.roll_closed_at is None:
        events.append(session_ended(session))
    return events


def _session_event(session: Session, data: EventData, at: datetime) -> Event[EventData]:
    return Event(
        id=f"session:{session.id}:{data.first_seq}",
        source=f"/sessions/{session.id}",
        time=rfc3339(at),
        sequence=data.first_seq,
        data=data,
    )


def session_cursor(session: Session) -> str:
    """Name the place after this session in a list of sessions."""
    return f"{rfc3339(session.starts_at)}_{session.id}"


def read_session_cursor(cursor: str | None) -> tuple[datetime, str] | None:
    """Read what `session_cursor` wrote; raise Refused `invalid` for anything else."""
    if cursor is None:
        return None
    at, _, session_id = cursor.partition("_")
    try:
        return parse_rfc3339(at), session_id
    except (ValueError, OverflowError):
        raise Refused("invalid", details=[{"field": "cursor", "message": "Must be a next_cursor"}]) from None
