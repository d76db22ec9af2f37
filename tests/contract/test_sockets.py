"""What one socket may send, with rooms, watchers and presence on a real Valkey and the services as a script."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from gateway.engine.server import Spoken
from gateway.payloads import MAX_BULK_BYTES
from shared.messages import ChangesRead
from tests.contract.room_events import COURSE, NINE, SID, a_close, a_join, a_mark, an_opening
from tests.contract.room_talk import World, until
from tests.contract.socket_talk import ABOUT, Gateway, online


@pytest.fixture
async def gateway(world: World) -> AsyncIterator[Gateway]:
    yield Gateway(world)


# Coming and going


async def test_who_joins_is_counted_and_hears_and_who_leaves_does_not(gateway: Gateway, world: World) -> None:
    ear = await gateway.a_caller()
    assert (await gateway.ask(ear, "joinAttendanceSession", **ABOUT))["ok"]
    assert await online(world) == {"s2"}

    answer = await gateway.ask(ear, "leaveAttendanceSession", **ABOUT)
    again = await gateway.ask(ear, "leaveAttendanceSession", **ABOUT)

    assert answer["ok"]
    assert again == answer
    assert ear.of("attendanceSessionLeft") == [answer, again]
    assert await online(world) == set()
    other, _ = await world.a_listener()
    await world.commit(a_join(2))
    await until(lambda: other.joins == [2])
    assert "attendanceProgress" not in ear.names


async def test_all_who_say_the_same_are_heard_as_themselves(gateway: Gateway, world: World) -> None:
    """What hundreds say is read once; who says it, and when, is each one's own."""
    spoken = Spoken("joinAttendanceSession", [dict(ABOUT)], 48)
    for user_id in ("s2", "s3"):
        gateway.time += timedelta(seconds=1)
        assert (await gateway.ask_in(spoken, await gateway.a_caller(user_id)))["ok"]
        assert gateway.services.received_at == gateway.time

    assert [(name, actor.id) for name, actor, *_ in gateway.services.said] == [("join", "s2"), ("join", "s3")]
    assert await online(world) == {"s2", "s3"}


async def test_what_is_no_command_is_refused_to_all_who_say_it(gateway: Gateway) -> None:
    spoken = Spoken("joinAttendanceSession", [{"session_id": "no id"}], 48)

    refusals = [await gateway.ask_in(spoken, await gateway.a_caller(user_id)) for user_id in ("s2", "s3")]

    assert [(refusal["error"]["code"], refusal["error"]["details"][0]["field"]) for refusal in refusals] == [
        ("invalid", "session_id")
    ] * 2


@pytest.mark.parametrize(("user_id", "code"), [("s3", "forbidden"), ("nobody", "not_enrolled")])
async def test_who_has_not_joined_cannot_leave(gateway: Gateway, user_id: str, code: str) -> None:
    ear = await gateway.a_caller(user_id)

    answer = await gateway.ask(ear, "leaveAttendanceSession", **ABOUT)

    assert answer["error"]["code"] == code
    [error] = ear.of("attendanceError")
    assert (error["event"], error["session_id"], error["code"]) == ("leaveAttendanceSession", SID, code)


async def test_who_has_joined_on_another_socket_may_leave_on_this_one(gateway: Gateway) -> None:
    first, second = await gateway.a_caller(), await gateway.a_caller()
    await gateway.ask(first, "joinAttendanceSession", **ABOUT)

    assert (await gateway.ask(second, "leaveAttendanceSession", **ABOUT))["ok"]


@pytest.mark.parametrize("since_seq", [None, 0, 2])
async def test_who_syncs_after_a_reconnect_is_counted_if_they_have_joined(
    gateway: Gateway, world: World, since_seq: int | None
) -> None:
    """Also where nothing has changed since, so that the answer has no record in it."""
    gateway.services.joined.add("s2")
    joined, other = await gateway.a_caller("s2"), await gateway.a_caller("s3")
    payload = ABOUT if since_seq is None else {**ABOUT, "since_seq": since_seq}

    answers = [await gateway.ask(ear, "syncAttendanceSession", **payload) for ear in (joined, other)]

    assert [answer["mode"] for answer in answers] == ["whole" if since_seq is None else "changes"] * 2
    assert await online(world) == {"s2"}
    room = world.rooms.room_of(SID)
    await until(lambda: room is not None and room.members.keys() == {joined.member.sid, other.member.sid})
    assert room is not None
    assert not room.staff_members
    await world.commit(a_join(2))
    await until(lambda: joined.progress == other.progress == [2])


async def test_a_teacher_who_syncs_hears_as_staff(gateway: Gateway, world: World) -> None:
    ear = await gateway.a_caller("ada", "teacher")

    assert (await gateway.ask(ear, "syncAttendanceSession", **ABOUT))["ok"]
    room = world.rooms.room_of(SID)
    await until(lambda: room is not None and ear.member.sid in room.members)
    await world.commit(a_join(2))

    await until(lambda: ear.joins == [2])
    assert await online(world) == set()


async def test_a_student_who_syncs_is_not_told_again_what_the_answer_said(gateway: Gateway, world: World) -> None:
    await world.commit(a_join(2), a_close(3))
    ear = await gateway.a_caller()

    await gateway.ask(ear, "syncAttendanceSession", **ABOUT)
    room = world.rooms.room_of(SID)
    await until(lambda: room is not None and ear.member.sid in room.members)
    await world.rooms._compare_heads([room] if room else [])
    await world.commit(a_join(4))

    await until(lambda: ear.progress == [4])
    assert ear.ends == 0


async def test_who_goes_while_a_join_is_under_way_is_not_counted(gateway: Gateway, world: World) -> None:
    ear = await gateway.a_caller()

    async def go() -> None:
        await gateway.attendance.trigger_event("disconnect", ear.member.sid, "gone")

    gateway.services.meanwhile = go
    await gateway.ask(ear, "joinAttendanceSession", **ABOUT)

    assert await online(world) == set()


async def test_who_is_connected_is_shown_to_staff_only(gateway: Gateway) -> None:
    student, teacher = await gateway.a_caller(), await gateway.a_caller("ada", "teacher")
    await gateway.ask(student, "joinAttendanceSession", **ABOUT)

    answer = await gateway.ask(teacher, "getOnlineStudents", **ABOUT)

    assert teacher.of("onlineStudentsData") == [answer]
    assert (answer["total_joined"], answer["online_count"]) == (4, 1)
    assert answer["online_students"] == [{"student_id": "s2", "student_name": "Student 2", "joined_at": NINE}]
    assert (await gateway.ask(student, "getOnlineStudents", **ABOUT))["error"]["code"] == "forbidden"


async def test_who_leaves_while_they_are_caught_up_stays_out(gateway: Gateway, world: World) -> None:
    """A join is acknowledged before the room has told its caller what it had forgotten; a leave in between counts."""
    first, room = await world.a_listener()
    await world.commit(*(a_join(seq) for seq in range(2, 11)))
    await until(lambda: first.joins[-1:] == [10])
    room.recent.clear()
    fetch, asked, fetched, told = world.fetch, asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slowly(session_id: str, since: int) -> ChangesRead:
        asked.set()
        await fetched.wait()
        told.set()
        return await fetch(session_id, since)

    world.rooms._fetch = slowly
    gateway.services.behind = 7
    ear = await gateway.a_caller()
    assert (await gateway.ask(ear, "joinAttendanceSession", **ABOUT))["ok"]
    await asked.wait()
    assert (await gateway.ask(ear, "leaveAttendanceSession", **ABOUT))["ok"]

    fetched.set()
    await told.wait()
    await world.commit(a_join(11))
    await until(lambda: first.progress[-1:] == [11])

    assert ear.member.sid not in room.members
    assert "attendanceProgress" not in ear.names
    assert not room.entering


async def test_the_answer_comes_before_all_that_follows_from_it(gateway: Gateway, world: World) -> None:
    """Who is let in is told at once what the room has heard since."""
    first, _ = await world.a_listener()
    await world.commit(a_join(2), a_join(3))
    await until(lambda: first.joins == [2, 3])
    gateway.services.behind = 1
    ear = await gateway.a_caller("ben", "teacher")

    await gateway.ask(ear, "getAttendanceSessionData", **ABOUT)

    assert [event for event, _ in ear.heard] == ["attendanceSessionData", "studentJoinedAttendance"]


async def test_who_leaves_while_the_end_is_read_for_them_does_not_hear_of_it(gateway: Gateway, world: World) -> None:
    first, room = await world.a_listener()
    await world.commit(a_join(2), a_close(3))
    await until(lambda: first.ends == 1)
    world.reading.clear()
    gateway.services.behind = 1
    ear = await gateway.a_caller()
    assert (await gateway.ask(ear, "joinAttendanceSession", **ABOUT))["ok"]
    await until(lambda: world.reads == 2)
    assert (await gateway.ask(ear, "leaveAttendanceSession", **ABOUT))["ok"]

    world.reading.set()
    await world.commit(a_join(4), a_close(5))
    await until(lambda: first.ends == 2)

    assert ear.ends == 0
    assert ear.member.sid not in room.members


async def test_who_joins_again_after_the_end_does_not_hear_of_it_again(
    gateway: Gateway, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A room that is made anew begins one number early, for the statistics; that number may be the close."""
    monkeypatch.setattr("gateway.rooms.HEADS_SECONDS", 0.05)
    await world.commit(a_join(2))
    ear = await gateway.a_caller()
    await gateway.ask(ear, "joinAttendanceSession", **ABOUT)
    await world.commit(a_close(3))
    await until(lambda: ear.ends == 1)
    await gateway.ask(ear, "leaveAttendanceSession", **ABOUT)
    await until(lambda: world.rooms.room_of(SID) is None)

    await gateway.ask(ear, "joinAttendanceSession", **ABOUT)
    room = world.rooms.room_of(SID)
    await until(lambda: room is not None and room.seq == 3)
    await world.commit(a_join(4))
    await until(lambda: ear.progress[-1:] == [4])

    assert ear.ends == 1


async def test_a_sync_asks_once_and_lets_in_after_its_answer(gateway: Gateway, world: World) -> None:
    """Whether the caller has joined comes with it, also where nothing has changed since and their record is not told."""
    gateway.services.joined.add("s2")
    listener, _ = await world.a_listener()
    ear = await gateway.a_caller()

    async def meanwhile() -> None:
        await world.commit(a_mark(2, "s2"))
        await until(lambda: listener.progress == [2])

    gateway.services.meanwhile = meanwhile
    answer = await gateway.ask(ear, "syncAttendanceSession", **ABOUT, since_seq=2)

    assert (answer["ok"], len(answer["attendanceRecords"]), ear.heard) == (True, 0, [])
    assert [said[0] for said in gateway.services.said] == ["sync"]
    assert await online(world) == {"s2"}


# Opening again


@pytest.mark.parametrize("listens", [True, False])
async def test_whoever_opens_a_roll_again_is_told_once(gateway: Gateway, world: World, listens: bool) -> None:
    """By the room where they listen already, by the answer where not; whichever of event and answer comes first."""
    await world.commit(a_close(2))
    ear, other = await gateway.a_caller("ada", "teacher"), await gateway.a_caller("ben", "teacher")
    for each in [ear, other] if listens else [other]:
        await gateway.ask(each, "getAttendanceSessionData", **ABOUT)
    room = world.rooms.room_of(SID)
    await until(lambda: room is not None and len(room.members) == 1 + listens)

    for seq in (3, 5):

        async def open_again(seq: int = seq) -> None:
            await world.commit(an_opening(seq, reason="by mistake"))
            await until(lambda: len(other.of("attendanceSessionStarted")) == seq // 2)

        gateway.services.meanwhile = open_again
        answer = await gateway.ask(ear, "reopenAttendanceSession", **ABOUT, reason="by mistake")
        assert answer["seq"] == seq
        await world.commit(a_close(seq + 1))
        await until(lambda seq=seq: ear.ends == seq // 2)  # type: ignore[misc]

    for each in (ear, other):
        assert [started["seq"] for started in each.of("attendanceSessionStarted")] == [3, 5]


# Sizes


async def test_a_bulk_may_be_larger_than_other_payloads(gateway: Gateway) -> None:
    ear = await gateway.a_caller("ada", "teacher")
    padding = "x" * 5000

    for event in ("markStudentAttendance", "getAttendanceSessionData", "refreshToken"):
        assert "bytes" in (await gateway.ask(ear, event, **ABOUT, padding=padding))["error"]["message"]
    for size, message in ((MAX_BULK_BYTES - 100, "is missing"), (MAX_BULK_BYTES, "bytes")):
        answer = await gateway.ask(ear, "bulkUpdateAttendance", **ABOUT, padding="x" * size)
        assert (answer["error"]["code"], message in answer["error"]["message"]) == ("invalid", True)


# Courses


async def test_who_may_not_read_a_course_does_not_watch_it(gateway: Gateway, world: World) -> None:
    ear = await gateway.a_caller()

    for event in ("subscribeToCourse", "checkActiveSessions", "unsubscribeFromCourse"):
        answer = await gateway.ask(ear, event, course_id=COURSE)
        assert answer["error"]["code"] == "course_not_found"

    assert not world.course.watched.watchers
    assert "session_id" not in ear.of("attendanceError")[0]
