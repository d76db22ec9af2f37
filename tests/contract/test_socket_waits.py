"""What a command waits for: a room that hears, its turn, and neither for longer than it has."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from rollcall.servers import Server
from shared.errors import NO_ROLL, Refused
from shared.messages import Actor, Course
from tests.contract.room_events import COURSE, SID, a_course, joins
from tests.contract.room_talk import World, a_world, until
from tests.contract.socket_talk import ABOUT, AQuestion, Gateway, online


@pytest.fixture
async def gateway(world: World) -> AsyncIterator[Gateway]:
    yield Gateway(world)


# A room


async def test_a_crowd_that_comes_to_a_room_that_does_not_hear_yet_waits_for_it_in_one_task(
    gateway: Gateway, world: World
) -> None:
    students = [await gateway.a_caller(f"s{number}") for number in range(2, 22)]
    under_way = len(world.errands._tasks)

    asking = [asyncio.create_task(gateway.ask(ear, "joinAttendanceSession", **ABOUT)) for ear in students]
    await asyncio.sleep(0)
    waiting = len(world.errands._tasks) - under_way

    assert [answer["ok"] for answer in await asyncio.gather(*asking)] == [True] * len(students)
    assert waiting == 1
    room = world.rooms.room_of(SID)
    assert room is not None
    assert room.holds == 0
    assert room.members.keys() == {ear.member.sid for ear in students}


async def test_who_waits_for_a_room_that_breaks_is_refused_and_the_next_is_not(
    gateway: Gateway, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ears = [await gateway.a_caller(user_id) for user_id in ("s2", "s3")]

    async def broken(session_id: str) -> None:
        raise RuntimeError("a defect")

    with monkeypatch.context() as patched:
        patched.setattr(world.rooms, "hear", broken)
        answers = await asyncio.gather(*(gateway.ask(ear, "joinAttendanceSession", **ABOUT) for ear in ears))

    assert [answer["error"]["code"] for answer in answers] == ["internal"] * 2
    assert [ear.under_way for ear in ears] == [0, 0]
    for ear in ears:
        assert (await gateway.ask(ear, "joinAttendanceSession", **ABOUT))["ok"]


async def test_whatever_is_asked_of_a_room_that_does_not_hear_yet_is_done_and_who_has_gone_is_not_let_in(
    gateway: Gateway, world: World
) -> None:
    student, teacher, gone = [
        await gateway.a_caller("s2"),
        await gateway.a_caller("ada", "teacher"),
        await gateway.a_caller("s3"),
    ]
    names = ("joinAttendanceSession", "getAttendanceSessionData", "joinAttendanceSession")
    asking = [
        asyncio.create_task(gateway.ask(ear, name, **ABOUT)) for ear, name in zip((student, teacher, gone), names, strict=True)
    ]
    await asyncio.sleep(0)
    await gateway.attendance.trigger_event("disconnect", gone.member.sid, "gone")

    await asyncio.gather(*asking)

    room = world.rooms.room_of(SID)
    assert room is not None
    assert room.holds == 0
    assert room.members.keys() == {student.member.sid, teacher.member.sid}
    assert room.staff_members.keys() == {teacher.member.sid}
    assert await online(world) == {"s2"}


async def test_with_a_frozen_redis_a_join_is_answered_in_time_and_heard_of_later(valkey: Server) -> None:
    """It takes what is written to it and says nothing: neither a subscription nor its lack is ever confirmed."""
    async with a_world(valkey.url) as world:
        gateway = Gateway(world)
        ear = await gateway.a_caller()
        valkey.process.send_signal(signal.SIGSTOP)
        begun = time.monotonic()

        assert (await gateway.ask(ear, "joinAttendanceSession", **ABOUT))["ok"]

        assert time.monotonic() - begun < 1
        world.committed = [joins(2, 3)]
        valkey.process.send_signal(signal.SIGCONT)
        # Fetched at once when the subscription is confirmed, though nothing is said on it.
        await until(lambda: ear.progress[-1:] == [3])


# A turn


@pytest.mark.parametrize("heard", [True, False])
@pytest.mark.parametrize(("fault", "code"), [(Refused(NO_ROLL), "session_not_found"), (RuntimeError("a defect"), "internal")])
async def test_whatever_becomes_of_a_command_the_next_has_its_turn(
    gateway: Gateway, world: World, fault: Exception, code: str, heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no roll, and where a question is broken; in a room that hears, and in one that does not yet."""
    if heard:
        await world.a_listener()
    ear = await gateway.a_caller()

    def broken(*_: Any) -> None:
        raise fault

    with monkeypatch.context() as patched:
        patched.setattr(gateway.services, "_join", broken, raising=False)
        if isinstance(fault, RuntimeError):
            patched.setattr(AQuestion, "begin", broken)
        asking = [asyncio.create_task(gateway.ask(ear, "joinAttendanceSession", **ABOUT)) for _ in range(3)]
        answers = await asyncio.gather(*asking)

    assert [answer["error"]["code"] for answer in answers] == [code] * 3
    room = world.rooms.room_of(SID)
    assert room is not None
    assert (room.holds, ear.under_way) == (0, 0)
    assert (await gateway.ask(ear, "joinAttendanceSession", **ABOUT))["ok"]


async def test_a_command_whose_time_is_over_when_its_turn_comes_is_not_begun(gateway: Gateway, world: World) -> None:
    """Its time counts from when it came, also while it waits behind another about the same session."""
    ear = await gateway.a_caller()
    came = gateway.time
    begun, hold = asyncio.Event(), asyncio.Event()

    async def slowly() -> None:
        begun.set()
        await hold.wait()

    gateway.services.meanwhile = slowly
    slow = asyncio.create_task(gateway.ask(ear, "joinAttendanceSession", **ABOUT))
    await begun.wait()
    asking = [
        asyncio.create_task(gateway.ask(ear, event, **ABOUT)) for event in ("syncAttendanceSession", "leaveAttendanceSession")
    ]
    await asyncio.sleep(0)
    gateway.time += timedelta(seconds=2)
    hold.set()

    assert (await slow)["ok"]
    assert [(await answer)["error"]["code"] for answer in asking] == ["timeout", "timeout"]
    assert [said[0] for said in gateway.services.said] == ["join"]
    assert gateway.services.received_at == came
    assert await online(world) == {"s2"}


async def test_what_is_about_one_course_waits_its_turn(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order sent is the order answered; what is about another does not wait."""
    ear = await gateway.a_caller()
    order: list[str] = []
    hold = asyncio.Event()

    async def ask(event: str, course_id: str) -> None:
        await gateway.ask(ear, event, course_id=course_id, command_id=uuid4().hex)
        order.append(f"{event} {course_id}")

    async def read_course(_: Actor, course_id: str) -> Course:
        if course_id == COURSE:
            await hold.wait()
        return a_course(("ada",))

    monkeypatch.setattr(gateway.services, "_read_course", read_course)
    asking = [
        asyncio.create_task(ask(*each))
        for each in (("subscribeToCourse", "c1"), ("checkActiveSessions", "c1"), ("checkActiveSessions", "c2"))
    ]
    await until(lambda: order == ["checkActiveSessions c2"])
    hold.set()
    await asyncio.gather(*asking)

    assert order == ["checkActiveSessions c2", "subscribeToCourse c1", "checkActiveSessions c1"]
    assert [each["course_id"] for each in ear.of("activeSessionsData")] == ["c2", "c1", "c1"]
