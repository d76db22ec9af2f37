"""Sessions that nobody ends: they end by themselves, some minutes after their planned end, told by the clock.

Any replica may end any session, also one that was started by a replica that is gone; each is ended by one alone.
"""

import asyncio
from datetime import timedelta

import structlog

from session_service import rules
from session_service.batches import Begin
from session_service.views import session_ended
from shared.errors import Unavailable
from shared.outbox import Outbox, OutboxRow

log = structlog.get_logger()

LOOK_SECONDS = 1.0
SESSIONS_AT_ONCE = 50


async def end_for_ever(begin: Begin, outbox: Outbox, grace: timedelta) -> None:
    """Look once a second for sessions whose time is over; whoever starts this guards it."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            while events := await end_due(begin, grace):
                await outbox.publish(events)
        except Unavailable as error:
            log.warning("closing_time.paused", reason=str(error))


async def end_due(begin: Begin, grace: timedelta) -> list[OutboxRow]:
    """Commit the end of sessions whose time is over and return the events; none when there is no such session.

    Ending needs no lock on the course: a roster that changes meanwhile finds the session active, or not any more.
    """
    async with begin() as work:
        for session in await work.unit.sessions.take_due(work.now, grace=grace, limit=SESSIONS_AT_ONCE):
            ended = rules.end_automatically(session, grace, work.now)
            if ended is session:
                continue
            await work.unit.sessions.save(ended)
            log.info("session.ended_automatically", session_id=ended.id)
            work.emit(session_ended(ended), ended.course_id)
    return work.events
