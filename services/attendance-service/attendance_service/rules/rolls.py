"""What a roll is: its head, its records and its history, how one change makes the next state, and how they are shown."""

from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from shared.clock import UNSEEN, rfc3339, rfc3339_or_none
from shared.errors import Refused
from shared.messages import Actor, Cause, Change, ChangeKind, RollStatus, Session, Source, Statistics, Status
from shared.messages import Record as RecordView


class Roll(Struct, frozen=True, kw_only=True):
    """The head of a roll: its state, its change counter and how many records stand where.

    The versions say how far it has heard of its session: of anything at all, of its starts and reopenings, of its ends
    and its cancelling, and of the course's roster.
    """

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
    session_version: int
    started_version: int
    ended_version: int = 0
    roster_version: int
    renewed_at: datetime
    """When it last began to take what it had refused before: it was opened, again perhaps, or check-in closes later."""

    @property
    def session_id(self) -> str:
        """The session's id, which is the roll's."""
        return self.session.id

    @property
    def turn_version(self) -> int:
        """The version of the newest start or end of the session that the roll has followed."""
        return max(self.started_version, self.ended_version)


class Record(Struct, frozen=True):
    """One student's row. `joined_*` is the first join, its number and what it was answered; a later mark leaves them.

    Who has left the course keeps the record, no longer `enrolled`; that is no change of the roll.
    """

    session_id: str
    student_id: str
    student_name: str
    seq: int
    status: Status = "absent"
    source: Source = "system"
    remarks: str | None = None
    marked_by: str | None = None
    marked_at: datetime | None = None
    joined_at: datetime | None = None
    joined_seq: int | None = None
    joined_status: Status | None = None
    enrolled: bool = True

    @property
    def marked(self) -> bool:
        """Whether it is a mark that says how the student stands: nothing but another mark overrules it."""
        return self.source in ("teacher", "admin")


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
    closed_before: bool = False
    """It gave a roll that was closed another cause."""


def check_not_refused_before(roll: Roll, received_at: datetime, *, redelivered: bool) -> None:
    """Raise Refused, to be sent again, for what comes once more and was first asked before the renewal of the roll was seen.

    It may have been refused then: what was answered "no" must stay undone (docs/decisions/0011). Before the first opening is
    seen nobody is refused for good, for session-service knows by then that the session is on.
    """
    seen_at = roll.renewed_at if roll.renewed_at == roll.opened_at else roll.renewed_at + UNSEEN
    if redelivered and received_at < seen_at:
        raise Refused("timeout")


def turned(
    roll: Roll, kind: ChangeKind, by: Actor, at: datetime, *, reason: str | None = None, command_id: str | None = None
) -> Step:
    """Make the step by which the roll itself becomes `roll`, which still has the number before."""
    roll = replace(roll, seq=roll.seq + 1)
    entry = Entry(
        session_id=roll.session_id,
        seq=roll.seq,
        at=at,
        kind=kind,
        source=source_of(by),
        actor=by.id,
        actor_name=by.name,
        reason=reason,
        command_id=command_id,
    )
    return Step(roll, entry)


def changed(
    roll: Roll,
    before: Status | None,
    record: Record,
    kind: ChangeKind,
    by: Actor,
    at: datetime,
    *,
    source: Source,
    reason: str | None = None,
    remarks: str | None = None,
    command_id: str | None = None,
) -> Step:
    """Make the step by which a record becomes `record`, numbered already; `before` is None for one that is new."""
    entry = Entry(
        session_id=record.session_id,
        seq=record.seq,
        at=at,
        kind=kind,
        student_id=record.student_id,
        before=before,
        after=record.status,
        source=source,
        actor=by.id,
        actor_name=by.name,
        reason=reason,
        remarks=remarks,
        command_id=command_id,
    )
    return Step(_moved(roll, record.seq, before, record.status), entry, record)


def source_of(by: Actor) -> Source:
    """Tell what kind of person acted on a roll; a service only ever acts for nobody."""
    return "admin" if by.role == "admin" else "system" if by.role == "service" else "teacher"


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


def change(entry: Entry, student_name: str | None, joined_at: datetime | None, joined_seq: int | None) -> Change:
    """Show a line of history as the contract does, with the student's name, and their first join unless it came later."""
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
        joined_at=rfc3339_or_none(joined_at) if joined_seq is not None and joined_seq <= entry.seq else None,
    )


def _moved(roll: Roll, seq: int, before: Status | None, after: Status) -> Roll:
    """Take a number, and move one record from one count to another."""
    if before == after:
        return replace(roll, seq=seq)
    counts = {"seq": seq, after: getattr(roll, after) + 1}
    if before is not None:
        counts[before] = getattr(roll, before) - 1
    return replace(roll, **counts)
