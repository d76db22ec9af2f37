"""What attendance-service makes of session-service's news: rolls open, close and change with their sessions and courses.

News may come late, twice or in another order; their versions say what is new. Whoever's command caused them is answered
with the roll as it then is.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeVar

from attendance_service import rules
from attendance_service.handlers.announcements import Announcements
from attendance_service.handlers.reads import whole
from attendance_service.rules import Roll, Step
from attendance_service.store import RollStore, Unit
from shared.clock import Clock
from shared.errors import NotYet
from shared.messages import (
    Actor,
    CourseChanged,
    Enrolled,
    Event,
    SessionCancelled,
    SessionChanged,
    SessionEnded,
    SessionStarted,
)
from shared.worker import Outcome

Said = SessionStarted | SessionEnded | SessionCancelled | SessionChanged
S = TypeVar("S", bound=Said)


@dataclass(frozen=True, slots=True)
class SessionEvents:
    """Follows sessions and courses."""

    rolls: RollStore
    announcements: Announcements
    now: Clock

    async def open_roll(self, started: Sequence[Event[SessionStarted]]) -> Outcome:
        """Open the rolls of sessions that were started, or reopened; one that is open already says so once more."""
        async with self.rolls.locked(()) as unit:
            # What a start says of the teachers may be newer than the last news of the course.
            await unit.keep_teachers(
                (event.data.session.course_id, event.data.course_version, event.data.session.teacher_ids) for event in started
            )
            known = []
            for event in _in_order(started):
                data = event.data
                step, records = rules.open_roll(
                    data.session,
                    data.roster,
                    rules.staff(data.session, data.started_by_id, data.started_by),
                    self.now(),
                    version=event.sequence,
                    roster_version=data.roster_version,
                )
                if not await unit.open(step, records):
                    known.append(event)
            # New rolls first, the others' locks after: two replicas never wait for each other in a circle.
            await unit.lock({event.data.session.id for event in known})
            for event in known:
                await self._reopen(unit, event)
            self.announcements.tell(unit)
            await self.announcements.tell_again(unit, {event.data.session.id for event in known})
        return await self._answered(unit, started)

    async def close_roll(self, ended: Sequence[Event[SessionEnded]]) -> Outcome:
        """Close the rolls of sessions that ended; raise NotYet while one of them has not been opened."""
        async with self._locked(ended) as unit:
            for event in _in_order(ended):
                data = event.data
                by = rules.staff(data.session, data.ended_by_id, data.ended_by)
                if data.cause == "automatic":
                    by = Actor(data.ended_by_id, data.ended_by, "service")
                roll = await self._followed(unit, event, by)
                _turn(unit, rules.close(roll, data.session, event.sequence, data.cause, by, self.now()))
            self.announcements.tell(unit)
            # The close by a submission ended the session: session-service awaits no report, and on the bus in one process,
            # which confirms when handled, it could not take one while it is still telling of that end.
            awaiting = {event.data.session.id for event in ended if event.data.cause != "submitted"}
            await self.announcements.tell_again(unit, awaiting)
        return await self._answered(unit, ended)

    async def cancel_roll(self, cancelled: Sequence[Event[SessionCancelled]]) -> Outcome:
        """Close the rolls of sessions that were cancelled, for good; one that was never started has none."""
        started = [event for event in cancelled if event.data.session.started_at is not None]
        async with self._locked(started) as unit:
            for event in _in_order(started):
                data = event.data
                by = rules.staff(data.session, data.cancelled_by_id, data.cancelled_by)
                roll = await self._followed(unit, event, by)
                _turn(unit, rules.cancel(roll, data.session, event.sequence, by, self.now()))
            self.announcements.tell(unit)
            await self.announcements.tell_again(unit, {event.data.session.id for event in started})
        return await self._answered(unit, started)

    async def change_roll(self, changed: Sequence[Event[SessionChanged]]) -> Outcome:
        """Follow what changed about sessions and rosters; raise NotYet while the start, or reopening, is still on its way."""
        async with self._locked(changed) as unit:
            for event in _in_order(changed):
                data = event.data
                roll = unit.rolls.get(data.session.id)
                if roll is None:
                    if data.session.status == "active":
                        raise NotYet(f"no roll for {data.session.id}")
                    continue
                if data.turn_version > roll.turn_version:
                    raise NotYet(f"{data.session.id} has not been reopened")
                by = rules.staff(data.session, data.changed_by_id, data.changed_by)
                roll = await self._followed(unit, event, by)
                if data.roster is not None and data.roster_version > roll.roster_version:
                    await self._enrol(unit, roll, data.roster, data.roster_version, by)
            self.announcements.tell(unit)
        return await self._answered(unit, changed)

    async def keep_course(self, changed: Sequence[Event[CourseChanged]]) -> Outcome:
        """Keep who teaches a course: from now on they, and nobody else, act on its rolls."""
        async with self.rolls.locked(()) as unit:
            await unit.keep_teachers((event.data.course.id, event.sequence, event.data.course.teacher_ids) for event in changed)
        return Outcome()

    def _locked(self, events: Iterable[Event[S]]) -> AbstractAsyncContextManager[Unit]:
        return self.rolls.locked((event.data.session.id, None) for event in events)

    async def _reopen(self, unit: Unit, event: Event[SessionStarted]) -> None:
        """Follow a start that comes again, or a reopening; a reopened roll takes over the roster as it is now."""
        data = event.data
        by = rules.staff(data.session, data.started_by_id, data.started_by)
        before = await self._followed(unit, event, by)
        turn = rules.reopen(before, event.sequence, by, self.now(), data.reason)
        _turn(unit, turn)
        await self._redecide(unit, before, by)
        roll = unit.rolls[data.session.id]
        # While the roll was closed, this roster may have come already and changed nothing on it.
        if isinstance(turn, Step) or data.roster_version > roll.roster_version:
            await self._enrol(unit, roll, data.roster, data.roster_version, by)

    async def _followed(self, unit: Unit, event: Event[S], by: Actor) -> Roll:
        """Take over what an event says of the session, if it is news; raise NotYet while there is no roll."""
        session = event.data.session
        before = unit.rolls.get(session.id)
        if before is None:
            raise NotYet(f"no roll for {session.id}")
        unit.rolls[session.id] = rules.follow(before, session, event.sequence, self.now())
        await self._redecide(unit, before, by)
        return unit.rolls[session.id]

    async def _redecide(self, unit: Unit, before: Roll, by: Actor) -> None:
        """Decide anew on who is late where that has moved on an open roll."""
        roll = unit.rolls[before.session_id]
        if roll.status == "open" and roll.late_at != before.late_at:
            for step in rules.redecide(roll, (await unit.whole(roll.session_id)).values(), by, self.now()):
                unit.take(step)

    async def _enrol(self, unit: Unit, roll: Roll, roster: Sequence[Enrolled], version: int, by: Actor) -> None:
        """Bring a roll in line with the whole roster."""
        records = await unit.whole(roll.session_id)
        roll, steps, amended = rules.follow_roster(roll, records, roster, version, by, self.now())
        for record in amended:
            unit.amend(record)
        for step in steps:
            unit.take(step)
        unit.rolls[roll.session_id] = roll

    async def _answered(self, unit: Unit, asked: Iterable[Event[S]]) -> Outcome:
        """Who finishes, answers: the command that started or ended a session is answered with its roll."""
        outcome = Outcome(events=unit.events)
        asking = [(event.reply_to, event.data.session.id) for event in asked if event.reply_to is not None]
        if asking:
            async with self.rolls.snapshot() as snapshot:
                for reply_to, session_id in asking:
                    if (roll := await snapshot.roll(session_id)) is not None:
                        outcome.answer(reply_to, whole(roll, await snapshot.records(session_id)))
        return outcome


def _turn(unit: Unit, turn: Step | Roll) -> None:
    if isinstance(turn, Step):
        unit.take(turn)
    else:
        unit.rolls[turn.session_id] = turn


def _in_order(events: Iterable[Event[S]]) -> list[Event[S]]:
    return sorted(events, key=lambda event: (event.data.session.id, event.sequence))
