"""Who is connected: true on every gateway, also after one was killed; and tokens that expire or are renewed."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path

import pytest
import socketio

from rollcall.servers import Server, start_valkey
from tests.conftest import NewDatabase
from tests.rabbitmq import RabbitMQ
from tests.system.rig import Process, Rig, process_of, running_separately, token, unique
from tests.system.talk import SECONDS, Caller, Lecture, a_lecture, an_admin, bearer, calling

GRACE_SECONDS = 5
KILLED_SECONDS = 30
"""How long after a gateway was killed those on it may still count."""

ANSWERED_SECONDS = 3.5
"""Callers are to hear within 2 s; the rest is for a slow machine."""


async def online(teacher: Caller, lecture: Lecture) -> set[str]:
    """Ask who is connected."""
    answer = await teacher.ask("getOnlineStudents", lecture.about)
    assert answer == await teacher.heard("onlineStudentsData")
    assert answer["ok"], answer
    connected = {student["student_id"] for student in answer["online_students"]}
    assert answer["online_count"] == len(connected)
    return connected


async def becomes_online(teacher: Caller, lecture: Lecture, *students: str, seconds: float = SECONDS) -> None:
    """Ask until just these are connected: nobody is told of it."""
    async with asyncio.timeout(seconds):
        while await online(teacher, lecture) != set(students):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_who_is_connected_is_known_on_every_gateway(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=3)
    ann, ben, _ = lecture.students
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as teacher,
        calling(there, an_admin()) as admin,
        calling(here, bearer(ann, "student")) as near,
    ):
        await teacher.ask("startAttendanceSession", lecture.about)
        assert await online(admin, lecture) == set()
        await near.ask("joinAttendanceSession", lecture.about)
        async with calling(there, bearer(ben, "student"), namespace="/") as far:
            await far.ask("joinAttendanceSession", lecture.about)
            for staff in (teacher, admin):
                await becomes_online(staff, lecture, ann, ben)
            await teacher.ask("getOnlineStudents", lecture.about)
            answer = await teacher.heard("onlineStudentsData")
            assert answer["total_joined"] == 2
            by_id = {student["student_id"]: student for student in answer["online_students"]}
            assert by_id[ann] == {"student_id": ann, "student_name": "Student 0", "joined_at": by_id[ann]["joined_at"]}
            assert by_id[ann]["joined_at"]
            assert (await far.ask("getOnlineStudents", lecture.about))["error"]["code"] == "forbidden"
        for staff in (teacher, admin):
            await becomes_online(staff, lecture, ann)


async def test_who_drops_has_left_after_the_grace_and_who_comes_back_has_not(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=3)
    ann, ben, _ = lecture.students
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as teacher,
        calling(there, an_admin()) as admin,
    ):
        await teacher.ask("startAttendanceSession", lecture.about)
        await admin.ask("syncAttendanceSession", lecture.about)
        for student in (ann, ben):
            async with calling(there, bearer(student, "student")) as first:
                await first.ask("joinAttendanceSession", lecture.about)
            dropped = time.monotonic()
            if student == ann:
                back = await _connected(here, ann)
                # With nothing new to say, the answer shows no record.
                synced = await back.call(
                    "syncAttendanceSession", {**lecture.about, "since_seq": 2}, namespace="/attendance", timeout=SECONDS
                )
                assert (synced["mode"], synced["attendanceRecords"]) == ("changes", [])
        try:
            for staff in (teacher, admin):
                # Ann dropped before Ben did, so she would have left before him.
                assert (await staff.heard("studentLeft"))["student_id"] == ben
            assert GRACE_SECONDS <= time.monotonic() - dropped < GRACE_SECONDS + 3
            assert await online(teacher, lecture) == {ann}
            assert "studentLeft" not in teacher.names() + admin.names()
        finally:
            await back.disconnect()


async def _connected(url: str, student: str) -> socketio.AsyncClient:
    client = socketio.AsyncClient(reconnection=False)
    await client.connect(url, auth={"token": bearer(student, "student")}, namespaces=["/attendance"], transports=["websocket"])
    return client


async def test_who_leaves_on_purpose_has_left_at_once_and_keeps_the_record(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=2)
    ann, ben = lecture.students
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as teacher,
        calling(there, bearer(ann, "student")) as student,
        calling(there, bearer(ben, "student")) as other,
    ):
        await teacher.ask("startAttendanceSession", lecture.about)
        assert (await other.ask("leaveAttendanceSession", lecture.about))["error"]["code"] == "forbidden"
        await student.ask("joinAttendanceSession", lecture.about)

        began = time.monotonic()
        answer = await student.ask("leaveAttendanceSession", lecture.about)
        assert answer == await student.heard("attendanceSessionLeft")
        assert (await teacher.heard("studentLeft"))["student_id"] == ann
        assert time.monotonic() - began < GRACE_SECONDS
        assert (await student.ask("leaveAttendanceSession", lecture.about))["ok"]

        assert await online(teacher, lecture) == set()
        data = await teacher.ask("getAttendanceSessionData", lecture.about)
        [record] = [record for record in data["attendanceRecords"] if record["student_id"] == ann]
        assert (record["status"], data["seq"]) == ("present", 2)
        first = await teacher.heard("studentJoinedAttendance")
        again = await student.ask("joinAttendanceSession", lecture.about)
        await becomes_online(teacher, lecture, ann)
        # What was answered first, and that they are back.
        assert (again["joined_at"], again["seq"]) == (first["joined_at"], first["seq"])
        assert await teacher.heard("studentJoinedAttendance") == first

        await student.ask("leaveAttendanceSession", lecture.about)
        await teacher.heard("studentLeft")
        assert (await student.ask("syncAttendanceSession", lecture.about))["ok"]
        assert await teacher.heard("studentJoinedAttendance") == first


@pytest.fixture
def third(cluster: Rig, tmp_path: Path) -> Iterator[Process]:
    """One more gateway of the cluster, which a test may kill."""
    process = process_of(cluster, "gateway", unique("gateway"), tmp_path)
    process.start()
    try:
        process.wait_ready()
        yield process
    finally:
        process.kill()
        del cluster.processes[process.name]


async def test_those_on_a_gateway_that_is_killed_are_gone_within_half_a_minute(cluster: Rig, third: Process) -> None:
    """Ben comes back elsewhere at once; Ann does not, and staff on both gateways that are left hear of it once."""
    here, there = cluster.gateways
    lecture = await a_lecture(here, students=2)
    ann, ben = lecture.students
    url = f"http://127.0.0.1:{third.environment['ROLLCALL_PORT']}"
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as teacher,
        calling(there, an_admin()) as admin,
    ):
        await teacher.ask("startAttendanceSession", lecture.about)
        await admin.ask("getAttendanceSessionData", lecture.about)
        async with calling(url, bearer(ann, "student")) as lost, calling(url, bearer(ben, "student")) as back:
            for student in (lost, back):
                assert (await student.ask("joinAttendanceSession", lecture.about))["ok"]
            await becomes_online(teacher, lecture, ann, ben)
            killed = time.monotonic()
            third.kill()
        async with calling(there, bearer(ben, "student")) as back:
            await back.ask("syncAttendanceSession", lecture.about)

            await becomes_online(teacher, lecture, ben, seconds=KILLED_SECONDS)
            for staff in (teacher, admin):
                assert (await staff.heard("studentLeft"))["student_id"] == ann
            assert time.monotonic() - killed < KILLED_SECONDS
            for staff in (teacher, admin):
                assert await online(staff, lecture) == {ben}
                assert "studentLeft" not in staff.names()


@pytest.fixture
def frail(tmp_path: Path, new_database: NewDatabase, private_rabbitmq: RabbitMQ) -> Iterator[tuple[Rig, list[Server]]]:
    """Two gateways with a Valkey of their own, which a test may take away and bring back."""
    with new_database() as url, ExitStack() as stack:
        valkey = [start_valkey(tmp_path / "valkey")]
        stack.callback(lambda: valkey[-1].stop())
        databases = dict.fromkeys(("session_service", "attendance_service"), url)
        amqp_url = private_rabbitmq.new_host()
        rig = stack.enter_context(
            running_separately(tmp_path, amqp_url=amqp_url, redis_url=valkey[0].url, database_urls=databases)
        )
        yield rig, valkey


async def test_without_redis_joins_work_and_afterwards_everything_is_true_again(
    frail: tuple[Rig, list[Server]], tmp_path: Path
) -> None:
    """It forgets everything. Who is connected is said again by every gateway, and watchers are told how things stand."""
    rig, valkey = frail
    here, there = rig.gateways
    lecture = await a_lecture(here, students=3)
    ann, ben, cleo = lecture.students
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as teacher,
        calling(here, bearer(ann, "student")) as near,
        calling(there, bearer(ben, "student")) as far,
        calling(there, bearer(cleo, "student")) as late,
    ):
        await teacher.ask("startAttendanceSession", lecture.about)
        for student in (near, far):
            await student.ask("joinAttendanceSession", lecture.about)
            await student.ask("subscribeToCourse", {"course_id": lecture.course_id})
            await student.heard("activeSessionsData")
        await becomes_online(teacher, lecture, ann, ben)

        port = int(valkey[0].url.rpartition(":")[2].partition("/")[0])
        valkey[0].stop()
        began = time.monotonic()
        assert (await late.ask("joinAttendanceSession", lecture.about))["ok"]
        assert time.monotonic() - began < ANSWERED_SECONDS
        assert (await teacher.ask_once("getOnlineStudents", lecture.about))["error"]["code"] == "unavailable"
        assert (await teacher.ask("endAttendanceSession", lecture.about))["ok"]
        valkey.append(start_valkey(tmp_path / "valkey", port=port))

        for student in (near, far):
            assert (await student.heard("activeSessionsData"))["activeSessions"] == []
        async with asyncio.timeout(SECONDS):
            while not (await teacher.ask("getOnlineStudents", lecture.about))["ok"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        teacher.events.clear()
        await becomes_online(teacher, lecture, ann, ben, cleo)
        assert "studentLeft" not in teacher.names()


# Tokens


@pytest.mark.parametrize("namespace", ["/", "/attendance"])
async def test_a_socket_is_cut_off_when_its_token_expires_unless_it_is_renewed(rig: Rig, namespace: str) -> None:
    url = rig.gateways[0]
    student = unique("student")
    async with _expiring(url, student, namespace) as expires, _expiring(url, student, namespace) as renewed:
        answer = await renewed.ask("refreshToken", {"token": token(student, "student", seconds=600)})
        assert answer["ok"]
        assert set(answer) == {"ok", "expires_at", "server_time"}

        error = await expires.heard("attendanceError")
        assert (error["code"], error["event"], error["retryable"]) == ("token_expired", "connect", False)
        await asyncio.wait_for(expires.client.wait(), SECONDS)
        assert not expires.client.connected

        assert (await renewed.ask("refreshToken", {"token": token(student, "teacher")}))["error"]["code"] == "forbidden"
        assert (await renewed.ask("refreshToken", {"token": "rubbish"}))["error"]["code"] == "unauthenticated"
        assert renewed.client.connected


def _expiring(url: str, student: str, namespace: str) -> AbstractAsyncContextManager[Caller]:
    return calling(url, token(student, "student", seconds=2), namespace=namespace)
