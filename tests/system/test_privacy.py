"""What a classmate and other staff never hear, over the whole life of a roll, on every namespace and gateway."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import product
from typing import Any

from tests.system.rig import Rig, unique
from tests.system.talk import Caller, Lecture, Payload, a_lecture, an_admin, bearer, calling, http

NAMESPACES = ("/", "/attendance")
TO_THE_CALLER_ONLY = {
    *(f"studentMarked{status}" for status in ("Present", "Absent", "Late", "Excused")),
    *("attendanceBulkUpdateComplete", "attendanceSessionEndedConfirm", "attendanceSessionJoined", "attendanceSessionData"),
    "onlineStudentsData",
}


class Witness:
    """A socket that only listens; everything it is told, and answered, is kept."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.told: list[Any] = []

    async def ask(self, event: str, payload: Payload) -> Payload:
        """Ask something; the answer is kept too."""
        answer = await self.caller.ask(event, payload)
        self.told.append(answer)
        return answer

    async def until(self, event: str, **says: object) -> None:
        """Wait for an event that says so; all that was told before it has come by then."""
        heard = await self.caller.heard(event, lambda payload: all(payload.get(key) == value for key, value in says.items()))
        self.told.append((event, heard))

    @property
    def everything(self) -> str:
        """All of it."""
        return repr(self.told + self.caller.events)


@asynccontextmanager
async def witnesses(rig: Rig, bearer: str) -> AsyncIterator[list[Witness]]:
    """Let somebody listen on each namespace of each gateway."""
    async with AsyncExitStack() as stack:
        yield [
            Witness(await stack.enter_async_context(calling(url, bearer, namespace=namespace)))
            for url, namespace in product(rig.gateways, NAMESPACES)
        ]


async def a_life(rig: Rig, lecture: Lecture, teacher: Caller, admin: str, walk_in: str) -> None:
    """All that happens to a roll once it is open, but its last end."""
    ann, bob, cem, dan = lecture.students
    about, session = lecture.about, f"/sessions/{lecture.session_id}"
    for student, url in zip((ann, bob), rig.gateways, strict=True):
        async with calling(url, bearer(student, "student")) as caller:
            assert (await caller.ask("joinAttendanceSession", about))["ok"]
            assert (await caller.ask("leaveAttendanceSession", about))["ok"]

    async def done(event: str, **more: Any) -> None:
        answer = await teacher.ask(event, {**about, **more})
        assert answer["ok"], answer

    await done("markStudentAttendance", student_id=ann, status="late", remarks="Ann overslept")
    for status, student in (("Present", ann), ("Absent", bob), ("Late", dan), ("Excused", bob)):
        await done(f"markStudent{status}", student_id=student, remarks=f"remarks on {student}")
    rows = [{"student_id": student, "status": "late", "remarks": f"more on {student}"} for student in lecture.students]
    await done("bulkUpdateAttendance", attendanceUpdates=rows)
    for student in (ann, cem, dan):
        await done("clearStudentMark", student_id=student)
    roster = f"/courses/{lecture.course_id}/roster/{walk_in}"
    code, _ = await http(rig.gateways[1], "POST", roster, admin, json={"name": "Wanda Walker"})
    assert code == 201
    for minutes in (0, 600):
        check_in = {"check_in": {"late_after_minutes": minutes}}
        code, _ = await http(rig.gateways[0], "PATCH", session, admin, json=check_in)
        assert code == 200
    await done("submitAttendance")
    await done("markStudentAttendance", student_id=bob, status="excused", reason="Bob was ill", remarks="a letter")
    await done("reopenAttendanceSession", reason="Ann was forgotten")
    await done("getAttendanceSessionData")
    await done("getOnlineStudents")
    code, _ = await http(rig.gateways[1], "DELETE", roster, admin)
    assert code == 200


async def test_over_a_whole_life_a_classmate_hears_of_nobody_else_and_answers_go_to_the_caller_alone(rig: Rig) -> None:
    here, _ = rig.gateways
    lecture = await a_lecture(here, students=4)
    *others, dan = lecture.students
    walk_in, admin = unique("walk-in"), an_admin()
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as teacher,
        witnesses(rig, bearer(dan, "student")) as classmates,
        witnesses(rig, admin) as staff,
    ):
        for witness in classmates + staff:
            assert (await witness.ask("subscribeToCourse", {"course_id": lecture.course_id}))["ok"]
        assert (await teacher.ask("startAttendanceSession", lecture.about))["ok"]
        for witness in classmates + staff:
            assert (await witness.ask("syncAttendanceSession", lecture.about))["ok"]
        assert (await classmates[0].ask("joinAttendanceSession", lecture.about))["ok"]
        classmates[0].told += [await classmates[0].caller.heard("attendanceSessionJoined")]

        await a_life(rig, lecture, teacher, admin, walk_in)
        assert (await teacher.ask("endAttendanceSession", lecture.about))["ok"]
        # What was told by mistake would have come before what is told now.
        assert (await teacher.ask("reopenAttendanceSession", {**lecture.about, "reason": "once more"}))["ok"]
        mark = {**lecture.about, "student_id": dan, "status": "excused"}
        assert (await teacher.ask("markStudentAttendance", mark))["ok"]
        for witness in classmates + staff:
            await witness.until("attendanceUpdated", student_id=dan, status="excused")
        for witness in classmates:
            names = witness.caller.names()
            assert names.count("attendanceSessionEnded") == 2
            assert {"attendanceProgress", "attendanceSubmitted", "courseSessionStarted", "courseSessionEnded"} <= set(names)
            assert {"studentJoinedAttendance", "attendanceBulkUpdated", "attendanceSessionStarted"}.isdisjoint(names)
            for event in ("syncAttendanceSession", "joinAttendanceSession", "leaveAttendanceSession"):
                assert (await witness.ask(event, lecture.about))["ok"]
            for event in ("getAttendanceSessionData", "getOnlineStudents"):
                assert (await witness.ask(event, lecture.about))["error"]["code"] == "forbidden"
            foreign = {**lecture.about, "student_id": others[0], "status": "late"}
            assert (await witness.ask("markStudentAttendance", foreign))["error"]["code"] == "forbidden"
        for url in rig.gateways:
            status, own = await http(url, "GET", f"/me/attendance?course_id={lecture.course_id}", bearer(dan, "student"))
            assert (status, len(own["items"])) == (200, 1)
            classmates[0].told.append(own)
        for witness in staff:
            assert {"studentJoinedAttendance", "attendanceUpdated", "attendanceBulkUpdated"} <= set(witness.caller.names())
            assert TO_THE_CALLER_ONLY.isdisjoint(witness.caller.names())
        assert set(teacher.names()) >= TO_THE_CALLER_ONLY - {"attendanceSessionJoined"}

    secrets = [*others, walk_in, "Wanda", "Student 0", "Student 1", "Student 2", "Ann ", "Bob ", "letter"]
    for witness in classmates:
        assert dan in witness.everything
        assert [secret for secret in secrets if secret in witness.everything] == []
