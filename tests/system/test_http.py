"""What HTTP alone has: commands' bodies, pages of lists, ids that look like files, other origins, the document and its page."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openapi_spec_validator import validate

from tests.system.paging import pages
from tests.system.rig import Rig, process_of, unique
from tests.system.talk import Lecture, Payload, a_lecture, a_session, an_admin, bearer, calling, http

ORIGIN = "https://school.example"


async def get(url: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> tuple[int, Any, str]:
    """Ask for anything; return the status, the headers and the text."""
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers) as response:
        return response.status, response.headers, await response.text()


async def marked(url: str, lecture: Lecture, statuses: str) -> list[Payload]:
    """Open the roll and mark its first student with each of these in turn; return the answers."""
    teacher, path = bearer(lecture.teacher, "teacher"), f"/sessions/{lecture.session_id}"
    status, body = await http(url, "POST", f"{path}/start", teacher)
    assert status == 200, body
    answers = []
    for each in statuses.split():
        status, body = await http(url, "PUT", f"{path}/attendance/{lecture.students[0]}", teacher, json={"status": each})
        assert status == 200, body
        answers.append(body)
    return answers


# Commands


async def test_a_mark_answers_as_the_socket_acknowledges(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=1)
    [over_http] = await marked(here, lecture, "late")
    async with calling(there, bearer(lecture.teacher, "teacher")) as teacher:
        about = {**lecture.about, "student_id": lecture.students[0], "status": "late"}
        over_socket = await teacher.ask("markStudentAttendance", about)

    assert over_socket.pop("ok")
    assert over_http["attendanceRecord"]["status"] == "late"
    assert {**over_http, "server_time": ""} == {**over_socket, "server_time": ""}


async def test_the_same_command_id_is_done_once_also_over_http(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=1)
    await marked(here, lecture, "late")
    teacher = bearer(lecture.teacher, "teacher")
    path = f"/sessions/{lecture.session_id}/attendance/{lecture.students[0]}"
    said = {"status": "excused", "command_id": unique("command")}
    first = await http(here, "PUT", path, teacher, json=said)
    await http(here, "PUT", path, teacher, json={"status": "present"})
    again = await http(there, "PUT", path, teacher, json=said)
    _, roll = await http(there, "GET", f"/sessions/{lecture.session_id}/attendance", teacher)

    assert first[0] == again[0] == 200
    assert {**again[1], "server_time": ""} == {**first[1], "server_time": ""}
    assert roll["attendanceRecords"][0]["status"] == "present"


async def test_an_old_mark_is_a_conflict_that_shows_the_record(rig: Rig) -> None:
    lecture = await a_lecture(rig.gateways[0], students=1)
    before, now = await marked(rig.gateways[0], lecture, "late excused")
    path = f"/sessions/{lecture.session_id}/attendance/{lecture.students[0]}"
    said = {"status": "present", "expected_seq": before["seq"]}
    status, body = await http(rig.gateways[1], "PUT", path, bearer(lecture.teacher, "teacher"), json=said)

    error = body["error"]
    assert (status, error["code"], error["retryable"]) == (409, "conflict", False)
    [detail] = error["details"]
    assert detail["field"] == "expected_seq"
    assert detail["attendanceRecord"] == now["attendanceRecord"]


@pytest.mark.parametrize("verb", ["start", "end", "cancel", "submit", "reopen"])
@pytest.mark.parametrize(
    ("body", "field"), [(b"{", ""), (b"[]", ""), (b'{"command_id": "a b", "reason": "r"}', "command_id"), (b"null", "")]
)
async def test_a_commands_body_must_be_one(all_in_one: Rig, verb: str, body: bytes, field: str) -> None:
    """Though it may be left out; before it is read, nothing is done."""
    lecture = await a_lecture(all_in_one.gateways[0], students=0)
    admin, path = an_admin(), f"/sessions/{lecture.session_id}"
    status, answer = await http(all_in_one.gateways[0], "POST", f"{path}/{verb}", admin, data=body)
    _, session = await http(all_in_one.gateways[0], "GET", path, admin)

    assert (status, answer["error"]["code"], answer["error"]["retryable"]) == (400, "invalid", False)
    assert [detail["field"] for detail in answer["error"]["details"]] == [field]
    assert session["status"] == "scheduled"


async def test_reopening_needs_a_reason(all_in_one: Rig) -> None:
    lecture = await a_lecture(all_in_one.gateways[0], students=0)
    path = f"/sessions/{lecture.session_id}/reopen"
    status, answer = await http(all_in_one.gateways[0], "POST", path, an_admin())

    assert status == 400
    assert answer["error"]["details"] == [{"field": "reason", "message": "is missing"}]


async def test_a_cancelled_session_is_answered_with_what_became_of_it(rig: Rig) -> None:
    lecture = await a_lecture(rig.gateways[0], students=0)
    admin, path = an_admin(), f"/sessions/{lecture.session_id}"
    said = {"command_id": unique("command")}
    first = await http(rig.gateways[0], "POST", f"{path}/cancel", admin, json=said)
    again = await http(rig.gateways[1], "POST", f"{path}/cancel", admin, json=said)
    _, session = await http(rig.gateways[1], "GET", path, admin)

    for status, body in (first, again):
        assert status == 200, body
        assert set(body) == {"session_id", "session", "server_time"}
        assert body["session"] == session
    assert session["status"] == "cancelled"


async def test_a_change_leaves_what_it_does_not_name(rig: Rig) -> None:
    lecture = await a_lecture(rig.gateways[0], students=0)
    teacher, path = bearer(lecture.teacher, "teacher"), f"/sessions/{lecture.session_id}"
    _, before = await http(rig.gateways[0], "GET", path, teacher)
    said = {"title": "Heaps", "start_time": "12:00", "end_time": "13:30", "meeting_link": "https://meet.example"}
    status, changed = await http(rig.gateways[0], "PATCH", path, teacher, json=said)
    _, after = await http(rig.gateways[1], "GET", path, teacher)
    nothing = await http(rig.gateways[1], "PATCH", path, teacher, json={})
    _, bare = await http(rig.gateways[1], "PATCH", path, teacher, json={"meeting_link": None})

    assert (status, changed, nothing) == (200, after, (200, after))
    different = {name for name in before if before[name] != after[name]}
    assert different == {"title", "topic", "start_time", "end_time", "starts_at", "ends_at", "meeting_link", "updated_at"}
    assert bare["meeting_link"] is None


# Pages


async def test_history_comes_in_pages_and_from_a_number_on(rig: Rig) -> None:
    lecture = await a_lecture(rig.gateways[0], students=1)
    await marked(rig.gateways[0], lecture, "late excused present absent late excused")
    teacher, path = bearer(lecture.teacher, "teacher"), f"/sessions/{lecture.session_id}/history"
    whole = await pages(rig.gateways[1], path, teacher, limit=200)
    paged = await pages(rig.gateways[1], path, teacher, limit=3)
    later = await pages(rig.gateways[1], f"{path}?since_seq=5", teacher, limit=200)

    [items] = whole
    assert [item["seq"] for item in items] == [1, 2, 3, 4, 5, 6, 7]
    assert [len(page) for page in paged] == [3, 3, 1]
    assert [item for page in paged for item in page] == items
    assert later == [items[5:]]
    assert await pages(rig.gateways[0], f"{path}?since_seq=7", teacher, limit=200) == [[]]


async def test_ones_own_records_come_in_pages(rig: Rig) -> None:
    """Newest session first; another course's are others."""
    here, there = rig.gateways
    lecture, other = await a_lecture(here, students=1), await a_lecture(here, students=0)
    student, admin = lecture.students[0], an_admin()
    await http(here, "POST", f"/courses/{other.course_id}/roster/{student}", admin, json={"name": "Ann"})
    ours = [lecture.session_id, *[await a_session(here, lecture.course_id) for _ in range(2)]]
    sessions = sorted([*ours, other.session_id])
    for session_id in sessions:
        status, body = await http(here, "POST", f"/sessions/{session_id}/start", admin)
        assert status == 200, body
    own = bearer(student, "student")
    everything = await pages(there, "/me/attendance", own, limit=2)
    of_course = await pages(there, f"/me/attendance?course_id={lecture.course_id}", own, limit=2)

    assert [[item["session"]["id"] for item in page] for page in everything] == [sessions[:1:-1], sessions[1::-1]]
    assert [[item["session"]["id"] for item in page] for page in of_course] == [ours[:0:-1], ours[:1]]
    for item in of_course[1]:
        assert item["attendanceRecord"]["student_id"] == student
        assert all(line["student_id"] == student for line in item["history"])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/sessions/{session}/history?since_seq=-1", "since_seq"),
        ("/sessions/{session}/history?since_seq=x", "since_seq"),
        ("/sessions/{session}/history?limit=201", "limit"),
        ("/sessions/{session}/history?cursor=x", "cursor"),
        ("/me/attendance?limit=0", "limit"),
        ("/me/attendance?course_id=a%20b", "course_id"),
        ("/me/attendance?cursor=%00", "cursor"),
    ],
)
async def test_a_query_that_is_wrong_is_named(all_in_one: Rig, path: str, name: str) -> None:
    path = path.replace("{session}", "0" * 24)
    status, body = await http(all_in_one.gateways[0], "GET", path, an_admin())

    assert (status, body["error"]["code"]) == (400, "invalid")
    assert [detail["field"] for detail in body["error"]["details"]] == [name]


# Ids that look like files


async def test_ids_with_dots_are_no_files(rig: Rig) -> None:
    """And a file of what has such an id is one."""
    admin, course_id = an_admin(), unique("course") + ".csv"
    course = {"title": "Dots", "teacher_ids": [], "time_zone": "UTC"}
    made = await http(rig.gateways[0], "PUT", f"/courses/{course_id}", admin, json=course)
    read = await http(rig.gateways[1], "GET", f"/courses/{course_id}", admin)
    table = await http(rig.gateways[1], "GET", f"/courses/{course_id}/summary.csv", admin)
    enrolled = await http(rig.gateways[0], "POST", f"/courses/{course_id}/roster/attendance.xlsx", admin)
    no_session = await http(rig.gateways[0], "GET", "/sessions/attendance.csv", admin)
    no_file = await http(rig.gateways[0], "GET", f"/courses/{course_id}/roster.csv", admin)

    assert (made[0], read[0], read[1]["id"]) == (201, 200, course_id)
    assert (table[0], table[1]["headers"]["Content-Type"]) == (200, "text/csv; charset=utf-8")
    assert f'filename="summary-{course_id}.csv"' in table[1]["headers"]["Content-Disposition"]
    assert enrolled == (201, {"added": 1, "updated": 0, "removed": 0})
    assert (no_session[0], no_session[1]["error"]["code"]) == (404, "session_not_found")
    assert (no_file[0], no_file[1]["error"]["code"]) == (404, "not_found")


# Other origins


@pytest.fixture(scope="module")
def open_gateway(cluster: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One more gateway of the cluster, open to one other origin."""
    process = process_of(cluster, "gateway", unique("gateway"), Path(tmp_path_factory.mktemp("cors")))
    process.environment = {**process.environment, "ROLLCALL_CORS_ORIGINS": f" {ORIGIN} ,https://other.example"}
    process.start()
    try:
        process.wait_ready()
        yield f"http://127.0.0.1:{process.environment['ROLLCALL_PORT']}"
    finally:
        process.stop()
        del cluster.processes[process.name]


async def test_pages_of_the_origins_in_the_setting_may_call_the_api(cluster: Rig, open_gateway: str) -> None:
    asking = {"Origin": ORIGIN, "Access-Control-Request-Method": "PATCH"}
    preflight = await get(f"{open_gateway}/api/v1/sessions/x", method="OPTIONS", headers=asking)
    refused = await get(f"{open_gateway}/api/v1/courses", headers={"Origin": ORIGIN})
    stranger = await get(f"{open_gateway}/api/v1/courses", headers={"Origin": "https://evil.example"})
    unset = await get(f"{cluster.gateways[0]}/api/v1/courses", headers={"Origin": ORIGIN})

    assert (preflight[0], preflight[1]["Access-Control-Allow-Origin"]) == (204, ORIGIN)
    assert (refused[0], refused[1]["Access-Control-Allow-Origin"]) == (401, ORIGIN)
    assert "Access-Control-Allow-Origin" not in stranger[1]
    assert "Access-Control-Allow-Origin" not in unset[1]


# The document and its page


async def test_the_document_needs_no_token(rig: Rig) -> None:
    status, document = await http(rig.gateways[0], "GET", "/openapi.json")

    assert status == 200
    validate(document)


async def test_the_page_needs_nothing_from_anywhere_else(rig: Rig) -> None:
    url = rig.gateways[0]
    status, headers, page = await get(f"{url}/docs")
    needed = re.findall(r'(?:src|href)="([^"]+)"', page)
    parts = await asyncio.gather(*(get(f"{url}/{part}") for part in needed if not part.startswith("data:")))
    texts = [page, *(text for _, _, text in parts)]

    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert {part for part in needed if part != "data:,"} == {"docs/docs.css", "docs/docs.js", "api/v1/openapi.json"}
    assert [status for status, _, _ in parts] == [200] * 3
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert not any("://" in text for text in texts[:-1])
    assert "<script>" not in page
    assert " style=" not in page
