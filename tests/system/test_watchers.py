"""Those who watch a course hear on every gateway when a session is on and when it is over, once each, as long as they may."""

from tests.system.rig import Rig, token
from tests.system.talk import Caller, Lecture, Payload, a_lecture, a_session, an_admin, bearer, calling, http

STARTED, ENDED, ACTIVE = "courseSessionStarted", "courseSessionEnded", "activeSessionsData"


async def a_course_of(rig: Rig, lecture: Lecture, *teachers: str) -> None:
    """Say who teaches a lecture's course."""
    body = {"title": "Algorithms", "teacher_ids": list(teachers), "time_zone": "Europe/Berlin"}
    status, answer = await http(rig.gateways[1], "PUT", f"/courses/{lecture.course_id}", an_admin(), json=body)
    assert status == 200, answer


def turns(caller: Caller) -> list[tuple[str, str]]:
    """What a caller heard of which session."""
    return [(name, payload["session_id"]) for name, payload in caller.events if name in (STARTED, ENDED)]


def of(session_id: str) -> Payload:
    return {"session_id": session_id}


async def test_watchers_on_every_gateway_hear_of_each_beginning_and_end_once(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=2)
    course = {"courseId": lecture.course_id}
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as teacher,
        calling(here, bearer(lecture.students[0], "student"), namespace="/") as near,
        calling(there, bearer(lecture.students[1], "student")) as far,
    ):
        for watcher in (near, far, teacher):
            answer = await watcher.ask("subscribeToCourse", course)
            assert answer == await watcher.heard(ACTIVE)
            assert (answer["course_id"], answer["activeSessions"]) == (lecture.course_id, [])

        assert (await teacher.ask("startAttendanceSession", lecture.about))["ok"]
        # A start again repeats the event behind it.
        assert (await teacher.ask("startAttendanceSession", lecture.about))["ok"]
        assert (await near.ask("joinAttendanceSession", lecture.about))["ok"]
        for watcher in (near, far):
            started = await watcher.heard(STARTED)
            assert {**started, "started_at": None} == {
                "course_id": lecture.course_id,
                "session_id": lecture.session_id,
                "session_topic": "Sorting",
                "teacher_name": lecture.teacher.title(),
                "total_students": 2,
                "started_at": None,
            }
            assert started["started_at"]
        checked = await far.ask("checkActiveSessions", course)
        assert checked == await far.heard(ACTIVE)
        [session] = checked["activeSessions"]
        assert session == {
            "sessionId": lecture.session_id,
            "title": "Sorting",
            "studentCount": 1,
            "startedAt": started["started_at"],
        }

        assert (await teacher.ask("endAttendanceSession", lecture.about))["ok"]
        for watcher in (near, far):
            ended = await watcher.heard(ENDED)
            assert (ended["course_id"], ended["session_id"]) == (lecture.course_id, lecture.session_id)
            assert (ended["final_statistics"]["presentCount"], ended["ended_by_id"]) == (1, lecture.teacher)

        # Opened again it has started again; and whatever was still to come of the first time has come by then.
        assert (await teacher.ask("reopenAttendanceSession", {**lecture.about, "reason": "too early"}))["ok"]
        assert (await teacher.ask("endAttendanceSession", lecture.about))["ok"]
        for watcher in (near, far):
            assert (await watcher.heard(STARTED))["session_id"] == lecture.session_id
            assert (await watcher.heard(ENDED))["session_id"] == lecture.session_id
            assert turns(watcher) == []


async def test_who_watches_no_more_hears_no_more(rig: Rig) -> None:
    lecture = await a_lecture(rig.gateways[0])
    course = {"course_id": lecture.course_id}
    admin = an_admin()
    async with (
        calling(rig.gateways[0], bearer(lecture.students[0], "student")) as goes,
        calling(rig.gateways[1], bearer(lecture.students[1], "student")) as stays,
    ):
        for watcher in (goes, stays):
            assert (await watcher.ask("subscribeToCourse", course))["ok"]
        await http(rig.gateways[0], "POST", f"/sessions/{lecture.session_id}/start", admin)
        for watcher in (goes, stays):
            await watcher.heard(STARTED)

        answer = await goes.ask("unsubscribeFromCourse", course)
        assert [session["sessionId"] for session in answer["activeSessions"]] == [lecture.session_id]
        await http(rig.gateways[0], "POST", f"/sessions/{lecture.session_id}/end", admin)

        await stays.heard(ENDED)
        assert (await goes.ask("checkActiveSessions", course))["activeSessions"] == []
        assert turns(goes) == []


async def test_only_who_belongs_to_a_course_may_watch_it(rig: Rig) -> None:
    lecture, elsewhere = await a_lecture(rig.gateways[0]), await a_lecture(rig.gateways[0])
    course = {"course_id": lecture.course_id}
    for stranger in (bearer(elsewhere.teacher, "teacher"), bearer(elsewhere.students[0], "student")):
        async with calling(rig.gateways[0], stranger) as caller:
            for event in ("subscribeToCourse", "checkActiveSessions", "unsubscribeFromCourse"):
                answer = await caller.ask(event, course)
                assert answer["error"]["code"] == "forbidden"
                heard = await caller.heard("attendanceError")
                assert (heard["event"], heard["code"]) == (event, "forbidden")
    for overseer in (an_admin(), token("timetable", "service")):
        async with calling(rig.gateways[0], overseer) as caller:
            assert (await caller.ask("subscribeToCourse", course))["ok"]


async def test_a_teacher_who_is_taken_off_a_course_hears_no_more_at_once_and_the_substitute_may_act(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=3)
    substitute, (ann, ben, _) = f"{lecture.teacher}-substitute", lecture.students
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as teacher,
        calling(there, an_admin()) as admin,
        calling(there, bearer(ann, "student")) as first,
        calling(here, bearer(ben, "student")) as second,
    ):
        for staff in (teacher, admin):
            await staff.ask("startAttendanceSession", lecture.about)
            await staff.ask("subscribeToCourse", {"course_id": lecture.course_id})
        await first.ask("joinAttendanceSession", lecture.about)
        for staff in (teacher, admin):
            await staff.heard("studentJoinedAttendance")

        await a_course_of(rig, lecture, substitute)
        async with calling(here, bearer(substitute, "teacher")) as other:
            assert (await other.ask("getAttendanceSessionData", lecture.about))["ok"]
            assert (await teacher.ask("getAttendanceSessionData", lecture.about))["error"]["code"] == "forbidden"
            teacher.events.clear()
            await second.ask("joinAttendanceSession", lecture.about)
            mark = {**lecture.about, "student_id": ben, "status": "late"}
            assert (await other.ask("markStudentAttendance", mark))["ok"]
            following = await a_session(here, lecture.course_id)
            assert (await other.ask("startAttendanceSession", of(following)))["ok"]
            for staff in (other, admin):
                await staff.heard("studentJoinedAttendance", lambda joined: joined["student_id"] == ben)
                await staff.heard("attendanceUpdated")
            await admin.heard(STARTED, lambda started: started["session_id"] == following)
        # A repeat goes the way that the others went, behind them.
        await teacher.ask("getAttendanceSessionData", lecture.about)
    assert set(teacher.names()) == {"attendanceError"}


async def test_a_student_who_is_taken_off_the_roster_hears_no_more_at_once(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=2)
    ann, ben = lecture.students
    admin = an_admin()
    async with (
        calling(here, bearer(lecture.teacher, "teacher")) as teacher,
        calling(there, bearer(ann, "student")) as gone,
        calling(here, bearer(ben, "student")) as stays,
    ):
        await teacher.ask("startAttendanceSession", lecture.about)
        for student in (gone, stays):
            await student.ask("subscribeToCourse", {"course_id": lecture.course_id})
            assert (await student.ask("joinAttendanceSession", lecture.about))["ok"]
            await student.heard("attendanceProgress")

        status, _ = await http(there, "DELETE", f"/courses/{lecture.course_id}/roster/{ann}", admin)
        assert status == 200
        assert (await teacher.heard("studentLeft"))["student_id"] == ann
        gone.events.clear()
        await teacher.ask("endAttendanceSession", lecture.about)

        await stays.heard("attendanceSessionEnded")
        await stays.heard(ENDED)
        assert (await gone.ask("subscribeToCourse", {"course_id": lecture.course_id}))["error"]["code"] == "forbidden"
        assert set(gone.names()) == {"attendanceError"}


async def test_a_student_who_was_taken_off_while_nothing_was_on_hears_of_no_beginning(rig: Rig) -> None:
    lecture = await a_lecture(rig.gateways[0], students=2)
    ann, ben = lecture.students
    admin = an_admin()
    async with (
        calling(rig.gateways[0], bearer(ann, "student")) as gone,
        calling(rig.gateways[0], bearer(ben, "student")) as stays,
    ):
        for student in (gone, stays):
            await student.ask("subscribeToCourse", {"course_id": lecture.course_id})
        status, _ = await http(rig.gateways[1], "DELETE", f"/courses/{lecture.course_id}/roster/{ann}", admin)
        assert status == 200

        for turn in ("start", "end"):
            await http(rig.gateways[1], "POST", f"/sessions/{lecture.session_id}/{turn}", admin)

        await stays.heard(STARTED)
        await stays.heard(ENDED)
        assert (await gone.ask("checkActiveSessions", {"course_id": lecture.course_id}))["error"]["code"] == "forbidden"
        assert turns(gone) == []
