"""What attendance-service does: one handler for each command and each event it cares for, over a batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from msgspec import Raw, Struct

from attendance_service import events, rules
from attendance_service.rules import Record, Roll
from attendance_service.store import RollStore, Unit
from shared.clock import Clock, rfc3339
from shared.errors import NO_ROLL, NotYet, Refused
from shared.live import Names
from shared.messages import (
    Actor,
    AttendanceCommand,
    ChangesRead,
    Event,
    JoinRoll,
    ReadChanges,
    ReadRoll,
    RollJoined,
    RollRead,
    SessionEnded,
    SessionStarted,
    decode_event,
    encode_event,
)
from shared.outbox import OutboxRow, outgoing
from shared.worker import Handlers, Outcome

CHANGES_PER_PAGE = 1000


def table(rolls: RollStore, names: Names, now: Clock) -> Handlers:
    """Say what handles what; this is the map of the service."""
    attendance = _Attendance(rolls, names, now)
    return {
        JoinRoll: attendance.join_roll,
        ReadRoll: attendance.read_roll,
        ReadChanges: attendance.read_changes,
        SessionStarted: attendance.open_roll,
        SessionEnded: attendance.close_roll,
    }


@dataclass(frozen=True, slots=True)
class _Attendance:
    rolls: RollStore
    names: Names
    now: Clock

    async def join_roll(self, commands: Sequence[JoinRoll]) -> Outcome:
        """Check students in; a repeat is answered as the first was."""
        outcome = Outcome()
        async with self.rolls.locked((command.session_id, command.actor.id) for command in commands) as unit:
            for command in commands:
                try:
                    outcome.answer(command.reply_to, _join(unit, command))
                except Refused as refusal:
                    outcome.answer(command.reply_to, refusal)
            unit.events = [self._row(event) for event in events.changed(unit.steps)]
        outcome.events = unit.events
        return outcome

    async def open_roll(self, started: Sequence[Event[SessionStarted]]) -> Outcome:
        """Open the rolls of sessions that were started; an open roll says so once more, to whoever must still hear it."""
        async with self.rolls.locked(()) as unit:
            for event in sorted(started, key=lambda event: event.data.session.id):
                data = event.data
                by = rules.staff(data.session, data.started_by_id, data.started_by)
                step, records = rules.open_roll(data.session, data.roster, by, self.now())
                row = self._row(events.opened(step, by))
                if not await unit.open(step, records, row.event.body):
                    opening, _ = await unit.published(data.session.id)
                    row = self._again(opening)
                unit.events.append(row)
        return await self._answered_with_rolls(unit.events, started)

    async def close_roll(self, ended: Sequence[Event[SessionEnded]]) -> Outcome:
        """Close the rolls of sessions that ended; raise NotYet while one of them has not been opened."""
        async with self.rolls.locked((event.data.session.id, None) for event in ended) as unit:
            for event in ended:
                data = event.data
                roll = unit.rolls.get(data.session.id)
                if roll is None:
                    raise NotYet(f"no roll for {data.session.id}")
                by = rules.staff(data.session, data.ended_by_id, data.ended_by)
                step = rules.close(roll, data.session, data.cause, by, self.now())
                if step is None:
                    _, closing = await unit.published(data.session.id)
                    unit.events.extend([] if closing is None else [self._again(closing)])
                    continue
                unit.take(step)
                row = self._row(events.closed(step, data))
                await unit.keep_closing(step.roll, row.event.body)
                unit.events.append(row)
        return await self._answered_with_rolls(unit.events, ended)

    async def read_roll(self, commands: Sequence[ReadRoll]) -> Outcome:
        """Read whole rolls, each once for all who ask."""
        outcome = Outcome()
        for session_id, asking in _by_session(commands):
            found = await self.rolls.read(session_id)
            for command in asking:
                outcome.answer(command.reply_to, _shown(command.actor, found))
        return outcome

    async def read_changes(self, commands: Sequence[ReadChanges]) -> Outcome:
        """Read what a gateway missed, as the events it would have heard: at most a page, it asks on from there."""
        outcome = Outcome()
        for command in commands:
            outcome.answer(command.reply_to, await self._missed(command))
        return outcome

    async def _missed(self, command: ReadChanges) -> Struct | Refused:
        found = await self.rolls.history(command.session_id, command.since_seq, CHANGES_PER_PAGE)
        if found is None:
            return Refused(NO_ROLL)
        roll, (opening, closing), lines = found
        try:
            rules.may_read(roll, command.actor)
        except Refused as refusal:
            return refusal
        bodies: list[bytes] = []
        for kind, run in groupby(lines, key=lambda line: line[0].kind if line[0].student_id is None else "record"):
            if kind == "record":
                bodies.append(encode_event(events.changes(roll, [rules.change(*line) for line in run])))
            elif kind == "opened":
                bodies.append(opening)
            elif closing is not None:
                bodies.append(closing)
        seq = lines[-1][0].seq if lines else roll.seq
        return ChangesRead(events=tuple(Raw(body) for body in bodies), seq=seq)

    async def _answered_with_rolls(
        self, rows: list[OutboxRow], asked: Iterable[Event[SessionStarted] | Event[SessionEnded]]
    ) -> Outcome:
        """Who finishes, answers: the command that started or ended a session is answered with its roll."""
        outcome = Outcome(events=rows)
        for event in asked:
            if event.reply_to is not None and (found := await self.rolls.read(event.data.session.id)):
                outcome.answer(event.reply_to, _whole(*found))
        return outcome

    def _row(self, event: Event[Any]) -> OutboxRow:
        """Address an event: the roll's channel always, the course's when the roll itself changed."""
        data = event.data
        channels = [self.names.roll_channel(data.session_id)]
        if event.type != "rollcall.roll.changed.v1":
            channels.append(self.names.course_channel(data.course_id))
        return outgoing(event, channels)

    def _again(self, body: bytes) -> OutboxRow:
        """Address an event that was published before, to the letter."""
        event = decode_event(body)
        if event is None:
            raise ValueError("the stored event is of no known type")
        return self._row(event)


def _join(unit: Unit, command: JoinRoll) -> RollJoined:
    roll = unit.rolls.get(command.session_id)
    if roll is None:
        raise Refused(NO_ROLL)
    record = unit.records.get((command.session_id, command.actor.id))
    joined = rules.join(roll, record, command.actor, command.received_at, command.command_id)
    if not isinstance(joined, Record):
        unit.take(joined)
    record = unit.records[command.session_id, command.actor.id]
    if record.joined_at is None or record.joined_status is None or record.joined_seq is None:
        raise ValueError(f"a join without its trace: {record}")
    return RollJoined(
        session_id=record.session_id,
        status=record.joined_status,
        joined_at=rfc3339(record.joined_at),
        seq=record.joined_seq,
        roll_seq=unit.rolls[command.session_id].seq,
    )


def _shown(actor: Actor, found: tuple[Roll, list[Record]] | None) -> Struct | Refused:
    if found is None:
        return Refused(NO_ROLL)
    try:
        rules.may_read(found[0], actor)
    except Refused as refusal:
        return refusal
    return _whole(*found)


def _whole(roll: Roll, records: Iterable[Record]) -> RollRead:
    return RollRead(
        session=roll.session,
        records=tuple(rules.view(record) for record in records),
        statistics=rules.statistics(roll),
        seq=roll.seq,
    )


def _by_session(commands: Sequence[AttendanceCommand]) -> Iterable[tuple[str, Iterable[AttendanceCommand]]]:
    return groupby(sorted(commands, key=lambda command: command.session_id), key=lambda command: command.session_id)
