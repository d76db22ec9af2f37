"""Catching up: a client that missed anything at all is whole again with one call, on any gateway."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.system.copies import HEARD, Copy, Standing
from tests.system.rig import Rig, process_of, unique
from tests.system.talk import SECONDS, Caller, Lecture, Payload, a_lecture, an_admin, bearer, calling, http

SYNC, JOIN, MARK = "syncAttendanceSession", "joinAttendanceSession", "markStudentAttendance"
STATUSES = ("present", "absent", "late", "excused")
PROGRESS, ENDED = "attendanceProgress", "attendanceSessionEnded"
OF_A_STUDENT = {"attendanceUpdated", PROGRESS, ENDED, "attendanceSubmitted"}


class Listening:
    """One client: hears events, and asks for what it lacks."""

    def __init__(self, caller: Caller, about: Payload) -> None:
        self._caller = caller
        self._about = about
        self.copy = Copy()
        self.statistics: Payload | None = None
        """As of the last sync."""
        self.lost = self.inversions = 0
        self.received: dict[str, int] = {}
        """For each event that reached the client, lost or not, the last number."""

    async def sync(self) -> None:
        """Ask for everything since the last number known."""
        since = self.copy.lacking()
        answer = await self._caller.ask(SYNC, {**self._about, **since})
        assert answer["mode"] == ("changes" if since else "whole")
        if since:
            assert all(record["seq"] > since["since_seq"] for record in answer["attendanceRecords"])
        self.copy.take(answer)
        self.statistics = answer["statistics"]

    async def unreliably(self, chance: random.Random, done: asyncio.Event, longest_seconds: float) -> None:
        """Hear what reaches the client: some of it never, the rest each after a while of its own."""
        held: list[tuple[float, int, str, Payload]] = []
        now, number, newest = asyncio.get_running_loop().time, 0, 0
        while not done.is_set() or held:
            events, self._caller.events[:] = [each for each in self._caller.events if each[0] in HEARD], []
            for event, payload in events:
                self.received[event] = payload["finalData"]["seq"] if event == ENDED else payload["seq"]
                number += 1
                if number == 1 or chance.random() < 0.3:
                    self.lost += 1
                else:
                    held.append((now() + chance.uniform(0, longest_seconds), number, event, payload))
            for each in sorted(each for each in held if each[0] <= now()):
                held.remove(each)
                _, of_it, event, payload = each
                self.inversions += of_it < newest
                newest = max(of_it, newest)
                if not self.copy.hear(event, payload):
                    await self.sync()
            await asyncio.sleep(0.005)


async def in_postgres(rig: Rig, session_id: str) -> tuple[int, dict[str, Standing]]:
    """Read the roll's number and records from the database itself."""
    connection = await asyncpg.connect(rig.database_urls["attendance_service"])
    try:
        seq = await connection.fetchval("SELECT seq FROM attendance.rolls WHERE session_id = $1", session_id)
        rows = await connection.fetch(
            """SELECT student_id, status, seq,
                to_char(joined_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS joined_at
            FROM attendance.records WHERE session_id = $1""",
            session_id,
        )
    finally:
        await connection.close()
    return seq, {row["student_id"]: (row["status"], row["joined_at"], row["seq"]) for row in rows}


def counted(standing: dict[str, Standing]) -> Payload:
    """Count the records, as the contract says."""
    counts = Counter(status for status, _, _ in standing.values())
    considered = counts.total() - counts["excused"]
    rate = round(100 * (counts["present"] + counts["late"]) / considered, 2) if considered else None
    return {
        "totalStudents": counts.total(),
        **{f"{status}Count": counts[status] for status in STATUSES},
        "attendanceRate": rate,
    }


async def trouble(rig: Rig, lecture: Lecture, chance: random.Random) -> None:
    """Let students join while an admin marks, clears, updates many, enrols and moves the cut-off.

    And then submit, take that back, end, and mark once more.
    """
    here, there = rig.gateways
    admin_token = an_admin()
    students = list(lecture.students)
    chance.shuffle(students)

    async def join(student: str) -> None:
        async with calling(chance.choice((here, there)), bearer(student, "student")) as caller:
            assert (await caller.ask(JOIN, lecture.about))["ok"]

    async def something(admin: Caller) -> None:
        about = {**lecture.about, "student_id": chance.choice(students)}
        match chance.randrange(10):
            case 0 | 1:
                answer = await admin.ask("clearStudentMark", about)
            case 2 | 3:
                rows = [{"student_id": each, "status": chance.choice(STATUSES)} for each in chance.sample(students, 5)]
                answer = await admin.ask("bulkUpdateAttendance", {**lecture.about, "attendanceUpdates": rows})
            case 4:
                path = f"/courses/{lecture.course_id}/roster/{unique('walk-in')}"
                status, answer = await http(here, "POST", path, admin_token, json={"name": "Wanda"})
                answer["ok"] = status == 201
            case 5:
                check_in = {"late_after_minutes": chance.choice((0, 600))}
                path = f"/sessions/{lecture.session_id}"
                status, answer = await http(there, "PATCH", path, admin_token, json={"check_in": check_in})
                answer["ok"] = status == 200
            case _:
                answer = await admin.ask(MARK, {**about, "status": chance.choice(STATUSES)})
        assert answer["ok"], answer

    async with calling(there, admin_token) as admin:

        async def many_things() -> None:
            for _ in range(60):
                await something(admin)

        await asyncio.gather(many_things(), *map(join, students[:-3]))
        assert (await admin.ask("submitAttendance", lecture.about))["ok"]
        assert (await admin.ask("reopenAttendanceSession", {**lecture.about, "reason": "too early"}))["ok"]
        for _ in range(10):
            await something(admin)
        assert (await admin.ask("endAttendanceSession", lecture.about))["ok"]
        for status in ("present", "excused"):
            assert (await admin.ask(MARK, {**lecture.about, "student_id": students[0], "status": status}))["ok"]


@pytest.mark.parametrize("seed", range(4))
async def test_a_client_that_loses_and_shuffles_its_events_ends_equal_to_postgres(cluster: Rig, seed: int) -> None:
    """Two of staff and a student, each with a copy; what the last of the numbers says is heard by all.

    Staff lose so much that they must ask again and again. A student hears little: the first they hear is lost, as it is to all.
    """
    chance = random.Random(seed)
    here, there = cluster.gateways
    lecture = await a_lecture(here, students=20)
    ann = lecture.students[0]
    done = asyncio.Event()
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as one,
        calling(there, an_admin(), namespace="/") as two,
        calling(there, bearer(ann, "student")) as three,
    ):
        assert (await one.ask("startAttendanceSession", lecture.about))["ok"]
        *staff, own = listeners = [Listening(caller, lecture.about) for caller in (one, two, three)]
        for each in listeners:
            await each.sync()
        for caller in (one, two, three):
            caller.events.clear()
        async with asyncio.TaskGroup() as tasks:
            for each in staff:
                tasks.create_task(each.unreliably(chance, done, 0.5))
            # A student hears little, four numbers a second at most: within half a second nothing may overtake anything.
            tasks.create_task(own.unreliably(chance, done, 2.0))
            await trouble(cluster, lecture, chance)
            seq, standing = await in_postgres(cluster, lecture.session_id)
            async with asyncio.timeout(SECONDS):
                while any(each.received.get(PROGRESS) != seq for each in listeners):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            done.set()
        for each in listeners:
            await each.sync()
    for each in staff:
        assert each.copy.standing == standing
        assert set(each.received) == HEARD
        assert each.inversions > 10
        assert each.copy.syncs > 2
    assert own.copy.standing == {ann: standing[ann]}
    assert set(own.received) == OF_A_STUDENT
    for each in listeners:
        assert each.lost > 0
        assert (each.copy.seq, each.statistics) == (seq, counted(standing))


@asynccontextmanager
async def one_more_gateway(rig: Rig, folder: Path) -> AsyncIterator[Any]:
    """Run another gateway, which a test may kill."""
    gateway = process_of(rig, "gateway", unique("gateway"), folder)
    gateway.start()
    try:
        await asyncio.to_thread(gateway.wait_ready)
        yield gateway
    finally:
        gateway.kill()
        del rig.processes[gateway.name]


async def test_after_a_gateways_death_one_call_on_another_makes_clients_whole(cluster: Rig, tmp_path: Path) -> None:
    here, there = cluster.gateways
    lecture = await a_lecture(here, students=4)
    ann, bob, cem, _ = lecture.students
    async with one_more_gateway(cluster, tmp_path) as doomed, calling(here, an_admin()) as admin:
        url = f"http://127.0.0.1:{doomed.environment['ROLLCALL_PORT']}"
        assert (await admin.ask("startAttendanceSession", lecture.about))["ok"]
        async with (
            calling(url, bearer(lecture.teacher, "teacher")) as teacher,
            calling(url, bearer(ann, "student")) as student,
        ):
            known = await teacher.ask(SYNC, lecture.about)
            assert (await student.ask(JOIN, lecture.about))["ok"]
            doomed.kill()
            async with asyncio.timeout(SECONDS):
                await asyncio.gather(teacher.client.wait(), student.client.wait())
        assert (await admin.ask(MARK, {**lecture.about, "student_id": bob, "status": "late"}))["ok"]
        async with (
            calling(there, bearer(lecture.teacher, "teacher")) as teacher,
            calling(there, bearer(ann, "student"), namespace="/") as student,
        ):
            caught_up = await teacher.ask(SYNC, {**lecture.about, "since_seq": known["seq"]})
            own = await student.ask(SYNC, {**lecture.about, "since_seq": known["seq"]})
            # And both hear again what happens from now on.
            assert (await admin.ask(MARK, {**lecture.about, "student_id": ann, "status": "excused"}))["ok"]
            heard = [await caller.heard("attendanceUpdated") for caller in (teacher, student)]
            assert (await admin.ask(MARK, {**lecture.about, "student_id": cem, "status": "late"}))["ok"]
            await teacher.heard("attendanceUpdated", lambda told: told["student_id"] == cem)
            await student.heard("attendanceProgress", lambda told: told["seq"] == 5)
            assert "attendanceUpdated" not in student.names()
    assert (caught_up["mode"], caught_up["seq"]) == ("changes", 3)
    assert [(record["student_id"], record["status"]) for record in caught_up["attendanceRecords"]] == sorted(
        [(ann, "present"), (bob, "late")]
    )
    assert [record["student_id"] for record in own["attendanceRecords"]] == [ann]
    assert heard[0]["attendanceRecord"] == heard[1]["attendanceRecord"]


async def test_a_sync_gives_changes_or_the_whole_and_to_students_their_own(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=3)
    ann, bob, _ = lecture.students
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as teacher,
        calling(there, bearer(ann, "student")) as student,
    ):
        refused = await teacher.ask(SYNC, lecture.about)
        assert refused["error"]["code"] == "session_not_active"
        assert (await teacher.ask("startAttendanceSession", lecture.about))["ok"]
        assert (await teacher.ask(MARK, {**lecture.about, "student_id": bob, "status": "late"}))["ok"]
        answers = {
            since: await teacher.ask(SYNC, {**lecture.about, **({} if since is None else {"since_seq": since})})
            for since in (None, 0, 1, 2, 3, 2**40)
        }
        own = {since: await student.ask(SYNC, {**lecture.about, "since_seq": since}) for since in (0, 1, 99)}
        bad = [await teacher.ask(SYNC, {**lecture.about, "since_seq": since}) for since in (-1, "1", 1.5, True, 2**70)]
    shown = {since: (answer["mode"], len(answer["attendanceRecords"]), answer["seq"]) for since, answer in answers.items()}
    assert shown == {
        None: ("whole", 3, 2),
        0: ("changes", 3, 2),
        1: ("changes", 1, 2),
        2: ("changes", 0, 2),
        3: ("whole", 3, 2),
        2**40: ("whole", 3, 2),
    }
    assert answers[1]["attendanceRecords"][0]["student_id"] == bob
    assert answers[1]["statistics"]["lateCount"] == 1
    assert {since: [record["student_id"] for record in answer["attendanceRecords"]] for since, answer in own.items()} == {
        0: [ann],
        1: [],
        99: [ann],
    }
    assert all(answer["statistics"] == answers[1]["statistics"] for answer in own.values())
    assert {answer["error"]["code"] for answer in bad} == {"invalid"}


async def test_replaying_the_history_over_http_gives_the_roll(rig: Rig) -> None:
    """Page by page, from a roll on which everybody is absent."""
    here, there = rig.gateways
    lecture = await a_lecture(here, students=20)
    async with calling(here, bearer(lecture.teacher, "teacher")) as teacher:
        assert (await teacher.ask("startAttendanceSession", lecture.about))["ok"]
        await trouble(rig, lecture, random.Random(7))
        assert (await teacher.ask("submitAttendance", lecture.about))["ok"]
        roll = await teacher.ask("getAttendanceSessionData", lecture.about)
    items: list[Payload] = []
    cursor = ""
    while True:
        path = f"/sessions/{lecture.session_id}/history?limit=50{cursor}"
        status, page = await http(there, "GET", path, bearer(lecture.teacher, "teacher"))
        assert status == 200
        items += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert [item["seq"] for item in items] == list(range(1, roll["seq"] + 1))
    standing: dict[str, tuple[str | None, int]] = dict.fromkeys(lecture.students, ("absent", 1))
    for item in items:
        if item["student_id"] is not None:
            assert item["before"] == standing.get(item["student_id"], (None, 0))[0]
            standing[item["student_id"]] = (item["after"], item["seq"])
    assert {record["student_id"]: (record["status"], record["seq"]) for record in roll["attendanceRecords"]} == standing
    assert [item["kind"] for item in items if item["student_id"] is None] == [
        *("opened", "closed", "submitted", "reopened", "closed", "submitted"),
    ]
    assert {"joined", "marked", "cleared", "redecided", "enrolled"} <= {item["kind"] for item in items}
