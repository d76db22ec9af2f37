"""How a roll is opened, closed, cancelled, submitted and opened again.

All but submitting follows the session: each start or end of it has a version, a roll follows only the newest it has heard
of, and an older one changes nothing.
"""

from datetime import datetime, timedelta

from msgspec.structs import replace

from attendance_service.rules.authority import may_act
from attendance_service.rules.rolls import Record, Roll, Step, check_not_refused_before, turned
from shared.clock import parse_rfc3339, rfc3339
from shared.errors import Refused
from shared.messages import Actor, Cause, Enrolled, Session, SubmitRoll


def open_roll(
    session: Session,
    roster: tuple[Enrolled, ...],
    by: Actor,
    at: datetime,
    *,
    version: int,
    roster_version: int,
) -> tuple[Step, list[Record]]:
    """Open a roll on which everybody stands absent. Minutes of the check-in count from the session's actual start."""
    records = [
        Record(session_id=session.id, student_id=student.student_id, student_name=student.student_name, seq=1)
        for student in roster
    ]
    roll = Roll(
        session=session,
        status="open",
        seq=0,
        absent=len(records),
        opened_at=at,
        renewed_at=at,
        late_at=None,
        closes_at=None,
        session_version=version,
        started_version=version,
        roster_version=roster_version,
    )
    return turned(timed(roll), "opened", by, at), records


def reopen(roll: Roll, version: int, by: Actor, at: datetime, reason: str | None) -> Step | Roll:
    """Open a roll again, as it was; one that is open, or has heard of something newer, takes no step."""
    if version <= roll.turn_version:
        return roll
    session = replace(roll.session, status="active", ended_at=None)
    roll = replace(roll, started_version=version, session=session)
    if roll.status == "open":
        return roll
    return turned(
        timed(replace(roll, status="open", cause=None, renewed_at=max(at, roll.renewed_at))), "reopened", by, at, reason=reason
    )


def close(roll: Roll, session: Session, version: int, cause: Cause, by: Actor, at: datetime) -> Step | Roll:
    """Close a roll whose session has ended; one that is closed, or has heard of something newer, takes no step."""
    if version <= roll.turn_version:
        return roll
    ended = replace(roll.session, status="completed", ended_at=session.ended_at)
    roll = replace(roll, ended_version=version, session=ended)
    if roll.status != "open":
        return roll
    return turned(replace(roll, status="closed", cause=cause), "closed", by, at)


def cancel(roll: Roll, session: Session, version: int, by: Actor, at: datetime) -> Step | Roll:
    """Close a roll for good whose session was cancelled, also one that was submitted meanwhile."""
    if version <= roll.turn_version:
        return roll
    cancelled = replace(roll.session, status="cancelled", ended_at=session.ended_at)
    roll = replace(roll, ended_version=version, session=cancelled)
    if roll.cause == "cancelled":
        return roll
    step = turned(replace(roll, status="closed", cause="cancelled"), "cancelled", by, at)
    return replace(step, closed_before=roll.status != "open")


def submit(roll: Roll, command: SubmitRoll, at: datetime) -> list[Step]:
    """Submit a roll, closing it first where it is open; no steps when it is submitted already.

    Raise Refused for who may not, for a cancelled session, and for what may have been refused before.
    """
    by, command_id = command.actor, command.command_id
    may_act(roll, by)
    if roll.cause == "cancelled":
        raise Refused("session_cancelled")
    if roll.status == "submitted":
        return []
    check_not_refused_before(roll, command.received_at, redelivered=command.redelivered)
    steps: list[Step] = []
    if roll.status == "open":
        # Another replica's clock may have opened it later than this one's says it is.
        at = max(at, roll.opened_at)
        session = replace(roll.session, status="completed", ended_at=rfc3339(at))
        closed = replace(roll, status="closed", cause="submitted", session=session)
        steps.append(turned(closed, "closed", by, at, command_id=command_id))
        roll = steps[0].roll
    steps.append(turned(replace(roll, status="submitted"), "submitted", by, at, command_id=command_id))
    return steps


def timed(roll: Roll) -> Roll:
    """Set when check-in becomes late and when it closes, counted from the session's actual start."""
    start = parse_rfc3339(roll.session.started_at) if roll.session.started_at else roll.opened_at
    check_in = roll.session.check_in
    return replace(
        roll,
        late_at=_minutes_after(start, check_in.late_after_minutes),
        closes_at=_minutes_after(start, check_in.closes_after_minutes),
    )


def _minutes_after(start: datetime, minutes: int | None) -> datetime | None:
    return None if minutes is None else start + timedelta(minutes=minutes)
