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
RECORD_READ = Record.__struct_fields__
"""The columns of a record as they are read: in the order in which a `Record` takes them, as names would cost more."""


_REST = ("opened_at", *HEAD, *(name for name in DETAILS if name != "session"))
_session = json.Decoder(Session)
_teachers = json.Decoder(tuple[str, ...])


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
ROLL_READ = ("session_id", "session", *HEAD, "opened_at", *(name for name in DETAILS if name != "session"), "teacher_ids")
"""The columns of `READ_ROLL`, in order."""
# Only the records touched. The lookup by key inside LATERAL keeps the plan on the index also before the first ANALYZE.
TOUCHED = f"""SELECT {names(RECORD_READ, "r")} FROM unnest(CAST(:sessions AS text[]), CAST(:students AS text[]))
    AS k (session_id, student_id)
    CROSS JOIN LATERAL (SELECT {names(RECORD_READ)} FROM attendance.records
        WHERE session_id = k.session_id AND student_id = k.student_id LIMIT 1) AS r"""
TOUCHED_RECORDS = text(TOUCHED)
WHOLE_ROLL = text(f"SELECT {names(RECORD_READ)} FROM attendance.records WHERE session_id = :session_id ORDER BY student_id")


def write_records(condition: str = "") -> str:
    """Write the statements that write records and their lines of history.

    An upsert instead of UPDATE … FROM unnest, which falls into a bad plan on freshly filled tables.
    """
    return f"""records AS (
        INSERT INTO attendance.records ({names(RECORD)})
        SELECT {names(RECORD)} FROM unnest(CAST(:records AS attendance.record_row[])) {condition}
        ON CONFLICT (session_id, student_id) DO UPDATE SET
            {", ".join(f"{name} = EXCLUDED.{name}" for name in RECORD if name not in ("session_id", "student_id"))}
    ), history AS (
        INSERT INTO attendance.history ({names(ENTRY)})
        SELECT {names(ENTRY)} FROM unnest(CAST(:entries AS attendance.entry_row[])) {condition}
    )"""


def write_rolls(columns: dict[str, str]) -> str:
    """Write the statement that updates rolls, found by key whatever the planner believes of the array."""
    return f"""UPDATE attendance.rolls AS r SET ({names(columns)}) = (SELECT {names(columns, "u")}
        FROM {unnest({"ids": "text", **columns})} AS u (session_id, {names(columns)}) WHERE u.session_id = r.session_id)
    WHERE session_id = ANY(CAST(:ids AS text[]))"""


def touched(keys: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Write (session id, student id) keys as the parameters of `TOUCHED`."""
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
    """Read a roll from a row that goes by names (SQLAlchemy's mapping, or the driver's).

    Its teachers are its course's where that is known, else those it was opened with.
    """
    session = _session.decode(row["session"])
    if row["teacher_ids"] is not None:
        session = replace(session, teacher_ids=_teachers.decode(row["teacher_ids"]))
    return Roll(session=session, **{name: row[name] for name in _REST})


def read_records(rows: Iterable[Sequence[Any]]) -> list[Record]:
    """Read whole records, whose columns are those of `RECORD_READ`."""
    return [Record(*row) for row in rows]
