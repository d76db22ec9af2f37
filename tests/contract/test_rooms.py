"""The gateway's rooms: whatever live delivery loses, repeats or reorders, everyone hears all once and in order."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio.client import PubSub
from structlog.testing import capture_logs

from gateway.engine.server import NAMESPACES
from gateway.room import Kind
from gateway.rooms import HEADS_SECONDS
from shared.errors import Refused, Unavailable
from shared.live import open_redis
from shared.messages import ChangesRead, Event, RollChanged, encode_event
from shared.process import guarded
from tests.contract.room_events import COURSE, NINE, SID, a_change, a_close, a_join, a_mark, changed, is_of_joins, joins
from tests.contract.room_talk import SECONDS, Ear, World, a_world, until

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
    ear, room = await world.a_listener()
    await world.commit(a_join(2))
    await world.commit(joins(3, 4), live=False)

    await world.commit(a_join(5))

    await until(lambda: ear.joins == [2, 3, 4, 5])
    await until(lambda: room.mending is None)
    assert world.fetches == [2]


async def test_what_is_missing_is_fetched_page_by_page(redis_url: str) -> None:
    async with a_world(redis_url, page=3) as world:
        ear, room = await world.a_listener()
        await world.commit(joins(2, 9), live=False)
        await world.commit(a_join(10))

        await until(lambda: ear.joins == list(range(2, 11)))
        await until(lambda: room.mending is None)
        assert world.fetches == [1, 4, 7]


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


@pytest.mark.parametrize("told", [True, False])
async def test_an_event_of_a_type_that_is_not_known_here_holds_up_nothing(world: World, told: bool) -> None:
    """A newer attendance-service may tell of more than this gateway knows, live and when asked."""
    ear, room = await world.a_listener()
    await world.commit(a_join(2))
    unknown = a_close(3)
    await world.commit(unknown, live=False)
    body = encode_event(unknown).replace(b"rollcall.roll.closed.v1", b"rollcall.roll.admired.v1")

    with patch("tests.contract.room_talk.encode_event", lambda event: body if event is unknown else encode_event(event)):
        if told:
            await world.say(unknown)
        await world.commit(a_join(4))
        await until(lambda: ear.joins == [2, 4])
        await world.commit(unknown := a_close(5), live=False)
        body = encode_event(unknown).replace(b"rollcall.roll.closed.v1", b"rollcall.roll.admired.v1")
        await until(lambda: room.seq == 5)

    assert ear.ends == 0
    assert world.fetches == [2, 4]


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
    assert world.fetches == [10, 110, 210]


async def test_who_was_answered_within_a_commit_hears_the_rest_of_it_only(redis_url: str) -> None:
    """Fetched changes come as one event, however many commits they were."""
    async with a_world(redis_url) as world:
        first, _ = await world.a_listener()
        await world.commit(a_join(2), a_join(3), a_join(4), live=False)
        await until(lambda: first.joins == [2, 3, 4])
        ear = await world.a_socket()

        await world.enter(ear, 3)

        assert ear.joins == [4]


@pytest.mark.parametrize(
    ("before", "after", "fetches"),
    [
        ([], [a_mark(2, "s2"), joins(3, 6)], []),
        ([], [changed(a_change(2, "s2", "marked", "excused"), a_change(3, "s3", "joined", "present")), joins(4, 6)], []),
        ([a_mark(2, "s2")], [joins(3, 6)], [1]),
    ],
    ids=["remembered", "fetched together with a join", "older than the room"],
)
async def test_a_student_hears_of_their_own_mark_behind_which_others_have_joined(
    world: World, before: list[Event[Any]], after: list[Event[Any]], fetches: list[int]
) -> None:
    """Of joins a student is told nothing, so who missed only these is not looked through them."""
    await world.commit(*before)
    staff, room = await world.a_listener(world.seq)
    await world.commit(*after)
    await until(lambda: staff.joins[-1:] == [6])
    ears = [await world.a_socket("student", "s2") for _ in range(3)]

    for answer, ear in enumerate(ears, 1):
        await world.enter(ear, answer)
    for ear in ears:
        await until(lambda ear=ear: ear.progress[-1:] == [6])  # type: ignore[misc]

    assert [ear.marks for ear in ears] == [[2], [], []]
    assert set().union(*(ear.names for ear in ears)) == {"attendanceProgress", "attendanceUpdated"}
    assert world.fetches == fetches
    [silent] = room.missed("student", 3, statistics_known=False) or []
    assert isinstance(silent.data, RollChanged) and silent.data.changes == ()


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
    async with world.entering(SID) as room:
        await world.commit(a_join(2), joins(3, 4), a_join(5))
        await until(lambda: len(room.waiting) == 3)
        world.admit(room, ear, 4)

    await until(lambda: ear.joins == [5])
    assert world.fetches == []


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
    async with world.entering(SID):
        world.admit(room, ear, 1)
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

    await until(lambda: world.listener.channels == frozenset())
    async with asyncio.timeout(SECONDS):
        while await world.listening():  # noqa: ASYNC110 (Valkey tells nobody)
            await asyncio.sleep(0.005)
    assert ears[0].joins == []
    assert not (world.rooms._rooms or world.rooms._by_socket)


async def test_a_room_is_entered_again_after_everybody_has_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.rooms.HEADS_SECONDS", 0.05)
    ear, _ = await world.a_listener()
    await world.commit(a_join(2))
    await world.leave(ear)
    await until(lambda: world.listener.channels == frozenset())
    await world.commit(a_join(3), a_join(4))

    again, _ = await world.a_listener(seq=3)
    await world.commit(a_join(5))

    await until(lambda: again.joins == [4, 5])


async def test_a_room_that_is_entered_while_another_is_being_closed_stays(world: World) -> None:
    """Leaving a channel takes a moment, and in it somebody may come into the next room on the list."""
    async with world.entering("other"):
        pass
    async with world.entering(SID) as room:
        pass
    leave = world.listener.unsubscribe
    ear = await world.a_socket()

    async def slowly(channel: str) -> None:
        await leave(channel)
        await world.enter(ear, 1)

    with patch.object(world.listener, "unsubscribe", slowly):
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
                async with guarded(world.listener.run):
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
            async with guarded(world.listener.run):
                await connecting.wait()
                ear, _ = await world.a_listener()
                entered.set()
                async with asyncio.timeout(SECONDS):
                    while not await world.listening():  # noqa: ASYNC110 (Valkey tells nobody)
                        await asyncio.sleep(0.005)
                await world.commit(a_join(2))
                await until(lambda: ear.joins == [2])


async def test_a_room_and_a_course_say_once_that_they_hear_nothing_until_they_hear_again(redis_url: str) -> None:
    """Not once for each who comes in while Redis is away."""
    async with open_redis(redis_url) as redis:
        world = World(redis, redis_url)
        channels = world.names.roll_channel(SID), world.names.course_channel(COURSE)
        with capture_logs() as logs:
            for times in (1, 2):
                for _ in range(3):
                    await world.a_listener(kind="student")
                    async with world.courses.entering(COURSE):
                        pass
                said = [each["event"] for each in logs]
                assert (said.count("rooms.deaf"), said.count("courses.deaf")) == (times, times)

                async with guarded(world.listener.run):
                    await until(lambda: all(map(world.listener.hears, channels)))


# Whatever happens

commits = st.lists(st.integers(0, 4), min_size=1, max_size=14)
"""How many joins each commit has; none is a mark of the student who listens."""
fates = st.sampled_from(["told", "lost", "twice", "held"])
arrivals = st.lists(st.tuples(st.integers(0, 13), st.integers(0, 14), st.sampled_from(["staff", "student"])), max_size=4)
"""After which commit somebody comes in, how many changes old their answer is, and who."""


@settings(max_examples=25, deadline=None)
@given(sizes=commits, fate=st.lists(fates, min_size=14, max_size=14), arriving=arrivals, page=st.integers(1, 5))
def test_whatever_is_lost_repeated_or_late_everybody_hears_all_after_their_answer_once_and_in_order(
    redis_url: str, sizes: list[int], fate: list[str], arriving: list[tuple[int, int, Kind]], page: int
) -> None:
    """Each commit moves the head; its event is told, lost, told twice, or held back until after the next ones.

    Staff hear of every change, the student of their own record, and both how the roll fills.
    """

    async def story() -> None:
        async with asyncio.timeout(30), a_world(redis_url, page=page) as world:
            listeners: list[tuple[Ear, int]] = []
            first, room = await world.a_listener()
            listeners.append((first, 1))
            held: list[Event[Any]] = []
            for number, size in enumerate(sizes):
                event = joins(world.seq + 1, world.seq + size) if size else a_mark(world.seq + 1, "marked")
                await world.commit(event, live=False)
                if fate[number] == "held":
                    held.append(event)
                else:
                    await world.say(*{"told": [event], "lost": [], "twice": [event, event]}[fate[number]])
                    if number % 3 == 2:
                        await world.say(*held)
                        held.clear()
                for _, age, kind in (each for each in arriving if each[0] == number):
                    answer = max(1, world.seq - age)
                    ear = await world.a_socket(kind, "marked")
                    await world.enter(ear, answer)
                    listeners.append((ear, answer))
            await world.say(*held)
            await all_heard(world, listeners)
            assert room.holds == 0
            assert not room.waiting

    with patch.multiple("gateway.rooms", GAP_SECONDS=0.02, HEADS_SECONDS=0.05), patch("gateway.relay.PROGRESS_SECONDS", 0.01):
        asyncio.run(story())


async def all_heard(world: World, listeners: Sequence[tuple[Ear, int]]) -> None:
    marks = [event.sequence for event in world.committed if not is_of_joins(event)]
    for ear, answer in listeners:
        if ear.member.kind == "staff":
            await until(lambda ear=ear, answer=answer: len(ear.joins) + len(ear.marks) >= world.seq - answer)  # type: ignore[misc]
        elif answer < world.seq:
            await until(lambda ear=ear: ear.progress[-1:] == [world.seq])  # type: ignore[misc]
    # Nothing comes after that; what was on its way would have come before this.
    await world.commit(a_join(world.seq + 1))
    await until(lambda: all(ear.progress[-1:] == [world.seq] for ear, _ in listeners))
    for ear, answer in listeners:
        assert ear.marks == [seq for seq in marks if seq > answer]
        joined = [seq for seq in range(answer + 1, world.seq + 1) if seq not in marks]
        assert ear.joins == (joined if ear.member.kind == "staff" else [])
        assert ear.names <= {"attendanceProgress", "attendanceUpdated", "studentJoinedAttendance"}
