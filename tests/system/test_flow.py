"""One roll from end to end, as clients speak it: on separate processes over RabbitMQ, and on one process with nothing."""

import asyncio
import re
from itertools import product

import asyncpg
import pytest

from tests.system.rig import Rig
from tests.system.talk import Caller, a_lecture, a_session, an_admin, bearer, calling, http

WAYS = list(product(("/", "/attendance"), (("websocket",), ("polling", "websocket"))))


@pytest.mark.parametrize(("teacher_way", "student_way"), list(zip(WAYS, reversed(WAYS), strict=True)))
async def test_a_student_joins_and_the_teacher_sees_it(
    rig: Rig, teacher_way: tuple[str, tuple[str, ...]], student_way: tuple[str, tuple[str, ...]]
) -> None:
    """Teacher on one gateway, student on the other, namespaces and transports mixed: nobody can tell."""
    here, there = rig.gateways
    lecture = await a_lecture(here, students=3)
    ann, *others = lecture.students
    async with (
        calling(here, bearer(lecture.teacher, "teacher"), namespace=teacher_way[0], transports=teacher_way[1]) as teacher,
        calling(there, bearer(ann, "student"), namespace=student_way[0], transports=student_way[1]) as student,
    ):
        acknowledged = await teacher.ask("startAttendanceSession", lecture.about)
        started = await teacher.heard("attendanceSessionStarted")
        assert acknowledged["ok"]
        assert started == acknowledged
        assert started["session"]["id"] == lecture.session_id
        assert started["session"]["course_id"] == lecture.course_id
        assert started["session"]["status"] == "active"
        assert started["totalStudents"] == 3
        assert started["seq"] == 1
        assert {record["student_id"] for record in started["attendanceRecords"]} == set(lecture.students)
        assert {record["status"] for record in started["attendanceRecords"]} == {"absent"}

        answer = await student.ask("joinAttendanceSession", {"sessionId": lecture.session_id})
        joined = await student.heard("attendanceSessionJoined")
        seen = await teacher.heard("studentJoinedAttendance")
        progress = await student.heard("attendanceProgress")
        assert answer == joined
        assert joined["message"] == "Successfully joined attendance session"
        assert (joined["status"], joined["seq"], joined["receipt"]) == ("present", 2, None)
        assert (seen["student_id"], seen["student_name"]) == (ann, "Student 0")
        assert (seen["joined_at"], seen["status"], seen["seq"]) == (joined["joined_at"], "present", 2)
        assert progress["statistics"]["presentCount"] == 1
        assert "studentJoinedAttendance" not in student.names()

        data = await teacher.ask("getAttendanceSessionData", lecture.about)
        assert data == await teacher.heard("attendanceSessionData")
        by_student = {record["student_id"]: record for record in data["attendanceRecords"]}
        assert (by_student[ann]["status"], by_student[ann]["source"]) == ("present", "self")
        assert {by_student[other]["status"] for other in others} == {"absent"}
        assert data["statistics"]["attendanceRate"] == 33.33

        confirmed = await teacher.ask("endAttendanceSession", lecture.about)
        assert confirmed == await teacher.heard("attendanceSessionEndedConfirm")
        ended = await teacher.heard("attendanceSessionEnded")
        heard = await student.heard("attendanceSessionEnded")
        assert (ended["cause"], ended["ended_by_id"]) == ("ended", lecture.teacher)
        assert ended["finalData"]["attendanceRecords"] == confirmed["finalData"]["attendanceRecords"]
        assert len(ended["finalData"]["attendanceRecords"]) == 3
        assert [record["student_id"] for record in heard["finalData"]["attendanceRecords"]] == [ann]
        assert heard["finalData"]["statistics"] == ended["finalData"]["statistics"]


async def test_the_record_is_in_postgres_when_the_student_is_answered(cluster: Rig) -> None:
    lecture = await a_lecture(cluster.gateways[0])
    ann = lecture.students[0]
    await http(cluster.gateways[0], "POST", f"/sessions/{lecture.session_id}/start", bearer(lecture.teacher, "teacher"))
    async with calling(cluster.gateways[1], bearer(ann, "student")) as student:
        answer = await student.ask("joinAttendanceSession", lecture.about)
    connection = await asyncpg.connect(cluster.database_urls["attendance_service"])
    try:
        row = await connection.fetchrow(
            "SELECT status, source, seq FROM attendance.records WHERE session_id = $1 AND student_id = $2",
            lecture.session_id,
            ann,
        )
        history = await connection.fetch(
            "SELECT seq, kind FROM attendance.history WHERE session_id = $1 ORDER BY seq", lecture.session_id
        )
    finally:
        await connection.close()
    assert row is not None
    assert tuple(row) == ("present", "self", answer["seq"])
    assert [tuple(line) for line in history] == [(1, "opened"), (2, "joined")]


async def test_the_http_twins_do_the_same(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=2)
    teacher = bearer(lecture.teacher, "teacher")
    status, scheduled = await http(there, "GET", f"/sessions/{lecture.session_id}", teacher)
    assert (status, scheduled["status"], scheduled["time_zone"]) == (200, "scheduled", "Europe/Berlin")
    assert (scheduled["starts_at"], scheduled["date"]) == ("2026-11-24T09:00:00.000Z", "1795478400000")
    assert re.fullmatch("[0-9a-f]{24}", scheduled["id"])

    status, started = await http(here, "POST", f"/sessions/{lecture.session_id}/start", teacher)
    assert (status, started["totalStudents"], started["seq"]) == (200, 2, 1)
    assert "ok" not in started
    async with calling(there, bearer(lecture.students[0], "student")) as student:
        assert (await student.ask("joinAttendanceSession", lecture.about))["ok"]
    status, roll = await http(there, "GET", f"/sessions/{lecture.session_id}/attendance", teacher)
    assert (status, roll["seq"], roll["statistics"]["presentCount"]) == (200, 2, 1)
    status, ended = await http(here, "POST", f"/sessions/{lecture.session_id}/end", teacher)
    assert (status, ended["finalData"]["seq"]) == (200, 3)
    status, page = await http(here, "GET", f"/sessions?course_id={lecture.course_id}&status=completed", teacher)
    assert (status, [session["id"] for session in page["items"]]) == (200, [lecture.session_id])


async def test_a_whole_lecture_joins_at_once_and_everybody_is_counted_once(rig: Rig) -> None:
    """Fifty students from both gateways at the same moment, each of them twice."""
    here, there = rig.gateways
    lecture = await a_lecture(here, students=50)
    async with calling(here, bearer(lecture.teacher, "teacher")) as teacher:
        await teacher.ask("startAttendanceSession", lecture.about)

        async def join(number: int, student_id: str) -> list[dict[str, object]]:
            async with calling((here, there)[number % 2], bearer(student_id, "student")) as student:
                return list(await asyncio.gather(*(student.ask("joinAttendanceSession", lecture.about) for _ in range(2))))

        answers = await asyncio.gather(*(join(number, student) for number, student in enumerate(lecture.students)))
        seen = [await teacher.heard("studentJoinedAttendance") for _ in lecture.students]
        last = await teacher.heard("attendanceProgress", lambda progress: progress["seq"] == 51)
    assert all(first["seq"] == second["seq"] for first, second in answers)
    assert sorted(int(str(first["seq"])) for first, _ in answers) == list(range(2, 52))
    assert [event["seq"] for event in seen] == list(range(2, 52))
    assert last["statistics"]["presentCount"] == 50


async def test_starting_twice_answers_alike(rig: Rig) -> None:
    lecture = await a_lecture(rig.gateways[0])
    teachers: list[Caller] = []
    async with (
        calling(rig.gateways[0], bearer(lecture.teacher, "teacher")) as first,
        calling(rig.gateways[1], an_admin()) as second,
    ):
        teachers = [first, second]
        answers = await asyncio.gather(*(teacher.ask("startAttendanceSession", lecture.about) for teacher in teachers))
        again = await first.ask("startAttendanceSession", lecture.about)
    for answer in (*answers, again):
        assert answer["ok"]
        assert (answer["seq"], answer["session"]) == (1, again["session"])


async def test_ending_twice_is_confirmed_twice_and_told_once(rig: Rig) -> None:
    lecture = await a_lecture(rig.gateways[0])
    async with calling(rig.gateways[0], bearer(lecture.teacher, "teacher")) as teacher:
        await teacher.ask("startAttendanceSession", lecture.about)
        first = await teacher.ask("endAttendanceSession", lecture.about)
        await teacher.heard("attendanceSessionEnded")
        second = await teacher.ask("endAttendanceSession", lecture.about)
        # What a repeat would have told goes the same way as what tells of the next lecture, before it.
        following = {"session_id": await a_session(rig.gateways[0], lecture.course_id)}
        await teacher.ask("startAttendanceSession", following)
        async with calling(rig.gateways[0], bearer(lecture.students[0], "student")) as student:
            await student.ask("joinAttendanceSession", following)
        await teacher.heard("studentJoinedAttendance")
        await teacher.ask("endAttendanceSession", following)
        await teacher.heard("attendanceSessionEnded", lambda ended: ended["session_id"] == following["session_id"])
        assert first["finalData"] == second["finalData"]
        assert "attendanceSessionEnded" not in teacher.names()


async def test_a_late_student_is_late(rig: Rig) -> None:
    lecture = await a_lecture(rig.gateways[0], check_in={"late_after_minutes": 0})
    await http(rig.gateways[0], "POST", f"/sessions/{lecture.session_id}/start", an_admin())
    async with calling(rig.gateways[1], bearer(lecture.students[0], "student")) as student:
        assert (await student.ask("joinAttendanceSession", lecture.about))["status"] == "late"
