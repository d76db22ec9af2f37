"""What a student's own join makes of their record."""

from datetime import datetime

from msgspec.structs import replace

from attendance_service.rules.rolls import Record, Roll, Step, changed, check_not_refused_before
from shared.errors import Refused
from shared.messages import Actor, Status


def join(
    roll: Roll,
    record: Record | None,
    actor: Actor,
    received_at: datetime,
    command_id: str,
    *,
    redelivered: bool = False,
) -> Step | Record:
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
    if not record.enrolled:
        raise Refused("not_enrolled")
    if roll.status != "open":
        raise Refused(_closed_code(roll))
    at = max(received_at, roll.opened_at)
    if roll.closes_at is not None and at >= roll.closes_at:
        raise Refused("check_in_closed")
    check_not_refused_before(roll, received_at, redelivered=redelivered)
    seq = roll.seq + 1
    marked = record.marked
    status: Status = record.status if marked else admit(roll, at)
    joined = replace(
        record,
        student_name=record.student_name or actor.name,
        status=status,
        source=record.source if marked else "self",
        seq=seq,
        joined_at=at,
        joined_seq=seq,
        joined_status=status,
    )
    return changed(roll, record.status, joined, "joined", actor, at, source="self", command_id=command_id)


def admit(roll: Roll, at: datetime) -> Status:
    """Decide whether a check-in at this time is present or late."""
    return "late" if roll.late_at is not None and at >= roll.late_at else "present"


def _closed_code(roll: Roll) -> str:
    if roll.status == "submitted":
        return "roll_submitted"
    return "session_cancelled" if roll.cause == "cancelled" else "session_completed"
