"""What a teacher's or an admin's mark makes of a record, and what taking it away leaves."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from msgspec import UNSET, to_builtins
from msgspec.structs import replace

from attendance_service.rules.authority import may_act
from attendance_service.rules.joins import admit
from attendance_service.rules.rolls import Record, Roll, Step, changed, check_not_refused_before, source_of, view
from shared.errors import Refused
from shared.messages import Actor, ClearMark, Mark, MarkRecord, MarkRecords, Status


def mark(roll: Roll, record: Record | None, command: MarkRecord, at: datetime) -> Step | Record:
    """Decide what a mark makes of a record; return the record as it is when a mark says the same of it already.

    That is looked at before any conflict. A mark of what the student's own join made is a change: it outranks the join.
    Raise Refused when this actor may not mark, or not without a reason, or has not seen the newest record.
    """
    _check_actor(roll, command.actor)
    if record is None:
        raise Refused("not_enrolled")
    if _says_already(record, command.mark):
        return record
    if command.expected_seq is not None and command.expected_seq < record.seq:
        detail = {
            "field": "expected_seq",
            "message": f"The record has changed since: its seq is {record.seq}",
            "attendanceRecord": to_builtins(view(record)),
        }
        raise Refused("conflict", details=[detail])
    _check_reason(roll, command.reason)
    return _marked(roll, record, command.mark, command, at)


def mark_all(roll: Roll, records: Mapping[str, Record], command: MarkRecords, at: datetime) -> list[Step]:
    """Decide what many marks make of the records by student, all or nothing; what is so already takes no step.

    Raise Refused as for one mark, naming in `details` every row that is not on the roll or there twice.
    """
    _check_actor(roll, command.actor)
    _check_rows(records, command.marks)
    steps: list[Step] = []
    for each in command.marks:
        record = records[each.student_id]
        if _says_already(record, each):
            continue
        _check_reason(roll, command.reason)
        steps.append(_marked(roll, record, each, command, at))
        roll = steps[-1].roll
    return steps


def clear(roll: Roll, record: Record | None, command: ClearMark, at: datetime) -> Step | Record:
    """Take a mark away: the record is again what the student's own join makes of it, or absent.

    Return the record as it is when there is no mark on it. Raise Refused as a mark would be.
    """
    by = command.actor
    _check_actor(roll, by)
    if record is None:
        raise Refused("not_enrolled")
    if not record.marked:
        return record
    _check_reason(roll, command.reason)
    check_not_refused_before(roll, command.received_at, redelivered=command.redelivered)
    status: Status = "absent" if record.joined_at is None else admit(roll, record.joined_at)
    cleared = replace(
        record,
        status=status,
        source="system" if record.joined_at is None else "self",
        seq=roll.seq + 1,
        remarks=None,
        marked_by=None,
        marked_at=None,
    )
    return changed(
        roll,
        record.status,
        cleared,
        "cleared",
        by,
        at,
        source=source_of(by),
        reason=command.reason,
        command_id=command.command_id,
    )


def _marked(roll: Roll, record: Record, mark: Mark, command: MarkRecord | MarkRecords, at: datetime) -> Step:
    check_not_refused_before(roll, command.received_at, redelivered=command.redelivered)
    by = command.actor
    source = source_of(by)
    kept = record.remarks if mark.status == record.status else None
    remarks = kept if mark.remarks is UNSET else mark.remarks
    marked = replace(
        record, status=mark.status, source=source, seq=roll.seq + 1, remarks=remarks, marked_by=by.id, marked_at=at
    )
    return changed(
        roll,
        record.status,
        marked,
        "marked",
        by,
        at,
        source=source,
        reason=command.reason,
        remarks=remarks,
        command_id=command.command_id,
    )


def _says_already(record: Record, mark: Mark) -> bool:
    return record.marked and record.status == mark.status and mark.remarks in (UNSET, record.remarks)


def _check_actor(roll: Roll, by: Actor) -> None:
    may_act(roll, by)
    if roll.cause == "cancelled":
        raise Refused("session_cancelled")


def _check_reason(roll: Roll, reason: str | None) -> None:
    if roll.status == "submitted" and not reason:
        raise Refused("reason_required")


def _check_rows(records: Mapping[str, Record], marks: Sequence[Mark]) -> None:
    seen: set[str] = set()
    twice = False
    faults = []
    for number, each in enumerate(marks):
        field = f"attendanceUpdates[{number}].student_id"
        if each.student_id in seen:
            twice = True
            faults.append({"field": field, "message": f"{each.student_id} is named twice"})
        elif each.student_id not in records:
            faults.append({"field": field, "message": f"{each.student_id} is not on this roll"})
        seen.add(each.student_id)
    if faults:
        raise Refused("invalid" if twice else "not_enrolled", details=faults)
