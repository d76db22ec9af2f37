"""How a roll fills, as clients see it: never more often than the contract says, and always up to the last."""

import asyncio
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any

from tests.system.rig import Rig, token, unique
from tests.system.talk import Caller, Payload, a_lecture, bearer, calling

PROGRESS = "attendanceProgress"
MARKS, JOINS, SOCKETS = 480, 40, 4


class Clocked:
    """What a listener hears of the progress, and when; events of that name go past the caller's own list."""

    def __init__(self, caller: Caller) -> None:
        self.times: list[float] = []
        self.last: Payload = {}
        caller.client.on(PROGRESS, self._take, namespace=caller.namespace)

    async def _take(self, payload: Payload) -> None:
        self.times.append(time.monotonic())
        self.last = payload


async def longest_stall(work: Awaitable[Any]) -> float:
    """Do the work; tell for how many seconds this process's loop was kept from turning at most."""
    stalled, doing = 0.0, asyncio.ensure_future(work)
    while not doing.done():
        before = time.monotonic()
        await asyncio.wait([doing], timeout=0.01)
        stalled = max(stalled, time.monotonic() - before - 0.01)
    await doing
    return stalled


async def test_nobody_is_told_more_than_four_times_a_second_and_everybody_the_last(rig: Rig) -> None:
    """Some five hundred marks and joins through both gateways, as fast as they go.

    The server keeps a quarter of a second between two of them. What reaches a client may come closer together, by as much
    as one was slower on its way than the next: here a quarter of a second and the time that this very process stood still.
    """
    here = rig.gateways[0]
    lecture = await a_lecture(here, students=JOINS)
    marked = lecture.students
    async with AsyncExitStack() as stack:

        async def connected(url: str, bearer: str, namespace: str = "/attendance") -> Caller:
            return await stack.enter_async_context(calling(url, bearer, namespace=namespace))

        teacher = await connected(here, bearer(lecture.teacher, "teacher"))
        admins = [await connected(rig.gateways[number % 2], token(unique("admin"), "admin")) for number in range(SOCKETS)]
        students = [
            await connected(rig.gateways[number % 2], bearer(student, "student"), ("/", "/attendance")[number // 2 % 2])
            for number, student in enumerate(lecture.students)
        ]
        clocks = [Clocked(caller) for caller in (teacher, admins[1], *students)]
        assert (await teacher.ask("startAttendanceSession", lecture.about))["ok"]
        for caller in (*admins, *students[:4]):
            assert (await caller.ask("syncAttendanceSession", lecture.about))["ok"]

        async def mark(admin: Caller, offset: int) -> None:
            for number in range(offset, MARKS, SOCKETS):
                student, status = marked[number % len(marked)], ("late", "excused", "absent")[number // len(marked) % 3]
                answer = await admin.ask("markStudentAttendance", {**lecture.about, "student_id": student, "status": status})
                assert answer["ok"], answer

        async def join() -> None:
            for student in students:
                assert (await student.ask("joinAttendanceSession", lecture.about))["ok"]

        async def everything() -> None:
            await asyncio.gather(join(), *(mark(admin, offset) for offset, admin in enumerate(admins)))
            seq = (await teacher.ask("getAttendanceSessionData", lecture.about))["seq"]
            async with asyncio.timeout(10):
                while any(clock.last.get("seq") != seq for clock in clocks):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

        stalled = await longest_stall(everything())
        roll = await teacher.ask("getAttendanceSessionData", lecture.about)

    assert roll["seq"] > MARKS
    assert max(len(clock.times) for clock in clocks) > 2
    for clock in clocks:
        assert (clock.last["seq"], clock.last["statistics"]) == (roll["seq"], roll["statistics"])
        assert all(last - first >= 1 - stalled for first, last in zip(clock.times, clock.times[5:], strict=False))
        assert len(clock.times) <= 4 * (clock.times[-1] - clock.times[0] + stalled) + 2
