"""One gateway's rooms, watchers and presence on a real Valkey, and what its tests say to them.

The manager and the server are the real ones; in place of a connection each socket has an ear that keeps what it was sent.
The services are a script: what was committed is what a fetch answers.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from msgspec import Raw, json
from redis.asyncio import Redis

from attendance_service.live import LiveRolls
from gateway.courses import Courses, Hosted
from gateway.engine.outbound import Message
from gateway.engine.server import NAMESPACES, Json, Manager, Server
from gateway.errands import Errands
from gateway.presence import Presence
from gateway.relay import Relay
from gateway.room import Kind, Member, Room
from gateway.rooms import Rooms
from gateway.watchers import Watchers
from shared.clock import utc_now
from shared.live import Listener, Names, open_redis
from shared.messages import (
    ActiveSessions,
    ChangesRead,
    Event,
    Role,
    RollClosed,
    RollOpened,
    RollRead,
    Standing,
    encode_event,
)
from shared.outbox import outgoing
from shared.process import guarded
from tests.contract.room_events import COURSE, SID, active, is_of_joins, joins, lines, whole_roll

SECONDS = 30.0
"""How long a test waits for what must come; it never waits for this long where all is well."""


class Ear:
    """One socket: keeps each event it is sent, and when."""

    closed = False
    address = "192.0.2.1"

    def __init__(self, sid: str, namespace: str, user_id: str, role: Role, kind: Kind) -> None:
        self.member = Member(sid, namespace, user_id, role, kind, self)
        self.namespaces = {namespace: sid}
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.times: list[float] = []
        self.farewells = 0
        self.under_way = 0

    async def send(self, packet: Any) -> None:
        """Be told by the library itself, which has nothing to say here but that the namespace is closed."""
        assert packet.data.startswith("1")
        self.farewells += 1

    def put(self, message: Message | None) -> None:
        for packet in () if message is None else message.packets:
            name, payload = json.decode(packet[packet.index(b"[") :])
            self.heard.append((name, payload))
            if name == "attendanceProgress":
                self.times.append(time.monotonic())

    def of(self, name: str) -> list[dict[str, Any]]:
        return [payload for event, payload in self.heard if event == name]

    @property
    def joins(self) -> list[int]:
        """The numbers of the joins heard of."""
        return [payload["seq"] for payload in self.of("studentJoinedAttendance")]

    @property
    def marks(self) -> list[int]:
        """The numbers of the changes heard of that were no joins."""
        return [payload["seq"] for payload in self.of("attendanceUpdated")]

    @property
    def progress(self) -> list[int]:
        return [payload["seq"] for payload in self.of("attendanceProgress")]

    @property
    def ends(self) -> int:
        return len(self.of("attendanceSessionEnded"))

    @property
    def names(self) -> set[str]:
        return {event for event, _ in self.heard}


class World:
    """One gateway's rooms, and the attendance-service they hear of."""

    def __init__(self, redis: Redis, url: str, *, page: int = 100, names: Names | None = None) -> None:
        self.redis = redis
        self.names = names or Names(f"test-{uuid4().hex}")
        self.gateway_id = uuid4().hex
        self.manager = Manager(url, channel=self.names.control_channel())
        self.server = Server(async_mode="aiohttp", client_manager=self.manager, json=Json, namespaces=list(NAMESPACES))
        self.relay = Relay(self.read_roll)
        self.listener = Listener(redis, self.names.heartbeat_channel(self.gateway_id))
        self.errands = Errands()
        relay = self.relay
        self.rooms = Rooms(
            redis, self.names, self.listener, self.errands, self.fetch, relay.tell, relay.tell_left, relay.tell_back
        )
        self.presence = Presence(redis, self.names, self.listener, self.gateway_id, utc_now, self.rooms.staffed)
        self.watchers = Watchers(self.relay.tell_turn, self.relay.tell_active)
        self.courses = Courses(
            self.names,
            self.listener,
            self.errands,
            self.rooms,
            self.watchers,
            self.presence,
            self.read_standing,
            self.read_active,
        )
        self.teacher_ids: tuple[str, ...] = ("ada", "ben", "s2")
        """Who teaches the course; s2 is enrolled in it as well."""
        self.strangers: set[str] = set()
        """Who is not enrolled."""
        self.versions = (0, 0)
        """Of the course, and of its roster."""
        self.active: list[str] = []
        """The sessions that are on."""
        self.turned: dict[str, int] = {}
        """As of which number of each session's roll that is."""
        self.committed: list[Event[Any]] = []
        self.fetches: list[int] = []
        """Since which number each fetch asked."""
        self.page = page
        self.refusals: list[Exception] = []
        """What the next fetches, or reads of the roll, raise."""
        self.course_refusals: list[Exception] = []
        """The same for what is asked about the course."""
        self.reading = asyncio.Event()
        self.reading.set()
        self.reads = 0
        self.looks = 0
        """How often session-service was asked who may listen."""
        self.reads_of_active = 0

    async def fetch(self, session_id: str, since: int) -> ChangesRead:
        """As attendance-service does: a page of history, a run of joins as one event."""
        assert session_id == SID
        self.fetches.append(since)
        if self.refusals:
            raise self.refusals.pop(0)
        await asyncio.sleep(0)
        changes = [line for event in self.committed for line in lines(event) if line[0] > since][: self.page]
        events: list[Event[Any]] = []
        for seq, event in changes:
            if not is_of_joins(event):
                events += [] if events and events[-1] is event else [event]
            elif events and is_of_joins(events[-1]):
                events[-1] = joins(events[-1].data.first_seq, seq)
            else:
                events.append(joins(seq, seq))
        last = changes[-1][0] if changes else self.seq
        return ChangesRead(events=tuple(Raw(encode_event(event)) for event in events), seq=last)

    async def read_roll(self, session_id: str) -> RollRead:
        self.reads += 1
        if self.refusals:
            raise self.refusals.pop(0)
        await self.reading.wait()
        return whole_roll(self.seq)

    async def read_standing(self, course_id: str, student_ids: Sequence[str]) -> Standing:
        self.looks += 1
        if self.course_refusals:
            raise self.course_refusals.pop(0)
        version, roster_version = self.versions
        return Standing(
            teacher_ids=self.teacher_ids,
            enrolled=tuple(id for id in student_ids if id not in self.strangers),
            version=version,
            roster_version=roster_version,
        )

    async def read_active(self, course_id: str) -> ActiveSessions:
        if self.course_refusals:
            raise self.course_refusals.pop(0)
        self.reads_of_active += 1
        return ActiveSessions(items=active(*self.active))

    @property
    def seq(self) -> int:
        return self.committed[-1].sequence if self.committed else 1

    async def commit(self, *events: Event[Any], live: bool = True, heads: bool = True) -> None:
        """Commit, and tell as attendance-service does; without `live` the events get lost on the way."""
        for event in events:
            assert event.data.first_seq == self.seq + 1
            self.committed.append(event)
        channels = [self.names.roll_channel(SID)] if live else []
        if heads:
            await LiveRolls(self.redis, self.names).broadcast([outgoing(event, channels) for event in events])
        else:
            await self.say(*events if live else ())

    @property
    def course(self) -> Hosted:
        """The course, which somebody here listens to."""
        return self.courses._courses[COURSE]

    async def say(self, *events: Event[Any]) -> None:
        """Let the live channel carry these, in this order."""
        for event in events:
            await self.redis.publish(self.names.roll_channel(SID), encode_event(event))

    async def say_of_the_course(self, *events: Event[Any]) -> None:
        """Let the course's channel carry these once it is heard, in this order; what they tell of has been committed."""
        channel = self.names.course_channel(COURSE)
        await until(lambda: self.listener.hears(channel))
        for event in events:
            data = event.data
            if isinstance(data, RollOpened | RollClosed) and event.sequence > self.turned.get(data.session_id, 0):
                self.turned[data.session_id] = event.sequence
                self.active = [each for each in self.active if each != data.session_id]
                self.active += [data.session_id] if isinstance(data, RollOpened) else []
            await self.redis.publish(channel, encode_event(event))

    async def a_socket(self, kind: Kind = "staff", user_id: str = "", namespace: str = "/", role: Role | None = None) -> Ear:
        eio_sid = uuid4().hex
        sid = await self.manager.connect(eio_sid, namespace)
        role = role or ("teacher" if kind == "staff" else "student")
        ear = Ear(sid, namespace, user_id or ("ada" if kind == "staff" else "s2"), role, kind)
        self.server.eio.sockets[eio_sid] = ear
        return ear

    @asynccontextmanager
    async def entering(self, session_id: str = SID) -> AsyncIterator[Room]:
        """Keep a room as a command does that is still to be answered."""
        room = await self.rooms.hear(session_id)
        try:
            yield room
        finally:
            room.holds -= 1

    async def enter(self, ear: Ear, seq: int) -> Room:
        """Come in with an answer as of `seq`; return once the room has been told of it."""
        async with self.entering() as room:
            self.admit(room, ear, seq)
        await asyncio.sleep(0)
        return room

    def admit(self, room: Room, ear: Ear, seq: int) -> None:
        """Let in whose answer was as of `seq`: a teacher's shows the roll, that to a join does not."""
        self.rooms.admit(room, ear.member, seq, course_id=COURSE, statistics_known=ear.member.kind == "staff")
        self.courses.host(COURSE)

    async def a_listener(self, seq: int = 1, kind: Kind = "staff", user_id: str = "") -> tuple[Ear, Room]:
        ear = await self.a_socket(kind, user_id)
        room = await self.enter(ear, seq)
        await until(lambda: ear.member.sid in room.members)
        return ear, room

    async def leave(self, ear: Ear) -> None:
        self.rooms.leave_all(ear.member.sid)
        self.watchers.leave_all(ear.member.sid)
        self.presence.leave_all(ear.member.sid)
        self.manager.basic_disconnect(ear.member.sid, ear.member.namespace)

    async def listening(self) -> int:
        """How many connections listen to the roll's channel."""
        return await self.listening_to(self.names.roll_channel(SID))

    async def listening_to(self, channel: str) -> int:
        """How many connections listen to a channel."""
        [(_, count)] = await self.redis.pubsub_numsub(channel)
        return int(count)


async def until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Return as soon as it is so."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (an ear is told from within the library, which tells nobody)
            await asyncio.sleep(0.002)


@asynccontextmanager
async def a_world(url: str, *, page: int = 100, names: Names | None = None) -> AsyncIterator[World]:
    """Run one gateway's part; those with the same names are gateways of one deployment."""
    async with open_redis(url) as redis:
        world = World(redis, url, page=page, names=names)
        async with guarded(
            world.errands.run, world.listener.run, world.rooms.look_after, world.courses.look_after, world.presence.run
        ):
            await until(lambda: world.listener._pubsub is not None)
            yield world
