"""One transaction's work on rolls: what it locks and reads, and how it writes what the rules decided, in array statements."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from msgspec import Struct, json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from attendance_service.rules import Entry, Record, Roll, Step
from attendance_service.store.columns import (
    DETAILS,
    ENTRY,
    ENTRY_ROW,
    HEAD,
    READ_ROLL,
    RECORD_ROW,
    TOUCHED_RECORDS,
    WHOLE_ROLL,
    arrays,
    details,
    names,
    read_records,
    read_roll,
    touched,
    write_records,
    write_rolls,
)
from attendance_service.store.drafts import Draft
from shared.errors import Refused
from shared.messages import AttendanceCommand, encode

# The rolls of a batch, in one order for every replica, so that two never wait for each other in a circle.
LOCK_ROLLS = text(
    f"""SELECT {READ_ROLL} FROM attendance.rolls AS r WHERE session_id = ANY(CAST(:ids AS text[]))
    ORDER BY session_id FOR NO KEY UPDATE OF r"""
)
# The lines of history with these numbers, and the answers to these commands; LATERAL as above.
ENTRIES = text(
    f"""SELECT h.* FROM unnest(CAST(:sessions AS text[]), CAST(:seqs AS bigint[])) AS k (session_id, seq)
    CROSS JOIN LATERAL (SELECT {names(ENTRY)} FROM attendance.history
        WHERE session_id = k.session_id AND seq = k.seq LIMIT 1) AS h"""
)
ANSWERS = text(
    """SELECT a.* FROM unnest(CAST(:sessions AS text[]), CAST(:actors AS text[]), CAST(:commands AS text[]))
        AS k (session_id, actor_id, command_id)
    CROSS JOIN LATERAL (SELECT session_id, actor_id, command_id, kind, answer FROM attendance.answers
        WHERE session_id = k.session_id AND actor_id = k.actor_id AND command_id = k.command_id LIMIT 1) AS a"""
)
# The events of the rolls themselves as published, oldest first.
MILESTONES = text(
    "SELECT session_id, body FROM attendance.milestones WHERE session_id = ANY(CAST(:ids AS text[])) ORDER BY session_id, seq"
)


# What most commits write, in one round trip: records, their lines of history and the heads of their rolls.
WRITE = text(f"WITH {write_records()} {write_rolls(HEAD)}")
# Rare, and so written on its own.
WRITE_DETAILS = text(write_rolls(DETAILS))
# A new roll; nothing when another replica has opened it, even in a transaction that is just committing.
OPEN_ROLL = text(
    f"""INSERT INTO attendance.rolls (session_id, course_id, opened_at, {names(HEAD)}, {names(DETAILS)})
    VALUES (:session_id, :course_id, :opened_at, {", ".join(f":{name}" for name in HEAD)},
        {", ".join(f"CAST(:{name} AS {kind})" for name, kind in DETAILS.items())})
    ON CONFLICT (session_id) DO NOTHING RETURNING xmin AS version"""
)
WRITE_MILESTONES = text(
    """INSERT INTO attendance.milestones (session_id, seq, body)
    SELECT * FROM unnest(CAST(:sessions AS text[]), CAST(:seqs AS bigint[]), CAST(:bodies AS bytea[]))"""
)
WRITE_ANSWERS = text(
    """INSERT INTO attendance.answers (session_id, actor_id, command_id, kind, answer, at)
    SELECT * FROM unnest(CAST(:sessions AS text[]), CAST(:actors AS text[]), CAST(:commands AS text[]),
        CAST(:kinds AS text[]), CAST(:answers AS bytea[]), CAST(:times AS timestamptz[]))"""
)
# Only what is newer: events of a course may come in any order.
WRITE_COURSES = text(
    """INSERT INTO attendance.courses AS c (id, version, teacher_ids)
    SELECT id, version, CAST(teacher_ids AS jsonb)
    FROM unnest(CAST(:ids AS text[]), CAST(:versions AS bigint[]), CAST(:teachers AS text[])) AS new (id, version, teacher_ids)
    ON CONFLICT (id) DO UPDATE SET version = EXCLUDED.version, teacher_ids = EXCLUDED.teacher_ids
    WHERE c.version < EXCLUDED.version"""
)


class _Answer(NamedTuple):
    kind: str
    body: bytes
    at: datetime | None = None
    """When it was given; None for one that was read back."""


def _key(command: AttendanceCommand) -> tuple[str, str, str]:
    return command.session_id, command.actor.id, command.command_id


class Unit(Draft):
    """One transaction's work: the rolls that it has locked, and what is done with them."""

    def __init__(self, connection: AsyncConnection) -> None:
        super().__init__()
        self._connection = connection
        self._loaded: dict[str, Roll] = {}
        self.opened: dict[str, int] = {}
        """The rolls that are new, each with the version of its row."""
        self._read_whole: set[str] = set()
        self._amended: set[tuple[str, str]] = set()
        self._answers: dict[tuple[str, str, str], _Answer] = {}
        self.entries: dict[tuple[str, int], Entry] = {}
        """Lines of history: those asked for, and those of the steps taken."""

    async def lock(self, session_ids: Collection[str]) -> None:
        """Lock rolls; those that do not exist are simply not in the unit, those that are in it stay as they are."""
        wanted = sorted(set(session_ids) - self.rolls.keys())
        if wanted:
            for row in (await self._connection.execute(LOCK_ROLLS, {"ids": wanted})).mappings():
                roll = read_roll(row)
                self.rolls[roll.session_id] = self._loaded[roll.session_id] = roll

    async def load(self, keys: Collection[tuple[str, str]]) -> None:
        """Load the records named by (session id, student id); those that do not exist are not in the unit."""
        if keys:
            for record in read_records(await self._connection.execute(TOUCHED_RECORDS, touched(keys))):
                self.records[record.session_id, record.student_id] = record

    async def whole(self, session_id: str) -> dict[str, Record]:
        """Load all records of a roll, once; return them by student as they stand in this unit, in order of id."""
        if session_id not in self._read_whole:
            for record in read_records(await self._connection.execute(WHOLE_ROLL, {"session_id": session_id})):
                self.records.setdefault((session_id, record.student_id), record)
            self._read_whole.add(session_id)
        mine = (record for record in self.records.values() if record.session_id == session_id)
        return {record.student_id: record for record in sorted(mine, key=lambda record: record.student_id)}

    async def load_entries(self) -> None:
        """Load for each record in the unit the line of history that made it what it is."""
        wanted = {(record.session_id, record.seq) for record in self.records.values()}
        if wanted:
            sessions, seqs = zip(*sorted(wanted), strict=True)
            found = await self._connection.execute(ENTRIES, {"sessions": list(sessions), "seqs": list(seqs)})
            self.entries.update({(row["session_id"], row["seq"]): Entry(**row) for row in found.mappings()})

    async def recall(self, commands: Iterable[AttendanceCommand]) -> None:
        """Load what these commands were answered before. Only under the rolls' locks: then nobody is answering them now."""
        sessions, actors, ids = zip(*sorted({_key(command) for command in commands}), strict=True)
        asked = {"sessions": list(sessions), "actors": list(actors), "commands": list(ids)}
        for row in await self._connection.execute(ANSWERS, asked):
            self._answers[row.session_id, row.actor_id, row.command_id] = _Answer(row.kind, bytes(row.answer))

    def recalled(self, command: AttendanceCommand) -> bytes | None:
        """Say what a command was answered before, None when it is new; refuse an id that was for something else."""
        answer = self._answers.get(_key(command))
        if answer is None:
            return None
        if answer.kind != type(command).__name__:
            raise Refused("conflict", "The command_id has been used for another command")
        return answer.body

    async def milestones(self, session_ids: Collection[str]) -> dict[str, list[bytes]]:
        """Read the events of these rolls themselves, as published, oldest first."""
        found: dict[str, list[bytes]] = {session_id: [] for session_id in session_ids}
        if found:
            for row in await self._connection.execute(MILESTONES, {"ids": sorted(found)}):
                found[row.session_id].append(bytes(row.body))
        return found

    def take(self, step: Step) -> None:
        """Take a step, and know its line of history."""
        super().take(step)
        self.entries[step.entry.session_id, step.entry.seq] = step.entry

    def amend(self, record: Record) -> None:
        """Keep a record that changed without a step of its own, or is new."""
        self.records[record.session_id, record.student_id] = record
        self._amended.add((record.session_id, record.student_id))

    def remember(self, command: AttendanceCommand, answer: Struct, at: datetime) -> None:
        """Remember what a command was answered, for its repeats."""
        self._answers[_key(command)] = _Answer(type(command).__name__, encode(answer), at)

    async def open(self, step: Step, records: Sequence[Record]) -> bool:
        """Write a new roll; False, and nothing done, when it has been opened before."""
        roll = step.roll
        values = {"session_id": roll.session_id, "course_id": roll.session.course_id, "opened_at": roll.opened_at}
        values |= {name: getattr(roll, name) for name in HEAD} | details(roll)
        version = await self._connection.scalar(OPEN_ROLL, values)
        if version is None:
            return False
        self._loaded[roll.session_id] = roll
        self.opened[roll.session_id] = version
        self.take(step)
        for record in records:
            self.amend(record)
        return True

    async def keep_teachers(self, teachers: Iterable[tuple[str, int, tuple[str, ...]]]) -> None:
        """Keep who teaches each course, as of a version of it, unless something newer is known."""
        newest: dict[str, tuple[int, tuple[str, ...]]] = {}
        for course_id, version, teacher_ids in teachers:
            newest[course_id] = max(newest.get(course_id, (0, ())), (version, teacher_ids))
        ids = sorted(newest)
        await self._connection.execute(
            WRITE_COURSES,
            {
                "ids": ids,
                "versions": [newest[course_id][0] for course_id in ids],
                "teachers": [json.encode(newest[course_id][1]).decode() for course_id in ids],
            },
        )

    async def write(self) -> None:
        """Write all that was decided; one statement for each table that has something new."""
        changed = self._amended | {
            (step.record.session_id, step.record.student_id) for step in self.steps if step.record is not None
        }
        moved = [roll for id, roll in self.rolls.items() if roll is not self._loaded[id]]
        heads = [roll for roll in moved if roll.seq != self._loaded[roll.session_id].seq]
        detailed = [roll for roll in moved if self._has_new_details(roll)]
        # Whoever reads without a lock goes by the roll's row.
        if (
            stray := {session_id for session_id, _ in changed}
            - self.opened.keys()
            - {r.session_id for r in (*heads, *detailed)}
        ):
            raise ValueError(f"records changed, and not their rolls: {stray}")
        if changed or self.steps or heads:
            records = [RECORD_ROW(self.records[key]) for key in sorted(changed)]
            entries = [ENTRY_ROW(step.entry) for step in self.steps]
            head = {"ids": [roll.session_id for roll in heads], **arrays(HEAD, heads)}
            await self._execute(WRITE, {"records": records, "entries": entries, **head})
        await self._write_details(detailed)
        if self.kept:
            sessions, seqs, bodies = zip(*self.kept, strict=True)
            await self._execute(WRITE_MILESTONES, {"sessions": list(sessions), "seqs": list(seqs), "bodies": list(bodies)})
        await self._write_answers()

    def _has_new_details(self, roll: Roll) -> bool:
        return any(getattr(roll, name) != getattr(self._loaded[roll.session_id], name) for name in DETAILS)

    async def _write_details(self, moved: Sequence[Roll]) -> None:
        if moved:
            written = [details(roll) for roll in moved]
            columns = {name: [row[name] for row in written] for name in DETAILS}
            await self._execute(WRITE_DETAILS, {"ids": [roll.session_id for roll in moved], **columns})

    async def _write_answers(self) -> None:
        new = [(*key, answer.kind, answer.body, answer.at) for key, answer in self._answers.items() if answer.at is not None]
        if new:
            columns = zip(("sessions", "actors", "commands", "kinds", "answers", "times"), zip(*new, strict=True), strict=True)
            await self._execute(WRITE_ANSWERS, {name: list(values) for name, values in columns})

    async def _execute(self, statement: Any, parameters: Mapping[str, Any]) -> None:
        await self._connection.execute(statement, parameters)
