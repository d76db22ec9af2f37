"""Changes of records without a lock held while they are decided: read, decide, and write in one statement what still holds.

Whatever changes a record changes its roll's row with it. So who finds, under its lock, the row that was read knows that the
records are as they were read, too. Where another stands there, nothing at all is written.
"""

from collections.abc import Collection

from attendance_service.rules import Record
from attendance_service.store.columns import (
    ENTRY_ROW,
    HEAD,
    READ_ROLL,
    RECORD_READ,
    RECORD_ROW,
    ROLL_READ,
    TOUCHED,
    arrays,
    read_roll,
    touched,
    write_records,
    write_rolls,
)
from attendance_service.store.drafts import Draft
from shared.database import Connection, Statement
from shared.outbox import Outbox

# One statement sees one moment: first come the rolls, then the records touched, each with nulls in the other's columns.
# `version` is the transaction that wrote the row: each that writes it again has another number.
READ = f"""SELECT {", ".join(f"NULL AS r_{name}" for name in RECORD_READ)}, r.xmin AS version, {READ_ROLL}
    FROM attendance.rolls AS r WHERE session_id = ANY(CAST(:ids AS text[]))
UNION ALL SELECT t.*, NULL, {", ".join(["NULL"] * len(ROLL_READ))} FROM ({TOUCHED}) AS t"""
# Locks in one order for every replica, as LOCK_ROLLS does; who waited for a lock looks at the row as it has become.
HELD = """held AS MATERIALIZED (SELECT session_id FROM attendance.rolls WHERE session_id = ANY(CAST(:ids AS text[]))
        AND xmin = (CAST(:versions AS xid[]))[array_position(CAST(:ids AS text[]), session_id)]
    ORDER BY session_id FOR NO KEY UPDATE)"""
ALL_HELD = "(SELECT count(*) FROM held) = cardinality(CAST(:ids AS text[]))"


class Attempt(Draft):
    """A draft on what was read without a lock."""

    def __init__(self) -> None:
        super().__init__()
        self.versions: dict[str, int] = {}


class Attempts:
    """Reads and writes attempts, in two statements that are a transaction each."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.reading = Statement(READ)
        # All that most commits write: what is published goes, and its successors come, by the way.
        self.writing = Statement(
            f"""WITH {HELD}, {write_records(f"WHERE {ALL_HELD}")}, {outbox.taking()},
            told AS ({outbox.adding(f"WHERE {ALL_HELD}")})
            {write_rolls(HEAD)} AND {ALL_HELD} RETURNING 1"""
        )

    async def read(self, connection: Connection, keys: Collection[tuple[str, str]]) -> Attempt:
        """Read the rolls and records named by (session id, student id), everything as it stood at one moment."""
        attempt = Attempt()
        ids = sorted({session_id for session_id, _ in keys})
        for row in await self.reading.fetch(connection, {"ids": ids, **touched(keys)}):
            if row["version"] is None:
                record = Record(*row[: len(RECORD_READ)])
                attempt.records[record.session_id, record.student_id] = record
            else:
                roll = read_roll(row)
                attempt.rolls[roll.session_id] = roll
                attempt.versions[roll.session_id] = row["version"]
        return attempt

    async def write(self, connection: Connection, attempt: Attempt) -> bool:
        """Commit the steps on records that were taken, and their events; False, and nothing done, where a roll has moved on."""
        if not attempt.steps:
            return True
        changed = {}
        for step in attempt.steps:
            if step.record is None:
                raise ValueError(f"not on an attempt: {step.roll.session_id} was {step.entry.kind}")
            changed[step.record.session_id, step.record.student_id] = step.record
        ids = sorted({step.roll.session_id for step in attempt.steps})
        written = await self.writing.fetch(
            connection,
            {
                "ids": ids,
                "versions": [attempt.versions[session_id] for session_id in ids],
                "records": [RECORD_ROW(record) for record in changed.values()],
                "entries": [ENTRY_ROW(step.entry) for step in attempt.steps],
                **arrays(HEAD, [attempt.rolls[session_id] for session_id in ids]),
                **self._outbox.leaving(attempt.events),
            },
        )
        return len(written) == len(ids)
