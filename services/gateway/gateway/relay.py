"""From events to what clients hear: which event becomes which message, and to whom. Only this file decides who hears what.

Staff hear every record. A student hears about their own record and the room's statistics, never about a classmate.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from gateway import views
from gateway.engine.fanout import Said, emit
from gateway.requests import answered
from gateway.room import Member, Room
from gateway.rooms import PROGRESS_SECONDS
from gateway.watchers import Turn
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
    Time,
)


class Relay:
    """Tells rooms and course watchers of events; its methods are given to those who host them."""

    def __init__(self, read_roll: Callable[[str], Awaitable[RollRead]]) -> None:
        """`read_roll` reads a whole roll, for what must be shown when it closes or opens again."""
        self._read_roll = read_roll

    def tell(self, room: Room, event: Event[EventData], only: Member | None) -> Awaitable[None] | None:
        """Tell a room, or one member who missed it; an awaitable where the rest of the room must wait for it."""
        match event.data:
            case RollChanged() as changed:
                self._changed(room, event.sequence, changed, only)
            case RollSubmitted() as submitted:
                said = [("attendanceSubmitted", views.submitted(submitted, event.sequence))]
                self._to_all(room, room.members, said, only)
            case RollOpened(reason=str()):
                return self._reopened(room, _members(room, event, only), only)
            case RollClosed(closed_before=False) as closed if members := _members(room, event, only):
                return self._closed(room, closed, members, only)
        return None

    def tell_left(self, room: Room, left: Mapping[str, Time]) -> None:
        """Tell a room's staff which students are no longer connected, and since when."""
        said = [("studentLeft", views.student_left(room.session_id, *each)) for each in left.items()]
        emit(said, room.staff_members.values())

    async def tell_back(self, room: Room) -> None:
        """Tell a room's staff which students who had left are connected again, as they were told of the joins themselves."""
        while room.returned:
            read = await self._whole(room)
            back = [record for record in read.records if record.student_id in room.returned]
            room.returned.clear()
            # No further than the room has heard: clients take it for what they know.
            said = [("studentJoinedAttendance", views.student_back(record, room.seq or record.seq)) for record in back]
            emit(said, room.staff_members.values())

    def tell_turn(self, turn: Turn, members: Collection[Member]) -> None:
        """Tell some of a course's watchers that a session is on or over."""
        if isinstance(turn, RollOpened):
            emit([("courseSessionStarted", views.course_session_started(turn))], members)
        else:
            emit([("courseSessionEnded", views.course_session_ended(turn))], members)

    def tell_active(self, course_id: str, active: Sequence[ActiveSession], members: Collection[Member]) -> None:
        """Tell some of a course's watchers which of its sessions are on."""
        emit([("activeSessionsData", views.active_sessions(course_id, active))], members)

    def _changed(self, room: Room, seq: int, changed: RollChanged, only: Member | None) -> None:
        staff_hear = room.staff_members if only is None else only.kind == "staff"
        if staff_hear:
            self._to_all(room, room.staff_members, _told_to_staff(room.session_id, changed, seq), only)
        for change in changed.changes:
            if change.kind != "joined":
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
            unaware = [each for each in members if only is not None or room.ahead.get(each.sid, 0) < change.seq]
            emit([("attendanceUpdated", view)], unaware)

    async def _reopened(self, room: Room, members: Sequence[Member], only: Member | None) -> None:
        if any(member.kind == "staff" for member in members):
            read = await self._whole(room)
            if only is None or room.expects(only):
                emit([("attendanceSessionStarted", views.started(read))], _staff(room, members, only))

    async def _closed(self, room: Room, closed: RollClosed, members: Sequence[Member], only: Member | None) -> None:
        read = await self._whole(room)
        await _progress_told(room)
        if only is not None and not room.expects(only):
            return
        event = "attendanceSessionEnded"
        emit([(event, views.ended(closed, read, read.records))], _staff(room, members, only))
        own = {record.student_id: record for record in read.records}
        for member in members:
            if member.kind == "student" and (only is not None or member.sid in room.members):
                record = own.get(member.user_id)
                emit([(event, views.ended(closed, read, [record] if record else []))], [member])

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
            emit([("attendanceProgress", view)], room.members.values())

        if wait <= 0 and at_once:
            tell()
        else:
            # Also at the earliest in the next turn of the loop: by then the one it is for has come in.
            room.progress_due = loop.call_later(max(wait, 0), tell)

    def _to_all(self, room: Room, among: Mapping[str, Member], said: Sequence[Said], only: Member | None) -> None:
        """Tell all of these members what their answers did not tell them already, or one member all of it."""
        if only is not None:
            emit(said, [only])
        elif said and len(room.behind(said[0][1]["seq"], among)) == len(among):
            emit(said, among.values())
        else:
            for each in said:
                emit([each], room.behind(each[1]["seq"], among))


def _told_to_staff(session_id: str, changed: RollChanged, seq: int) -> list[Said]:
    """Say what staff hear of one commit."""
    said: list[Said] = []
    if changed.bulk and (records := [change for change in changed.changes if change.kind != "joined"]):
        said.append(("attendanceBulkUpdated", views.bulk_updated(session_id, records, seq)))
    for change in changed.changes:
        if change.kind == "joined":
            said.append(("studentJoinedAttendance", views.student_joined(session_id, change)))
        elif not changed.bulk:
            said.append(("attendanceUpdated", views.updated(session_id, change, changed.statistics)))
    return said


def _members(room: Room, event: Event[EventData], only: Member | None) -> list[Member]:
    """List whom to tell, as of now: whoever comes in while a roll is being read is told on their own."""
    return [only] if only is not None else room.behind(event.sequence, room.members)


def _staff(room: Room, members: Sequence[Member], only: Member | None) -> list[Member]:
    """List the staff among some members, as far as they are still there."""
    return [each for each in members if each.kind == "staff" and (only is not None or each.sid in room.members)]


async def _progress_told(room: Room) -> None:
    """Wait until the room has heard the last numbers, at most for as long as they are throttled: none may follow an end."""
    while room.progress_due is not None:  # noqa: ASYNC110 (a timer tells nobody)
        # When it is due only the room knows: a timer that was to fire at once has no `when` (uvloop).
        await asyncio.sleep(max(0, room.progress_at + PROGRESS_SECONDS - asyncio.get_running_loop().time()))
