"""The rules of a session's life: started, ended, reopened, cancelled; by hand, with its roll, or by the clock. Pure.

Every turn takes one version, and is never before the turn that it follows, though clocks differ. What is so already
comes back as it is.
"""

from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from session_service.rules.authority import check_staff
from session_service.rules.sessions import End, Reopening, Session, Turn, check_not_over
from shared.clock import UNSEEN, parse_rfc3339
from shared.errors import Refused
from shared.messages import Actor, Cause, RollClosed, SessionCommand

SYSTEM: Final = Actor("system", "Rollcall", "service")
"""Who ends what nobody ended."""


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
    return _ended(session, "ended", actor, now)


def end_by_submission(session: Session, closed: RollClosed) -> Session:
    """End an active session whose roll was submitted, when and by whom the roll says.

    Nothing more is awaited of the roll. A roll that has not heard of the newest turn yet speaks of one before it.
    """
    if session.status != "active" or closed.session_version < session.turn_version:
        return session
    by = Actor(closed.ended_by_id, closed.ended_by, "teacher")
    ended = _ended(session, "submitted", by, parse_rfc3339(closed.ended_at))
    return replace(ended, roll_version=ended.version)


def end_automatically(session: Session, grace: timedelta, now: datetime) -> Session:
    """End an active session whose time is over; every other comes back as it is."""
    if session.status != "active" or now < closing_time(session, grace):
        return session
    return _ended(session, "automatic", SYSTEM, now)


def closing_time(session: Session, grace: timedelta) -> datetime:
    """Tell when an active session ends by itself: `grace` after its planned end, but not before it has had its planned
    length since it was started, or last reopened.
    """
    opened = [turn.at for turn in (session.started, session.reopened) if turn]
    return max(session.ends_at + grace, max(opened) + (session.ends_at - session.starts_at))


def reopen_session(session: Session, actor: Actor, reason: str, now: datetime) -> Session:
    """Take an end, or a submission that has not arrived here yet, back: the session is active, one version on."""
    check_staff(actor, session.teacher_ids)
    if session.status == "cancelled":
        raise Refused("session_cancelled")
    if session.status == "scheduled":
        raise Refused("session_not_active")
    at, version = _not_before_last_turn(session, now), session.version + 1
    reopened = Reopening(at=at, version=version, by=actor.name, by_id=actor.id, reason=reason)
    return replace(session, status="active", version=version, reopened=reopened, updated_at=at)


def cancel_session(session: Session, actor: Actor, now: datetime) -> Session:
    """Cancel a session that is scheduled or active; one that is cancelled already comes back as it is."""
    check_staff(actor, session.teacher_ids)
    if session.status == "cancelled":
        return session
    check_not_over(session)
    return _ended(session, "cancelled", actor, now)


def done_before(kind: str | None, command: SessionCommand) -> bool:
    """Say whether this command was done before, given the kind of the one done under its id; raise Refused for another."""
    if kind is not None and kind != type(command).__name__:
        raise Refused("conflict", "The command_id has been used for another command")
    return kind is not None


def check_not_refused_before(session: Session, command: SessionCommand) -> None:
    """Raise Refused, to be sent again, for what comes once more and was first asked before the session's last turn was seen.

    It may have been refused then: what was answered "no" must stay undone (docs/decisions/0011).
    """
    if command.redelivered and session.last_turn and command.received_at < session.last_turn.at + UNSEEN:
        raise Refused("timeout")


def _ended(session: Session, cause: Cause, by: Actor, now: datetime) -> Session:
    at, version = _not_before_last_turn(session, now), session.version + 1
    ended = End(at=at, version=version, by=by.name, by_id=by.id, cause=cause)
    status = "cancelled" if cause == "cancelled" else "completed"
    return replace(session, status=status, version=version, ended=ended, updated_at=at)


def _not_before_last_turn(session: Session, now: datetime) -> datetime:
    """The time of a turn: this replica's clock may be behind that of the one that took the turn before."""
    return max(now, session.last_turn.at) if session.last_turn else now
