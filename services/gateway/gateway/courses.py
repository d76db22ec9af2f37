"""The courses this gateway hosts: their channels, and who may still listen to them and their rolls.

A course's channel is listened to while somebody here watches the course or listens to one of its rolls. What it says of
teachers and rosters is acted upon at once. But events get lost, so whoever listens is also looked at again and again: then
session-service says who may, and attendance-service what is on.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from random import uniform
from typing import Final

import structlog
from msgspec import MsgspecError

from gateway.errands import Errands
from gateway.presence import Presence
from gateway.requests import answered
from gateway.room import Member, Room
from gateway.rooms import Rooms
from gateway.watchers import Watched, Watchers
from shared.errors import Refused, Unavailable
from shared.live import Listener, Names
from shared.messages import (
    ActiveSessions,
    CourseChanged,
    RollClosed,
    RollOpened,
    SessionChanged,
    SessionStarted,
    Standing,
    decode_event,
)

log = structlog.get_logger()

AGAIN_SECONDS: Final = 30.0
"""At the latest after that, a course is looked at again: whoever may not listen any more hears no longer than that."""
SECOND_LOOK_SECONDS: Final = 2.0
"""After that, everybody has heard who teaches and who is enrolled: whoever was let in meanwhile by who had not goes too."""
LATE_SECONDS: Final = 1.0
"""So long the event of a turn may be on its way after it shows in a list; only then it counts as lost."""
LOOK_SECONDS: Final = 0.5
_TOGETHER: Final = 16


@dataclass(slots=True, eq=False)
class Hosted:
    """One course of which somebody here hears, or is about to."""

    watched: Watched
    channel: str
    look_at: float
    """When to look again who may listen."""
    looking: bool = False
    deaf: bool = False
    """Whether it has been said that Redis confirms nothing, and nothing was confirmed since."""
    holds: int = 0
    """Callers who are still to be answered."""
    version: int = 0
    """The newest change of the course that is known here; the same for its roster."""
    roster_version: int = 0

    @property
    def course_id(self) -> str:
        """Which course it is."""
        return self.watched.course_id


class Courses:
    """All courses this gateway hosts."""

    def __init__(
        self,
        names: Names,
        listener: Listener,
        errands: Errands,
        rooms: Rooms,
        watchers: Watchers,
        presence: Presence,
        read_standing: Callable[[str, Sequence[str]], Awaitable[Standing]],
        read_active: Callable[[str], Awaitable[ActiveSessions]],
    ) -> None:
        """`read_standing(course_id, student_ids)` reads who teaches a course, and which of the students are enrolled."""
        self._names = names
        self._listener = listener
        self._errands = errands
        self._rooms = rooms
        self._watchers = watchers
        self._presence = presence
        self._read_standing = read_standing
        self._read_active = read_active
        self._courses: dict[str, Hosted] = {}
        self._places = asyncio.Semaphore(_TOGETHER)

    def host(self, course_id: str) -> None:
        """Listen to a course, one of whose rolls has listeners here."""
        if course_id not in self._courses:
            self._errands.start(self._listen(self._hosted(course_id)))

    @asynccontextmanager
    async def entering(self, course_id: str) -> AsyncIterator[Watched]:
        """Host a course from before its sessions are read, so that nothing is missed between that and the answer."""
        course = self._hosted(course_id)
        course.holds += 1
        try:
            await self._listen(course)
            yield course.watched
        finally:
            course.holds -= 1

    def _hosted(self, course_id: str) -> Hosted:
        if course_id not in self._courses:
            look_at = _now() + AGAIN_SECONDS
            self._courses[course_id] = Hosted(Watched(course_id), self._names.course_channel(course_id), look_at)
        return self._courses[course_id]

    async def _listen(self, course: Hosted) -> None:
        def confirmed() -> None:
            course.deaf = False
            # Nobody knows what was said before the channel was heard.
            _look_within(course, 0)

        try:
            await self._listener.subscribe(course.channel, partial(self._heard, course), confirmed)
        except Unavailable as error:
            # It hears nothing for now; when Redis is back its watchers are told how things stand. Each watcher comes here.
            if not course.deaf:
                log.warning("courses.deaf", course_id=course.course_id, reason=str(error))
            course.deaf = True

    def _heard(self, course: Hosted, body: bytes) -> None:
        try:
            event = decode_event(body)
        except (MsgspecError, ValueError) as error:
            log.error("courses.malformed_event", channel=course.channel, reason=type(error).__name__)
            return
        if event is None:
            return
        match event.data:
            case RollOpened() | RollClosed() as turn:
                self._watchers.turned(course.watched, turn, event.sequence)
            case CourseChanged() as changed:
                self._changed(course, changed, event.sequence)
            case SessionChanged(roster=tuple()) as changed:
                self._roster_changed(course, changed)
            case SessionStarted() as started:
                self._doubt(course, {student.student_id for student in started.roster})

    def _changed(self, course: Hosted, changed: CourseChanged, version: int) -> None:
        if version > course.version:
            course.version = version
            self._send_away(course, lambda member: member.dismissed_by(changed.course.teacher_ids))

    def _roster_changed(self, course: Hosted, changed: SessionChanged) -> None:
        # Each session that is on tells of the same change.
        if changed.roster_version > course.roster_version:
            course.roster_version = changed.roster_version
            if changed.removed:
                self._send_away(course, lambda member: member.kind == "student" and member.user_id in changed.removed)

    def _send_away(self, course: Hosted, goes: Callable[[Member], bool]) -> None:
        """Have some hear no more of a course and its rolls, and look again a moment later."""
        for room, member in self._listeners(course):
            if goes(member):
                self._leave(course, room, member)
        _look_within(course, SECOND_LOOK_SECONDS)

    def _leave(self, course: Hosted, room: Room | None, member: Member) -> None:
        if room is None:
            self._watchers.leave(course.course_id, member.sid)
        else:
            self._rooms.leave(room.session_id, member.sid)
            self._presence.leave(room.session_id, member.sid, at_once=True)

    def _listeners(self, course: Hosted) -> list[tuple[Room | None, Member]]:
        """List who listens to a course's rolls, or without a room watches it."""
        of_rolls = [(room, member) for room in self._rooms.of_course(course.course_id) for member in room.listeners()]
        return [*of_rolls, *((None, watcher.member) for watcher in course.watched.listeners())]

    def _doubt(self, course: Hosted, enrolled: Collection[str]) -> None:
        """Ask about students who watch and are not on a roster: while nothing is on, nobody tells who is taken off it.

        The roster may as well be an old one, told again.
        """
        for watcher in list(course.watched.watchers.values()):
            if watcher.member.kind == "student" and watcher.member.user_id not in enrolled:
                self._watchers.doubt(course.watched, watcher)
                _look_within(course, 0)

    async def look_after(self) -> None:
        """Twice a second for ever: look at those courses again whose time it is, and leave those that concern nobody here."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for course in self._courses.values():
                if course.look_at <= _now() and not course.looking:
                    course.looking = True
                    # Spread, for many courses may have begun to be hosted at once.
                    course.look_at = _now() + uniform(AGAIN_SECONDS / 2, AGAIN_SECONDS)
                    self._errands.start(self._look_again(course))
            await self._leave_unused()

    async def _look_again(self, course: Hosted) -> None:
        try:
            async with self._places:
                await self._see_who_may(course)
            await self._see_what_is_on(course)
        except Refused as refused:
            log.warning("courses.unread", course_id=course.course_id, reason=str(refused))
        finally:
            course.looking = False

    async def _see_who_may(self, course: Hosted) -> None:
        listeners = self._listeners(course)
        if not listeners:
            return
        students = sorted({member.user_id for _, member in listeners if member.kind == "student"})
        read = partial(self._read_standing, course.course_id, students)
        standing = await answered(read, f"course {course.course_id}")
        course.version = max(course.version, standing.version)
        course.roster_version = max(course.roster_version, standing.roster_version)
        enrolled = set(standing.enrolled)
        # Whoever came in meanwhile was not asked about.
        still = {(room, member) for room, member in self._listeners(course)}
        for room, member in still.intersection(listeners):
            if member.dismissed_by(standing.teacher_ids) or (member.kind == "student" and member.user_id not in enrolled):
                self._leave(course, room, member)
        for watcher in course.watched.listeners():
            if watcher.doubted and watcher.member.user_id in enrolled:
                self._watchers.let_in(course.watched, watcher)

    async def _see_what_is_on(self, course: Hosted) -> None:
        watched, waited = course.watched, False
        while watched.watchers:
            since = watched.turns
            async with self._places:
                read = await answered(partial(self._read_active, course.course_id), f"sessions of {course.course_id}")
            if since < watched.turns:
                # A turn was heard meanwhile: the list may be from before it.
                continue
            if waited or not watched.unaware(read.items):
                self._watchers.relist(watched, read.items)
                return
            await asyncio.sleep(LATE_SECONDS)
            waited = True

    async def _leave_unused(self) -> None:
        hosted = self._rooms.courses()
        for course in list(self._courses.values()):
            watched = course.watched
            if not (watched.watchers or watched.entering or course.holds or course.course_id in hosted):
                del self._courses[course.course_id]
                await self._listener.unsubscribe(course.channel)
                # Somebody may have come in meanwhile.
                hosted = self._rooms.courses()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _look_within(course: Hosted, seconds: float) -> None:
    course.look_at = min(course.look_at, _now() + seconds)
