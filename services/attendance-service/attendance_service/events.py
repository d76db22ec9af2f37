"""What attendance-service tells the world, made from the steps taken: an event for each turn of a roll, and one for each
run of changed records. Pure.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, TypeVar

from attendance_service import rules
from attendance_service.rules import Roll, Step
from shared.clock import rfc3339
from shared.messages import Change, Event, EventData, RollChanged, RollClosed, RollOpened, RollSubmitted

D = TypeVar("D", bound=EventData)


def told(steps: Iterable[Step], *, bulk: bool = False) -> list[Event[Any]]:
    """Tell what happened in one commit: for each roll its own turns and, between them, its changed records, in order.

    `bulk` says that the records were marked together, by one command.
    """
    by_roll: dict[str, list[Step]] = {}
    for step in steps:
        by_roll.setdefault(step.entry.session_id, []).append(step)
    events: list[Event[Any]] = []
    for taken in by_roll.values():
        for of_records, run in groupby(taken, key=lambda step: step.record is not None):
            together = list(run)
            events += [_changed(together, bulk)] if of_records else [_turned(step) for step in together]
    return events


def changes(roll: Roll, items: Sequence[Change], *, bulk: bool = False) -> Event[RollChanged]:
    """Tell a run of changed records, with the roll's statistics as they are in `roll`."""
    data = RollChanged(
        first_seq=items[0].seq,
        session_id=roll.session_id,
        course_id=roll.session.course_id,
        changes=tuple(items),
        statistics=rules.statistics(roll),
        bulk=bulk,
    )
    return _event(roll, items[-1].seq, items[-1].at, data)


def _changed(run: Sequence[Step], bulk: bool) -> Event[RollChanged]:
    items = [
        rules.change(step.entry, step.record.student_name, step.record.joined_at, step.record.joined_seq)
        for step in run
        if step.record is not None
    ]
    return changes(run[-1].roll, items, bulk=bulk)


def _turned(step: Step) -> Event[Any]:
    match step.entry.kind:
        case "opened" | "reopened":
            return opened(step)
        case "submitted":
            return submitted(step)
        case _:
            return closed(step)


def opened(step: Step) -> Event[RollOpened]:
    """Tell that a roll was opened, the first time or, for a reason, again."""
    session = step.roll.session
    at = rfc3339(step.entry.at)
    data = RollOpened(
        first_seq=step.entry.seq,
        session_id=session.id,
        course_id=session.course_id,
        session=session,
        statistics=rules.statistics(step.roll),
        opened_by=step.entry.actor_name,
        opened_by_id=step.entry.actor,
        opened_at=at,
        session_version=step.roll.turn_version,
        reason=step.entry.reason,
    )
    return _event(step.roll, step.entry.seq, at, data)


def closed(step: Step) -> Event[RollClosed]:
    """Tell that a roll was closed, why and by whom."""
    session = step.roll.session
    at = rfc3339(step.entry.at)
    if step.roll.cause is None:
        raise ValueError(f"{session.id} was closed without a cause")
    data = RollClosed(
        first_seq=step.entry.seq,
        session_id=session.id,
        course_id=session.course_id,
        cause=step.roll.cause,
        statistics=rules.statistics(step.roll),
        ended_by=step.entry.actor_name,
        ended_by_id=step.entry.actor,
        ended_at=session.ended_at or at,
        session_version=step.roll.turn_version,
        closed_before=step.closed_before,
    )
    return _event(step.roll, step.entry.seq, at, data)


def submitted(step: Step) -> Event[RollSubmitted]:
    """Tell that a roll was submitted."""
    session = step.roll.session
    at = rfc3339(step.entry.at)
    data = RollSubmitted(
        first_seq=step.entry.seq,
        session_id=session.id,
        course_id=session.course_id,
        statistics=rules.statistics(step.roll),
        submitted_by=step.entry.actor_name,
        submitted_by_id=step.entry.actor,
        submitted_at=at,
    )
    return _event(step.roll, step.entry.seq, at, data)


def _event(roll: Roll, seq: int, at: str, data: D) -> Event[D]:
    return Event(id=f"roll:{roll.session_id}:{seq}", source=f"/rolls/{roll.session_id}", time=at, sequence=seq, data=data)
