"""What is done when rolls report: how far they have followed their sessions, and that a submission ended one."""

from collections.abc import Iterable, Sequence

import structlog

from session_service import rules
from session_service.batches import Begin, Work
from session_service.views import session_ended
from shared.messages import Event, RollClosed, RollOpened
from shared.worker import Handler, Outcome

log = structlog.get_logger()


def roll_opened(begin: Begin) -> Handler:
    """Make the handler that notes which version of its session a roll knows, opened for the first time or again."""

    async def note_openings(events: Sequence[Event[RollOpened]]) -> Outcome:
        async with begin() as work:
            await _note_versions(work, (event.data for event in events))
        return Outcome()

    return note_openings


def roll_closed(begin: Begin) -> Handler:
    """Make the handler that notes the same of rolls that closed; one that was submitted ends its session.

    An event that comes again finds the session ended, or turned since, and changes nothing.
    """

    async def note_closings(events: Sequence[Event[RollClosed]]) -> Outcome:
        async with begin() as work:
            await _note_versions(work, (event.data for event in events))
            for event in events:
                if event.data.cause == "submitted":
                    await _end_by_submission(work, event.data)
        return Outcome(events=work.events)

    return note_closings


async def _note_versions(work: Work, reports: Iterable[RollOpened | RollClosed]) -> None:
    """Lock these sessions in the order of all, and note the newest version that each roll knows."""
    versions: dict[str, int] = {}
    for report in reports:
        versions[report.session_id] = max(report.session_version, versions.get(report.session_id, 0))
    for session_id in await work.unit.sessions.mark_reported(versions):
        log.warning("roll.of_no_session", session_id=session_id)


async def _end_by_submission(work: Work, closed: RollClosed) -> None:
    session = await work.unit.sessions.lock(closed.session_id)
    if session is None:
        return
    ended = rules.end_by_submission(session, closed)
    if ended != session:
        await work.unit.sessions.save(ended)
        work.emit(session_ended(ended), ended.course_id)
