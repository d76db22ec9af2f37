"""Joins: hundreds come within a second, so they are asked, answered and let in together, as many as one message brings.

What has nothing in its way takes this one; refusals are told as any command's are.
Why: docs/decisions/0029-joins-are-done-together.md
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import structlog

from gateway import views
from gateway.asked import Asked, Refuse
from gateway.calls import Told
from gateway.courses import Courses
from gateway.gathering import Gathering
from gateway.presence import Presence
from gateway.requests import Joining, Requests
from gateway.rooms import Rooms
from shared.clock import Clock, rfc3339
from shared.errors import Refused
from shared.messages import RollJoined

log = structlog.get_logger()

EVENT: Final = "attendanceSessionJoined"

_Join = tuple[Asked, Refuse]


class Joins:
    """The joins of this gateway."""

    def __init__(self, requests: Requests, rooms: Rooms, courses: Courses, presence: Presence, clock: Clock) -> None:
        self._requests = requests
        self._rooms = rooms
        self._courses = courses
        self._presence = presence
        self._clock = clock
        self._gathering = Gathering[_Join](self._leave)

    def ask(self, asked: Asked, refuse: Refuse) -> None:
        """Ask a join whose turn it is and whose room is held; then answer it and let in who asked, or `refuse` it."""
        self._gathering.put((asked, refuse))

    async def explain(self, asked: Asked) -> Refused:
        """Ask why there is no roll to join."""
        asking = self._requests.received(asked.received_at)
        return await asking.explain_no_roll(asked.actor, asked.payload.session_id, for_staff=False)

    def _leave(self, joins: Sequence[_Join]) -> None:
        try:
            self._requests.begin_joins(list(map(_joining, joins)), self._answered)
            return
        except Exception:
            log.exception("joins.not_asked", joins=len(joins))
        # None is begun. One that is to blame keeps nobody else from being asked.
        if len(joins) > 1:
            for join in joins:
                self._leave([join])
        else:
            self._answered([(join, Refused("internal")) for join in joins])

    def _answered(self, told: Told[_Join, RollJoined]) -> None:
        now = self._clock()
        for (asked, refuse), joined in told:
            # One that cannot be told keeps nobody else from being told.
            try:
                if isinstance(joined, Refused):
                    refuse(asked, joined)
                else:
                    self._joined(asked, refuse, joined, now)
            except Exception:
                log.exception("joins.failed")
        self._gathering.answered(len(told))

    def _joined(self, asked: Asked, refuse: Refuse, joined: RollJoined, now: datetime) -> None:
        """Answer a join, and only then let in who asked, unless they have left the course meanwhile."""
        try:
            asked.reply.give(views.acknowledged(views.joined(joined), now), EVENT)
        except Exception:
            log.exception("joins.not_answered")
            refuse(asked, Refused("internal"))
            return
        socket, room = asked.socket, asked.room
        try:
            if joined.enrolled and room is not None and not socket.gone:
                seq, course_id = joined.roll_seq, joined.course_id
                self._rooms.admit(room, socket.member("student"), seq, course_id=course_id, statistics_known=False)
                self._courses.host(course_id)
                # A first join is as old as what asked for it, unless it came before the roll was open.
                again = joined.joined_at != rfc3339(asked.received_at)
                self._presence.enter(room.session_id, socket.actor.id, socket.sid, again=again)
        finally:
            asked.over()


def _joining(join: _Join) -> Joining[_Join]:
    asked, _ = join
    return asked.actor, asked.payload.session_id, asked.payload.command_id, asked.received_at, join
