"""Every command with each value missing, mistyped, oversized or unknown: refused by name, and nothing has changed."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.system.rig import Rig, token, unique
from tests.system.talk import SECONDS, Caller, Lecture, Payload, a_lecture, a_session, calling, http

BULK_BYTES = 256 * 1024
MISSING = object()
IDS: tuple[Any, ...] = (MISSING, None, 5, True, "", "a b", "x" * 65, "é", "x\0", "x\n", [], {"$ne": ""})
TEXTS: tuple[Any, ...] = (5, False, [], {}, "a\0b", "x" * 2001)
REASONS: tuple[Any, ...] = (5, [], "", " \t\n", "a\0b", "x" * 501)
STATUSES = (MISSING, None, "", "here", "PRESENT", "present ", 1, True, ["present"])
NUMBERS: tuple[Any, ...] = (-1, 1.5, "1", True, [], 2**60)
OPTIONAL_IDS = IDS[2:]

SESSION: dict[str, tuple[Any, ...]] = {"session_id": IDS, "command_id": OPTIONAL_IDS}
COURSE: dict[str, tuple[Any, ...]] = {"course_id": IDS, "command_id": OPTIONAL_IDS}
ONE_STUDENT: dict[str, tuple[Any, ...]] = {**SESSION, "student_id": IDS, "reason": REASONS}
MARK_AS: dict[str, tuple[Any, ...]] = {**ONE_STUDENT, "remarks": TEXTS, "expected_seq": NUMBERS}
WRONG: dict[str, dict[str, tuple[Any, ...]]] = {
    "startAttendanceSession": SESSION,
    "joinAttendanceSession": SESSION,
    "leaveAttendanceSession": SESSION,
    "markStudentAttendance": {**MARK_AS, "status": STATUSES},
    **dict.fromkeys([f"markStudent{status}" for status in ("Present", "Absent", "Late", "Excused")], MARK_AS),
    "bulkUpdateAttendance": {
        **SESSION,
        "reason": REASONS,
        "attendanceUpdates": (MISSING, None, 5, "x", {}, [], [5], [None], [{}]),
        "attendanceUpdates[0].student_id": IDS,
        "attendanceUpdates[0].status": STATUSES,
        "attendanceUpdates[0].remarks": TEXTS,
    },
    "clearStudentMark": ONE_STUDENT,
    "getAttendanceSessionData": SESSION,
    "syncAttendanceSession": {**SESSION, "since_seq": NUMBERS},
    "getOnlineStudents": SESSION,
    "submitAttendance": SESSION,
    "endAttendanceSession": SESSION,
    "reopenAttendanceSession": {**SESSION, "reason": (MISSING, None, *REASONS)},
    "subscribeToCourse": COURSE,
    "unsubscribeFromCourse": COURSE,
    "checkActiveSessions": COURSE,
    "refreshToken": {"token": (MISSING, None, 5, [], {}), "command_id": OPTIONAL_IDS},
}
ROW = "attendanceUpdates[0]."
MARKING = [event for event in WRONG if event.startswith(("mark", "bulk", "clear"))]
LINES: tuple[Any, ...] = (5, True, [], {}, "", "x" * 201, "a\nb", "a\0b")
TWINS: dict[str, tuple[str, str, Payload, dict[str, tuple[Any, ...]]]] = {
    "a mark": (
        "PUT",
        "/sessions/{session}/attendance/{student}",
        {"status": "late"},
        {name: values for name, values in WRONG["markStudentAttendance"].items() if name not in ("session_id", "student_id")},
    ),
    "one student": (
        "POST",
        "/courses/{course}/roster/{student}",
        {"name": "Ann"},
        dict.fromkeys(("name", "email", "roll_number"), LINES),
    ),
}
"""For each twin over HTTP: method, path, a body that would do, and what is wrong of each value."""


@dataclass(frozen=True)
class Scene:
    """A lecture under way, an admin who listens to it, with their id and token, and the roll as it stands."""

    url: str
    lecture: Lecture
    admin_id: str
    bearer: str
    admin: Caller
    roll: Payload

    def good(self, event: str) -> Payload:
        """A payload that would do."""
        student = {"student_id": self.lecture.students[0]}
        everything = {
            **self.lecture.about,
            **student,
            "course_id": self.lecture.course_id,
            "status": "late",
            "attendanceUpdates": [{**student, "status": "late"}],
            "since_seq": 0,
            "reason": "a reason",
            "token": self.bearer,
        }
        names = {name.partition("[")[0] for name in WRONG[event]}
        return {name: value for name, value in everything.items() if name in names}


@pytest.fixture(scope="module")
def lectures() -> dict[int, Lecture]:
    """The lectures begun so far, one for each rig: no test here may change its roll."""
    return {}


@pytest.fixture
async def scene(rig: Rig, lectures: dict[int, Lecture]) -> AsyncIterator[Scene]:
    """An admin of the test's own at the lecture of this rig. The roll must be as before afterwards."""
    admin_id = unique("admin")
    bearer = token(admin_id, "admin")
    async with calling(rig.gateways[0], bearer) as admin:
        if id(rig) not in lectures:
            lectures[id(rig)] = await a_lecture(rig.gateways[0], students=2)
            assert (await admin.ask("startAttendanceSession", lectures[id(rig)].about))["ok"]
        lecture = lectures[id(rig)]
        assert (await admin.ask("syncAttendanceSession", lecture.about))["ok"]
        path = f"/sessions/{lecture.session_id}/attendance"
        _, roll = await http(rig.gateways[1], "GET", path, bearer)
        yield Scene(rig.gateways[0], lecture, admin_id, bearer, admin, roll)
        _, after = await http(rig.gateways[1], "GET", path, bearer)
        assert {**after, "server_time": ""} == {**roll, "server_time": ""}


def wrong(payload: Payload, name: str, value: object) -> Payload:
    """Put one wrong value in, or leave one out."""
    if name.startswith(ROW):
        (row,) = payload["attendanceUpdates"]
        return {**payload, "attendanceUpdates": [wrong(row, name.removeprefix(ROW), value)]}
    changed = {key: each for key, each in payload.items() if key != name}
    return changed if value is MISSING else {**changed, name: value}


@pytest.mark.parametrize("event", WRONG)
async def test_a_wrong_value_is_refused_by_its_name_and_changes_nothing(scene: Scene, event: str) -> None:
    for name, values in WRONG[event].items():
        for value in values:
            answer = await scene.admin.ask(event, wrong(scene.good(event), name, value))
            heard = await scene.admin.heard("attendanceError")
            assert not answer["ok"], (name, value)
            assert answer["error"]["code"] == "invalid", (name, value, answer)
            assert heard["event"] == event
            (detail,) = answer["error"]["details"]
            assert detail["field"].startswith(name), (name, value, detail)


@pytest.mark.parametrize("event", [event for event in WRONG if event != "bulkUpdateAttendance"])
async def test_more_than_4_kib_is_refused(scene: Scene, event: str) -> None:
    answer = await scene.admin.ask(event, {**scene.good(event), "padding": "x" * 4096})
    assert answer["error"]["code"] == "invalid"


async def test_a_bulk_may_be_larger_and_has_a_bound_too(scene: Scene) -> None:
    """Of rows and of bytes; what goes beyond a frame ends the connection, as it would with any event."""
    row = {"student_id": "nobody", "status": "late", "remarks": "x" * 150}
    about = scene.lecture.about
    answer = await scene.admin.ask("bulkUpdateAttendance", {**about, "attendanceUpdates": [row] * 1001})
    assert answer["error"]["code"] == "invalid"
    rows = [{**row, "student_id": f"nobody{number}"} for number in range(1000)]
    bulk = {**about, "attendanceUpdates": rows, "padding": ""}
    answer = await scene.admin.ask("bulkUpdateAttendance", bulk)
    assert answer["error"]["code"] == "not_enrolled"
    room = BULK_BYTES - len(json.dumps(bulk, separators=(",", ":")))
    for spare, code in ((0, "not_enrolled"), (1, "invalid")):
        answer = await scene.admin.ask("bulkUpdateAttendance", {**bulk, "padding": "x" * (room + spare)})
        assert answer["error"]["code"] == code


async def test_a_bulk_with_long_remarks_beyond_a_frame_ends_the_connection_and_changes_nothing(scene: Scene) -> None:
    rows = [{"student_id": student, "status": "late", "remarks": "x" * 2000} for student in scene.lecture.students]
    rows += [{"student_id": f"nobody{number}", "status": "late", "remarks": "x" * 300} for number in range(998)]
    await scene.admin.client.emit(
        "bulkUpdateAttendance", {**scene.lecture.about, "attendanceUpdates": rows}, namespace=scene.admin.namespace
    )
    await asyncio.wait_for(scene.admin.client.wait(), SECONDS)
    assert not scene.admin.client.connected


def of_student(event: str, payload: Payload, student_id: str) -> Payload:
    """Let a marking command be about another student."""
    if event == "bulkUpdateAttendance":
        return {**payload, "attendanceUpdates": [*payload["attendanceUpdates"], {"student_id": student_id, "status": "late"}]}
    return {**payload, "student_id": student_id}


@pytest.mark.parametrize("event", MARKING)
async def test_a_mark_of_somebody_who_is_not_on_the_roll_is_refused(scene: Scene, event: str) -> None:
    answer = await scene.admin.ask(event, of_student(event, scene.good(event), "nobody"))
    assert answer["error"]["code"] == "not_enrolled"


@pytest.mark.parametrize("event", MARKING)
async def test_a_mark_on_a_cancelled_session_is_refused(scene: Scene, event: str) -> None:
    """Whether it had begun or not."""
    about = scene.good(event)
    for verbs in (("cancel",), ("start", "cancel")):
        session_id = await a_session(scene.url, scene.lecture.course_id)
        for verb in verbs:
            status, _ = await http(scene.url, "POST", f"/sessions/{session_id}/{verb}", scene.bearer)
            assert status == 200
        answer = await scene.admin.ask(event, {**about, "session_id": session_id})
        assert answer["error"]["code"] == "session_cancelled"


@pytest.mark.parametrize("twin", TWINS)
async def test_a_wrong_value_over_http_is_refused_by_its_name_too(scene: Scene, twin: str) -> None:
    method, path, body, values_of = TWINS[twin]
    lecture = scene.lecture
    path = path.format(session=lecture.session_id, course=lecture.course_id, student=lecture.students[0])
    for name, values in values_of.items():
        for value in values:
            status, answer = await http(scene.url, method, path, scene.bearer, json=wrong(body, name, value))
            assert (status, answer["error"]["code"]) == (400, "invalid"), (name, value, answer)
            (detail,) = answer["error"]["details"]
            assert detail["field"].startswith(name), (name, value, detail)
    status, answer = await http(scene.url, method, path.replace(lecture.students[0], "a%20b"), scene.bearer, json=body)
    assert (status, [detail["field"] for detail in answer["error"]["details"]]) == (400, ["student_id"])


@pytest.mark.parametrize("bad", ["rubbish", "", "expired"])
async def test_a_token_that_is_none_refreshes_nothing(scene: Scene, bad: str) -> None:
    shown = token(scene.admin_id, "admin", seconds=-60) if bad == "expired" else bad
    answer = await scene.admin.ask("refreshToken", {"token": shown})
    assert answer["error"]["code"] in ("unauthenticated", "token_expired")
    for other in (token("somebody", "admin"), token(scene.admin_id, "teacher")):
        answer = await scene.admin.ask("refreshToken", {"token": other})
        assert answer["error"]["code"] == "forbidden"
    assert (await scene.admin.ask("refreshToken", {"token": scene.bearer}))["ok"]
