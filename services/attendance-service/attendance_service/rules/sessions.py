"""How a roll follows what changes about its session: its details, its check-in, and the course's roster."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from msgspec.structs import replace

from attendance_service.rules.joins import admit
from attendance_service.rules.lifecycle import timed
from attendance_service.rules.rolls import Record, Roll, Step, changed, source_of
from shared.messages import Actor, Enrolled, Session


def follow(roll: Roll, session: Session, version: int, at: datetime) -> Roll:
    """Take over what newer news say of the session; how its life stands only its starts and ends decide, and the roll.

    Times of the check-in move only while the roll is open.
    """
    if version <= roll.session_version:
        return roll
    known = roll.session
    session = replace(session, status=known.status, started_at=known.started_at, ended_at=known.ended_at)
    roll = replace(roll, session=session, session_version=version)
    if roll.status != "open":
        return roll
    moved = timed(roll)
    later = roll.closes_at is not None and (moved.closes_at is None or moved.closes_at > roll.closes_at)
    return replace(moved, renewed_at=max(at, roll.renewed_at)) if later else moved


def redecide(roll: Roll, records: Iterable[Record], by: Actor, at: datetime) -> list[Step]:
    """Decide anew on all whose own join stands, after the check-in was changed; a step for each whose status changes.

    Marks stay, and so does what the joins were answered.
    """
    steps: list[Step] = []
    for record in records:
        if record.source != "self" or record.joined_at is None:
            continue
        status = admit(roll, record.joined_at)
        if status != record.status:
            decided = replace(record, status=status, seq=roll.seq + 1)
            steps.append(changed(roll, record.status, decided, "redecided", by, at, source=source_of(by)))
            roll = steps[-1].roll
    return steps


def follow_roster(
    roll: Roll, records: Mapping[str, Record], roster: Iterable[Enrolled], version: int, by: Actor, at: datetime
) -> tuple[Roll, list[Step], list[Record]]:
    """Bring an open roll in line with the whole roster: the roll, a step for each who is new, and the records amended.

    Who has left keeps the record, no longer enrolled; who is back is enrolled again; names are the roster's where it has
    them. A roll that is not open only notes that it has heard.
    """
    roll = replace(roll, roster_version=max(version, roll.roster_version))
    steps: list[Step] = []
    amended: list[Record] = []
    if roll.status != "open":
        return roll, steps, amended
    names = {student.student_id: student.student_name for student in roster}
    for record in records.values():
        name = names.get(record.student_id) or record.student_name
        enrolled = record.student_id in names
        if (name, enrolled) != (record.student_name, record.enrolled):
            amended.append(replace(record, student_name=name, enrolled=enrolled))
    for student_id, name in names.items():
        if student_id not in records:
            new = Record(session_id=roll.session_id, student_id=student_id, student_name=name, seq=roll.seq + 1)
            steps.append(changed(roll, None, new, "enrolled", by, at, source=source_of(by)))
            roll = steps[-1].roll
    return roll, steps, amended
