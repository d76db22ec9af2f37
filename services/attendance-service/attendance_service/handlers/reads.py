"""What is read of rolls: whole, what changed, one's own, a course's. Nothing here changes or locks anything."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from msgspec import Raw, Struct

from attendance_service import events, rules
from attendance_service.rules import Record, Roll
from attendance_service.store import Line, RollStore, Snapshot
from shared.errors import NO_ROLL, Refused
from shared.messages import (
    ActiveSessions,
    AttendanceCommand,
    AwaitNews,
    ChangesRead,
    CourseSummary,
    Heard,
    HistoryPage,
    OwnRecord,
    OwnRecords,
    ReadActiveSessions,
    ReadChanges,
    ReadHistory,
    ReadOwnRecords,
    ReadRoll,
    RecordsCommand,
    RollRead,
    RollSynced,
    SummarizeCourse,
    SyncRoll,
    encode_event,
)
from shared.worker import Outcome

CHANGES_PER_PAGE = 1000

C = TypeVar("C", bound=RecordsCommand)


@dataclass(frozen=True, slots=True)
class Reads:
    """Answers those who ask, each batch as things stood at one moment."""

    rolls: RollStore

    async def read_roll(self, commands: Sequence[ReadRoll]) -> Outcome:
        """Read whole rolls, each once for all who ask."""
        read: dict[str, RollRead] = {}

        async def read_roll(snapshot: Snapshot, command: ReadRoll) -> RollRead:
            roll = await _readable(snapshot, command)
            if roll.session_id not in read:
                read[roll.session_id] = whole(roll, await snapshot.records(roll.session_id))
            return read[roll.session_id]

        return await self._each(commands, read_roll)

    async def sync_roll(self, commands: Sequence[SyncRoll]) -> Outcome:
        """Read what changed on rolls; to students their own records, all of them in one look."""
        outcome = Outcome()
        async with self.rolls.snapshot() as snapshot:
            own = await snapshot.touched({(command.session_id, command.actor.id) for command in commands})
            for command in commands:
                try:
                    record = own.get((command.session_id, command.actor.id))
                    outcome.answer(command.reply_to, await _synced(snapshot, command, record))
                except Refused as refusal:
                    outcome.answer(command.reply_to, refusal)
        return outcome

    async def read_changes(self, commands: Sequence[ReadChanges]) -> Outcome:
        """Read what a gateway missed, as the events it would have heard: at most a page, it asks on from there."""
        return await self._each(commands, _missed)

    async def read_history(self, commands: Sequence[ReadHistory]) -> Outcome:
        """Read pages of history, for staff."""
        return await self._each(commands, _history)

    async def read_own_records(self, commands: Sequence[ReadOwnRecords]) -> Outcome:
        """Read callers' own records, whatever their role."""
        return await self._each(commands, _own_records)

    async def read_active_sessions(self, commands: Sequence[ReadActiveSessions]) -> Outcome:
        """Read which sessions of courses are on."""
        return await self._each(commands, _active_sessions)

    async def summarize_course(self, commands: Sequence[SummarizeCourse]) -> Outcome:
        """Count students' records over courses' taken rolls."""
        return await self._each(commands, _summary)

    async def await_news(self, commands: Sequence[AwaitNews]) -> Outcome:
        """Say whether session-service's news have arrived; where they have not, the gateway asks again."""
        return await self._each(commands, _heard)

    async def _each(self, commands: Sequence[C], read: Callable[[Snapshot, C], Awaitable[Struct]]) -> Outcome:
        outcome = Outcome()
        async with self.rolls.snapshot() as snapshot:
            for command in commands:
                try:
                    outcome.answer(command.reply_to, await read(snapshot, command))
                except Refused as refusal:
                    outcome.answer(command.reply_to, refusal)
        return outcome


def whole(roll: Roll, records: Iterable[Record]) -> RollRead:
    """Show a whole roll."""
    return RollRead(
        session=roll.session,
        records=tuple(rules.view(record) for record in records),
        statistics=rules.statistics(roll),
        seq=roll.seq,
    )


async def _found(snapshot: Snapshot, session_id: str) -> Roll:
    roll = await snapshot.roll(session_id)
    if roll is None:
        raise Refused(NO_ROLL)
    return roll


async def _readable(snapshot: Snapshot, command: AttendanceCommand) -> Roll:
    roll = await _found(snapshot, command.session_id)
    rules.may_read(roll, command.actor)
    return roll


async def _synced(snapshot: Snapshot, command: SyncRoll, own: Record | None) -> RollSynced:
    roll = await _found(snapshot, command.session_id)
    as_staff = rules.sees_all(roll, own, command.actor)
    records = await snapshot.records(roll.session_id) if as_staff else [own] if own is not None else []
    # Who knows more than there is met another database: they begin anew.
    since = command.since_seq if command.since_seq is not None and command.since_seq <= roll.seq else None
    return RollSynced(
        mode="whole" if since is None else "changes",
        as_staff=as_staff,
        joined=own is not None and own.joined_at is not None,
        session=roll.session,
        records=tuple(rules.view(record) for record in records if since is None or record.seq > since),
        statistics=rules.statistics(roll),
        seq=roll.seq,
    )


async def _missed(snapshot: Snapshot, command: ReadChanges) -> ChangesRead:
    """Rebuild the events of records from history, and take those of the roll itself as they were told."""
    roll = await _readable(snapshot, command)
    lines = await snapshot.history(roll.session_id, command.since_seq, CHANGES_PER_PAGE)
    if not lines:
        return ChangesRead(events=(), seq=roll.seq)
    reached = lines[-1].entry.seq
    turns = await snapshot.milestones(roll.session_id, command.since_seq, reached)
    bodies = []
    for run, bulk in _runs(lines):
        if run[0].entry.student_id is None:
            bodies += [turns[line.entry.seq] for line in run]
        else:
            bodies.append(encode_event(events.changes(roll, [rules.change(*line) for line in run], bulk=bulk)))
    return ChangesRead(events=tuple(Raw(body) for body in bodies), seq=reached)


def _runs(lines: Iterable[Line]) -> Iterator[tuple[list[Line], bool]]:
    """Part history into runs of the roll's own lines, of bulks (several marks of one command), and of all between."""
    waiting: list[Line] = []
    for (of_roll, command), group in groupby(lines, key=_together):
        run = list(group)
        bulk = command is not None and len(run) > 1
        if of_roll or bulk:
            if waiting:
                yield waiting, False
            yield run, bulk
            waiting = []
        else:
            waiting += run
    if waiting:
        yield waiting, False


def _together(line: Line) -> tuple[bool, tuple[str, str | None] | None]:
    entry = line.entry
    return entry.student_id is None, (entry.actor, entry.command_id) if entry.kind == "marked" else None


async def _history(snapshot: Snapshot, command: ReadHistory) -> HistoryPage:
    roll = await _readable(snapshot, command)
    found = await snapshot.history(roll.session_id, command.since_seq, command.limit + 1)
    items = tuple(rules.change(*line) for line in found[: command.limit])
    return HistoryPage(items=items, next_seq=items[-1].seq if len(found) > command.limit else None)


async def _own_records(snapshot: Snapshot, command: ReadOwnRecords) -> OwnRecords:
    found = await snapshot.own_records(command.actor.id, command.course_id, command.cursor, command.limit + 1)
    items = tuple(
        OwnRecord(
            session=roll.session,
            record=rules.view(record),
            history=tuple(rules.change(entry, record.student_name, record.joined_at, record.joined_seq) for entry in entries),
        )
        for roll, record, entries in found[: command.limit]
    )
    return OwnRecords(items=items, next_cursor=items[-1].session.id if len(found) > command.limit else None)


async def _active_sessions(snapshot: Snapshot, command: ReadActiveSessions) -> ActiveSessions:
    rules.may_read_courses(command.actor)
    return ActiveSessions(items=tuple(await snapshot.active(command.course_id)))


async def _summary(snapshot: Snapshot, command: SummarizeCourse) -> CourseSummary:
    rules.may_read_courses(command.actor)
    taken, students = await snapshot.summary(command.course_id)
    return CourseSummary(taken_sessions=taken, students=tuple(students))


async def _heard(snapshot: Snapshot, command: AwaitNews) -> Heard:
    if command.actor.role != "service":
        raise Refused("forbidden")
    news = command.news
    courses, rolls = await snapshot.versions([news.course_id], news.session_versions)
    arrived = courses.get(news.course_id, 0) >= news.course_version and all(
        id in rolls and rolls[id][0] >= version and rolls[id][1] >= news.roster_version
        for id, version in news.session_versions.items()
    )
    if not arrived:
        raise Refused("unavailable")
    return Heard()
