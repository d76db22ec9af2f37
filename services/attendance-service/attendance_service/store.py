"""All SQL of attendance-service: rolls, records, history. The store owns the transaction, the rules own the decision.

A unit of work locks the rolls it is about, loads only the records touched, collects the steps that the rules decide, and
writes them in array statements: the number of round trips does not grow with the batch.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from msgspec import json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from attendance_service.rules import Entry, Record, Roll, Step
from shared.database import transaction
from shared.messages import Session
from shared.outbox import Outbox, OutboxRow

_ROLL = """session_id, CAST(session AS text) AS session, status, seq, absent, present, late, excused,
    opened_at, late_at, closes_at, cause"""
_RECORD_COLUMNS = {
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
}
_ENTRY_COLUMNS = {
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
_RECORD = ", ".join(_RECORD_COLUMNS)
_ENTRY = ", ".join(_ENTRY_COLUMNS)


def _unnest(columns: dict[str, str]) -> str:
    return f"unnest({', '.join(f'CAST(:{name} AS {kind}[])' for name, kind in columns.items())})"


# The rolls of a batch, in one order for every replica, so that two never wait for each other in a circle.
_LOCK_ROLLS = text(
    f"SELECT {_ROLL} FROM attendance.rolls WHERE session_id = ANY(CAST(:ids AS text[])) ORDER BY session_id FOR NO KEY UPDATE"
)
# Only the records touched. The lookup by key inside LATERAL keeps the plan on the index also before the first ANALYZE.
_TOUCHED_RECORDS = text(
    f"""SELECT r.* FROM unnest(CAST(:sessions AS text[]), CAST(:students AS text[])) AS k (session_id, student_id)
    CROSS JOIN LATERAL (SELECT {_RECORD} FROM attendance.records
        WHERE session_id = k.session_id AND student_id = k.student_id LIMIT 1) AS r"""
)
# An upsert instead of UPDATE … FROM unnest, which falls into a bad plan on freshly filled tables.
_WRITE_RECORDS = text(
    f"""INSERT INTO attendance.records ({_RECORD}) SELECT * FROM {_unnest(_RECORD_COLUMNS)}
    ON CONFLICT (session_id, student_id) DO UPDATE SET status = EXCLUDED.status, source = EXCLUDED.source,
        seq = EXCLUDED.seq, remarks = EXCLUDED.remarks, marked_by = EXCLUDED.marked_by, marked_at = EXCLUDED.marked_at,
        joined_at = EXCLUDED.joined_at, joined_seq = EXCLUDED.joined_seq, joined_status = EXCLUDED.joined_status"""
)
_WRITE_HISTORY = text(f"INSERT INTO attendance.history ({_ENTRY}) SELECT * FROM {_unnest(_ENTRY_COLUMNS)}")
# The heads of the changed rolls, found by key whatever the planner believes of the array. The session and the closing event
# change rarely and are written on their own.
_WRITE_ROLLS = text(
    """UPDATE attendance.rolls AS r SET (status, seq, absent, present, late, excused, cause) =
        (SELECT u.status, u.seq, u.absent, u.present, u.late, u.excused, u.cause
        FROM unnest(CAST(:ids AS text[]), CAST(:status AS text[]), CAST(:seq AS bigint[]), CAST(:absent AS int[]),
            CAST(:present AS int[]), CAST(:late AS int[]), CAST(:excused AS int[]), CAST(:cause AS text[]))
        AS u (session_id, status, seq, absent, present, late, excused, cause) WHERE u.session_id = r.session_id)
    WHERE session_id = ANY(CAST(:ids AS text[]))"""
)
# A new roll; nothing when another replica has opened it, even in a transaction that is just committing.
_OPEN_ROLL = text(
    """INSERT INTO attendance.rolls (session_id, course_id, session, status, seq, absent, present, late, excused,
        opened_at, late_at, closes_at, opening)
    VALUES (:session_id, :course_id, CAST(:session AS jsonb), :status, :seq, :absent, 0, 0, 0,
        :opened_at, :late_at, :closes_at, :opening)
    ON CONFLICT (session_id) DO NOTHING RETURNING session_id"""
)
_KEEP_CLOSING = text(
    "UPDATE attendance.rolls SET session = CAST(:session AS jsonb), closing = :closing WHERE session_id = :session_id"
)
# The events that opened and closed a roll, as published.
_PUBLISHED = text("SELECT opening, closing FROM attendance.rolls WHERE session_id = :session_id")
_READ_ROLL = text(f"SELECT {_ROLL} FROM attendance.rolls WHERE session_id = :session_id")
_READ_RECORDS = text(f"SELECT {_RECORD} FROM attendance.records WHERE session_id = :session_id ORDER BY student_id")
# A page of history with each student's name and first join.
_READ_HISTORY = text(
    f"""SELECT {", ".join(f"h.{name}" for name in _ENTRY_COLUMNS)}, r.student_name, r.joined_at
    FROM attendance.history AS h LEFT JOIN attendance.records AS r USING (session_id, student_id)
    WHERE h.session_id = :session_id AND h.seq > :since ORDER BY h.seq LIMIT :limit"""
)


class Unit:
    """One transaction's work: the locked rolls, the records loaded, and the steps taken so far."""

    def __init__(self, connection: AsyncConnection, rolls: Iterable[Roll], records: Iterable[Record]) -> None:
        self._connection = connection
        self.rolls = {roll.session_id: roll for roll in rolls}
        self.records = {(record.session_id, record.student_id): record for record in records}
        self.steps: list[Step] = []
        self.events: list[OutboxRow] = []
        """What leaves with this commit."""

    def take(self, step: Step) -> None:
        """Take a step: later decisions in this unit see it, and it is written at the end."""
        self.rolls[step.roll.session_id] = step.roll
        if step.record is not None:
            self.records[step.record.session_id, step.record.student_id] = step.record
        self.steps.append(step)

    async def open(self, step: Step, records: Sequence[Record], opening: bytes) -> bool:
        """Write a new roll; False, and nothing written, when it has been opened before."""
        roll = step.roll
        opened = await self._connection.scalar(
            _OPEN_ROLL,
            {
                "session_id": roll.session_id,
                "course_id": roll.session.course_id,
                "session": json.encode(roll.session).decode(),
                "status": roll.status,
                "seq": roll.seq,
                "absent": roll.absent,
                "opened_at": roll.opened_at,
                "late_at": roll.late_at,
                "closes_at": roll.closes_at,
                "opening": opening,
            },
        )
        if opened is None:
            return False
        await self._connection.execute(_WRITE_RECORDS, _columns(_RECORD_COLUMNS, records))
        await self._connection.execute(_WRITE_HISTORY, _columns(_ENTRY_COLUMNS, [step.entry]))
        return True

    async def keep_closing(self, roll: Roll, closing: bytes) -> None:
        """Keep the event that tells of the close, and the session as it ended."""
        await self._connection.execute(
            _KEEP_CLOSING,
            {"session": json.encode(roll.session).decode(), "closing": closing, "session_id": roll.session_id},
        )

    async def published(self, session_id: str) -> tuple[bytes, bytes | None]:
        """Read the events that opened and closed this roll, as published."""
        row = (await self._connection.execute(_PUBLISHED, {"session_id": session_id})).one()
        return bytes(row.opening), None if row.closing is None else bytes(row.closing)

    async def _write(self) -> None:
        if not self.steps:
            return
        changed = {
            (step.record.session_id, step.record.student_id): step.record for step in self.steps if step.record is not None
        }
        rolls = {step.roll.session_id: step.roll for step in self.steps}.values()
        if changed:
            await self._connection.execute(_WRITE_RECORDS, _columns(_RECORD_COLUMNS, changed.values()))
        await self._connection.execute(_WRITE_HISTORY, _columns(_ENTRY_COLUMNS, [step.entry for step in self.steps]))
        await self._connection.execute(
            _WRITE_ROLLS,
            {
                "ids": [roll.session_id for roll in rolls],
                **{
                    name: [getattr(roll, name) for roll in rolls]
                    for name in ("status", "seq", "absent", "present", "late", "excused", "cause")
                },
            },
        )


class RollStore:
    """The rolls in Postgres."""

    def __init__(self, engine: AsyncEngine, outbox: Outbox) -> None:
        self._engine = engine
        self._outbox = outbox

    @asynccontextmanager
    async def locked(self, keys: Iterable[tuple[str, str | None]]) -> AsyncIterator[Unit]:
        """Run one transaction over the rolls and records named by (session id, student id or None).

        Rolls and records that do not exist are simply not in the unit. Commits at the end of the block, steps and events
        together; raises Unavailable when Postgres is away or a lock was not had in time.
        """
        wanted = set(keys)
        touched = [(session_id, student_id) for session_id, student_id in wanted if student_id is not None]
        async with transaction(self._engine) as connection:
            ids = sorted({session_id for session_id, _ in wanted})
            rolls = [_roll(row) for row in await connection.execute(_LOCK_ROLLS, {"ids": ids})]
            records: list[Record] = []
            if touched:
                sessions, students = zip(*sorted(touched), strict=True)
                found = await connection.execute(_TOUCHED_RECORDS, {"sessions": list(sessions), "students": list(students)})
                records = [Record(**row) for row in found.mappings()]
            unit = Unit(connection, rolls, records)
            yield unit
            await unit._write()
            if unit.events:
                await self._outbox.add(connection, unit.events)

    @asynccontextmanager
    async def _snapshot(self) -> AsyncIterator[AsyncConnection]:
        async with transaction(self._engine) as connection:
            await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            yield connection

    async def read(self, session_id: str) -> tuple[Roll, list[Record]] | None:
        """Read a whole roll as it stood at one moment; None when there is none."""
        async with self._snapshot() as connection:
            row = (await connection.execute(_READ_ROLL, {"session_id": session_id})).one_or_none()
            if row is None:
                return None
            found = await connection.execute(_READ_RECORDS, {"session_id": session_id})
            return _roll(row), [Record(**record) for record in found.mappings()]

    async def history(
        self, session_id: str, since: int, limit: int
    ) -> tuple[Roll, tuple[bytes, bytes | None], list[tuple[Entry, str | None, datetime | None]]] | None:
        """Read a page of a roll's history after `since`: (entry, student's name, first join) each, oldest first.

        With it come the roll and its opening and closing events as published; None when there is no roll.
        """
        async with self._snapshot() as connection:
            row = (await connection.execute(_READ_ROLL, {"session_id": session_id})).one_or_none()
            if row is None:
                return None
            published = (await connection.execute(_PUBLISHED, {"session_id": session_id})).one()
            found = await connection.execute(_READ_HISTORY, {"session_id": session_id, "since": since, "limit": limit})
            lines = [
                (Entry(**{name: line[name] for name in _ENTRY_COLUMNS}), line["student_name"], line["joined_at"])
                for line in found.mappings()
            ]
            return _roll(row), (published.opening, published.closing), lines


def _roll(row: Any) -> Roll:
    return Roll(
        session=json.decode(row.session, type=Session),
        status=row.status,
        seq=row.seq,
        absent=row.absent,
        present=row.present,
        late=row.late,
        excused=row.excused,
        opened_at=row.opened_at,
        late_at=row.late_at,
        closes_at=row.closes_at,
        cause=row.cause,
    )


def _columns(names: dict[str, str], rows: Iterable[Record] | Iterable[Entry]) -> dict[str, list[Any]]:
    """Turn rows into one list for each column."""
    table = tuple(rows)
    return {name: [getattr(row, name) for row in table] for name in names}
