"""Rosters and teachers that move while a roll is open: the roll follows, and so does who may do what."""

import asyncio
import random
from collections.abc import Awaitable
from itertools import cycle
from typing import Any

import pytest

from tests.system.rig import Rig, token, unique
from tests.system.talk import (
    SECONDS,
    Caller,
    Payload,
    a_lecture,
    a_session,
    an_admin,
    bearer,
    calling,
    http,
    http_once,
    is_busy,
)

START, JOIN, READ, MARK = (
    "startAttendanceSession",
    "joinAttendanceSession",
    "getAttendanceSessionData",
    "markStudentAttendance",
)
RACES, LANES = 200, 4


async def test_a_walk_in_is_enrolled_by_the_teacher_and_may_act_and_be_marked_at_once(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=1)
    teacher_token = bearer(lecture.teacher, "teacher")
    walk_ins = unique("walk-in"), unique("walk-in")
    async with calling(here, teacher_token) as teacher, calling(there, an_admin()) as admin:
        assert (await teacher.ask(START, lecture.about))["ok"]
        assert (await admin.ask(READ, lecture.about))["ok"]
        path = f"/courses/{lecture.course_id}/roster"
        named = await http(there, "POST", f"{path}/{walk_ins[0]}", teacher_token, json={"name": "Wanda"})
        marked = await teacher.ask(MARK, {**lecture.about, "student_id": walk_ins[0], "status": "late"})
        unnamed = await http(here, "POST", f"{path}/{walk_ins[1]}", teacher_token)
        async with calling(there, token(walk_ins[1], "student", name="Will")) as student:
            joined = await student.ask(JOIN, lecture.about)
        seen = [await admin.heard("attendanceUpdated", lambda heard: heard["status"] == "absent") for _ in walk_ins]
        told = await admin.heard("studentJoinedAttendance")
        again = await http(here, "POST", f"{path}/{walk_ins[0]}", teacher_token, json={"name": "Wanda"})
        roll = await teacher.ask(READ, lecture.about)

    assert named == (201, {"added": 1, "updated": 0, "removed": 0})
    assert again == (200, {"added": 0, "updated": 0, "removed": 0})
    assert unnamed[0] == 201
    assert marked["ok"], marked
    assert joined["ok"], joined
    assert [(each["status"], each["attendanceRecord"]["source"]) for each in seen] == [("absent", "system")] * 2
    assert seen[0]["statistics"]["totalStudents"] == 2
    assert told["student_name"] == "Will"
    names = {record["student_id"]: record["student_name"] for record in roll["attendanceRecords"]}
    assert names == {lecture.students[0]: "Student 0", walk_ins[0]: "Wanda", walk_ins[1]: "Will"}
    assert roll["seq"] == 5


async def test_who_leaves_the_course_keeps_the_record_but_joins_no_more(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=2)
    ann, bob = lecture.students
    teacher_token = bearer(lecture.teacher, "teacher")
    async with (
        calling(here, teacher_token) as teacher,
        calling(there, bearer(ann, "student")) as joined,
        calling(there, bearer(bob, "student")) as absent,
    ):
        assert (await teacher.ask(START, lecture.about))["ok"]
        assert (await joined.ask(JOIN, lecture.about))["ok"]
        assert (await absent.ask("syncAttendanceSession", lecture.about))["ok"]
        path = f"/courses/{lecture.course_id}/roster"
        removed = [await http(here, "DELETE", f"{path}/{student}", teacher_token) for student in (ann, bob, bob)]
        # Staff are told that a listener who was taken off has gone.
        left = await teacher.heard("studentLeft", lambda told: told["student_id"] == ann)
        repeated = await joined.ask(JOIN, lecture.about)
        refused = await absent.ask(JOIN, lecture.about)
        unsynced = await absent.ask("syncAttendanceSession", lecture.about)
        roll = await teacher.ask(READ, lecture.about)
        back = await http(here, "POST", f"{path}/{bob}", teacher_token, json={"name": "Bob"})
        welcome = await absent.ask(JOIN, lecture.about)
        # Who is beside them at that gateway has heard it; whatever was said there before is heard before an answer.
        await absent.heard("attendanceProgress", lambda told: told["seq"] == welcome["seq"])
        assert (await joined.ask("syncAttendanceSession", lecture.about))["error"]["code"] == "not_enrolled"
        assert not any(name == "attendanceProgress" and told["seq"] > 2 for name, told in joined.events)

    assert [body["removed"] for _, body in removed] == [1, 1, 0]
    assert left["session_id"] == lecture.session_id
    assert repeated["ok"], "answered as the first time"
    assert refused["error"]["code"] == "not_enrolled"
    assert unsynced["error"]["code"] == "not_enrolled"
    assert {record["student_id"]: record["status"] for record in roll["attendanceRecords"]} == {ann: "present", bob: "absent"}
    assert back[0] == 201
    assert welcome["ok"], welcome


async def test_who_leaves_the_course_while_nothing_is_on_hears_no_more_of_closed_rolls(rig: Rig) -> None:
    """No event tells of it. Gateways look again after half a minute at the latest, and soon after a change of the course."""
    here, there = rig.gateways
    lecture = await a_lecture(here, students=1)
    [ann] = lecture.students
    admin, course = an_admin(), {"title": "Geometry", "teacher_ids": [lecture.teacher], "time_zone": "UTC"}
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as teacher,
        calling(there, bearer(ann, "student")) as student,
        calling(there, admin) as beside,
    ):
        assert (await teacher.ask(START, lecture.about))["ok"]
        assert (await student.ask(JOIN, lecture.about))["ok"]
        assert (await beside.ask(READ, lecture.about))["ok"]
        assert (await teacher.ask("endAttendanceSession", lecture.about))["ok"]
        assert (await http(here, "DELETE", f"/courses/{lecture.course_id}/roster/{ann}", admin))[0] == 200
        assert (await http(here, "PUT", f"/courses/{lecture.course_id}", admin, json=course))[0] == 200

        async with asyncio.timeout(SECONDS):
            for status in cycle(("late", "excused")):
                marked = await teacher.ask(MARK, {**lecture.about, "student_id": ann, "status": status})
                seq = marked["attendanceRecord"]["seq"]
                await beside.heard("attendanceUpdated", lambda told, seq=seq: told["seq"] == seq)  # type: ignore[misc]
                # Whatever was said there before is heard before an answer.
                await student.ask("checkActiveSessions", {"course_id": lecture.course_id})
                if not any(told.get("seq") == seq for name, told in student.events if name == "attendanceUpdated"):
                    break


async def test_a_whole_roster_put_while_the_roll_is_open_reaches_it(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=2)
    ann, bob = lecture.students
    new = unique("new")
    async with calling(here, bearer(lecture.teacher, "teacher")) as teacher:
        assert (await teacher.ask(START, lecture.about))["ok"]
        csv = f"student_id,name\n{ann},Ann\n{new},New\n".encode()
        status, counts = await http(
            there,
            "PUT",
            f"/courses/{lecture.course_id}/roster",
            an_admin(),
            data=csv,
            headers={"Content-Type": "text/csv"},
        )
        roll = await teacher.ask(READ, lecture.about)
        told = await teacher.heard("attendanceUpdated")
    assert (status, counts) == (200, {"added": 1, "updated": 1, "removed": 1})
    assert {record["student_id"] for record in roll["attendanceRecords"]} == {ann, bob, new}
    assert (told["student_id"], told["seq"], roll["seq"]) == (new, 2, 2)


@pytest.mark.timeout(240)
async def test_enrolling_and_removing_in_the_instant_of_the_start_is_never_lost(cluster: Rig) -> None:
    """Hundreds of times: a student is enrolled, another removed, while staff at both gateways start the session."""
    before_and_after = {True, False}
    lanes = await asyncio.gather(*(_races(cluster, random.Random(seed)) for seed in range(LANES)))
    assert {racer_opened for lane in lanes for racer_opened, _ in lane} == before_and_after
    assert {leaver_opened for lane in lanes for _, leaver_opened in lane} == before_and_after


async def _races(rig: Rig, chance: random.Random) -> list[tuple[bool, bool]]:
    """Race on a course of its own; tell of each race whether the racer and the leaver were in the opening."""
    here, there = rig.gateways
    lecture = await a_lecture(here, students=1)
    admin = token(unique("admin"), "admin")
    outcomes = list[tuple[bool, bool]]()
    async with calling(here, admin) as one, calling(there, admin, namespace="/") as two:
        while len(outcomes) < RACES // LANES:
            here, there, one, two = there, here, two, one
            if (outcome := await _race(lecture.course_id, (one, two), (here, there), admin, chance)) is not None:
                outcomes.append(outcome)
    return outcomes


async def _race(
    course_id: str, staff: tuple[Caller, Caller], gateways: tuple[str, str], admin: str, chance: random.Random
) -> tuple[bool, bool] | None:
    """Say whether the racer and the leaver were in the opening; nothing of a race that the machine was too busy for."""
    roster, racer, leaver = f"/courses/{course_id}/roster", unique("racer"), unique("leaver")
    session = {"session_id": await a_session(gateways[0], course_id)}
    enrolled, _ = await http(gateways[0], "POST", f"{roster}/{leaver}", admin, json={"name": "Leaver"})
    assert enrolled == 201

    async def soon(work: Awaitable[Any]) -> Any:
        # Somewhere in the time that a start takes, so that each is before the other now and then.
        await asyncio.sleep(chance.uniform(0, 0.03))
        return await work

    *started, (enrolled, _), (removed, _) = await asyncio.gather(
        *(soon(caller.ask_once(START, session)) for caller in staff),
        soon(http_once(gateways[1], "POST", f"{roster}/{racer}", admin, json={"name": "Racer"})),
        soon(http_once(gateways[0], "DELETE", f"{roster}/{leaver}", admin)),
    )
    if {enrolled, removed} & {503, 504} or any(map(is_busy, started)):
        return None
    assert all(answer["ok"] for answer in started), started
    assert (enrolled, removed) == (201, 200)
    # Enrolled is enrolled and removed is removed: on this roll too, now that both have been answered.
    marked = await staff[0].ask(MARK, {**session, "student_id": racer, "status": "late"})
    assert marked["ok"], marked
    async with calling(gateways[1], bearer(leaver, "student")) as gone:
        assert (await gone.ask(JOIN, session))["error"]["code"] == "not_enrolled"
    roll: Payload = await staff[0].ask(READ, session)
    on_the_roll = {record["student_id"]: record["status"] for record in roll["attendanceRecords"]}
    assert roll["statistics"]["totalStudents"] == len(on_the_roll)
    openings = [{record["student_id"] for record in answer["attendanceRecords"]} for answer in started]
    for caller, opening in zip(staff, openings, strict=True):
        await caller.heard("attendanceUpdated", lambda told: told["student_id"] == racer and told["status"] == "late")
        additions = [
            payload["status"]
            for event, payload in caller.events
            if event == "attendanceUpdated" and payload["student_id"] == racer
        ]
        assert additions == ([] if racer in opening else ["absent"])
        caller.events.clear()
    # Who was on it when they left the course keeps the record; who was not never gets one.
    assert on_the_roll.get(leaver) == ("absent" if leaver in openings[0] else None)
    ended = await staff[0].ask("endAttendanceSession", session)
    assert ended["ok"], ended
    return racer in openings[0], leaver in openings[0]


@pytest.mark.parametrize("roll", ["open", "closed"])
async def test_a_substitute_may_act_at_once_and_who_was_removed_may_not(rig: Rig, roll: str) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=2)
    ann, bob = lecture.students
    substitute = unique("substitute")
    course = {"title": "Algorithms", "time_zone": "Europe/Berlin"}
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as teacher,
        calling(there, token(substitute, "teacher")) as other,
        calling(here, an_admin()) as beside,
    ):
        assert (await teacher.ask(START, lecture.about))["ok"]
        assert (await beside.ask(READ, lecture.about))["ok"]
        if roll == "closed":
            assert (await teacher.ask("endAttendanceSession", lecture.about))["ok"]
        assert (await other.ask(READ, lecture.about))["error"]["code"] == "forbidden"
        path = f"/courses/{lecture.course_id}"
        both = {**course, "teacher_ids": [lecture.teacher, substitute]}
        assert (await http(here, "PUT", path, an_admin(), json=both))[0] == 200
        marked = await other.ask(MARK, {**lecture.about, "student_id": ann, "status": "late"})
        read = await other.ask(READ, lecture.about)
        await teacher.heard("attendanceUpdated", lambda told: told["student_id"] == ann)
        assert (await http(here, "PUT", path, an_admin(), json={**course, "teacher_ids": [substitute]}))[0] == 200
        refused = await teacher.ask(MARK, {**lecture.about, "student_id": ann, "status": "absent"})
        unread = await teacher.ask(READ, lecture.about)
        # Nor does the removed teacher hear any more what the substitute does: who is beside them at that gateway has
        # heard it, and whatever was said there before is heard before an answer.
        assert (await other.ask(MARK, {**lecture.about, "student_id": bob, "status": "excused"}))["ok"]
        await beside.heard("attendanceUpdated", lambda told: told["student_id"] == bob)
        assert (await teacher.ask(READ, lecture.about))["error"]["code"] == "forbidden"
        assert not any(payload.get("student_id") == bob for _, payload in teacher.events)

    assert marked["ok"], marked
    assert marked["attendanceRecord"]["marked_by"] == substitute
    assert substitute in read["session"]["teacher_ids"]
    assert refused["error"]["code"] == "forbidden"
    assert unread["error"]["code"] == "forbidden"
