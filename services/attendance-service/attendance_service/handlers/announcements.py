"""How events leave: each with its live channels, and what a roll has said before once more to who did not hear it."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from attendance_service import events
from attendance_service.store import Draft, Unit
from shared.live import Names
from shared.messages import Event, RollChanged, RollClosed, RollOpened, RollSubmitted, decode_event
from shared.outbox import OutboxRow, outgoing


@dataclass(frozen=True, slots=True)
class Announcements:
    """Turns what was decided in a unit into the events that leave with its commit."""

    names: Names

    def tell(self, draft: Draft, *, bulk: bool = False) -> None:
        """Have all that was decided in a draft told: the turns of a roll to its course as well, and kept as they are told."""
        for event in events.told(draft.steps, bulk=bulk):
            row = self._row(event)
            draft.events.append(row)
            if not isinstance(event.data, RollChanged):
                draft.keep(event.data.session_id, event.sequence, row.event.body)

    async def tell_again(self, unit: Unit, session_ids: Collection[str]) -> None:
        """Have these rolls say once more whether they are open, and how far they have heard of their sessions.

        The same events as before, under the same ids; session-service still waits for them. Who listens live has heard
        them, or notices the gap. A roll that says so in this commit anyway does not say it twice.
        """
        silent = set(session_ids) - {step.roll.session_id for step in unit.steps if step.record is None}
        for session_id, told in sorted((await unit.milestones(silent)).items()):
            last = [event for event in map(_read, told) if isinstance(event.data, RollOpened | RollClosed)][-1]
            data = replace(last.data, session_version=unit.rolls[session_id].turn_version)
            unit.events.append(outgoing(replace(last, data=data), ()))

    def _row(self, event: Event[Any]) -> OutboxRow:
        """Address an event: the roll's channel always, the course's when the roll itself changed."""
        channels = [self.names.roll_channel(event.data.session_id)]
        if not isinstance(event.data, RollChanged):
            channels.append(self.names.course_channel(event.data.course_id))
        return outgoing(event, channels)


async def last_submission(unit: Unit, session_ids: Collection[str]) -> dict[str, Event[RollSubmitted]]:
    """Read how these rolls were submitted last, as it was told; a roll that never was is not in it."""
    found = await unit.milestones(session_ids)
    submissions = {
        session_id: [event for event in map(_read, told) if isinstance(event.data, RollSubmitted)]
        for session_id, told in found.items()
    }
    return {session_id: told[-1] for session_id, told in submissions.items() if told}


def _read(body: bytes) -> Event[Any]:
    event = decode_event(body)
    if event is None:
        raise ValueError("the stored event is of no known type")
    return event
