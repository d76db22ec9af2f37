"""History told again: what a roll's records must be, from "all absent" on, by its lines alone."""

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from attendance_service.rules import Entry, Record
from shared.messages import Source, Status


class Standing(NamedTuple):
    """What a record says that history must be able to tell."""

    status: Status = "absent"
    source: Source = "system"
    seq: int = 1
    remarks: str | None = None
    marked_by: str | None = None
    marked_at: datetime | None = None
    joined_at: datetime | None = None


def standing(record: Record) -> Standing:
    """The same of a record."""
    return Standing(
        record.status,
        record.source,
        record.seq,
        record.remarks,
        record.marked_by,
        record.marked_at,
        record.joined_at,
    )


def replayed(entries: Iterable[Entry], at_the_opening: Iterable[str]) -> dict[str, Standing]:
    """Replay history over those who were on the roll when it opened; a line that contradicts those before it is an error."""
    told = {student: Standing() for student in at_the_opening}
    for entry in entries:
        if entry.student_id is None:
            continue
        was = told.get(entry.student_id)
        assert entry.before == (was.status if was is not None else None), entry
        assert entry.after is not None
        now = (was or Standing())._replace(status=entry.after, seq=entry.seq)
        match entry.kind:
            case "joined":
                marked = now.source in ("teacher", "admin")
                now = now._replace(joined_at=entry.at, source=now.source if marked else "self")
            case "marked":
                now = now._replace(source=entry.source, remarks=entry.remarks, marked_by=entry.actor, marked_at=entry.at)
            case "cleared":
                source: Source = "system" if now.joined_at is None else "self"
                now = now._replace(source=source, remarks=None, marked_by=None, marked_at=None)
            case "redecided":
                assert now.source == "self", entry
            case kind:
                assert kind == "enrolled", entry
        told[entry.student_id] = now
    return told
