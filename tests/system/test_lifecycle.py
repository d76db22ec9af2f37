"""The life of a session beyond its first end: submitting, amending, reopening, cancelling."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.system.rig import Rig, unique
from tests.system.talk import (
    Caller,
    Lecture,
    Payload,
    a_lecture,
    a_session,
    an_admin,
    bearer,
    calling,
    http,
    is_busy,
    the_session,
)

START, END, SUBMIT, REOPEN = (
    "startAttendanceSession",
    "endAttendanceSession",
    "submitAttendance",
    "reopenAttendanceSession",
)
READ, JOIN, MARK = "getAttendanceSessionData", "joinAttendanceSession", "markStudentAttendance"


@asynccontextmanager
async def a_class(rig: Rig) -> AsyncIterator[tuple[Lecture, Caller, Caller, Caller]]:
    """Start a lecture: its teacher here, another one listening there, and Ann, who has joined."""
    here, there = rig.gateways
    lecture = await a_lecture(here, students=2)
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as teacher,
        calling(there, an_admin()) as other,
        calling(there, bearer(lecture.students[0], "student")) as ann,
    ):
        assert (await teacher.ask(START, lecture.about))["ok"]
        assert (await other.ask(READ, lecture.about))["ok"]
        assert (await ann.ask(JOIN, lecture.about))["ok"]
        yield lecture, teacher, other, ann


@pytest.mark.parametrize("ended_before", [False, True])
async def test_submitting_closes_an_open_roll_once_and_is_told_to_the_room(rig: Rig, ended_before: bool) -> None:
    async with a_class(rig) as (lecture, teacher, other, ann):
        if ended_before:
            assert (await teacher.ask(END, lecture.about))["ok"]
        answer = await teacher.ask(SUBMIT, lecture.about)
        told = [await caller.heard("attendanceSubmitted") for caller in (teacher, other, ann)]
        ended = [await caller.heard("attendanceSessionEnded") for caller in (teacher, other, ann)]
        # Submit followed by end is no error, and neither is either of them again.
        confirmed = await teacher.ask(END, lecture.about)
        again = await other.ask(SUBMIT, lecture.about)
        session = await the_session(rig, lecture, "completed")

        assert answer["ok"], answer
        assert {key: answer[key] for key in told[0]} == told[0] == told[1] == told[2]
        assert (answer["submitted_by_id"], answer["seq"]) == (lecture.teacher, 4)
        assert answer["statistics"]["presentCount"] == 1
        assert {each["cause"] for each in ended} == {"ended" if ended_before else "submitted"}
        assert len(ended[1]["finalData"]["attendanceRecords"]) == 2
        assert [record["student_id"] for record in ended[2]["finalData"]["attendanceRecords"]] == [lecture.students[0]]
        assert confirmed["ok"], confirmed
        del answer["server_time"], again["server_time"]
        assert again == answer
        assert session["ended_at"] is not None
        refused = await ann.ask(JOIN, {**lecture.about})
        assert refused["ok"]
        async with calling(rig.gateways[0], bearer(lecture.students[1], "student")) as bob:
            assert (await bob.ask(JOIN, lecture.about))["error"]["code"] == "roll_submitted"
        for caller in (teacher, other, ann):
            assert "attendanceSessionEnded" not in caller.names()


async def test_after_submission_a_mark_is_an_amendment_with_a_reason_that_history_keeps(rig: Rig) -> None:
    async with a_class(rig) as (lecture, teacher, _, ann):
        bob = lecture.students[1]
        assert (await teacher.ask(SUBMIT, lecture.about))["ok"]
        about = {**lecture.about, "student_id": bob, "status": "excused"}
        refused = await teacher.ask(MARK, about)
        amended = await teacher.ask(MARK, {**about, "reason": "a doctor's note", "remarks": "ill"})
        cleared = await teacher.ask("clearStudentMark", {**lecture.about, "student_id": bob})
        bulk = {**lecture.about, "attendanceUpdates": [{"student_id": bob, "status": "late"}]}
        refused_bulk = await teacher.ask("bulkUpdateAttendance", bulk)
        status, page = await http(
            rig.gateways[1], "GET", f"/sessions/{lecture.session_id}/history?since_seq=4", bearer(lecture.teacher, "teacher")
        )
        own_status, own = await http(
            rig.gateways[1], "GET", f"/me/attendance?course_id={lecture.course_id}", bearer(bob, "student")
        )

        assert refused["error"]["code"] == "reason_required"
        assert cleared["error"]["code"] == "reason_required"
        assert refused_bulk["error"]["code"] == "reason_required"
        assert amended["ok"], amended
        assert status == own_status == 200
        (line,) = page["items"]
        assert (line["seq"], line["kind"], line["student_id"]) == (5, "marked", bob)
        assert (line["before"], line["after"], line["reason"]) == ("absent", "excused", "a doctor's note")
        assert (line["source"], line["actor"], line["remarks"]) == ("teacher", lecture.teacher, "ill")
        assert set(line) == {
            *("seq", "at", "kind", "student_id", "before", "after", "source", "actor", "actor_name"),
            *("reason", "remarks", "command_id"),
        }
        (item,) = own["items"]
        assert item["session"]["id"] == lecture.session_id
        assert item["attendanceRecord"]["status"] == "excused"
        assert item["history"] == [line]
        assert "attendanceUpdated" not in ann.names()


@pytest.mark.parametrize("by", [END, SUBMIT])
async def test_reopening_undoes_an_end_and_a_submission(rig: Rig, by: str) -> None:
    async with a_class(rig) as (lecture, teacher, other, ann):
        assert (await teacher.ask(by, lecture.about))["ok"]
        await other.heard("attendanceSessionEnded")
        await ann.heard("attendanceSessionEnded")
        reopening = {**lecture.about, "reason": "the wrong button", "command_id": unique("reopening")}
        answer = await teacher.ask(REOPEN, reopening)
        told = await other.heard("attendanceSessionStarted")
        session = await the_session(rig, lecture, "active")
        async with calling(rig.gateways[0], bearer(lecture.students[1], "student")) as bob:
            joined = await bob.ask(JOIN, lecture.about)
        marked = await teacher.ask(MARK, {**lecture.about, "student_id": lecture.students[0], "status": "late"})

        assert answer["ok"], answer
        assert (answer["session"]["status"], answer["session"]["ended_at"]) == ("active", None)
        assert answer["session"]["started_at"] == session["started_at"]
        assert told["seq"] == answer["seq"] == (5 if by == SUBMIT else 4)
        assert told["attendanceRecords"] == answer["attendanceRecords"]
        assert joined["ok"], joined
        assert marked["ok"], marked
        assert "attendanceSessionStarted" not in ann.names()

        # Ended again it is told again; the reopening, sent once more, does not come back.
        assert (await teacher.ask(END, lecture.about))["ok"]
        ended = await ann.heard("attendanceSessionEnded")
        assert (await teacher.ask(REOPEN, reopening))["ok"]
        assert (await the_session(rig, lecture, "completed"))["ended_at"] is not None
        assert ended["cause"] == "ended"
        assert (await other.ask(READ, lecture.about))["session"]["status"] == "completed"
        names = [event for event in teacher.names() if event == "attendanceSessionStarted"]
        assert len(names) == 2, "one for the start, one for the reopening"


async def test_reopening_needs_a_reason_and_something_to_reopen(rig: Rig) -> None:
    async with a_class(rig) as (lecture, teacher, _, _):
        scheduled = {"session_id": await a_session(rig.gateways[0], lecture.course_id)}
        assert (await teacher.ask(REOPEN, lecture.about))["error"]["code"] == "invalid"
        assert (await teacher.ask(REOPEN, {**lecture.about, "reason": "  "}))["error"]["code"] == "invalid"
        assert (await teacher.ask(REOPEN, {**scheduled, "reason": "x"}))["error"]["code"] == "session_not_active"
        assert (await teacher.ask(REOPEN, {**lecture.about, "reason": "it is open"}))["ok"]
        assert (await teacher.ask(READ, lecture.about))["seq"] == 2


async def test_cancelling_keeps_the_records_and_closes_the_roll(rig: Rig) -> None:
    async with a_class(rig) as (lecture, teacher, other, ann):
        path = f"/sessions/{lecture.session_id}/cancel"
        before = await teacher.ask(READ, lecture.about)
        status, body = await http(rig.gateways[1], "POST", path, bearer(lecture.teacher, "teacher"))
        ended = [await caller.heard("attendanceSessionEnded") for caller in (teacher, other, ann)]
        again, _ = await http(rig.gateways[0], "POST", path, bearer(lecture.teacher, "teacher"))
        after = await teacher.ask(READ, lecture.about)
        codes = [
            (await teacher.ask(event, {**lecture.about, **more}))["error"]["code"]
            for event, more in (
                (MARK, {"student_id": lecture.students[1], "status": "late"}),
                ("clearStudentMark", {"student_id": lecture.students[0]}),
                ("bulkUpdateAttendance", {"attendanceUpdates": [{"student_id": lecture.students[1], "status": "late"}]}),
                (SUBMIT, {}),
                (START, {}),
                (END, {}),
                (REOPEN, {"reason": "x"}),
            )
        ]
        async with calling(rig.gateways[0], bearer(lecture.students[1], "student")) as bob:
            codes.append((await bob.ask(JOIN, lecture.about))["error"]["code"])

        assert (status, body["session"]["status"], again) == (200, "cancelled", 200)
        assert {each["cause"] for each in ended} == {"cancelled"}
        assert after["attendanceRecords"] == before["attendanceRecords"]
        assert (after["seq"], after["session"]["status"]) == (before["seq"] + 1, "cancelled")
        assert set(codes) == {"session_cancelled"}


async def test_a_scheduled_session_is_cancelled_and_a_completed_one_is_not(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here)
    admin = an_admin()
    status, body = await http(here, "POST", f"/sessions/{lecture.session_id}/cancel", admin)
    assert (status, body["session"]["status"]) == (200, "cancelled")
    async with calling(there, admin) as caller:
        assert (await caller.ask(START, lecture.about))["error"]["code"] == "session_cancelled"
        completed = {"session_id": await a_session(here, lecture.course_id)}
        assert (await caller.ask(START, completed))["ok"]
        assert (await caller.ask(END, completed))["ok"]
    status, body = await http(here, "POST", f"/sessions/{completed['session_id']}/cancel", admin)
    assert (status, body["error"]["code"]) == (409, "session_completed")


async def test_changing_the_cut_off_re_decides_joins_and_leaves_marks(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=3, check_in={"late_after_minutes": 0})
    ann, bob, cem = lecture.students
    async with calling(here, bearer(lecture.teacher, "teacher")) as teacher, calling(there, bearer(ann, "student")) as student:
        assert (await teacher.ask(START, lecture.about))["ok"]
        joined = await student.ask(JOIN, lecture.about)
        assert joined["status"] == "late"
        async with calling(there, bearer(bob, "student")) as other:
            await other.ask(JOIN, lecture.about)
        await teacher.ask("markStudentLate", {**lecture.about, "student_id": bob})
        path = f"/sessions/{lecture.session_id}"
        status, session = await http(
            there, "PATCH", path, bearer(lecture.teacher, "teacher"), json={"check_in": {"late_after_minutes": 5}}
        )
        told = await student.heard("attendanceUpdated")
        seen = await teacher.heard("attendanceUpdated", lambda heard: heard["student_id"] == ann)
        roll = await teacher.ask(READ, lecture.about)
        again = await student.ask(JOIN, lecture.about)
        _, history = await http(here, "GET", f"{path}/history?since_seq=4", bearer(lecture.teacher, "teacher"))

    assert status == 200
    assert session["check_in"]["late_after_minutes"] == 5
    assert (told["status"], told["attendanceRecord"]["source"], told["seq"]) == ("present", "self", 5)
    assert seen == told
    assert {record["student_id"]: record["status"] for record in roll["attendanceRecords"]} == {
        ann: "present",
        bob: "late",
        cem: "absent",
    }
    assert roll["session"]["check_in"] == session["check_in"]
    assert [(line["kind"], line["student_id"]) for line in history["items"]] == [("redecided", ann)]
    assert (again["status"], again["joined_at"]) == ("late", joined["joined_at"])


async def test_check_in_closes_by_the_servers_clock(rig: Rig) -> None:
    lecture = await a_lecture(rig.gateways[0], check_in={"closes_after_minutes": 0})
    async with (
        calling(rig.gateways[0], bearer(lecture.teacher, "teacher")) as teacher,
        calling(rig.gateways[1], bearer(lecture.students[0], "student")) as ann,
    ):
        assert (await teacher.ask(START, lecture.about))["ok"]
        assert (await ann.ask(JOIN, lecture.about))["error"]["code"] == "check_in_closed"
        await http(
            rig.gateways[0],
            "PATCH",
            f"/sessions/{lecture.session_id}",
            bearer(lecture.teacher, "teacher"),
            json={"check_in": {"closes_after_minutes": None}},
        )
        assert (await ann.ask(JOIN, lecture.about))["ok"]


async def test_what_is_sent_again_to_another_gateway_is_answered_alike(rig: Rig) -> None:
    """With the same `command_id`; what others have done since does not show in the answer to a mark."""
    here, there = rig.gateways
    lecture = await a_lecture(here, students=2)
    ann, bob = lecture.students
    rows = [{"student_id": ann, "status": "late"}, {"student_id": bob, "status": "excused", "remarks": "ill"}]
    commands: list[tuple[str, Payload]] = [
        ("bulkUpdateAttendance", {"attendanceUpdates": rows}),
        ("clearStudentMark", {"student_id": bob}),
        (SUBMIT, {}),
        (REOPEN, {"reason": "too early"}),
        (END, {}),
    ]
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as one,
        calling(there, bearer(lecture.teacher, "teacher")) as two,
    ):
        assert (await one.ask(START, lecture.about))["ok"]
        for event, more in commands:
            payload = {**lecture.about, **more, "command_id": unique("command")}
            first, again = await one.ask(event, payload), await two.ask(event, payload)
            assert first["ok"], first
            del first["server_time"], again["server_time"]
            assert again == first, event
            one, two = two, one
        roll = await one.ask(READ, lecture.about)
        _, history = await http(there, "GET", f"/sessions/{lecture.session_id}/history", bearer(lecture.teacher, "teacher"))
    kinds = [line["kind"] for line in history["items"]]
    assert kinds == ["opened", "marked", "marked", "cleared", "closed", "submitted", "reopened", "closed"]
    assert roll["seq"] == len(kinds)


async def test_commands_sent_one_behind_the_other_are_all_done_in_order(rig: Rig) -> None:
    """Each waits for the one before: what came before a start, an end or a reopening was done is not older than that for it."""
    for _ in range(3):
        lecture = await a_lecture(rig.gateways[0])
        here = lecture.about
        async with calling(rig.gateways[0], bearer(lecture.teacher, "teacher")) as teacher:
            answers = await asyncio.gather(
                teacher.ask_once(START, here),
                teacher.ask_once("markStudentPresent", {**here, "student_id": lecture.students[0]}),
                teacher.ask_once(END, here),
                teacher.ask_once(REOPEN, {**here, "reason": "too early"}),
                teacher.ask_once("markStudentLate", {**here, "student_id": lecture.students[1]}),
                teacher.ask_once(SUBMIT, here),
            )
        if all(answer["ok"] for answer in answers):
            return
        # A busy machine may have kept the last ones for longer than their time, for once.
        assert answers[0]["ok"] or is_busy(answers[0])
    raise AssertionError(answers)
