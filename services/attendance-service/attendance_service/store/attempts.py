"""Changes of records without a lock held while they are decided: read, decide, and write in one statement what still holds.

Whatever changes a record changes its roll's row with it. So who finds, under its lock, the row that was read knows that the
records are as they were read, too. Where another stands there, nothing at all is written.
"""

from collections.abc import Collection, Sequence

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
    names,
    read_roll,
    touched,
    write_records,
    write_rolls,
)
from attendance_service.store.drafts import Draft
from shared.database import Connection, Statement
from shared.outbox import Outbox

# Of some rolls all records; the limit, which no roll reaches, keeps the plan on the index as LATERAL does in TOUCHED.
WHOLE = f"""SELECT {names(RECORD_READ, "r")} FROM unnest(CAST(:whole AS text[])) AS k (session_id)
    CROSS JOIN LATERAL (SELECT {names(RECORD_READ)} FROM attendance.records
        WHERE session_id = k.session_id LIMIT 1000000) AS r"""
# One statement sees one moment: the rolls, the records touched, and those of whole rolls, with nulls in each other's columns.
# `version` is the transaction that wrote the row: each that writes it again has another number.
READ = f"""SELECT {", ".join(f"NULL AS r_{name}" for name in RECORD_READ)}, r.xmin AS version, {READ_ROLL}
    FROM attendance.rolls AS r WHERE session_id = ANY(CAST(:ids AS text[]))
UNION ALL SELECT t.*, NULL, {", ".join(["NULL"] * len(ROLL_READ))} FROM ({TOUCHED}) AS t
UNION ALL SELECT w.*, NULL, {", ".join(["NULL"] * len(ROLL_READ))} FROM ({WHOLE}) AS w"""
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
        """Which version of each roll's row was read."""
        self.whole: dict[str, dict[str, Record]] = {}
        """All records of the rolls that were read whole, by student, as they were read."""

    def rests_on_itself(self) -> bool:
        """Whether each roll in it is written with it, so that what was decided holds only if all was as it was read."""
        return self.rolls.keys() == {step.entry.session_id for step in self.steps}


class Attempts:
    """Reads and writes attempts, in two statements that are a transaction each."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.reading = Statement(READ)
        # All that most commits write: what is published goes, and its successors come, by the way.
        self.writing = Statement(
            f"""WITH {HELD}, {write_records(f"WHERE {ALL_HELD}")}, {outbox.taking()},
            told AS ({outbox.adding(f"WHERE {ALL_HELD}")})
            {write_rolls(HEAD)} AND {ALL_HELD} RETURNING r.session_id, r.xmin AS version"""
        )

    async def read(self, connection: Connection, keys: Collection[tuple[str, str]], whole: Sequence[str] = ()) -> Attempt:
        """Read the rolls and records named by (session id, student id), everything as it stood at one moment.

        Of the rolls named in `whole` all records are read.
        """
        attempt = Attempt()
        ids = sorted({session_id for session_id, _ in keys})
        alone = [key for key in keys if key[0] not in whole] if whole else keys
        for row in await self.reading.fetch(connection, {"ids": ids, **touched(alone), "whole": list(whole)}):
            if row["version"] is None:
                record = Record(*row[: len(RECORD_READ)])
                attempt.records[record.session_id, record.student_id] = record
            else:
                roll = read_roll(row)
                attempt.rolls[roll.session_id] = roll
                attempt.versions[roll.session_id] = row["version"]
        attempt.whole = {session_id: {} for session_id in whole if session_id in attempt.rolls}
        if attempt.whole:
            for (session_id, student_id), record in attempt.records.items():
                if (records := attempt.whole.get(session_id)) is not None:
                    records[student_id] = record
        return attempt

    async def write(self, connection: Connection, attempt: Attempt) -> dict[str, int] | None:
        """Commit the steps on records that were taken, and their events; None, and nothing done, where a roll has moved on.

        Return the version that the row of each roll written has now.
        """
        if not attempt.steps:
            return {}
        changed = {}
        for step in attempt.steps:
            if (record := step.record) is None:
                raise ValueError(f"not on an attempt: {step.entry.session_id} was {step.entry.kind}")
            changed[record.session_id, record.student_id] = record
        ids = sorted({step.entry.session_id for step in attempt.steps})
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
        return {row["session_id"]: row["version"] for row in written} if len(written) == len(ids) else None
