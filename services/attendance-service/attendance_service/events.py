"""What attendance-service tells the world: one event for each roll and commit, made from the steps taken. Pure."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from attendance_service import rules
from attendance_service.rules import Roll, Step
from shared.clock import rfc3339
from shared.messages import Actor, Change, Event, EventData, RollChanged, RollClosed, RollOpened, SessionEnded

D = TypeVar("D", bound=EventData)


def opened(step: Step, by: Actor) -> Event[RollOpened]:
    """Tell that a roll was opened."""
    session = step.roll.session
    data = RollOpened(
        first_seq=step.entry.seq,
        session_id=session.id,
        course_id=session.course_id,
        session=session,
        statistics=rules.statistics(step.roll),
        opened_by=by.name,
        opened_by_id=by.id,
        opened_at=rfc3339(step.entry.at),
    )
    return _event(step.roll, step.entry.seq, rfc3339(step.entry.at), data)


def closed(step: Step, ended: SessionEnded) -> Event[RollClosed]:
    """Tell that a roll was closed, why and by whom."""
    session = step.roll.session
    at = rfc3339(step.entry.at)
    data = RollClosed(
        first_seq=step.entry.seq,
        session_id=session.id,
        course_id=session.course_id,
        cause=ended.cause,
        statistics=rules.statistics(step.roll),
        ended_by=ended.ended_by,
        ended_by_id=ended.ended_by_id,
        ended_at=session.ended_at or at,
    )
    return _event(step.roll, step.entry.seq, at, data)


def changed(steps: Iterable[Step]) -> list[Event[RollChanged]]:
    """Tell the records that changed: one event for each roll, its changes in order."""
    by_roll: dict[str, list[Step]] = {}
    for step in steps:
        by_roll.setdefault(step.roll.session_id, []).append(step)
    return [
        changes(
            run[-1].roll,
            [
                rules.change(step.entry, step.record.student_name, step.record.joined_at)
                for step in run
                if step.record is not None
            ],
        )
        for run in by_roll.values()
    ]


def changes(roll: Roll, items: Sequence[Change]) -> Event[RollChanged]:
    """Tell a run of changed records, with the roll's statistics as they are in `roll`."""
    data = RollChanged(
        first_seq=items[0].seq,
        session_id=roll.session_id,
        course_id=roll.session.course_id,
        changes=tuple(items),
        statistics=rules.statistics(roll),
    )
    return _event(roll, items[-1].seq, items[-1].at, data)


def _event(roll: Roll, seq: int, at: str, data: D) -> Event[D]:
    return Event(id=f"roll:{roll.session_id}:{seq}", source=f"/rolls/{roll.session_id}", time=at, sequence=seq, data=data)
