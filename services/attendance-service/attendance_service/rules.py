"""The rules of the roll, pure: what a roll is, what may change it, and what each change makes of it.

Nothing here does I/O or reads a clock. A rule takes the roll and the record as they stand and returns a `Step`, or raises
`Refused` with a code of the contract.
"""

from datetime import datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace

from shared.clock import parse_rfc3339, rfc3339, rfc3339_or_none
from shared.errors import Refused
from shared.messages import (
    Actor,
    Cause,
    Change,
    ChangeKind,
    Enrolled,
    RollStatus,
    Session,
    Source,
    Statistics,
    Status,
)
from shared.messages import Record as RecordView


class Roll(Struct, frozen=True, kw_only=True):
    """The head of a roll: its state, its change counter and how many records stand where."""

    session: Session
    status: RollStatus
    seq: int
    absent: int
    present: int = 0
    late: int = 0
    excused: int = 0
    opened_at: datetime
    late_at: datetime | None
    closes_at: datetime | None
    cause: Cause | None = None

    @property
    def session_id(self) -> str:
        """The session's id, which is the roll's."""
        return self.session.id


class Record(Struct, frozen=True, kw_only=True):
    """One student's row. `joined_*` is the first join, its number and what it was answered; a later mark leaves them."""

    session_id: str
    student_id: str
    student_name: str
    status: Status = "absent"
    source: Source = "system"
    seq: int
    remarks: str | None = None
    marked_by: str | None = None
    marked_at: datetime | None = None
    joined_at: datetime | None = None
    joined_seq: int | None = None
    joined_status: Status | None = None


class Entry(Struct, frozen=True, kw_only=True):
    """One line of history: what changed, who did it, when and why; numbered by the roll's seq without gaps."""

    session_id: str
    seq: int
    at: datetime
    kind: ChangeKind
    student_id: str | None = None
    before: Status | None = None
    after: Status | None = None
    source: Source
    actor: str
    actor_name: str
    reason: str | None = None
    remarks: str | None = None
    command_id: str | None = None


class Step(Struct, frozen=True):
    """One change: the roll after it, its line of history, and the record it changed (None: it changed the roll itself)."""

    roll: Roll
    entry: Entry
    record: Record | None = None


def open_roll(session: Session, roster: tuple[Enrolled, ...], by: Actor, at: datetime) -> tuple[Step, list[Record]]:
    """Open a roll on which everybody stands absent. Minutes of the check-in count from the session's actual start."""
    started_at = parse_rfc3339(session.started_at) if session.started_at else at
    records = [
        Record(session_id=session.id, student_id=student.student_id, student_name=student.student_name, seq=1)
        for student in roster
    ]
    roll = Roll(
        session=session,
        status="open",
        seq=1,
        absent=len(records),
        opened_at=at,
        late_at=_minutes_after(started_at, session.check_in.late_after_minutes),
        closes_at=_minutes_after(started_at, session.check_in.closes_after_minutes),
    )
    return Step(roll, _roll_entry(roll, "opened", by, at)), records


def join(roll: Roll, record: Record | None, actor: Actor, received_at: datetime, command_id: str) -> Step | Record:
    """Decide what a join makes of the student's record; return the record as it is when they have joined before.

    The first join decides, and a repeat is answered alike even after the close. A join never overwrites a teacher's mark:
    it only notes the time under it. Raise Refused when the roll takes no join from this actor now.
    """
    if actor.role == "service":
        raise Refused("forbidden")
    if record is None:
        raise Refused("not_enrolled")
    if record.joined_at is not None:
        return record
    if roll.status != "open":
        raise Refused(_closed_code(roll))
    at = max(received_at, roll.opened_at)
    if roll.closes_at is not None and at >= roll.closes_at:
        raise Refused("check_in_closed")
    seq = roll.seq + 1
    marked = record.source in ("teacher", "admin")
    status: Status = record.status if marked else admit(roll, at)
    joined = replace(
        record,
        status=status,
        source=record.source if marked else "self",
        seq=seq,
        joined_at=at,
        joined_seq=seq,
        joined_status=status,
    )
    entry = Entry(
        session_id=roll.session_id,
        seq=seq,
        at=at,
        kind="joined",
        student_id=record.student_id,
        before=record.status,
        after=status,
        source="self",
        actor=actor.id,
        actor_name=actor.name,
        command_id=command_id,
    )
    return Step(_moved(replace(roll, seq=seq), record.status, status), entry, joined)


def admit(roll: Roll, at: datetime) -> Status:
    """Decide whether a check-in at this time is present or late."""
    return "late" if roll.late_at is not None and at >= roll.late_at else "present"


def close(roll: Roll, session: Session, cause: Cause, by: Actor, at: datetime) -> Step | None:
    """Close an open roll, keeping the session as it ended; None when it is closed already."""
    if roll.status != "open":
        return None
    closed = replace(roll, session=session, status="closed", seq=roll.seq + 1, cause=cause)
    return Step(closed, _roll_entry(closed, "closed", by, at))


def may_read(roll: Roll, actor: Actor) -> None:
    """Raise Refused unless the actor may see the whole roll: its teachers, admins and services."""
    if actor.role in ("admin", "service"):
        return
    if actor.role != "teacher" or actor.id not in roll.session.teacher_ids:
        raise Refused("forbidden")


def staff(session: Session, user_id: str, name: str) -> Actor:
    """Tell who acted on a session as a whole: one of its teachers, or else an admin, for nobody else may."""
    return Actor(user_id, name, "teacher" if user_id in session.teacher_ids else "admin")


def statistics(roll: Roll) -> Statistics:
    """Count a roll; the excused leave the denominator, and with nobody left to count there is no rate."""
    total = roll.absent + roll.present + roll.late + roll.excused
    counted = total - roll.excused
    return Statistics(
        total_students=total,
        present_count=roll.present,
        absent_count=roll.absent,
        late_count=roll.late,
        excused_count=roll.excused,
        attendance_rate=round(100 * (roll.present + roll.late) / counted, 2) if counted else None,
    )


def view(record: Record) -> RecordView:
    """Show a record as the contract does."""
    return RecordView(
        session_id=record.session_id,
        student_id=record.student_id,
        student_name=record.student_name,
        status=record.status,
        remarks=record.remarks,
        source=record.source,
        marked_by=record.marked_by,
        marked_at=rfc3339_or_none(record.marked_at),
        joined_at=rfc3339_or_none(record.joined_at),
        seq=record.seq,
    )


def change(entry: Entry, student_name: str | None, joined_at: datetime | None) -> Change:
    """Show a line of history as the contract does."""
    return Change(
        seq=entry.seq,
        at=rfc3339(entry.at),
        kind=entry.kind,
        student_id=entry.student_id,
        before=entry.before,
        after=entry.after,
        source=entry.source,
        actor=entry.actor,
        actor_name=entry.actor_name,
        reason=entry.reason,
        remarks=entry.remarks,
        command_id=entry.command_id,
        student_name=student_name,
        joined_at=rfc3339_or_none(joined_at),
    )


def _minutes_after(start: datetime, minutes: int | None) -> datetime | None:
    return None if minutes is None else start + timedelta(minutes=minutes)


def _closed_code(roll: Roll) -> str:
    if roll.status == "submitted":
        return "roll_submitted"
    return "session_cancelled" if roll.cause == "cancelled" else "session_completed"


def _roll_entry(roll: Roll, kind: ChangeKind, by: Actor, at: datetime) -> Entry:
    source: Source = "admin" if by.role == "admin" else "system" if by.role == "service" else "teacher"
    return Entry(session_id=roll.session_id, seq=roll.seq, at=at, kind=kind, source=source, actor=by.id, actor_name=by.name)


def _moved(roll: Roll, before: Status, after: Status) -> Roll:
    """Move one record from one count to another."""
    if before == after:
        return roll
    return replace(roll, **{before: getattr(roll, before) - 1, after: getattr(roll, after) + 1})
