"""What is read of rolls without locking anything: everything in one snapshot belongs together."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from attendance_service.rules import Entry, Record, Roll
from attendance_service.store.columns import (
    ENTRY,
    READ_ROLL,
    RECORD,
    TOUCHED_RECORDS,
    WHOLE_ROLL,
    names,
    read_records,
    read_roll,
    touched,
)
from shared.clock import rfc3339
from shared.messages import ActiveSession, StudentSummary

READ_ONE = text(f"SELECT {READ_ROLL} FROM attendance.rolls AS r WHERE session_id = :session_id")
# A page of history, and the records of those it names.
HISTORY = text(
    f"""SELECT {names(ENTRY, "h")}, r.student_name, r.joined_at, r.joined_seq
    FROM attendance.history AS h LEFT JOIN attendance.records AS r USING (session_id, student_id)
    WHERE h.session_id = :session_id AND h.seq > :since ORDER BY h.seq LIMIT :limit"""
)
MILESTONES = text(
    """SELECT seq, body FROM attendance.milestones WHERE session_id = :session_id AND seq > :since AND seq <= :until"""
)
# One student's records, newest session first: session ids are ordered by time.
OWN_RECORDS = text(
    f"""SELECT {READ_ROLL}, {", ".join(f"o.{name} AS own_{name}" for name in RECORD)}
    FROM attendance.records AS o JOIN attendance.rolls AS r USING (session_id)
    WHERE o.student_id = :student_id AND (CAST(:course_id AS text) IS NULL OR r.course_id = CAST(:course_id AS text))
        AND (CAST(:before AS text) IS NULL OR o.session_id < CAST(:before AS text))
    ORDER BY o.session_id DESC LIMIT :limit"""
)
# Joins are in no index by student (see `tables`): their records have their numbers.
OWN_HISTORY = text(
    f"""SELECT {names(ENTRY)} FROM attendance.history
    WHERE session_id = ANY(CAST(:sessions AS text[])) AND student_id = :student_id AND kind <> 'joined'
    UNION ALL SELECT j.* FROM attendance.records AS r CROSS JOIN LATERAL (SELECT {names(ENTRY)} FROM attendance.history
        WHERE session_id = r.session_id AND seq = r.joined_seq LIMIT 1) AS j
    WHERE r.session_id = ANY(CAST(:sessions AS text[])) AND r.student_id = :student_id
    ORDER BY session_id, seq"""
)
ACTIVE = text(
    f"""SELECT {READ_ROLL}, (SELECT count(*) FROM attendance.records AS j
        WHERE j.session_id = r.session_id AND j.joined_at IS NOT NULL) AS joined
    FROM attendance.rolls AS r WHERE r.course_id = :course_id AND r.status = 'open' ORDER BY r.opened_at, r.session_id"""
)
_TAKEN = """SELECT session_id FROM attendance.rolls
    WHERE course_id = :course_id AND status <> 'open' AND cause IS DISTINCT FROM 'cancelled'"""
TAKEN = text(f"SELECT count(*) FROM ({_TAKEN}) AS taken")
# The name is the newest that a roll of the course has for them. OFFSET 0 keeps the plan on the index of each roll's range
# also before the first ANALYZE.
SUMMARY = text(
    f"""SELECT student_id, (array_agg(student_name ORDER BY session_id DESC) FILTER (WHERE student_name <> ''))[1] AS name,
        count(*) FILTER (WHERE status = 'present') AS present, count(*) FILTER (WHERE status = 'absent') AS absent,
        count(*) FILTER (WHERE status = 'late') AS late, count(*) FILTER (WHERE status = 'excused') AS excused
    FROM ({_TAKEN}) AS taken CROSS JOIN LATERAL (SELECT student_id, student_name, status FROM attendance.records
        WHERE session_id = taken.session_id OFFSET 0) AS r
    GROUP BY student_id ORDER BY student_id"""
)
COURSE_VERSIONS = text("SELECT id, version FROM attendance.courses WHERE id = ANY(CAST(:ids AS text[]))")
ROLL_VERSIONS = text(
    "SELECT session_id, session_version, roster_version FROM attendance.rolls WHERE session_id = ANY(CAST(:ids AS text[]))"
)


class Line(NamedTuple):
    """A line of history, with what of its student's record is shown beside it: the name, and the first join."""

    entry: Entry
    student_name: str | None
    joined_at: datetime | None
    joined_seq: int | None


class Versions(NamedTuple):
    """How far things have been heard of: courses by id, and rolls by session with (session, roster)."""

    courses: dict[str, int]
    rolls: dict[str, tuple[int, int]]


class Snapshot:
    """One moment, for as long as its transaction lasts."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._rolls: dict[str, Roll | None] = {}
        self._records: dict[str, list[Record]] = {}
        self._active: dict[str, list[ActiveSession]] = {}
        self._summaries: dict[str, tuple[int, list[StudentSummary]]] = {}

    async def roll(self, session_id: str) -> Roll | None:
        """Read the head of a roll, once however often it is asked for; None when there is none."""
        if session_id not in self._rolls:
            row = (await self._connection.execute(READ_ONE, {"session_id": session_id})).mappings().one_or_none()
            self._rolls[session_id] = None if row is None else read_roll(row)
        return self._rolls[session_id]

    async def records(self, session_id: str) -> list[Record]:
        """Read all records of a roll by student, once however often they are asked for."""
        if session_id not in self._records:
            self._records[session_id] = read_records(await self._connection.execute(WHOLE_ROLL, {"session_id": session_id}))
        return self._records[session_id]

    async def touched(self, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], Record]:
        """Read the records named by (session id, student id); what does not exist is not in it."""
        found = await self._connection.execute(TOUCHED_RECORDS, touched(keys))
        return {(record.session_id, record.student_id): record for record in read_records(found)}

    async def history(self, session_id: str, since: int, limit: int) -> list[Line]:
        """Read a page of a roll's history after `since`, oldest first."""
        found = await self._connection.execute(HISTORY, {"session_id": session_id, "since": since, "limit": limit})
        return [
            Line(Entry(**{name: row[name] for name in ENTRY}), row["student_name"], row["joined_at"], row["joined_seq"])
            for row in found.mappings()
        ]

    async def milestones(self, session_id: str, since: int, until: int) -> dict[int, bytes]:
        """Read the events of the roll itself after `since` and up to `until`, by number, as published."""
        asked = {"session_id": session_id, "since": since, "until": until}
        return {row.seq: bytes(row.body) for row in await self._connection.execute(MILESTONES, asked)}

    async def own_records(
        self, student_id: str, course_id: str | None, before: str | None, limit: int
    ) -> list[tuple[Roll, Record, list[Entry]]]:
        """Read a student's own records, newest session first, with their rolls and all that happened to them."""
        asked = {"student_id": student_id, "course_id": course_id, "before": before, "limit": limit}
        found = (await self._connection.execute(OWN_RECORDS, asked)).all()
        entries: dict[str, list[Entry]] = {row.session_id: [] for row in found}
        theirs = {"student_id": student_id, "sessions": list(entries)}
        for row in (await self._connection.execute(OWN_HISTORY, theirs)).mappings():
            entries[row["session_id"]].append(Entry(**row))
        own = [Record(**{name: row._mapping[f"own_{name}"] for name in RECORD}) for row in found]
        return [(read_roll(row._mapping), record, entries[row.session_id]) for row, record in zip(found, own, strict=True)]

    async def active(self, course_id: str) -> list[ActiveSession]:
        """Read which of a course's rolls are open, oldest first, and how many have joined each; once for all who ask."""
        if course_id not in self._active:
            self._active[course_id] = await self._read_active(course_id)
        return self._active[course_id]

    async def summary(self, course_id: str) -> tuple[int, Sequence[StudentSummary]]:
        """Count a course's taken rolls, and on them where each student stood how often; once for all who ask."""
        if course_id not in self._summaries:
            self._summaries[course_id] = await self._read_summary(course_id)
        return self._summaries[course_id]

    async def _read_active(self, course_id: str) -> list[ActiveSession]:
        found = (await self._connection.execute(ACTIVE, {"course_id": course_id})).all()
        return [
            ActiveSession(
                session_id=roll.session_id,
                title=roll.session.title,
                student_count=row.joined,
                started_at=roll.session.started_at or rfc3339(roll.opened_at),
            )
            for row, roll in ((row, read_roll(row._mapping)) for row in found)
        ]

    async def _read_summary(self, course_id: str) -> tuple[int, list[StudentSummary]]:
        taken = await self._connection.scalar(TAKEN, {"course_id": course_id})
        found = await self._connection.execute(SUMMARY, {"course_id": course_id})
        return taken or 0, [
            StudentSummary(
                student_id=row.student_id,
                student_name=row.name or "",
                present_count=row.present,
                absent_count=row.absent,
                late_count=row.late,
                excused_count=row.excused,
            )
            for row in found
        ]

    async def versions(self, course_ids: Collection[str], session_ids: Collection[str]) -> Versions:
        """Read how far these courses and rolls have been heard of; what is unknown is not in it."""
        courses = await self._connection.execute(COURSE_VERSIONS, {"ids": sorted(set(course_ids))})
        rolls = await self._connection.execute(ROLL_VERSIONS, {"ids": sorted(set(session_ids))})
        return Versions(
            {row.id: row.version for row in courses},
            {row.session_id: (row.session_version, row.roster_version) for row in rolls},
        )
