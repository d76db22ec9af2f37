"""The gateway's rooms on a real Valkey: whatever live delivery loses, repeats or reorders, everyone hears all once, in order.

The manager and the server are the real ones; in place of a connection each socket has an ear that keeps what it was sent.
Attendance-service is a script: what was committed is what a fetch answers.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import msgspec
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw, json
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from attendance_service.live import LiveRolls
from gateway.engine import NAMESPACES, Json, Manager, Server
from gateway.relay import Relay
from gateway.rooms import HEADS_SECONDS, PROGRESS_SECONDS, Kind, Member, Room, Rooms
from shared.clock import rfc3339
from shared.errors import Refused, Unavailable
from shared.live import Names, open_redis
from shared.messages import (
    Change,
    ChangesRead,
    CheckIn,
    Event,
    EventData,
    Record,
    RollChanged,
    RollClosed,
    RollRead,
    Session,
    Statistics,
    encode_event,
)
from shared.outbox import outgoing
from shared.process import guarded

NINE = rfc3339(datetime(2026, 11, 24, 9, 0, tzinfo=UTC))
SECONDS = 10.0
"""How long a test waits for what must come; it never waits for this long where all is well."""
SID = "5e55"
STUDENTS = 400


class Ear:
    """One socket: keeps each event it is sent, and when."""

    closed = False

    def __init__(self, member: Member) -> None:
        self.member = member
        self.queue = self
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.times: list[float] = []

    def put_nowait(self, packet: Any) -> None:
        text = packet.data if packet.data.startswith("2[") else "2" + packet.data.partition(",")[2]
        name, payload = json.decode(text[1:])
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

    def __init__(self, redis: Redis, url: str, *, page: int = 100) -> None:
        self.redis = redis
        self.names = Names(f"test-{uuid4().hex}")
        self.manager = Manager(url, channel=self.names.control_channel())
        self.server = Server(async_mode="aiohttp", client_manager=self.manager, json=Json, namespaces=list(NAMESPACES))
        self.relay = Relay(self.manager, self.read_roll)
        self.rooms = Rooms(self.manager, redis, self.names, uuid4().hex, self.fetch, self.relay.tell)
        self.committed: list[Event[Any]] = []
        self.fetches: list[int] = []
        """Since which number each fetch asked."""
        self.page = page
        self.refusals: list[Exception] = []
        """What the next fetches, or reads, raise."""
        self.reading = asyncio.Event()
        self.reading.set()
        self.reads = 0

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
            if isinstance(event.data, RollClosed):
                events.append(event)
            elif events and isinstance(events[-1].data, RollChanged):
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

    async def say(self, *events: Event[Any]) -> None:
        """Let the live channel carry these, in this order."""
        for event in events:
            await self.redis.publish(self.names.roll_channel(SID), encode_event(event))

    async def a_socket(self, kind: Kind = "staff", user_id: str = "", namespace: str = "/") -> Ear:
        eio_sid = uuid4().hex
        sid = await self.manager.connect(eio_sid, namespace)
        ear = Ear(Member(sid, namespace, user_id or ("ada" if kind == "staff" else "s2"), kind))
        self.server.eio.sockets[eio_sid] = ear
        return ear

    async def enter(self, ear: Ear, seq: int) -> Room:
        """Come in with an answer as of `seq`; return once the room has been told of it."""
        async with self.rooms.entering(SID) as room:
            self.rooms.admit(room, ear.member, seq)
        await asyncio.sleep(0)
        return room

    async def a_listener(self, seq: int = 1, kind: Kind = "staff", user_id: str = "") -> tuple[Ear, Room]:
        ear = await self.a_socket(kind, user_id)
        room = await self.enter(ear, seq)
        await until(lambda: ear.member.sid in room.members)
        return ear, room

    async def leave(self, ear: Ear) -> None:
        self.rooms.leave_all(ear.member.sid)
        self.manager.basic_disconnect(ear.member.sid, ear.member.namespace)

    async def listening(self) -> int:
        """How many connections listen to the roll's channel."""
        [(_, count)] = await self.redis.pubsub_numsub(self.names.roll_channel(SID))
        return int(count)


async def until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Return as soon as it is so."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (an ear is told from within the library, which tells nobody)
            await asyncio.sleep(0.002)


def a_session() -> Session:
    words: dict[str, Any] = dict.fromkeys(Session.__struct_fields__, "x")
    nothing = dict.fromkeys(("description", "meeting_link", "started_at", "ended_at"))
    return Session(**{**words, **nothing, "id": SID, "status": "active", "teacher_ids": ("ada",), "check_in": CheckIn()})


def statistics(seq: int) -> Statistics:
    """As many are present as have joined: number 2 was the first."""
    present = min(seq - 1, STUDENTS)
    return Statistics(
        total_students=STUDENTS,
        present_count=present,
        absent_count=STUDENTS - present,
        late_count=0,
        excused_count=0,
        attendance_rate=round(100 * present / STUDENTS, 2),
    )


def whole_roll(seq: int) -> RollRead:
    records = tuple(
        Record(
            session_id=SID,
            student_id=f"s{number}",
            student_name=f"Student {number}",
            status="present",
            remarks=None,
            source="self",
            marked_by=None,
            marked_at=None,
            joined_at=NINE,
            seq=number,
        )
        for number in range(2, 6)
    )
    return RollRead(session=a_session(), records=records, statistics=statistics(seq), seq=seq)


def joins(first: int, last: int) -> Event[RollChanged]:
    """One commit of joins: student s7 joins with number 7."""
    changes = tuple(
        Change(
            seq=seq,
            at=NINE,
            kind="joined",
            student_id=f"s{seq}",
            before="absent",
            after="present",
            source="self",
            actor=f"s{seq}",
            actor_name=f"Student {seq}",
            reason=None,
            remarks=None,
            command_id=f"k{seq}",
            student_name=f"Student {seq}",
            joined_at=NINE,
        )
        for seq in range(first, last + 1)
    )
    data = RollChanged(first_seq=first, session_id=SID, course_id="c1", changes=changes, statistics=statistics(last))
    return Event(id=f"roll:{SID}:{last}", source=f"/rolls/{SID}", time=NINE, sequence=last, data=data)


def a_join(seq: int) -> Event[RollChanged]:
    return joins(seq, seq)


def a_close(seq: int) -> Event[RollClosed]:
    data = RollClosed(
        first_seq=seq,
        session_id=SID,
        course_id="c1",
        cause="ended",
        statistics=statistics(seq),
        ended_by="Ada",
        ended_by_id="ada",
        ended_at=NINE,
    )
    return Event(id=f"roll:{SID}:{seq}", source=f"/rolls/{SID}", time=NINE, sequence=seq, data=data)


def lines(event: Event[EventData]) -> Iterable[tuple[int, Event[EventData]]]:
    return ((seq, event) for seq in range(event.data.first_seq, event.sequence + 1))


@asynccontextmanager
async def a_world(url: str, *, page: int = 100) -> AsyncIterator[World]:
    async with open_redis(url) as redis:
        world = World(redis, url, page=page)
        async with guarded(world.rooms.listener.run, world.rooms.look_after):
            await until(lambda: world.rooms.listener._pubsub is not None)
            yield world


@pytest_asyncio.fixture
async def world(redis_url: str) -> AsyncIterator[World]:
    async with a_world(redis_url) as world:
        yield world


# In order


async def test_events_are_told_in_order_and_nothing_is_fetched(world: World) -> None:
    ear, _ = await world.a_listener()

    await world.commit(a_join(2), joins(3, 5), a_join(6))

    await until(lambda: ear.joins == [2, 3, 4, 5, 6])
    assert world.fetches == []
    assert ear.of("studentJoinedAttendance")[0] == {
        "session_id": SID,
        "student_id": "s2",
        "student_name": "Student 2",
        "joined_at": NINE,
        "status": "present",
        "seq": 2,
    }


async def test_an_event_that_comes_a_moment_late_is_waited_for_not_fetched(world: World) -> None:
    ear, room = await world.a_listener()
    await world.commit(a_join(2), a_join(3), a_join(4), live=False)

    await world.say(a_join(4), a_join(3))
    await until(lambda: len(room.waiting) == 2)
    assert ear.joins == []
    await world.say(a_join(2))

    await until(lambda: ear.joins == [2, 3, 4])
    await until(lambda: room.mending is None)
    assert world.fetches == []


async def test_an_event_that_does_not_come_is_fetched(world: World) -> None:
    ear, _ = await world.a_listener()
    await world.commit(a_join(2))
    await world.commit(joins(3, 4), live=False)

    await world.commit(a_join(5))

    await until(lambda: ear.joins == [2, 3, 4, 5])
    assert world.fetches[0] == 2


async def test_what_is_missing_is_fetched_page_by_page(redis_url: str) -> None:
    async with a_world(redis_url, page=3) as world:
        ear, _ = await world.a_listener()
        await world.commit(joins(2, 9), live=False)
        await world.commit(a_join(10))

        await until(lambda: ear.joins == list(range(2, 11)))


async def test_an_event_that_comes_twice_is_told_once(world: World) -> None:
    ear, _ = await world.a_listener()
    await world.commit(a_join(2), joins(3, 4))
    await world.say(a_join(2), joins(3, 4), joins(3, 4), a_join(2))
    await world.commit(a_join(5))
    await world.say(a_join(5))

    await world.commit(a_join(6))

    await until(lambda: ear.joins[-1:] == [6])
    assert ear.joins == [2, 3, 4, 5, 6]


async def test_a_late_commit_of_which_the_first_part_was_fetched_is_told_from_there_on(redis_url: str) -> None:
    """A page of changes ends where it is full, also within a commit."""
    async with a_world(redis_url, page=2) as world:
        ear, room = await world.a_listener()
        await world.commit(a_join(2), joins(3, 6), live=False)
        world.refusals = []
        fetch, asked = world.fetch, asyncio.Event()

        async def fetch_once(session_id: str, since: int) -> ChangesRead:
            if asked.is_set():
                raise Unavailable("gone after the first page")
            asked.set()
            return await fetch(session_id, since)

        world.rooms._fetch = fetch_once
        await world.say(joins(3, 6))

        await until(lambda: ear.joins == [2, 3, 4, 5, 6])
        await until(lambda: room.mending is None)
        assert not room.waiting


async def test_a_lost_last_event_is_noticed_by_the_head(world: World) -> None:
    ear, _ = await world.a_listener()
    started = time.monotonic()

    await world.commit(a_join(2), live=False)

    await until(lambda: ear.joins == [2])
    assert time.monotonic() - started < HEADS_SECONDS + 1


async def test_a_fetch_that_fails_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.rooms.HEADS_SECONDS", 0.05)
    ear, _ = await world.a_listener()
    world.refusals = [Refused("timeout"), Unavailable("no broker"), RuntimeError("a defect")]
    await world.commit(a_join(2), live=False)
    await world.commit(a_join(3))

    await until(lambda: ear.joins == [2, 3])
    assert len(world.fetches) >= 4


async def test_what_is_no_event_on_the_channel_stops_nobody(world: World) -> None:
    ear, _ = await world.a_listener()
    channel = world.names.roll_channel(SID)
    for body in (b"", b"nonsense", b"{}", encode_event(a_join(2)).replace(b"0002", b"two!")):
        await world.redis.publish(channel, body)

    await world.commit(a_join(2))

    # Within less than it takes a listener that has died to begin again.
    await until(lambda: ear.joins == [2], seconds=0.9)


# Coming in


async def test_who_comes_in_hears_what_was_said_while_their_answer_was_on_its_way(world: World) -> None:
    first, _ = await world.a_listener()
    await world.commit(a_join(2), joins(3, 5), a_join(6))
    await until(lambda: first.joins[-1:] == [6])

    for answer in (2, 5, 6):
        ear = await world.a_socket()
        await world.enter(ear, answer)
        assert ear.joins == list(range(answer + 1, 7))

    assert world.fetches == []
    assert first.joins == [2, 3, 4, 5, 6]


async def test_who_comes_in_hears_also_what_the_room_does_not_remember_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it before anything later."""
    first, room = await world.a_listener()
    await world.commit(*(a_join(seq) for seq in range(2, 301)))
    await until(lambda: first.joins[-1:] == [300])
    assert len(room.recent) < 299
    ear = await world.a_socket()

    await world.enter(ear, 10)
    await world.commit(*(a_join(seq) for seq in range(301, 311)))

    await until(lambda: ear.joins[-1:] == [310])
    assert ear.joins == list(range(11, 311))
    assert world.fetches[0] == 10


async def test_who_was_answered_within_a_commit_hears_the_rest_of_it_only(redis_url: str) -> None:
    """Fetched changes come as one event, however many commits they were."""
    async with a_world(redis_url) as world:
        first, _ = await world.a_listener()
        await world.commit(a_join(2), a_join(3), a_join(4), live=False)
        await until(lambda: first.joins == [2, 3, 4])
        ear = await world.a_socket()

        await world.enter(ear, 3)

        assert ear.joins == [4]


async def test_whose_answer_is_newer_than_the_room_hears_nothing_twice(world: World) -> None:
    first, room = await world.a_listener()
    await world.commit(a_join(2), joins(3, 5), a_close(6), live=False, heads=False)
    ear = await world.a_socket()

    await world.enter(ear, 6)
    await world.say(a_join(2), joins(3, 5), a_close(6))
    await until(lambda: first.ends == 1)
    await world.commit(a_join(7))

    await until(lambda: ear.joins == [7])
    assert first.joins == [2, 3, 4, 5, 7]
    assert ear.ends == 0
    assert room.ahead == {}


async def test_the_first_to_come_in_hears_all_after_their_answer_and_nothing_before(world: World) -> None:
    """Events reach the room between its subscription and the first answer."""
    ear = await world.a_socket()
    async with world.rooms.entering(SID) as room:
        await world.commit(a_join(2), joins(3, 4), a_join(5))
        await until(lambda: len(room.waiting) == 3)
        world.rooms.admit(room, ear.member, 4)

    await until(lambda: ear.joins == [5])
    assert world.fetches == []


async def test_the_answer_comes_before_all_that_follows_from_it(world: World) -> None:
    """`admit` lets in only after the caller has put the answer on its way."""
    first, _ = await world.a_listener()
    await world.commit(a_join(2), a_join(3))
    await until(lambda: first.joins == [2, 3])
    ear = await world.a_socket()

    async with world.rooms.entering(SID) as room:
        world.rooms.admit(room, ear.member, 2)
    world.manager.emit_here("answer", {}, ear.member.sid)

    await until(lambda: ear.joins == [3])
    assert ear.heard[0][0] == "answer"


async def test_both_namespaces_hear_alike(world: World) -> None:
    ears = [await world.a_socket(namespace=namespace) for namespace in NAMESPACES]
    for ear in ears:
        await world.enter(ear, 1)

    await world.commit(a_join(2), a_close(3))

    for ear in ears:
        await until(lambda ear=ear: ear.joins == [2] and ear.ends == 1)  # type: ignore[misc]


async def test_when_nothing_can_be_fetched_whoever_comes_in_hears_the_rest(world: World) -> None:
    _, room = await world.a_listener(seq=5)
    room.recent.clear()
    world.committed = [joins(2, 5)]
    world.refusals = [Unavailable("no broker")]
    ear = await world.a_socket()
    await world.enter(ear, 3)
    await until(lambda: ear.member.sid in room.members)

    await world.commit(a_join(6))

    await until(lambda: ear.joins == [6])
    assert room.holds == 0


async def test_a_fetch_that_knows_of_nothing_is_not_asked_for_ever(world: World) -> None:
    """So it is when Postgres came back older than it was."""
    _, room = await world.a_listener(seq=5)
    ear = await world.a_socket()

    await world.enter(ear, 3)

    await until(lambda: ear.member.sid in room.members)
    assert world.fetches == [3]
    assert room.holds == 0


async def test_who_has_gone_before_they_were_let_in_is_not_let_in(world: World) -> None:
    _, room = await world.a_listener()
    ear = await world.a_socket()
    async with world.rooms.entering(SID):
        world.rooms.admit(room, ear.member, 1)
        await world.leave(ear)

    await world.commit(a_join(2))
    await until(lambda: room.seq == 2)

    assert ear.member.sid not in room.members
    assert ear.heard == []
    assert room.holds == 0


# Leaving


async def test_a_room_that_everybody_has_left_is_not_listened_to(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.rooms.HEADS_SECONDS", 0.05)
    ears = [(await world.a_listener())[0] for _ in range(2)]
    assert await world.listening() == 1
    await world.leave(ears[0])
    await world.commit(a_join(2))
    await until(lambda: ears[1].joins == [2])

    await world.leave(ears[1])

    await until(lambda: world.rooms.listener.channels == frozenset())
    async with asyncio.timeout(SECONDS):
        while await world.listening():  # noqa: ASYNC110 (Valkey tells nobody)
            await asyncio.sleep(0.005)
    assert ears[0].joins == []
    assert not (world.rooms._rooms or world.rooms._by_channel or world.rooms._by_socket)


async def test_a_room_is_entered_again_after_everybody_has_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.rooms.HEADS_SECONDS", 0.05)
    ear, _ = await world.a_listener()
    await world.commit(a_join(2))
    await world.leave(ear)
    await until(lambda: world.rooms.listener.channels == frozenset())
    await world.commit(a_join(3), a_join(4))

    again, _ = await world.a_listener(seq=3)
    await world.commit(a_join(5))

    await until(lambda: again.joins == [4, 5])


async def test_a_room_that_is_entered_while_another_is_being_closed_stays(world: World) -> None:
    """Leaving a channel takes a moment, and in it somebody may come into the next room on the list."""
    async with world.rooms.entering("other"):
        pass
    async with world.rooms.entering(SID) as room:
        pass
    leave = world.rooms.listener.unsubscribe
    ear = await world.a_socket()

    async def slowly(channel: str) -> None:
        await leave(channel)
        await world.enter(ear, 1)

    with patch.object(world.rooms.listener, "unsubscribe", slowly):
        await world.rooms._close_empty()
    await world.commit(a_join(2))

    await until(lambda: ear.joins == [2])
    assert world.rooms._rooms == {SID: room}


# Redis


async def test_after_a_lost_connection_the_room_catches_up(world: World) -> None:
    ear, _ = await world.a_listener()
    await world.commit(a_join(2))
    await until(lambda: ear.joins == [2])

    await world.redis.client_kill_filter(_type="pubsub")
    # Nobody listens: neither these nor their head can be noticed but by asking.
    await world.commit(a_join(3), a_join(4), heads=False, live=False)

    await until(lambda: ear.joins == [2, 3, 4])
    await world.commit(a_join(5))
    await until(lambda: ear.joins == [2, 3, 4, 5])


async def test_a_room_entered_while_the_connection_is_lost_hears_all_the_same(world: World) -> None:
    first, _ = await world.a_listener()
    await world.redis.client_kill_filter(_type="pubsub")
    await world.commit(a_join(2))
    ear = await world.a_socket()

    await world.enter(ear, 1)

    await until(lambda: ear.joins == first.joins == [2])


async def test_a_listener_stops_when_it_is_told_to(redis_url: str) -> None:
    """Whatever it is doing: a cancellation that the library swallows would keep the process from ending."""
    async with open_redis(redis_url) as redis:
        for number in range(40):
            world = World(redis, redis_url)

            async def a_while(world: World = world, number: int = number) -> None:
                async with guarded(world.rooms.listener.run):
                    await asyncio.sleep(number % 10 / 2000)

            listening = asyncio.create_task(a_while())
            done, _ = await asyncio.wait({listening}, timeout=SECONDS)
            assert done, f"still listening after {number} starts"


async def test_a_room_that_is_entered_while_the_listener_connects_is_listened_to(redis_url: str) -> None:
    """Else it would be deaf until the next connection, and live on heads and fetches."""
    async with open_redis(redis_url) as redis:
        world = World(redis, redis_url)
        subscribe = PubSub.subscribe
        connecting = asyncio.Event()
        entered = asyncio.Event()

        async def slowly(pubsub: PubSub, *channels: str) -> None:
            await subscribe(pubsub, *channels)
            if not connecting.is_set():
                connecting.set()
                await entered.wait()

        with patch.object(PubSub, "subscribe", slowly):
            async with guarded(world.rooms.listener.run):
                await connecting.wait()
                ear, _ = await world.a_listener()
                entered.set()
                async with asyncio.timeout(SECONDS):
                    while not await world.listening():  # noqa: ASYNC110 (Valkey tells nobody)
                        await asyncio.sleep(0.005)
                await world.commit(a_join(2))
                await until(lambda: ear.joins == [2])


# What each may hear


async def test_a_student_hears_of_the_numbers_and_never_of_a_classmate(world: World) -> None:
    staff, _ = await world.a_listener()
    await world.commit(a_join(2))
    await until(lambda: staff.joins == [2])
    student = await world.a_socket("student", "s2")
    await world.enter(student, 2)
    late = await world.a_socket("student", "s3")

    await world.commit(joins(3, 5), a_join(6))
    await world.enter(late, 3)

    await until(lambda: student.progress[-1:] == late.progress[-1:] == [6])
    assert student.names == late.names == {"attendanceProgress"}
    assert "s4" not in str(student.heard + late.heard)
    last = student.of("attendanceProgress")[-1]
    assert last == {"session_id": SID, "statistics": msgspec.to_builtins(statistics(6)), "seq": 6}


async def test_a_student_hears_what_their_own_join_made_of_the_numbers(world: World) -> None:
    """However their answer and the event come: before, after, or among others in one commit."""
    ears = [await world.a_socket("student", f"s{seq}") for seq in (3, 2, 4, 6)]
    async with world.rooms.entering(SID) as room:
        await world.commit(joins(2, 4))
        await until(lambda: len(room.waiting) == 1)
    await world.enter(ears[0], 3)
    await until(lambda: ears[0].progress == [4])
    await world.enter(ears[1], 2)
    await world.enter(ears[2], 4)
    await world.enter(ears[3], 6)
    await until(lambda: ears[1].progress[-1:] == ears[2].progress[-1:] == [4])

    await world.commit(joins(5, 6))

    for ear in ears:
        await until(lambda ear=ear: ear.progress[-1:] == [6])  # type: ignore[misc]
    assert world.fetches == []


async def test_the_numbers_are_told_at_most_four_times_a_second_and_always_the_last(world: World) -> None:
    """Nor may those who come in, each having missed something, make it more for anybody."""
    await world.a_listener()
    ear, _ = await world.a_listener(kind="student", user_id="s1")
    seq = 2
    deadline = time.monotonic() + 1.6
    latecomers: list[Ear] = []
    while time.monotonic() < deadline:
        await world.commit(joins(seq, seq + 2))
        latecomers.append(await world.a_socket("student", f"s{seq}"))
        await world.enter(latecomers[-1], max(2, seq - 20))
        seq += 3
        await asyncio.sleep(0.01)

    for each in (ear, *latecomers):
        await until(lambda each=each: each.progress[-1:] == [world.seq])  # type: ignore[misc]
        assert each.progress == sorted(each.progress)
        for earlier, later in zip(each.times, each.times[4:], strict=False):
            assert later - earlier >= 4 * PROGRESS_SECONDS - 0.02
    assert len(ear.times) > 4


async def test_quiet_numbers_are_told_at_once(world: World) -> None:
    await world.a_listener()
    ear, _ = await world.a_listener(kind="student", user_id="s1")

    await world.commit(a_join(2))

    await until(lambda: ear.progress == [2], seconds=PROGRESS_SECONDS)


async def test_who_caught_up_by_fetching_hears_the_last_numbers_too(world: World) -> None:
    first, room = await world.a_listener()
    await world.commit(*(a_join(seq) for seq in range(2, 11)))
    await until(lambda: first.progress[-1:] == [10])
    room.recent.clear()
    room.recent.append(a_join(10))
    ears = [await world.a_socket("student", "s3"), await world.a_socket()]

    for ear in ears:
        await world.enter(ear, 3)

    for ear in ears:
        await until(lambda ear=ear: ear.progress[-1:] == [10])  # type: ignore[misc]
    assert ears[1].joins == list(range(4, 11))


async def test_a_close_goes_whole_to_staff_and_to_each_student_their_own_record(world: World) -> None:
    staff, _ = await world.a_listener()
    two, three, stranger = [(await world.a_listener(1, "student", user))[0] for user in ("s2", "s3", "nobody")]

    await world.commit(joins(2, 5), a_close(6))

    for ear in (staff, two, three, stranger):
        await until(lambda ear=ear: ear.ends == 1)  # type: ignore[misc]
    [whole], [own], [other], [none] = [ear.of("attendanceSessionEnded") for ear in (staff, two, three, stranger)]
    assert [record["student_id"] for record in whole["finalData"]["attendanceRecords"]] == ["s2", "s3", "s4", "s5"]
    assert [record["student_id"] for record in own["finalData"]["attendanceRecords"]] == ["s2"]
    assert [record["student_id"] for record in other["finalData"]["attendanceRecords"]] == ["s3"]
    assert none["finalData"]["attendanceRecords"] == []
    assert "s4" not in str(own) + str(other) + str(none)
    assert own["finalData"]["statistics"] == whole["finalData"]["statistics"] == msgspec.to_builtins(statistics(6))
    assert {key: whole[key] for key in ("session_id", "cause", "ended_by", "ended_by_id", "ended_at")} == {
        "session_id": SID,
        "cause": "ended",
        "ended_by": "Ada",
        "ended_by_id": "ada",
        "ended_at": NINE,
    }
    assert world.reads == 1


async def test_what_follows_a_close_waits_until_it_is_told(world: World) -> None:
    staff, _ = await world.a_listener()
    world.reading.clear()
    await world.commit(a_join(2), a_close(3), a_join(4))
    await until(lambda: world.reads == 1)
    assert staff.joins == [2]

    world.reading.set()

    await until(lambda: staff.joins == [2, 4])
    names = [name for name, _ in staff.heard if name != "attendanceProgress"]
    assert names == ["studentJoinedAttendance", "attendanceSessionEnded", "studentJoinedAttendance"]


@pytest.mark.parametrize("kind", ["staff", "student"])
async def test_who_comes_in_while_a_close_is_being_told_hears_it_once(world: World, kind: Kind) -> None:
    staff, room = await world.a_listener()
    world.reading.clear()
    await world.commit(a_join(2), a_close(3), a_join(4))
    await until(lambda: world.reads == 1)
    missed, knows = await world.a_socket(kind, "s2"), await world.a_socket(kind, "s2")
    await world.enter(missed, 2)
    await world.enter(knows, 3)

    world.reading.set()
    await until(lambda: staff.joins == [2, 4])
    await until(lambda: {missed.member.sid, knows.member.sid} <= room.members.keys())
    await world.commit(a_join(5), a_close(6))

    for ear in (staff, missed, knows):
        await until(lambda ear=ear: len(ear.of("attendanceSessionEnded")) >= 1 and world.reads >= 3)  # type: ignore[misc]
    await until(lambda: (staff.ends, missed.ends, knows.ends) == (2, 2, 1))
    if kind == "staff":
        names = [name for name, _ in missed.heard if name != "attendanceProgress"]
        joined, closed = "studentJoinedAttendance", "attendanceSessionEnded"
        assert names == [closed, joined, joined, closed]
        assert knows.joins == [4, 5]


async def test_a_close_is_told_once_the_roll_can_be_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.relay._READ_AGAIN_SECONDS", 0.01)
    ear, _ = await world.a_listener()
    world.refusals = [Refused("timeout"), Unavailable("no broker")]

    await world.commit(a_close(2))

    await until(lambda: ear.ends == 1)
    assert world.reads == 3


async def test_a_close_of_a_roll_that_cannot_be_read_does_not_hold_up_what_follows(world: World) -> None:
    ear, _ = await world.a_listener()
    world.refusals = [Refused("session_not_found")]

    await world.commit(a_close(2), a_join(3))

    await until(lambda: ear.joins == [3])


async def test_a_student_who_joins_again_hears_nothing_again(world: World) -> None:
    """Their answer is as old as their first join; on the same socket they have heard all since."""
    ear, room = await world.a_listener(2, "student", "s2")
    await world.commit(a_join(2), a_close(3))
    await until(lambda: ear.ends == 1)

    await world.enter(ear, 2)
    await world.commit(a_join(4))

    await until(lambda: ear.progress[-1:] == [4])
    assert ear.ends == 1
    assert (world.fetches, room.holds) == ([], 0)


async def test_a_teacher_who_joins_too_stays_staff(world: World) -> None:
    ear, room = await world.a_listener()
    await world.enter(ear, 1)
    await world.enter(Ear(Member(ear.member.sid, "/", "ada", "student")), 1)

    await world.commit(a_join(2), a_close(3))

    await until(lambda: ear.ends == 1)
    assert ear.joins == [2]
    assert len(room.members) == 1
    assert len(ear.of("attendanceSessionEnded")[0]["finalData"]["attendanceRecords"]) == 4


# Whatever happens

commits = st.lists(st.integers(1, 4), min_size=1, max_size=14)
"""How many joins each commit has."""
fates = st.sampled_from(["told", "lost", "twice", "held"])
arrivals = st.lists(st.tuples(st.integers(0, 13), st.integers(0, 6), st.sampled_from(["staff", "student"])), max_size=4)
"""After which commit somebody comes in, how many commits old their answer is, and who."""


@settings(max_examples=25, deadline=None)
@given(sizes=commits, fate=st.lists(fates, min_size=14, max_size=14), arriving=arrivals, page=st.integers(1, 5))
def test_whatever_is_lost_repeated_or_late_everybody_hears_all_after_their_answer_once_and_in_order(
    redis_url: str, sizes: list[int], fate: list[str], arriving: list[tuple[int, int, Kind]], page: int
) -> None:
    """Each commit moves the head; its event is told, lost, told twice, or held back until after the next ones."""

    async def story() -> None:
        async with asyncio.timeout(30), a_world(redis_url, page=page) as world:
            listeners: list[tuple[Ear, int]] = []
            first, room = await world.a_listener()
            listeners.append((first, 1))
            boundaries = [1]
            held: list[Event[Any]] = []
            for number, size in enumerate(sizes):
                event = joins(world.seq + 1, world.seq + size)
                await world.commit(event, live=False)
                boundaries.append(event.sequence)
                if fate[number] == "held":
                    held.append(event)
                else:
                    await world.say(*{"told": [event], "lost": [], "twice": [event, event]}[fate[number]])
                    if number % 3 == 2:
                        await world.say(*held)
                        held.clear()
                for _, age, kind in (each for each in arriving if each[0] == number):
                    answer = boundaries[max(0, len(boundaries) - 1 - age)]
                    ear = await world.a_socket(kind, f"s{answer}")
                    await world.enter(ear, answer)
                    listeners.append((ear, answer))
            await world.say(*held)
            await all_heard(world, listeners)
            assert room.holds == 0
            assert not room.waiting

    with patch.multiple("gateway.rooms", GAP_SECONDS=0.02, HEADS_SECONDS=0.05), patch("gateway.relay.PROGRESS_SECONDS", 0.01):
        asyncio.run(story())


async def all_heard(world: World, listeners: Sequence[tuple[Ear, int]]) -> None:
    for ear, answer in listeners:
        if ear.member.kind == "staff":
            await until(lambda ear=ear, answer=answer: len(ear.joins) >= world.seq - answer)  # type: ignore[misc]
            assert ear.joins == list(range(answer + 1, world.seq + 1))
        elif answer < world.seq:
            await until(lambda ear=ear: ear.progress[-1:] == [world.seq])  # type: ignore[misc]
            assert ear.names == {"attendanceProgress"}
    # Nothing comes after that; what was on its way would have come before this.
    event = a_join(world.seq + 1)
    await world.commit(event)
    await until(lambda: all(ear.progress[-1:] == [world.seq] for ear, _ in listeners))
    for ear, answer in listeners:
        if ear.member.kind == "staff":
            assert ear.joins == list(range(answer + 1, world.seq + 1))
