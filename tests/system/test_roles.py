"""Who may do what: every command and every request, by every role, on their own course, another's, and one that is not."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from gateway.commands import Commands
from gateway.http import description
from tests.system.rig import Rig, token, unique
from tests.system.talk import Caller, Lecture, Payload, a_lecture, a_session, an_admin, bearer, calling, http

WHO = ("enrolled", "enrolled teacher", "stranger", "teacher", "other teacher", "admin", "service")
"""The other teacher and the enrolled one teach another course; the latter studies on this one."""
OK, NO, NOT_ON_IT = "ok", "forbidden", "not_enrolled"


def only(*who: str, others: str = NO, **exceptions: str) -> Mapping[str, str]:
    """Say who may; what the others are told."""
    return {each: OK if each in who else exceptions.get(each, others) for each in WHO}


STAFF = only("teacher", "admin")
READERS = only("teacher", "admin", "service")
STUDENTS = ("enrolled", "enrolled teacher")
COURSE = only(*STUDENTS, "teacher", "admin", "service")


@dataclass(frozen=True)
class Command:
    """One event: the state its session is to be in, what else it says, and what each is told."""

    event: str
    state: str
    told: Mapping[str, str]
    more: Payload = field(default_factory=dict)

    def __str__(self) -> str:
        return self.event


STUDENT = {"student_id": "{student}"}
COMMANDS = (
    Command("startAttendanceSession", "scheduled", STAFF),
    Command("joinAttendanceSession", "active", only(*STUDENTS, others=NOT_ON_IT, service=NO)),
    Command("leaveAttendanceSession", "joined", only(*STUDENTS, stranger=NOT_ON_IT)),
    Command("markStudentAttendance", "active", STAFF, {**STUDENT, "status": "late"}),
    *(Command(f"markStudent{status}", "active", STAFF, STUDENT) for status in ("Present", "Absent", "Late", "Excused")),
    Command(
        "bulkUpdateAttendance",
        "active",
        STAFF,
        {"attendanceUpdates": [{"student_id": "{student}", "status": "late"}]},
    ),
    Command("clearStudentMark", "active", STAFF, STUDENT),
    Command("getAttendanceSessionData", "active", READERS),
    Command(
        "syncAttendanceSession",
        "active",
        only(*STUDENTS, "teacher", "admin", "service", stranger=NOT_ON_IT),
    ),
    Command("getOnlineStudents", "active", READERS),
    Command("submitAttendance", "active", STAFF),
    Command("endAttendanceSession", "active", STAFF),
    Command("reopenAttendanceSession", "completed", STAFF, {"reason": "by mistake"}),
)
COURSE_COMMANDS = ("subscribeToCourse", "checkActiveSessions", "unsubscribeFromCourse")
TOKEN_COMMANDS = ("refreshToken",)


@dataclass(frozen=True)
class Request:
    """One request, by what its path names; `{session}` and the like stand for the scene's."""

    method: str
    path: str
    told: Mapping[str, str]
    state: str = "active"
    json: Any = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


WHEN = {"date": "2026-11-25", "start_time": "10:00", "end_time": "11:30"}
REQUESTS = (
    Request("GET", "/courses/{course}", COURSE),
    Request("PUT", "/courses/{course}", STAFF, json={"title": "T", "teacher_ids": ["{teacher}"], "time_zone": "UTC"}),
    Request("GET", "/courses/{course}/roster", READERS),
    Request("PUT", "/courses/{course}/roster", STAFF, json=[{"student_id": "{student}", "name": "Ann"}]),
    Request("POST", "/courses/{course}/roster/{student}", STAFF, json={"name": "Ann"}),
    Request("DELETE", "/courses/{course}/roster/nobody", STAFF),
    Request("GET", "/courses/{course}/summary", READERS),
    Request("GET", "/courses/{course}/summary.csv", READERS),
    Request("GET", "/courses/{course}/summary.xlsx", READERS),
    Request("GET", "/sessions?course_id={course}", COURSE),
    Request("POST", "/sessions", STAFF, json={"course_id": "{course}", "title": "Trees", **WHEN}),
    Request("GET", "/sessions/{session}", COURSE),
    Request("PATCH", "/sessions/{session}", STAFF, json={"title": "Another"}),
    Request("POST", "/sessions/{session}/start", STAFF, "scheduled"),
    Request("POST", "/sessions/{session}/end", STAFF),
    Request("POST", "/sessions/{session}/cancel", STAFF, "scheduled"),
    Request("POST", "/sessions/{session}/submit", STAFF),
    Request("POST", "/sessions/{session}/reopen", STAFF, "completed", json={"reason": "by mistake"}),
    Request("GET", "/sessions/{session}/attendance", READERS),
    Request("PUT", "/sessions/{session}/attendance/{student}", STAFF, json={"status": "late"}),
    Request("GET", "/sessions/{session}/attendance.csv", READERS),
    Request("GET", "/sessions/{session}/attendance.xlsx", READERS),
    Request("GET", "/sessions/{session}/history", READERS),
)
OVERSEERS = ("admin", "service")
OWN_LISTS = ("/courses", "/sessions", "/me/attendance?course_id={course}")
ARCHIVING = ("DELETE", "/courses/{course}")
CUTTING_OFF = ("DELETE", "/users/{user}/sockets")


def test_the_tables_leave_out_no_command_and_no_request() -> None:
    commands = {*(command.event for command in COMMANDS), *COURSE_COMMANDS, *TOKEN_COMMANDS}
    requests = {(request.method, request.path) for request in REQUESTS} | {("GET", path) for path in OWN_LISTS}
    requests |= {ARCHIVING, CUTTING_OFF}
    paths = {(method, path.partition("?")[0].replace("/nobody", "/{student}")) for method, path in requests}
    served = {
        (method.upper(), re.sub(r"_id\}", "}", path))
        for path, methods in description()["paths"].items()
        for method in methods
        if path != "/openapi.json"
    }

    assert commands == set(Commands(*[cast(Any, None)] * 7).table())
    assert paths == served


async def a_cast(url: str) -> tuple[Lecture, dict[str, str]]:
    """Make a lecture of one student and a teacher, and a token for somebody of every kind."""
    lecture, elsewhere = await a_lecture(url, students=1), await a_lecture(url, students=1)
    admin, colleague = an_admin(), unique("teacher")
    course = {"title": "Algorithms", "teacher_ids": [elsewhere.teacher, colleague], "time_zone": "UTC"}
    changed, _ = await http(url, "PUT", f"/courses/{elsewhere.course_id}", admin, json=course)
    enrolled, _ = await http(url, "POST", f"/courses/{lecture.course_id}/roster/{colleague}", admin, json={"name": "Colleague"})
    assert (changed, enrolled) == (200, 201)
    return lecture, {
        "enrolled": bearer(lecture.students[0], "student"),
        "enrolled teacher": bearer(colleague, "teacher"),
        "stranger": bearer(elsewhere.students[0], "student"),
        "teacher": bearer(lecture.teacher, "teacher"),
        "other teacher": bearer(elsewhere.teacher, "teacher"),
        "admin": admin,
        "service": token("timetable", "service"),
    }


@dataclass(frozen=True)
class Scene:
    """A course, somebody of every kind, and sessions made as they are needed."""

    url: str
    lecture: Lecture
    tokens: dict[str, str]
    callers: dict[str, Caller]

    async def session(self, state: str) -> str:
        """Make one more session and bring it to a state."""
        session_id = await a_session(self.url, self.lecture.course_id)
        admin = self.tokens["admin"]
        verbs = {"scheduled": (), "active": ("start",), "joined": ("start",), "completed": ("start", "end")}
        for verb in verbs[state]:
            status, body = await http(self.url, "POST", f"/sessions/{session_id}/{verb}", admin)
            assert status == 200, body
        for who in STUDENTS if state == "joined" else ():
            assert (await self.callers[who].ask("joinAttendanceSession", {"session_id": session_id}))["ok"]
        return session_id

    def filled(self, value: Any, session_id: str, course_id: str) -> Any:
        """Put ids in."""
        places = {"{session}": session_id, "{course}": course_id, "{teacher}": self.lecture.teacher}
        places["{student}"] = self.lecture.students[0]
        if isinstance(value, str):
            for place, id_ in places.items():
                value = value.replace(place, id_)
            return value
        if isinstance(value, dict):
            return {key: self.filled(each, session_id, course_id) for key, each in value.items()}
        return [self.filled(each, session_id, course_id) for each in value] if isinstance(value, list) else value


@pytest.fixture
async def scene(rig: Rig) -> AsyncIterator[Scene]:
    """Everybody is connected, to one gateway or the other."""
    lecture, tokens = await a_cast(rig.gateways[0])
    async with AsyncExitStack() as stack:
        callers = {
            who: await stack.enter_async_context(calling(rig.gateways[number % 2], bearer_of))
            for number, (who, bearer_of) in enumerate(tokens.items())
        }
        yield Scene(rig.gateways[0], lecture, tokens, callers)


def outcome(answer: Payload) -> str:
    """What an acknowledgement says."""
    return OK if answer["ok"] else str(answer["error"]["code"])


@pytest.mark.parametrize("command", COMMANDS, ids=str)
async def test_a_command_is_done_for_who_may_and_for_nobody_else(scene: Scene, command: Command) -> None:
    """First by all who may not, on one session, which it leaves as it was; then by each who may, on one of their own."""
    shared = await scene.session(command.state)
    told = {}
    for who in sorted(WHO, key=lambda who: command.told[who] == OK):
        session_id = await scene.session(command.state) if command.told[who] == OK else shared
        payload = scene.filled({"session_id": session_id, **command.more}, session_id, scene.lecture.course_id)
        told[who] = outcome(await scene.callers[who].ask(command.event, payload))
    assert told == command.told

    if command.state == "active":
        roll = await scene.callers["admin"].ask("getAttendanceSessionData", {"session_id": shared})
        assert (roll["seq"], {record["status"] for record in roll["attendanceRecords"]}) == (1, {"absent"})
        assert roll["session"]["status"] == "active"
    elif command.state == "joined":
        online = await scene.callers["admin"].ask("getOnlineStudents", {"session_id": shared})
        assert (online["total_joined"], online["online_count"]) == (2, 2)
    else:
        status, session = await http(scene.url, "GET", f"/sessions/{shared}", scene.tokens["admin"])
        assert (status, session["status"]) == (200, command.state)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
async def test_a_command_about_no_session_is_told_so(scene: Scene, command: Command) -> None:
    payload = scene.filled({"session_id": "0" * 24, **command.more}, "", "")
    told = {who: outcome(await caller.ask(command.event, payload)) for who, caller in scene.callers.items()}
    expected = dict.fromkeys(WHO, "session_not_found")
    assert told == expected


@pytest.mark.parametrize("event", COURSE_COMMANDS)
async def test_a_course_is_watched_by_its_own_people(scene: Scene, event: str) -> None:
    about = {"courseId": scene.lecture.course_id}
    told = {who: outcome(await caller.ask(event, about)) for who, caller in scene.callers.items()}
    assert told == COURSE
    nowhere = {who: outcome(await caller.ask(event, {"course_id": unique("none")})) for who, caller in scene.callers.items()}
    assert nowhere == dict.fromkeys(WHO, "course_not_found")


@pytest.mark.parametrize("event", TOKEN_COMMANDS)
async def test_a_token_prolongs_the_connection_of_whoever_it_is_of_and_nobody_elses(scene: Scene, event: str) -> None:
    own = {who: outcome(await scene.callers[who].ask(event, {"token": scene.tokens[who]})) for who in WHO}
    others = dict(zip(WHO, (*WHO[1:], WHO[0]), strict=True))
    told = {who: outcome(await scene.callers[who].ask(event, {"token": scene.tokens[others[who]]})) for who in WHO}
    assert own == dict.fromkeys(WHO, OK)
    assert told == dict.fromkeys(WHO, NO)


async def ask(scene: Scene, request: Request, who: str, session_id: str, course_id: str) -> str:
    """Send a request; tell what it says."""
    path, body = scene.filled(request.path, session_id, course_id), scene.filled(request.json, session_id, course_id)
    status, answer = await http(scene.url, request.method, path, scene.tokens[who], json=body)
    return OK if status in (200, 201) else str(answer["error"]["code"])


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
async def test_a_request_is_done_for_who_may_and_for_nobody_else(scene: Scene, request_: Request) -> None:
    """Own, foreign and unknown."""
    course_id = scene.lecture.course_id
    shared = await scene.session(request_.state) if "{session}" in request_.path else ""
    told = {}
    for who in sorted(WHO, key=lambda who: request_.told[who] == OK):
        mine = await scene.session(request_.state) if shared and request_.told[who] == OK else shared
        told[who] = await ask(scene, request_, who, mine, course_id)
    unknown = await asyncio.gather(*(ask(scene, request_, who, "0" * 24, unique("none")) for who in WHO))

    assert told == request_.told
    missing = "session_not_found" if "{session}" in request_.path else "course_not_found"
    if request_.method == "PUT" and request_.path == "/courses/{course}":
        # Whoever may make a course that lists them has made it; so may nobody else.
        assert dict(zip(WHO, unknown, strict=True)) == STAFF
    elif request_.method == "PUT" and request_.path == "/courses/{course}/roster":
        # Of whom may never put a roster, it is not even read.
        never = only(others=missing, enrolled=NO, stranger=NO, service=NO)
        assert dict(zip(WHO, unknown, strict=True)) == never
    else:
        assert dict(zip(WHO, unknown, strict=True)) == dict.fromkeys(WHO, missing)


async def test_a_user_is_cut_off_by_admins_alone(scene: Scene) -> None:
    """Of one who has no socket there is nothing to cut."""
    method, path = CUTTING_OFF
    statuses = {
        who: (await http(scene.url, method, path.replace("{user}", unique("nobody")), scene.tokens[who]))[0] for who in WHO
    }
    assert statuses == {who: 200 if who == "admin" else 403 for who in WHO}


@pytest.mark.parametrize("path", OWN_LISTS)
async def test_what_is_ones_own_is_listed_and_nothing_else(scene: Scene, path: str) -> None:
    """Those who oversee all courses may list them; theirs are however many pages."""
    session_id = await scene.session("active")
    course_id = scene.lecture.course_id
    mine = STUDENTS if path.startswith("/me") else (*STUDENTS, "teacher")
    for who in WHO:
        status, page = await http(scene.url, "GET", scene.filled(path, session_id, course_id), scene.tokens[who])
        assert status == 200
        if who in OVERSEERS and path in ("/courses", "/sessions"):
            continue
        ids = {item["session"]["id"] if "session" in item else item["id"] for item in page["items"]}
        found = course_id if path == "/courses" else session_id
        assert (found in ids) == (who in mine), who


@pytest.mark.parametrize("who", WHO)
async def test_a_course_is_archived_by_its_staff(rig: Rig, who: str) -> None:
    lecture, tokens = await a_cast(rig.gateways[0])
    method, path = ARCHIVING
    nowhere = await http(rig.gateways[0], method, path.format(course=unique("none")), tokens[who])
    path = path.format(course=lecture.course_id)
    status, _ = await http(rig.gateways[0], method, path, tokens[who])
    _, course = await http(rig.gateways[1], "GET", path, tokens["admin"])
    assert (status, course["archived"]) == ((200, True) if STAFF[who] == OK else (403, False))
    assert (nowhere[0], nowhere[1]["error"]["code"]) == (404, "course_not_found")
