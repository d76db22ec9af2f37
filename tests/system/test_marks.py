"""Marks: what each makes of a record, who hears of it, and what a repeat, a conflict or a bad row makes of nothing."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from attendance_service.rules import Entry, Record
from tests.roll_replay import replayed, standing
from tests.system.rig import Process, Rig, token, unique
from tests.system.talk import Caller, Lecture, Payload, a_lecture, an_admin, bearer, calling, http

MARK, BULK, CLEAR = "markStudentAttendance", "bulkUpdateAttendance", "clearStudentMark"
READ, JOIN = "getAttendanceSessionData", "joinAttendanceSession"


@dataclass(frozen=True)
class Class:
    """A lecture under way: its teacher at one gateway, an admin listening and all students at the other."""

    lecture: Lecture
    teacher: Caller
    admin: Caller
    students: dict[str, Caller]

    def about(self, student_id: str, **more: Any) -> Payload:
        """The payload of a command about one student."""
        return {**self.lecture.about, "student_id": student_id, **more}

    async def roll(self) -> Payload:
        """The roll as the admin reads it."""
        return await self.admin.ask(READ, self.lecture.about)

    async def record(self, student_id: str) -> Payload:
        """One record of it."""
        (record,) = [each for each in (await self.roll())["attendanceRecords"] if each["student_id"] == student_id]
        return dict(record)


@asynccontextmanager
async def a_class(rig: Rig, *, students: int = 3, **lecture: Any) -> AsyncIterator[Class]:
    """Start a lecture and let everybody in; nobody's joins are left unheard."""
    here, there = rig.gateways
    made = await a_lecture(here, students=students, **lecture)
    async with AsyncExitStack() as stack:
        teacher = await stack.enter_async_context(calling(here, bearer(made.teacher, "teacher")))
        admin = await stack.enter_async_context(calling(there, an_admin(), namespace="/"))
        assert (await teacher.ask("startAttendanceSession", made.about))["ok"]
        assert (await admin.ask(READ, made.about))["ok"]
        callers = {}
        for student in made.students:
            callers[student] = await stack.enter_async_context(calling(there, bearer(student, "student")))
            assert (await callers[student].ask("syncAttendanceSession", made.about))["ok"]
        yield Class(made, teacher, admin, callers)


@pytest.mark.parametrize("status", ["present", "absent", "late", "excused"])
async def test_a_mark_is_told_to_staff_and_to_that_student_and_to_nobody_else(rig: Rig, status: str) -> None:
    async with a_class(rig) as room:
        ann, *others = room.lecture.students
        answer = await room.teacher.ask(MARK, room.about(ann, status=status, remarks="a note"))
        heard = [await caller.heard("attendanceUpdated") for caller in (room.teacher, room.admin, room.students[ann])]
        progress = [await caller.heard("attendanceProgress") for caller in (room.admin, *room.students.values())]

        record = answer["attendanceRecord"]
        assert answer["ok"]
        assert (record["status"], record["source"], record["remarks"]) == (status, "teacher", "a note")
        assert (record["marked_by"], record["seq"]) == (room.lecture.teacher, 2)
        assert (answer["status"], answer["student_id"], answer["updated_by_id"]) == (status, ann, room.lecture.teacher)
        for payload in heard:
            assert payload == {key: value for key, value in answer.items() if key not in ("ok", "server_time")}
        assert await room.record(ann) == record
        assert {(each["seq"], each["statistics"][f"{status}Count"]) for each in progress} == {
            (2, 3 if status == "absent" else 1)
        }
        # What classmates were to hear has come: the progress was sent after it.
        for other in others:
            assert "attendanceUpdated" not in room.students[other].names()


@pytest.mark.parametrize("status", ["Present", "Absent", "Late", "Excused"])
async def test_the_four_sisters_answer_the_caller_with_the_record(rig: Rig, status: str) -> None:
    async with a_class(rig, students=1) as room:
        (ann,) = room.lecture.students
        answer = await room.teacher.ask(f"markStudent{status}", {"sessionId": room.lecture.session_id, "studentId": ann})
        heard = await room.teacher.heard(f"studentMarked{status}")
        updated = await room.students[ann].heard("attendanceUpdated")
        assert answer == heard
        assert answer["attendanceRecord"] == updated["attendanceRecord"]
        assert updated["status"] == status.lower()


async def test_a_join_never_overwrites_a_mark_and_clearing_it_shows_the_join(rig: Rig) -> None:
    async with a_class(rig, students=2) as room:
        ann, bob = room.lecture.students
        await room.teacher.ask("markStudentExcused", room.about(ann))
        joined = await room.students[ann].ask(JOIN, room.lecture.about)
        assert joined["status"] == "excused"
        await room.teacher.ask("markStudentLate", room.about(bob))

        cleared = [await room.teacher.ask(CLEAR, room.about(student)) for student in (ann, bob)]
        again = await room.teacher.ask(CLEAR, room.about(ann))

        assert [(each["status"], each["attendanceRecord"]["source"]) for each in cleared] == [
            ("present", "self"),
            ("absent", "system"),
        ]
        assert cleared[0]["attendanceRecord"]["joined_at"] == joined["joined_at"]
        assert again["attendanceRecord"] == cleared[0]["attendanceRecord"]
        assert (await room.students[ann].heard("attendanceUpdated", lambda heard: heard["status"] == "present"))["seq"] == 5
        assert (await room.students[ann].ask(JOIN, room.lecture.about))["status"] == "excused"
        assert (await room.roll())["seq"] == 6


async def test_a_mark_sent_again_is_done_once_and_answered_alike(rig: Rig) -> None:
    """Also after a newer one, and by the other gateway; a mark that is so already takes no number."""
    async with a_class(rig, students=1) as room:
        (ann,) = room.lecture.students
        first = room.about(ann, status="late", remarks="bus", command_id=unique("first"))
        second = room.about(ann, status="excused", command_id=unique("second"))
        answer = await room.teacher.ask(MARK, first)
        newer = await room.teacher.ask(MARK, second)
        async with calling(rig.gateways[1], bearer(room.lecture.teacher, "teacher"), namespace="/") as elsewhere:
            repeats = [await elsewhere.ask(MARK, command) for command in (first, second, first)]
        so_already = await room.teacher.ask(MARK, room.about(ann, status="excused", expected_seq=1))
        for each in (answer, newer, *repeats):
            del each["server_time"]
        assert repeats == [answer, newer, answer]
        assert so_already["ok"]
        assert so_already["seq"] == newer["seq"] == 3
        roll = await room.roll()
        assert (roll["seq"], roll["attendanceRecords"][0]["status"]) == (3, "excused")


async def test_a_mark_of_what_has_changed_meanwhile_is_a_conflict_that_shows_the_record(rig: Rig) -> None:
    async with a_class(rig, students=1) as room:
        (ann,) = room.lecture.students
        seen = (await room.record(ann))["seq"]
        ours = await room.teacher.ask(MARK, room.about(ann, status="present", expected_seq=seen))
        theirs = await room.admin.ask(MARK, room.about(ann, status="absent", expected_seq=seen))
        assert ours["ok"]
        assert theirs["error"]["code"] == "conflict"
        assert theirs["error"]["details"][0]["attendanceRecord"] == await room.record(ann)
        path = f"/sessions/{room.lecture.session_id}/attendance/{ann}"
        status, body = await http(rig.gateways[0], "PUT", path, an_admin(), json={"status": "absent", "expected_seq": seen})
        assert (status, body["error"]["code"]) == (409, "conflict")


async def test_a_bulk_is_one_commit_told_once_to_staff_and_to_each_student_their_own(rig: Rig) -> None:
    async with a_class(rig, students=4) as room:
        ann, bob, cem, dan = room.lecture.students
        updates = [
            {"student_id": ann, "status": "present"},
            {"studentId": bob, "status": "excused", "remarks": "ill"},
            {"student_id": cem, "status": "late"},
        ]
        answer = await room.teacher.ask(BULK, {**room.lecture.about, "attendanceUpdates": updates})
        complete = await room.teacher.heard("attendanceBulkUpdateComplete")
        told = [await caller.heard("attendanceBulkUpdated") for caller in (room.teacher, room.admin)]
        own = {student: await room.students[student].heard("attendanceUpdated") for student in (ann, bob, cem)}
        for caller in (room.admin, room.students[dan]):
            await caller.heard("attendanceProgress", lambda heard: heard["seq"] == 4)

        assert answer == complete
        assert answer["totalUpdated"] == 3
        assert [record["seq"] for record in answer["updatedRecords"]] == [2, 3, 4]
        assert told[0] == told[1]
        assert told[0]["updatedRecords"] == answer["updatedRecords"]
        assert (told[0]["updated_by_id"], told[0]["seq"]) == (room.lecture.teacher, 4)
        for record in answer["updatedRecords"]:
            assert own[record["student_id"]]["attendanceRecord"] == record
        for caller in (room.teacher, room.admin, *room.students.values()):
            assert "attendanceUpdated" not in caller.names()
        assert (await room.roll())["statistics"]["attendanceRate"] == 66.67


async def test_a_bulk_of_a_thousand_is_one_commit(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=1000)
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as teacher,
        calling(there, bearer(lecture.students[0], "student")) as ann,
    ):
        assert (await teacher.ask("startAttendanceSession", lecture.about))["ok"]
        assert (await ann.ask("syncAttendanceSession", lecture.about))["ok"]
        updates = [{"student_id": student, "status": "present"} for student in lecture.students]
        answer = await teacher.ask(BULK, {**lecture.about, "attendanceUpdates": updates})
        assert answer["totalUpdated"] == 1000
        assert len((await teacher.heard("attendanceBulkUpdated"))["updatedRecords"]) == 1000
        assert (await ann.heard("attendanceUpdated"))["student_id"] == lecture.students[0]
        assert (await ann.heard("attendanceProgress"))["statistics"]["presentCount"] == 1000
        assert "attendanceUpdated" not in ann.names()
        too_many = [*updates, {"student_id": "one-more", "status": "present"}]
        refused = await teacher.ask(BULK, {**lecture.about, "attendanceUpdates": too_many})
        assert refused["error"]["code"] == "invalid"


BAD_ROWS: dict[str, tuple[Payload, str, str]] = {
    "nobody on the roll": ({"student_id": "nobody", "status": "present"}, "not_enrolled", "attendanceUpdates[1].student_id"),
    "another status": ({"student_id": "{bob}", "status": "here"}, "invalid", "attendanceUpdates[1].status"),
    "no status": ({"student_id": "{bob}"}, "invalid", "attendanceUpdates[1].status"),
    "no student": ({"status": "present"}, "invalid", "attendanceUpdates[1].student_id"),
    "twice": ({"student_id": "{ann}", "status": "late"}, "invalid", "attendanceUpdates[1].student_id"),
    "a note that is a number": (
        {"student_id": "{bob}", "status": "late", "remarks": 5},
        "invalid",
        "attendanceUpdates[1].remarks",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
async def test_a_bulk_with_one_bad_row_changes_nothing_and_names_the_row(rig: Rig, case: str) -> None:
    row, code, field = BAD_ROWS[case]
    async with a_class(rig, students=2) as room:
        ann, bob = room.lecture.students
        bad = {key: {"{ann}": ann, "{bob}": bob}.get(str(value), value) for key, value in row.items()}
        before = await room.roll()
        rows = [{"student_id": ann, "status": "present"}, bad]
        answer = await room.teacher.ask(BULK, {**room.lecture.about, "attendanceUpdates": rows})
        after = await room.roll()
        assert answer["error"]["code"] == code, answer
        assert [detail["field"] for detail in answer["error"]["details"]] == [field]
        assert after["attendanceRecords"] == before["attendanceRecords"]
        assert after["seq"] == before["seq"]


@asynccontextmanager
async def witnessed(database_url: str, session_id: str) -> AsyncIterator[Callable[[], Awaitable[set[int]]]]:
    """Let Postgres note from which port each line of a roll's history was written; the block may ask for them."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            f"""CREATE TABLE public.witness (port int);
            CREATE FUNCTION public.witness() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.session_id = '{session_id}' THEN INSERT INTO public.witness VALUES (inet_client_port()); END IF;
                RETURN NULL;
            END $$;
            CREATE TRIGGER witness AFTER INSERT ON attendance.history FOR EACH ROW EXECUTE FUNCTION public.witness()"""
        )
        try:

            async def ports() -> set[int]:
                return {row["port"] for row in await connection.fetch("SELECT DISTINCT port FROM public.witness")}

            yield ports
        finally:
            await connection.execute("DROP FUNCTION public.witness CASCADE; DROP TABLE public.witness")
    finally:
        await connection.close()


def ports_of(process: Process) -> set[int]:
    """The local ports of a process's connections."""
    assert process.popen is not None
    # The name of a socket that closes meanwhile is no name of a socket.
    sockets = {os.path.realpath(fd).rpartition("/")[2] for fd in Path(f"/proc/{process.popen.pid}/fd").iterdir()}
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(line[1].rpartition(":")[2], 16) for line in lines if f"socket:[{line[9]}]" in sockets}


async def test_hundreds_of_conflicting_marks_at_once_leave_gapless_numbers_and_a_true_history(cluster: Rig) -> None:
    """Forty sockets at two gateways mark the same students against each other, while they join, and while the replica that
    does all of it goes and leaves the rest to the other.
    """
    here, there = cluster.gateways
    lecture = await a_lecture(here, students=5)
    statuses = ("present", "absent", "late", "excused")
    replicas = [process for name, process in cluster.processes.items() if name.startswith("attendance_service")]
    async with AsyncExitStack() as stack:
        staff = [
            await stack.enter_async_context(calling((here, there)[number % 2], token(unique("admin"), "admin")))
            for number in range(39)
        ]
        staff.append(await stack.enter_async_context(calling(there, bearer(lecture.teacher, "teacher"))))
        ports = await stack.enter_async_context(witnessed(cluster.database_urls["attendance_service"], lecture.session_id))
        assert (await staff[0].ask("startAttendanceSession", lecture.about))["ok"]

        async def mark(socket: int, number: int) -> Payload:
            about = {**lecture.about, "student_id": lecture.students[(socket + number) % 5]}
            if number == 7:
                return await staff[socket].ask(CLEAR, about)
            status = statuses[(socket // 5 + number) % 4]
            return await staff[socket].ask(MARK, {**about, "status": status, "remarks": f"{socket}.{number}"})

        async def join(student: str) -> Payload:
            async with calling(there, bearer(student, "student")) as caller:
                return await caller.ask(JOIN, lecture.about)

        def marks(*numbers: int) -> list["asyncio.Task[Payload]"]:
            return [asyncio.create_task(mark(socket, number)) for number in numbers for socket in range(len(staff))]

        asked = marks(0, 1, 2, 3)
        answered = asyncio.as_completed(asked)
        for _ in range(len(asked) // 4):
            await next(answered)
        before = await ports()
        goes, stays = sorted(replicas, key=lambda replica: len(before & ports_of(replica)), reverse=True)
        assert before & ports_of(goes)
        try:
            await asyncio.to_thread(goes.stop)
            answers = await asyncio.gather(*asked, *marks(4, 5, 6, 7), *map(join, lecture.students))
            assert all(answer["ok"] for answer in answers)
            roll = await staff[0].ask(READ, lecture.about)
            assert await ports() & ports_of(stays)
        finally:
            goes.start()
            await asyncio.to_thread(goes.wait_ready)
    connection = await asyncpg.connect(cluster.database_urls["attendance_service"])
    try:
        lines = await connection.fetch(
            "SELECT * FROM attendance.history WHERE session_id = $1 ORDER BY seq", lecture.session_id
        )
        records = await connection.fetch("SELECT * FROM attendance.records WHERE session_id = $1", lecture.session_id)
    finally:
        await connection.close()
    assert [line["seq"] for line in lines] == list(range(1, roll["seq"] + 1))
    told = replayed([Entry(**line) for line in lines], lecture.students)
    assert told == {record["student_id"]: standing(Record(**record)) for record in records}
    assert len(lines) > 200
    shown = {
        record["student_id"]: (record["status"], record["source"], record["remarks"], record["seq"])
        for record in roll["attendanceRecords"]
    }
    assert shown == {student: (each.status, each.source, each.remarks, each.seq) for student, each in told.items()}
