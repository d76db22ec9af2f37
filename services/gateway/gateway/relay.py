"""From events to what clients hear: which event becomes which message, and to whom. Only this file decides who hears what.

Staff hear every record. A student hears about their own record and the room's statistics, never about a classmate.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence

from gateway import views
from gateway.engine.server import Manager
from gateway.presence import Left
from gateway.requests import answered
from gateway.room import Member, Room
from gateway.rooms import PROGRESS_SECONDS
from gateway.watchers import Turn, Watched
from shared.messages import (
    ActiveSession,
    Change,
    Event,
    EventData,
    RollChanged,
    RollClosed,
    RollOpened,
    RollRead,
    RollSubmitted,
    Statistics,
)


class Relay:
    """Tells rooms and course watchers of events; its methods are given to those who host them."""

    def __init__(self, manager: Manager, read_roll: Callable[[str], Awaitable[RollRead]]) -> None:
        """`read_roll` reads a whole roll, for what must be shown when it closes or opens again."""
        self._manager = manager
        self._read_roll = read_roll

    def tell(self, room: Room, event: Event[EventData], only: Member | None) -> Awaitable[None] | None:
        """Tell a room, or one member who missed it; an awaitable where the rest of the room must wait for it."""
        match event.data:
            case RollChanged() as changed:
                self._changed(room, event.sequence, changed, only)
            case RollSubmitted() as submitted:
                view = views.submitted(submitted, event.sequence)
                self._to_all(room, room.everyone, room.members, "attendanceSubmitted", view, event.sequence, only)
            case RollOpened(reason=str()):
                return self._reopened(room, _members(room, event, only), only)
            case RollClosed(closed_before=False) as closed if members := _members(room, event, only):
                return self._closed(room, closed, members, only)
        return None

    def tell_left(self, room: Room, left: Sequence[Left]) -> None:
        """Tell a room's staff which students are no longer connected."""
        for each in left:
            view = views.student_left(room.session_id, each.student_id, each.left_at)
            self._manager.emit_here("studentLeft", view, room.staff)

    def tell_turn(self, course: Watched, turn: Turn, only: Member | None, know: Collection[str]) -> None:
        """Tell one of a course's watchers, or all but the sockets that know, that a session is on or over."""
        if isinstance(turn, RollOpened):
            event, view = "courseSessionStarted", views.course_session_started(turn)
        else:
            event, view = "courseSessionEnded", views.course_session_ended(turn)
        if only is not None:
            self._to(only, event, view)
        else:
            self._manager.emit_here(event, view, course.everyone, skip=know)

    def tell_active(self, course: Watched, active: Sequence[ActiveSession], know: Collection[str]) -> None:
        """Tell a course's watchers, but the sockets that know, which sessions are on."""
        view = views.active_sessions(course.course_id, active)
        self._manager.emit_here("activeSessionsData", view, course.everyone, skip=know)

    def _changed(self, room: Room, seq: int, changed: RollChanged, only: Member | None) -> None:
        records = [change for change in changed.changes if change.kind != "joined"]
        if only is None or only.kind == "staff":
            if changed.bulk and records:
                view = views.bulk_updated(room.session_id, records, seq)
                self._to_all(room, room.staff, room.staff_members, "attendanceBulkUpdated", view, seq, only)
            for change in changed.changes:
                if change.kind == "joined":
                    view = views.student_joined(room.session_id, change)
                    self._to_all(room, room.staff, room.staff_members, "studentJoinedAttendance", view, change.seq, only)
                elif not changed.bulk:
                    view = views.updated(room.session_id, change, changed.statistics)
                    self._to_all(room, room.staff, room.staff_members, "attendanceUpdated", view, change.seq, only)
        for change in records:
            self._to_student(room, change, changed.statistics, only)
        # Whoever comes in after the room was told the last state has it told once more, as seldom as ever.
        if only is None or (seq == room.seq and room.progress_due is None):
            self._progress(room, changed.statistics, seq, at_once=only is None)

    def _to_student(self, room: Room, change: Change, statistics: Statistics, only: Member | None) -> None:
        """Tell a student what became of their own record, wherever they listen as a student."""
        student_id = change.student_id or ""
        if only is None:
            members: Collection[Member] = room.of_student(student_id)
        else:
            members = [only] if only.kind == "student" and only.user_id == student_id else []
        if members:
            view = views.updated(room.session_id, change, statistics)
            for member in members:
                if only is not None or room.ahead.get(member.sid, 0) < change.seq:
                    self._to(member, "attendanceUpdated", view)

    async def _reopened(self, room: Room, members: Sequence[Member], only: Member | None) -> None:
        if any(member.kind == "staff" for member in members):
            read = await self._whole(room)
            if only is None or room.expects(only):
                self._to_these_staff(room, "attendanceSessionStarted", views.started(read), members, only)

    async def _closed(self, room: Room, closed: RollClosed, members: Sequence[Member], only: Member | None) -> None:
        read = await self._whole(room)
        await _progress_told(room)
        if only is not None and not room.expects(only):
            return
        event = "attendanceSessionEnded"
        self._to_these_staff(room, event, views.ended(closed, read, read.records), members, only)
        own = {record.student_id: record for record in read.records}
        for member in members:
            if member.kind == "student" and (only is not None or member.sid in room.members):
                record = own.get(member.user_id)
                self._to(member, event, views.ended(closed, read, [record] if record else []))

    def _to_these_staff(self, room: Room, event: str, view: views.View, members: Sequence[Member], only: Member | None) -> None:
        if only is None:
            self._manager.emit_here(event, view, room.staff, skip=room.members.keys() - {member.sid for member in members})
        elif only.kind == "staff":
            self._to(only, event, view)

    async def _whole(self, room: Room) -> RollRead:
        return await answered(lambda: self._read_roll(room.session_id), f"roll {room.session_id}")

    def _progress(self, room: Room, statistics: Statistics, seq: int, *, at_once: bool) -> None:
        """Tell the room how the roll fills: at most four times a second, and always the last state."""
        loop = asyncio.get_running_loop()
        if room.progress_due is not None:
            room.progress_due.cancel()
        wait = room.progress_at + PROGRESS_SECONDS - loop.time()

        def tell() -> None:
            room.progress_due = None
            room.progress_at = loop.time()
            view = views.progress(room.session_id, statistics, seq)
            self._manager.emit_here("attendanceProgress", view, room.everyone)

        if wait <= 0 and at_once:
            tell()
        else:
            # Also at the earliest in the next turn of the loop: by then the one it is for has come in.
            room.progress_due = loop.call_later(max(wait, 0), tell)

    def _to_all(
        self, room: Room, name: str, among: Iterable[str], event: str, view: views.View, seq: int, only: Member | None
    ) -> None:
        """Tell everybody in one of the room's Socket.IO rooms, `among` whom are some who know of `seq`, or only one."""
        if only is not None:
            self._to(only, event, view)
        else:
            self._manager.emit_here(event, view, name, skip=room.knowing(seq, among))

    def _to(self, member: Member, event: str, view: views.View) -> None:
        # Every socket is alone in the room of its own name.
        self._manager.emit_here(event, view, member.sid, namespaces=(member.namespace,))


def _members(room: Room, event: Event[EventData], only: Member | None) -> list[Member]:
    """List whom to tell, as of now: whoever comes in while a roll is being read is told on their own."""
    return [only] if only is not None else room.behind(event.sequence)


async def _progress_told(room: Room) -> None:
    """Wait until the room has heard the last numbers, at most for as long as they are throttled: none may follow an end."""
    while room.progress_due is not None:  # noqa: ASYNC110 (a timer tells nobody)
        # When it is due only the room knows: a timer that was to fire at once has no `when` (uvloop).
        await asyncio.sleep(max(0, room.progress_at + PROGRESS_SECONDS - asyncio.get_running_loop().time()))
