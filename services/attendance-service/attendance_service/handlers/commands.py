"""The commands that change a roll: joins, marks and submissions. Each batch is one transaction, a bulk one of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from msgspec import Struct

from attendance_service import events, rules
from attendance_service.handlers.announcements import Announcements, last_submission
from attendance_service.rules import Record, Roll, Step
from attendance_service.store import Draft, RollStore, Unit
from shared.clock import Clock, rfc3339
from shared.errors import NO_ROLL, Refused
from shared.messages import (
    AttendanceCommand,
    ClearMark,
    Event,
    JoinRoll,
    MarkRecord,
    MarkRecords,
    MarksStored,
    MarkStored,
    RollJoined,
    RollSubmitted,
    Submission,
    SubmitRoll,
    decode,
)
from shared.worker import Outcome

C = TypeVar("C", bound=AttendanceCommand)
A = TypeVar("A", bound=Struct)


@dataclass(frozen=True, slots=True)
class Commands:
    """Does what callers ask of rolls; every answer is given after its commit."""

    rolls: RollStore
    announcements: Announcements
    now: Clock

    async def join_roll(self, commands: Sequence[JoinRoll]) -> Outcome:
        """Check students in; a repeat is answered as the first was."""

        def join(draft: Draft) -> Outcome:
            outcome = Outcome()
            for command in commands:
                outcome.answer(command.reply_to, _join(draft, command))
            self.announcements.tell(draft)
            outcome.events = draft.events
            return outcome

        return await self.rolls.decide({(command.session_id, command.actor.id) for command in commands}, join)

    async def mark_record(self, commands: Sequence[MarkRecord]) -> Outcome:
        """Set records, in the order asked; each command is refused alone, and done once."""
        return await self._each_record(commands, lambda command: command.mark.student_id, rules.mark)

    async def clear_mark(self, commands: Sequence[ClearMark]) -> Outcome:
        """Take marks away; likewise."""
        return await self._each_record(commands, lambda command: command.student_id, rules.clear)

    async def mark_records(self, commands: Sequence[MarkRecords]) -> Outcome:
        """Set many records together, all or nothing: each command is a commit of its own, and so one event."""
        outcome = Outcome()
        for command in commands:
            touched = [(command.session_id, None), *((command.session_id, mark.student_id) for mark in command.marks)]
            try:
                async with self.rolls.locked(touched) as unit:
                    await unit.recall([command])
                    answer = _once(unit, command, MarksStored, self.now(), _mark_all)
                    self.announcements.tell(unit, bulk=True)
            except Refused as refusal:
                outcome.answer(command.reply_to, refusal)
            else:
                outcome.answer(command.reply_to, answer)
                outcome.events += unit.events
        return outcome

    async def submit_roll(self, commands: Sequence[SubmitRoll]) -> Outcome:
        """Submit rolls, closing those that are open; while a roll is submitted, a repeat is answered as the first was."""
        outcome = Outcome()
        async with self.rolls.locked((command.session_id, None) for command in commands) as unit:
            await unit.recall(commands)
            submitted = [id for id, roll in unit.rolls.items() if roll.status == "submitted"]
            submissions = await last_submission(unit, submitted)

            def submit(unit: Unit, roll: Roll, command: SubmitRoll, at: datetime) -> Submission:
                steps = rules.submit(roll, command, at)
                for step in steps:
                    unit.take(step)
                if steps:
                    submissions[roll.session_id] = events.submitted(steps[-1])
                return _submission(submissions[roll.session_id])

            _answer_each(outcome, commands, lambda command: _once(unit, command, Submission, self.now(), submit))
            self.announcements.tell(unit)
        outcome.events = unit.events
        return outcome

    async def _each_record(
        self,
        commands: Sequence[C],
        student_id: Callable[[C], str],
        decide: Callable[[Roll, Record | None, C, datetime], Step | Record],
    ) -> Outcome:
        """Decide on one record for each command, in one transaction for all."""

        def stored(unit: Unit, roll: Roll, command: C, at: datetime) -> MarkStored:
            key = command.session_id, student_id(command)
            decided = decide(roll, unit.records.get(key), command, at)
            if isinstance(decided, Step):
                unit.take(decided)
            return _stored(unit, unit.records[key])

        outcome = Outcome()
        async with self.rolls.locked((command.session_id, student_id(command)) for command in commands) as unit:
            await unit.load_entries()
            await unit.recall(commands)
            _answer_each(outcome, commands, lambda command: _once(unit, command, MarkStored, self.now(), stored))
            self.announcements.tell(unit)
        outcome.events = unit.events
        return outcome


def _answer_each(outcome: Outcome, commands: Sequence[C], do: Callable[[C], Struct]) -> None:
    """Do commands one after the other; a refusal of one is its answer, and leaves the others alone."""
    for command in commands:
        try:
            outcome.answer(command.reply_to, do(command))
        except Refused as refusal:
            outcome.answer(command.reply_to, refusal)


def _once(unit: Unit, command: C, kind: type[A], at: datetime, do: Callable[[Unit, Roll, C, datetime], A]) -> A:
    """Do a command and remember its answer; one that was done before is answered as then, whatever has happened since."""
    roll = unit.rolls.get(command.session_id)
    if roll is None:
        raise Refused(NO_ROLL)
    known = unit.recalled(command)
    if known is not None:
        return decode(kind, known)
    answer = do(unit, roll, command, at)
    unit.remember(command, answer, at)
    return answer


def _join(draft: Draft, command: JoinRoll) -> RollJoined | Refused:
    """Do one join; return its answer as of then, or why not: one that is refused leaves the others alone."""
    roll = draft.rolls.get(command.session_id)
    if roll is None:
        return Refused(NO_ROLL)
    record = draft.records.get((command.session_id, command.actor.id))
    try:
        joined = rules.join(
            roll, record, command.actor, command.received_at, command.command_id, redelivered=command.redelivered
        )
    except Refused as refusal:
        return refusal
    if isinstance(joined, Record):
        return _joined(joined, roll)
    draft.take(joined)
    return _joined(draft.records[command.session_id, command.actor.id], joined.roll)


def _joined(record: Record, roll: Roll) -> RollJoined:
    """Answer a join with its record, and with how far the roll is."""
    if record.joined_at is None or record.joined_status is None or record.joined_seq is None:
        raise ValueError(f"a join without its trace: {record}")
    return RollJoined(
        session_id=record.session_id,
        status=record.joined_status,
        joined_at=rfc3339(record.joined_at),
        seq=record.joined_seq,
        roll_seq=roll.seq,
        course_id=roll.session.course_id,
        enrolled=record.enrolled,
    )


def _mark_all(unit: Unit, roll: Roll, command: MarkRecords, at: datetime) -> MarksStored:
    mine = {student: record for (_, student), record in unit.records.items()}
    for step in rules.mark_all(roll, mine, command, at):
        unit.take(step)
    roll = unit.rolls[command.session_id]
    return MarksStored(
        session_id=command.session_id,
        records=tuple(rules.view(unit.records[command.session_id, mark.student_id]) for mark in command.marks),
        statistics=rules.statistics(roll),
        updated_by=command.actor.name,
        updated_by_id=command.actor.id,
        updated_at=rfc3339(at),
        seq=roll.seq,
    )


def _stored(unit: Unit, record: Record) -> MarkStored:
    """Show a record with who made it what it is, which for one that was so already is somebody else."""
    entry = unit.entries[record.session_id, record.seq]
    return MarkStored(
        record=rules.view(record),
        statistics=rules.statistics(unit.rolls[record.session_id]),
        updated_by=entry.actor_name,
        updated_by_id=entry.actor,
        updated_at=rfc3339(entry.at),
        seq=record.seq,
    )


def _submission(event: Event[RollSubmitted]) -> Submission:
    data = event.data
    return Submission(
        session_id=data.session_id,
        submitted_by=data.submitted_by,
        submitted_by_id=data.submitted_by_id,
        submitted_at=data.submitted_at,
        statistics=data.statistics,
        seq=event.sequence,
    )
