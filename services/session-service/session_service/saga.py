"""The saga between a session and its roll, kept from sticking: what a roll does not answer, it is told again.

A session that was started, reopened, ended or cancelled waits until its roll reports a version at least as new. While
that does not come, because an event was lost or parked, the event is repeated under its first id, by one replica at a time.
"""

import asyncio
from datetime import timedelta

import structlog

from session_service.batches import Begin
from session_service.rules import Roster
from session_service.views import unreported
from shared.errors import Unavailable
from shared.outbox import Outbox, OutboxRow

log = structlog.get_logger()

LOOK_SECONDS = 0.5
SILENCE = timedelta(seconds=2)
# Each wait is as long as all before it together, up to this: an attendance-service that was away for an hour
# finds some hundred copies of a roster waiting, not thousands.
LONGEST_SILENCE = timedelta(seconds=30)
SESSIONS_AT_ONCE = 50


async def repeat_for_ever(begin: Begin, outbox: Outbox) -> None:
    """Look twice a second for rolls that are silent; whoever starts this guards it."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            while events := await repeat_unreported(begin):
                await outbox.publish(events)
        except Unavailable as error:
            log.warning("saga.paused", reason=str(error))


async def repeat_unreported(begin: Begin) -> list[OutboxRow]:
    """Commit events of sessions whose roll is silent once more and return them; none when all is well."""
    async with begin() as work:
        sessions = await work.unit.sessions.take_unreported(
            work.now, wait=SILENCE, longest=LONGEST_SILENCE, limit=SESSIONS_AT_ONCE
        )
        opening = {session.course_id for session in sessions if session.status == "active" or not session.roll_version}
        rosters = await work.unit.courses.enrolled(opening) if opening else {}
        for session in sessions:
            log.warning("saga.repeated", session_id=session.id, status=session.status)
            for event in unreported(session, rosters.get(session.course_id, Roster())):
                work.emit(event, session.course_id)
    return work.events
