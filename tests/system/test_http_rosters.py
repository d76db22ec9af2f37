"""Courses and rosters over HTTP: ten thousand students as CSV, a body of megabytes, and a course that is put away."""

import asyncio

import aiohttp
from msgspec import json

from gateway.payloads import MAX_FRAME_BYTES
from tests.system.paging import pages
from tests.system.rig import Rig
from tests.system.talk import SECONDS, Payload, a_lecture, an_admin, bearer, http


async def test_ten_thousand_students_come_as_csv(rig: Rig) -> None:
    """As a spreadsheet saves it: a mark of its encoding, quotes, CRLF. Again it changes nothing; a fault refuses all."""
    here, there = rig.gateways
    lecture = await a_lecture(here, students=0)
    path, teacher = f"/courses/{lecture.course_id}/roster", bearer(lecture.teacher, "teacher")
    lines = [f's{number:05},"Möller, ""Jo"" {number}",s{number}@example.org,{number}' for number in range(10_000)]

    async def put(lines: list[str]) -> tuple[int, Payload]:
        body = "\ufeff" + "\r\n".join(["student_id,name,email,roll_number", *lines, ""])
        return await http(here, "PUT", path, teacher, data=body.encode(), headers={"Content-Type": "text/csv"})

    first, again = await put(lines), await put(lines)
    changed = await put([*lines[1:-1], "s09999,Jo", "new,New"])
    twice, no_id = await put([*lines, lines[17], lines[0]]), await put([*lines[:5000], "a b,Jo", *lines[5000:]])
    students = [student for page in await pages(there, path, teacher, limit=200) for student in page]

    assert first == (200, {"added": 10_000, "updated": 0, "removed": 0})
    assert again == (200, {"added": 0, "updated": 0, "removed": 0})
    assert changed == (200, {"added": 1, "updated": 1, "removed": 1})
    assert (twice[0], [detail["line"] for detail in twice[1]["error"]["details"]]) == (400, [10_002, 10_003])
    assert (no_id[0], [detail["line"] for detail in no_id[1]["error"]["details"]]) == (400, [5002])
    assert len(students) == 10_000
    assert students[1] == {
        "student_id": "s00001",
        "name": 'Möller, "Jo" 1',
        "email": "s1@example.org",
        "roll_number": "1",
    }


async def test_a_roster_may_have_megabytes_and_a_poll_may_not(rig: Rig) -> None:
    """The library's own limit is 1 MiB, and how large a body may be it asks the outermost application, which serves both."""
    here = rig.gateways[0]
    lecture = await a_lecture(here, students=0)
    path, teacher = f"/courses/{lecture.course_id}/roster", bearer(lecture.teacher, "teacher")
    rows = [f"s{number:05},{'x' * 200},{'y' * 180}@example.org,{'z' * 200}" for number in range(8500)]
    body = "\n".join(["student_id,name,email,roll_number", *rows]).encode()
    assert len(body) > 5_000_000

    put = await http(here, "PUT", path, teacher, data=body, headers={"Content-Type": "text/csv"})

    assert put == (200, {"added": len(rows), "updated": 0, "removed": 0})
    async with asyncio.timeout(SECONDS), aiohttp.ClientSession(f"{here}/socket.io/") as session:
        async with session.get("", params={"EIO": "4", "transport": "polling"}) as opened:
            sid = json.decode((await opened.read())[1:])["sid"]
        poll = {"EIO": "4", "transport": "polling", "sid": sid}
        async with session.post("", params=poll, data=b"4" + bytes(MAX_FRAME_BYTES)) as refused:
            assert refused.status == 400


async def test_a_course_that_was_archived_is_shown_and_changes_no_more(rig: Rig) -> None:
    lecture = await a_lecture(rig.gateways[0], students=0)
    admin, path = an_admin(), f"/courses/{lecture.course_id}"
    _, before = await http(rig.gateways[0], "GET", path, admin)
    status, archived = await http(rig.gateways[0], "DELETE", path, admin)
    again = await http(rig.gateways[1], "DELETE", path, admin)
    refused = await http(rig.gateways[1], "POST", f"{path}/roster/late-comer", admin)

    assert (status, archived) == (200, {**before, "archived": True, "updated_at": archived["updated_at"]})
    assert again == (200, archived)
    assert (refused[0], refused[1]["error"]["code"]) == (409, "conflict")
