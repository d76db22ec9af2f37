"""The rooms this gateway hosts: who listens to a roll here, and the roll's live events put back in order for them.

A room subscribes to its roll's Redis channel while somebody here listens, and gets one message for each commit. Live
delivery may lose or reorder; the numbers in every event show it. What comes early waits a moment, what is missing is
fetched, what was heard is dropped: each listener hears each event once, in order, from where their own answer left off.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

import structlog
from msgspec import MsgspecError
from msgspec.structs import replace
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.engine import Manager
from shared.errors import Refused, Unavailable
from shared.live import Listener, Names
from shared.messages import ChangesRead, Event, EventData, RollChanged, decode_event

log = structlog.get_logger()

GAP_SECONDS: Final = 0.25
HEADS_SECONDS: Final = 2.0
PROGRESS_SECONDS: Final = 0.25
_RECENT_EVENTS: Final = 256

Kind = Literal["staff", "student"]


@dataclass(frozen=True, slots=True)
class Member:
    """One socket in a room: a teacher's, or a student's."""

    sid: str
    namespace: str
    user_id: str
    kind: Kind


@dataclass(slots=True, eq=False)
class Room:
    """One roll's listeners in this process, and how far they have heard."""

    session_id: str
    channel: str
    seq: int | None = None
    """The last number told; None until the first listener is in."""
    members: dict[str, Member] = field(default_factory=dict)
    holds: int = 0
    """Callers who are on their way in."""
    waiting: dict[int, Event[EventData]] = field(default_factory=dict)
    """Events that came before their turn, by first number."""
    recent: deque[Event[EventData]] = field(default_factory=lambda: deque(maxlen=_RECENT_EVENTS))
    ahead: dict[str, int] = field(default_factory=dict)
    """Sockets whose answer was newer than the room: up to which number they know already."""
    mending: asyncio.Task[None] | None = None
    telling: asyncio.Task[None] | None = None
    progress_due: asyncio.TimerHandle | None = None
    progress_at: float = 0.0

    @property
    def staff(self) -> str:
        """The Socket.IO room of the staff."""
        return f"staff:{self.session_id}"

    @property
    def everyone(self) -> str:
        """The Socket.IO room of all who listen."""
        return f"roll:{self.session_id}"


Tell = Callable[[Room, Event[EventData], Member | None], Awaitable[None] | None]
"""Turns an event into what clients hear, for a whole room or for one member; what it returns is awaited before the next."""


class Rooms:
    """All rooms of this gateway."""

    def __init__(
        self,
        manager: Manager,
        redis: Redis,
        names: Names,
        gateway_id: str,
        fetch: Callable[[str, int], Awaitable[ChangesRead]],
        tell: Tell,
    ) -> None:
        """`fetch(session_id, since_seq)` reads what was missed; `tell` is the relay."""
        self._manager = manager
        self._redis = redis
        self._names = names
        self._fetch = fetch
        self._tell = tell
        self._rooms: dict[str, Room] = {}
        self._by_channel: dict[str, Room] = {}
        self._by_socket: dict[str, set[str]] = {}
        self._tasks: set[asyncio.Future[None]] = set()
        self.listener = Listener(redis, names.heartbeat_channel(gateway_id), self._heard, self._reconnected)

    @asynccontextmanager
    async def entering(self, session_id: str) -> AsyncIterator[Room]:
        """Host a room from before a command is sent, so that nothing is missed between its commit and its answer."""
        room = self._rooms.get(session_id)
        if room is None:
            room = Room(session_id, self._names.roll_channel(session_id))
            self._rooms[session_id] = self._by_channel[room.channel] = room
        room.holds += 1
        try:
            try:
                await self.listener.subscribe(room.channel)
            except Unavailable as error:
                # The room hears nothing for now; it catches up when Redis is back.
                log.warning("rooms.deaf", session_id=session_id, reason=str(error))
            yield room
        finally:
            room.holds -= 1

    def admit(self, room: Room, member: Member, seq: int) -> None:
        """Let a socket in whose answer was as of `seq`, once that answer is on its way: what it hears came after."""
        room.holds += 1
        asyncio.get_running_loop().call_soon(self._let_in, room, member, seq)

    def _let_in(self, room: Room, member: Member, seq: int, *, statistics_known: bool = True) -> None:
        if member.kind == "student" and member.sid in room.members:
            # A repeated join: this socket has heard all since it came in (as staff: more than a student would).
            room.holds -= 1
            return
        missed = [_after(event, seq) for event in room.recent if event.sequence > seq]
        if room.seq is not None and seq < room.seq and (not missed or missed[0].data.first_seq > seq + 1):
            self._start(self._catch_up(room, member, seq))
            return
        # What a student's own join, or what was fetched, made of the statistics was told before they were in.
        if member.kind == "student" or not statistics_known:
            last = room.recent[-1] if room.recent and seq == room.seq else None
            missed += [_after(last, seq)] if last is not None and isinstance(last.data, RollChanged) else []
        for event in missed:
            if (more := self._tell(room, event, member)) is not None:
                self._start(self._in_turn(room, member, event.sequence, more))
                return
        room.holds -= 1
        names = (room.everyone, room.staff) if member.kind == "staff" else (room.everyone,)
        if not all([self._manager.enter_here(member.sid, member.namespace, name) for name in names]):
            return
        known = member.sid in room.members
        room.members[member.sid] = member
        self._by_socket.setdefault(member.sid, set()).add(room.session_id)
        if room.seq is None:
            # A student is still to hear what their own join made of the statistics.
            room.seq = seq - 1 if member.kind == "student" else seq
            self._advance(room)
        elif seq > room.seq and not known:
            # Who listened before goes on hearing everything, also what they have just read.
            room.ahead[member.sid] = seq

    async def _in_turn(self, room: Room, member: Member, seq: int, more: Awaitable[None]) -> None:
        """Let a member in once they have been told what takes its time, and whatever came meanwhile."""
        try:
            await more
        except Exception:
            log.exception("rooms.telling_failed", session_id=room.session_id)
        self._let_in(room, member, seq)

    async def _catch_up(self, room: Room, member: Member, seq: int) -> None:
        """Tell one member what the room heard while their answer was on its way and no longer remembers."""
        since = seq
        try:
            async for event in self._fetched(room, since):
                if (more := self._tell(room, event, member)) is not None:
                    await more
                seq = event.sequence
        except (Refused, Unavailable) as error:
            log.warning("rooms.gap_stays", session_id=room.session_id, reason=str(error))
        except Exception:
            log.exception("rooms.catching_up_failed", session_id=room.session_id)
        # Where nothing could be had they come in all the same, rather than ask for ever.
        self._let_in(room, member, seq if seq > since else max(seq, room.seq or 0), statistics_known=False)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def leave_all(self, sid: str) -> None:
        """Forget a socket that has gone."""
        for session_id in self._by_socket.pop(sid, ()):
            if (room := self._rooms.get(session_id)) is not None:
                room.members.pop(sid, None)
                room.ahead.pop(sid, None)

    def _heard(self, channel: str, body: bytes) -> None:
        room = self._by_channel.get(channel)
        if room is None:
            return
        try:
            event = decode_event(body)
        except (MsgspecError, ValueError) as error:
            log.error("rooms.malformed_event", channel=channel, reason=str(error))
            return
        if event is not None:
            self._receive(room, event)

    def _receive(self, room: Room, event: Event[EventData]) -> None:
        if room.seq is not None and event.sequence <= room.seq:
            return
        room.waiting[event.data.first_seq] = event
        self._advance(room)

    def _advance(self, room: Room) -> None:
        """Tell what is next in turn; while one event is still being told, the rest waits behind it."""
        while room.seq is not None and room.telling is None:
            event = _next(room, room.seq)
            if event is None:
                break
            room.seq = event.sequence
            room.recent.append(event)
            if (more := self._tell(room, event, None)) is not None:
                room.telling = asyncio.create_task(self._finish(room, more))
            room.ahead = {sid: seq for sid, seq in room.ahead.items() if seq > room.seq}
        if room.seq is not None:
            known = room.seq
            room.waiting = {first: event for first, event in room.waiting.items() if event.sequence > known}
            if room.waiting and room.telling is None and room.mending is None:
                room.mending = asyncio.create_task(self._mend(room, GAP_SECONDS))

    async def _finish(self, room: Room, more: Awaitable[None]) -> None:
        try:
            await more
        except Exception:
            log.exception("rooms.telling_failed", session_id=room.session_id)
        finally:
            room.telling = None
            self._advance(room)

    async def _mend(self, room: Room, wait_seconds: float) -> None:
        """Give a late event its moment, then fetch what is missing."""
        try:
            await asyncio.sleep(wait_seconds)
            if room.seq is None or (wait_seconds and not room.waiting):
                return
            async for event in self._fetched(room, room.seq):
                self._receive(room, event)
        except (Refused, Unavailable) as error:
            log.warning("rooms.gap_stays", session_id=room.session_id, reason=str(error))
        except Exception:
            log.exception("rooms.mending_failed", session_id=room.session_id)
        finally:
            room.mending = None

    async def _fetched(self, room: Room, since: int) -> AsyncIterator[Event[EventData]]:
        while True:
            read = await self._fetch(room.session_id, since)
            for raw in read.events:
                if (event := decode_event(raw)) is not None:
                    yield event
            if not read.events or read.seq <= since:
                return
            since = read.seq

    async def _reconnected(self) -> None:
        """Catch up everywhere: nobody knows what was said while the subscription was away."""
        for room in list(self._rooms.values()):
            self._mend_soon(room)

    def _mend_soon(self, room: Room) -> None:
        if room.seq is not None and room.mending is None:
            room.mending = asyncio.create_task(self._mend(room, 0))

    async def look_after(self) -> None:
        """Every 2 s for ever: close the rooms nobody is in, and compare heads, so that a lost last event is noticed."""
        while True:
            await asyncio.sleep(HEADS_SECONDS)
            await self._close_empty()
            await self._compare_heads([room for room in self._rooms.values() if room.seq is not None])

    async def _close_empty(self) -> None:
        for room in list(self._rooms.values()):
            # Looked at one by one: somebody may come in while the room before is being left.
            if room.members or room.holds:
                continue
            del self._rooms[room.session_id], self._by_channel[room.channel]
            for task in filter(None, (room.mending, room.telling)):
                task.cancel()
            if room.progress_due is not None:
                room.progress_due.cancel()
            await self.listener.unsubscribe(room.channel)

    async def _compare_heads(self, rooms: Iterable[Room]) -> None:
        hosted = list(rooms)
        pipeline = self._redis.pipeline(transaction=False)
        for room in hosted:
            pipeline.hget(self._names.roll_head(room.session_id), "seq")
        try:
            heads = await pipeline.execute() if hosted else []
        except (RedisError, OSError) as error:
            log.warning("rooms.heads_unread", reason=str(error))
            return
        for room, head in zip(hosted, heads, strict=True):
            if head is not None and room.seq is not None and int(head) > room.seq:
                self._mend_soon(room)


def _next(room: Room, told: int) -> Event[EventData] | None:
    """Take the event whose turn it is, without what of it was told already (a page of changes may end within a commit)."""
    event = room.waiting.pop(told + 1, None)
    if event is not None:
        return event
    for first, event in room.waiting.items():
        if first <= told < event.sequence:
            del room.waiting[first]
            return _after(event, told)
    return None


def _after(event: Event[EventData], told: int) -> Event[EventData]:
    data = event.data
    if data.first_seq > told or not isinstance(data, RollChanged):
        return event
    rest = tuple(change for change in data.changes if change.seq > told)
    return replace(event, data=replace(data, first_seq=told + 1, changes=rest))
