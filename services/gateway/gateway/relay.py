"""From events to what clients hear: which event becomes which message, and to whom. Only this file decides who hears what.

Staff hear every record. A student hears about their own record and the room's statistics, never about a classmate.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from gateway import views
from gateway.engine import Manager
from gateway.rooms import PROGRESS_SECONDS, Member, Room
from shared.errors import Refused, Unavailable
from shared.messages import Event, EventData, RollChanged, RollClosed, RollRead, Statistics

log = structlog.get_logger()

_READ_AGAIN_SECONDS = 1.0


class Relay:
    """Tells rooms of events; given to `Rooms` as its `tell`."""

    def __init__(self, manager: Manager, read_roll: Callable[[str], Awaitable[RollRead]]) -> None:
        """`read_roll` reads a whole roll, for what must be shown when it closes."""
        self._manager = manager
        self._read_roll = read_roll

    def tell(self, room: Room, event: Event[EventData], only: Member | None) -> Awaitable[None] | None:
        """Tell a room, or one member who missed it; an awaitable where the rest of the room must wait for it."""
        match event.data:
            case RollChanged():
                self._changed(room, event.sequence, event.data, only)
            case RollClosed():
                # Whoever comes in while the roll is being read is told on their own.
                members = [only] if only is not None else _behind(room, event.sequence)
                return self._closed(room, event.data, members, alone=only is not None)
        return None

    def _changed(self, room: Room, seq: int, changed: RollChanged, only: Member | None) -> None:
        if only is None or only.kind == "staff":
            for change in changed.changes:
                if change.kind == "joined":
                    view = views.student_joined(room.session_id, change)
                    self._to_staff(room, "studentJoinedAttendance", view, change.seq, only)
        # Whoever comes in after the room was told the last state has it told once more, as seldom as ever.
        if only is None or (seq == room.seq and room.progress_due is None):
            self._progress(room, changed.statistics, seq, at_once=only is None)

    async def _closed(self, room: Room, closed: RollClosed, members: Sequence[Member], *, alone: bool) -> None:
        while True:
            try:
                read = await self._read_roll(room.session_id)
                break
            except (Refused, Unavailable) as error:
                if isinstance(error, Refused) and not error.retryable:
                    raise
                log.warning("relay.final_data_unread", session_id=room.session_id, reason=str(error))
                await asyncio.sleep(_READ_AGAIN_SECONDS)
        event = "attendanceSessionEnded"
        whole = views.ended(closed, read, read.records)
        own = {record.student_id: record for record in read.records}
        if not alone:
            told = {member.sid for member in members}
            self._manager.emit_here(event, whole, room.staff, skip=room.members.keys() - told)
        for member in members:
            if member.kind == "student":
                record = own.get(member.user_id)
                self._to(member, event, views.ended(closed, read, [record] if record else []))
            elif alone:
                self._to(member, event, whole)

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

    def _to_staff(self, room: Room, event: str, view: dict[str, Any], seq: int, only: Member | None) -> None:
        if only is not None:
            self._to(only, event, view)
        else:
            knowing = [sid for sid, known in room.ahead.items() if known >= seq]
            self._manager.emit_here(event, view, room.staff, skip=knowing)

    def _to(self, member: Member, event: str, view: dict[str, Any]) -> None:
        # Every socket is alone in the room of its own name.
        self._manager.emit_here(event, view, member.sid, namespaces=(member.namespace,))


def _behind(room: Room, seq: int) -> list[Member]:
    """List the members whose answers did not tell them of `seq` already."""
    return [member for member in room.members.values() if room.ahead.get(member.sid, 0) < seq]
