"""How rolls, records and lines of history lie in their tables, and how many of them travel in one array statement."""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from msgspec import json
from msgspec.structs import replace
from sqlalchemy import text

from attendance_service.rules import Entry, Record, Roll
from shared.messages import Session

HEAD = {
    "status": "text",
    "seq": "bigint",
    "absent": "int",
    "present": "int",
    "late": "int",
    "excused": "int",
    "cause": "text",
}
"""What of a roll most commits change."""
DETAILS = {
    "session": "jsonb",
    "late_at": "timestamptz",
    "closes_at": "timestamptz",
    "session_version": "bigint",
    "started_version": "bigint",
    "ended_version": "bigint",
    "roster_version": "bigint",
    "renewed_at": "timestamptz",
}
"""What of a roll changes with its session only."""
RECORD = {
    "session_id": "text",
    "student_id": "text",
    "student_name": "text",
    "status": "text",
    "source": "text",
    "seq": "bigint",
    "remarks": "text",
    "marked_by": "text",
    "marked_at": "timestamptz",
    "joined_at": "timestamptz",
    "joined_seq": "bigint",
    "joined_status": "text",
    "enrolled": "boolean",
}
ENTRY = {
    "session_id": "text",
    "seq": "bigint",
    "at": "timestamptz",
    "kind": "text",
    "student_id": "text",
    "before": "text",
    "after": "text",
    "source": "text",
    "actor": "text",
    "actor_name": "text",
    "reason": "text",
    "remarks": "text",
    "command_id": "text",
}


RECORD_ROW, ENTRY_ROW = attrgetter(*RECORD), attrgetter(*ENTRY)
"""Write a record or a line of history as the types `record_row` and `entry_row` have it: the columns above, in order."""


def names(columns: Sequence[str] | dict[str, str], table: str = "") -> str:
    """List columns, of a table where one is named."""
    return ", ".join(f"{table}.{name}" if table else name for name in columns)


def unnest(columns: dict[str, str]) -> str:
    """Write the function that turns one array parameter for each column into rows."""
    return f"unnest({', '.join(f'CAST(:{name} AS {kind}[])' for name, kind in columns.items())})"


# The teachers are the course's now: looked up by key, which leaves plans and locks of the rolls as they are.
READ_ROLL = f"""r.session_id, CAST(r.session AS text) AS session, {", ".join(f"r.{name}" for name in HEAD)}, r.opened_at,
    {", ".join(f"r.{name}" for name in DETAILS if name != "session")},
    (SELECT CAST(c.teacher_ids AS text) FROM attendance.courses AS c WHERE c.id = r.course_id) AS teacher_ids"""
# Only the records touched. The lookup by key inside LATERAL keeps the plan on the index also before the first ANALYZE.
TOUCHED_RECORDS = text(
    f"""SELECT r.* FROM unnest(CAST(:sessions AS text[]), CAST(:students AS text[])) AS k (session_id, student_id)
    CROSS JOIN LATERAL (SELECT {names(RECORD)} FROM attendance.records
        WHERE session_id = k.session_id AND student_id = k.student_id LIMIT 1) AS r"""
)
WHOLE_ROLL = text(f"SELECT {names(RECORD)} FROM attendance.records WHERE session_id = :session_id ORDER BY student_id")


def touched(keys: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Write (session id, student id) keys as the parameters of `TOUCHED_RECORDS`."""
    ordered = sorted(keys)
    return {"sessions": [session_id for session_id, _ in ordered], "students": [student_id for _, student_id in ordered]}


def arrays(names: Iterable[str], rows: Iterable[Record | Entry | Roll]) -> dict[str, list[Any]]:
    """Turn rows into one list for each column."""
    table = tuple(rows)
    return {name: [getattr(row, name) for row in table] for name in names}


def details(roll: Roll) -> dict[str, Any]:
    """Write what changes with the session only; the session as JSON."""
    return {name: getattr(roll, name) for name in DETAILS} | {"session": json.encode(roll.session).decode()}


def read_roll(row: Any) -> Roll:
    """Read a roll, with its course's teachers where the course is known, else with those it was opened with."""
    session = json.decode(row.session, type=Session)
    if row.teacher_ids is not None:
        session = replace(session, teacher_ids=json.decode(row.teacher_ids, type=tuple[str, ...]))
    columns = row._mapping
    rest = {name: columns[name] for name in (*HEAD, *DETAILS) if name != "session"}
    return Roll(session=session, opened_at=row.opened_at, **rest)


def read_records(rows: Any) -> list[Record]:
    """Read whole records, whose columns are those of `RECORD`."""
    # A mapping of SQLAlchemy's for each row costs twice as much.
    return [Record(**dict(zip(RECORD, row, strict=True))) for row in rows]
