"""The rooms this gateway hosts: who listens to a roll here, and the roll's live events put back in order for them.

A room subscribes to its roll's Redis channel while somebody here listens, and gets one message for each commit. Live
delivery may lose or reorder; the numbers in every event show it. What comes early waits a moment, what is missing is
fetched, what was heard is dropped: each listener hears each event once, in order, from where their own answer left off.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final

import structlog
from msgspec import MsgspecError
from redis.asyncio import Redis

from gateway.errands import Errands
from gateway.room import Member, Room, without_gaps
from gateway.statements import decode_moved
from shared.errors import Refused, Unavailable
from shared.live import AWAY, Listener, Names, Ready, uncancelled
from shared.messages import ChangesRead, Event, EventData, Time, decode_event

log = structlog.get_logger()

GAP_SECONDS: Final = 0.25
HEADS_SECONDS: Final = 2.0
PROGRESS_SECONDS: Final = 0.25

Tell = Callable[[Room, Event[EventData], Member | None], Awaitable[None] | None]
"""Turns an event into what clients hear, for a whole room or for one member; what it returns is awaited before the next."""
TellLeft = Callable[[Room, Mapping[str, Time]], None]
"""Tells a room's staff which students have left, and when."""
TellBack = Callable[[Room], Awaitable[None]]
"""Tells a room's staff of the students who have `returned`, until there are none."""


class Rooms:
    """All rooms of this gateway."""

    def __init__(
        self,
        redis: Redis,
        names: Names,
        listener: Listener,
        errands: Errands,
        fetch: Callable[[str, int], Awaitable[ChangesRead]],
        tell: Tell,
        tell_left: TellLeft,
        tell_back: TellBack,
    ) -> None:
        """`fetch(session_id, since_seq)` reads what was missed; `tell`, `tell_left` and `tell_back` are the relay's."""
        self._redis = redis
        self._names = names
        self._listener = listener
        self._errands = errands
        self._fetch = fetch
        self._tell = tell
        self._tell_left = tell_left
        self._tell_back = tell_back
        self._rooms: dict[str, Room] = {}
        self._by_socket = defaultdict[str, set[str]](set)

    def room_of(self, session_id: str) -> Room | None:
        """Find the room of a roll, where this gateway hosts one."""
        return self._rooms.get(session_id)

    def of_course(self, course_id: str) -> list[Room]:
        """List the rooms of a course's rolls."""
        return [room for room in self._rooms.values() if room.course_id == course_id]

    def courses(self) -> Collection[str | None]:
        """Tell of which courses there are rooms."""
        return {room.course_id for room in self._rooms.values()}

    def staffed(self) -> list[str]:
        """List the sessions whose staff listen here."""
        return [room.session_id for room in self._rooms.values() if room.staff_members]

    def hold(self, session_id: str) -> Room | None:
        """Keep a room that hears already, as `hear` does; None where one must wait for it."""
        room = self._rooms.get(session_id)
        if room is None or not self._listener.hears(room.channel):
            return None
        room.holds += 1
        return room

    async def hear(self, session_id: str) -> Room:
        """Host a room from before a command is sent, so that nothing is missed between its commit and its answer.

        It is kept until `holds` is taken back.
        """
        room = self._rooms.get(session_id)
        if room is None:
            room = self._rooms[session_id] = Room(session_id, self._names.roll_channel(session_id))
        room.holds += 1
        try:
            if not self._listener.hears(room.channel):
                await self._listen(room, room.channel, self._heard, lambda: self._mend_soon(room, None))
        except BaseException:
            room.holds -= 1
            raise
        return room

    async def _listen(self, room: Room, channel: str, hear: Callable[[Room, bytes], None], ready: Ready = lambda: None) -> None:
        def confirmed() -> None:
            room.deaf = False
            ready()

        try:
            await self._listener.subscribe(channel, partial(hear, room), confirmed)
        except Unavailable as error:
            # The room hears nothing for now; it catches up when Redis is back. Each join comes here until then.
            if not room.deaf:
                log.warning("rooms.deaf", session_id=room.session_id, reason=str(error))
            room.deaf = True

    def admit(self, room: Room, member: Member, seq: int, *, course_id: str, statistics_known: bool = True) -> None:
        """Let a socket in whose answer was as of `seq`, now that it is on its way: what it hears came after.

        Without `statistics_known`, the answer did not say how full the roll was then: that is told as well.
        """
        room.course_id = course_id
        if member.kind == "student" and room.listener(member.sid) is not None:
            # This socket hears all since its first answer (as staff: more than a student would).
            return
        room.entering[member.sid] = member
        self._by_socket[member.sid].add(room.session_id)
        self._let_in(room, member, seq, statistics_known)

    def _let_in(self, room: Room, member: Member, seq: int, statistics_known: bool) -> None:
        missed = room.missed(member.kind, seq, statistics_known=statistics_known)
        if missed is None:
            self._errands.start(self._catch_up(room, member, seq))
            return
        for event in missed:
            if (more := self._told(room, event, member)) is not None:
                self._errands.start(self._in_turn(room, member, event.sequence, more))
                return
        del room.entering[member.sid]
        known = room.add(member)
        if member.kind == "staff" and not room.hears_of_presence:
            room.hears_of_presence = True
            channel = self._names.presence_channel(room.session_id)
            self._errands.start(self._listen(room, channel, self._heard_of_presence))
        begins = room.seq is None
        if room.seq is None:
            # Begun early, the room learns what the change that let them in made of the statistics.
            room.seq = seq if statistics_known else seq - 1
        if seq > room.seq and not known:
            # Who listened before goes on hearing everything, also what they have just read.
            room.ahead[member.sid] = seq
        if begins:
            self._advance(room)

    async def _in_turn(self, room: Room, member: Member, seq: int, more: Awaitable[None]) -> None:
        """Let a member in once they have been told what takes its time, and whatever came meanwhile."""
        try:
            await more
        except Exception:
            log.exception("rooms.telling_failed", session_id=room.session_id)
        if room.expects(member):
            self._let_in(room, member, seq, True)

    async def _catch_up(self, room: Room, member: Member, seq: int) -> None:
        """Tell one member what the room heard while their answer was on its way and no longer remembers."""
        since = seq
        try:
            async for event in self._fetched(room, since, room.seq):
                if not room.expects(member):
                    return
                if (more := self._told(room, event, member)) is not None:
                    await more
                seq = event.sequence
        except (Refused, Unavailable) as error:
            log.warning("rooms.gap_stays", session_id=room.session_id, reason=str(error))
        except Exception:
            log.exception("rooms.catching_up_failed", session_id=room.session_id)
        # Where nothing could be had they come in all the same, rather than ask for ever.
        if room.expects(member):
            self._let_in(room, member, seq if seq > since else max(seq, room.seq or 0), False)

    def leave(self, session_id: str, sid: str) -> Member | None:
        """Take a socket out of one room, or off its way in; None when it was neither."""
        room = self._rooms.get(session_id)
        if room is None or (listener := room.listener(sid)) is None:
            return None
        self._forget(room, sid)
        return listener

    def _forget(self, room: Room, sid: str) -> None:
        room.entering.pop(sid, None)
        rooms = self._by_socket[sid]
        rooms.discard(room.session_id)
        if not rooms:
            del self._by_socket[sid]
        room.remove(sid)

    def leave_all(self, sid: str) -> None:
        """Forget a socket that has gone."""
        for session_id in list(self._by_socket.get(sid, ())):
            self._forget(self._rooms[session_id], sid)

    def _heard(self, room: Room, body: bytes) -> None:
        try:
            event = decode_event(body)
        except (MsgspecError, ValueError) as error:
            log.error("rooms.malformed_event", channel=room.channel, reason=type(error).__name__)
            return
        # Of a type that this version does not know only the number matters, and the next event shows that it is missing.
        if event is not None:
            self._receive(room, event)

    def _heard_of_presence(self, room: Room, body: bytes) -> None:
        moved = decode_moved(body)
        left = {each.student_id: each.left_at for each in moved if each.left_at is not None}
        back = room.away.intersection(each.student_id for each in moved if each.left_at is None)
        room.away.difference_update(back)
        room.returned.update(back)
        room.away.update(left)
        room.returned.difference_update(left)
        self._tell_left(room, left)
        # One reading of the roll at a time, for all who come back meanwhile.
        if room.returned and (room.telling_back is None or room.telling_back.done()):
            room.telling_back = self._errands.start(self._tell_back(room))

    def _receive(self, room: Room, event: Event[EventData]) -> None:
        if room.seq is not None and event.sequence <= room.seq:
            return
        room.waiting[event.data.first_seq] = event
        self._advance(room)

    def _advance(self, room: Room) -> None:
        """Tell what is next in turn; while one event is still being told, the rest waits behind it."""
        while room.telling is None and (event := room.take()) is not None:
            if (more := self._told(room, event, None)) is not None:
                room.telling = self._errands.start(self._finish(room, more))
        room.forget_the_past()
        if room.seq is not None and room.waiting and room.telling is None and room.mending is None:
            room.mending = self._errands.start(self._mend(room, GAP_SECONDS))

    def _told(self, room: Room, event: Event[EventData], only: Member | None) -> Awaitable[None] | None:
        """Tell an event; one that cannot be told holds up nobody."""
        try:
            return self._tell(room, event, only)
        except Exception:
            log.exception("rooms.telling_failed", session_id=room.session_id)
            return None

    async def _finish(self, room: Room, more: Awaitable[None]) -> None:
        try:
            await more
        except Exception:
            log.exception("rooms.telling_failed", session_id=room.session_id)
        room.telling = None
        self._advance(room)

    async def _mend(self, room: Room, wait_seconds: float, upto: int | None = None) -> None:
        """Give a late event its moment, then fetch what is missing: up to what waits for it, or `upto`, or all there is."""
        try:
            await asyncio.sleep(wait_seconds)
            if room.seq is None or (wait_seconds and not room.waiting):
                return
            if wait_seconds:
                upto = max(event.sequence for event in room.waiting.values())
            async for event in self._fetched(room, room.seq, upto):
                self._receive(room, event)
        except (Refused, Unavailable) as error:
            log.warning("rooms.gap_stays", session_id=room.session_id, reason=str(error))
        except Exception:
            log.exception("rooms.mending_failed", session_id=room.session_id)
        finally:
            room.mending = None

    async def _fetched(self, room: Room, since: int, upto: int | None) -> AsyncIterator[Event[EventData]]:
        """Fetch page by page until `upto` is reached, or until there is no more."""
        while upto is None or since < upto:
            read = await self._fetch(room.session_id, since)
            for event in without_gaps(room.session_id, read, since):
                yield event
            if read.seq <= since:
                return
            since = read.seq

    def _mend_soon(self, room: Room, upto: int | None) -> None:
        """Fetch what nobody knows whether it was said, up to a number or all there is."""
        if room.seq is not None and room.mending is None:
            room.mending = self._errands.start(self._mend(room, 0, upto))

    async def look_after(self) -> None:
        """Every 2 s for ever: close the rooms nobody is in, and compare heads, so that a lost last event is noticed."""
        while True:
            await asyncio.sleep(HEADS_SECONDS)
            await self._close_empty()
            await self._compare_heads([room for room in self._rooms.values() if room.seq is not None])

    async def _close_empty(self) -> None:
        now = asyncio.get_running_loop().time()
        for room in list(self._rooms.values()):
            # Looked at one by one: somebody may come in while the room before is being left.
            if room.hears_of_presence and not room.staff_members:
                room.hears_of_presence = False
                room.away.clear()
                room.returned.clear()
                await self._listener.unsubscribe(self._names.presence_channel(room.session_id))
            # Who comes back at once must not be told of the statistics sooner than the throttle allows.
            if room.members or room.entering or room.holds or now < room.progress_at + PROGRESS_SECONDS:
                continue
            del self._rooms[room.session_id]
            for task in filter(None, (room.mending, room.telling, room.telling_back)):
                task.cancel()
            if room.progress_due is not None:
                room.progress_due.cancel()
            await self._listener.unsubscribe(room.channel)

    async def _compare_heads(self, hosted: Sequence[Room]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for room in hosted:
            pipeline.hget(self._names.roll_head(room.session_id), "seq")
        try:
            heads = await uncancelled(pipeline.execute()) if hosted else []
        except AWAY as error:
            log.warning("rooms.heads_unread", reason=str(error))
            return
        for room, head in zip(hosted, heads, strict=True):
            if head is not None and room.seq is not None and int(head) > room.seq:
                self._mend_soon(room, int(head))
