"""How courses and sessions look outside: shapes of the contract, events, and cursors. Pure, like `rules`."""

from collections.abc import Sequence
from datetime import UTC, datetime, time

from msgspec.structs import replace

from session_service.rules import Course, Roster, Session, Turn
from shared.clock import parse_rfc3339, rfc3339, rfc3339_or_none
from shared.errors import Refused
from shared.messages import (
    Actor,
    CourseChanged,
    Event,
    EventData,
    SessionCancelled,
    SessionChanged,
    SessionEnded,
    SessionScheduled,
    SessionStarted,
    SessionStatus,
)
from shared.messages import Course as CourseView
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


def session_changed(session: Session, by: Actor, roster: Roster | None = None, removed: Sequence[str] = ()) -> Event[EventData]:
    """Tell that a session was changed, or with a `roster` that its course's roster was, while it is active."""
    data = SessionChanged(
        first_seq=session.version,
        session=view_session(session),
        roster=None if roster is None else roster.students,
        roster_version=0 if roster is None else roster.version,
        turn_version=session.turn_version,
        removed=tuple(removed),
        changed_by=by.name,
        changed_by_id=by.id,
    )
    return _session_event(session, data, session.updated_at)


def session_started(session: Session, roster: Roster) -> Event[EventData]:
    """Tell, the first time or again, that a session was started; it is shown active also when it is over."""
    if session.started is None:
        raise ValueError(f"{session.id} was never started")
    return _opened(session, session.started, roster, None)


def session_reopened(session: Session, roster: Roster) -> Event[EventData]:
    """Tell, the first time or again, that a session was opened again, and why; it is shown active also when it is over."""
    if session.reopened is None:
        raise ValueError(f"{session.id} was never reopened")
    return _opened(session, session.reopened, roster, session.reopened.reason)


def session_ended(session: Session) -> Event[EventData]:
    """Tell, the first time or again, that a session was ended; it is shown completed also when it goes on again."""
    ended = session.ended
    if ended is None or ended.cause == "cancelled":
        raise ValueError(f"{session.id} has not ended")
    data = SessionEnded(
        first_seq=ended.version,
        session=view_session(_as_of(session, ended, "completed")),
        cause=ended.cause,
        ended_by=ended.by,
        ended_by_id=ended.by_id,
    )
    return _session_event(session, data, ended.at)


def session_cancelled(session: Session) -> Event[EventData]:
    """Tell, the first time or again, that a session was cancelled."""
    ended = session.ended
    if ended is None or ended.cause != "cancelled":
        raise ValueError(f"{session.id} was not cancelled")
    data = SessionCancelled(
        first_seq=ended.version,
        session=view_session(session),
        cancelled_by=ended.by,
        cancelled_by_id=ended.by_id,
    )
    return _session_event(session, data, ended.at)


def last_turn(session: Session, roster: Roster) -> Event[EventData]:
    """Tell again what became of a session last; the `roster` is for one that is active."""
    if session.last_turn is session.started:
        return session_started(session, roster)
    if session.last_turn is session.reopened:
        return session_reopened(session, roster)
    return session_cancelled(session) if session.status == "cancelled" else session_ended(session)


def unreported(session: Session, roster: Roster) -> list[Event[EventData]]:
    """List what the roll has not reported yet, in order: the start, where there is no roll, and the newest turn.

    What lies between them the newest turn has overtaken.
    """
    if session.turn_version <= session.roll_version:
        return []
    newest = last_turn(session, roster)
    if session.roll_version or session.last_turn is session.started:
        return [newest]
    return [session_started(session, roster), newest]


def _opened(session: Session, turn: Turn, roster: Roster, reason: str | None) -> Event[EventData]:
    data = SessionStarted(
        first_seq=turn.version,
        session=view_session(_as_of(session, turn, "active")),
        roster=roster.students,
        roster_version=roster.version,
        course_version=session.course_version,
        started_by=turn.by,
        started_by_id=turn.by_id,
        reason=reason,
    )
    return _session_event(session, data, turn.at)


def _as_of(session: Session, turn: Turn, status: SessionStatus) -> Session:
    return replace(session, status=status, updated_at=turn.at)


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
