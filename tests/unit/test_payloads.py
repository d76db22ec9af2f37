"""What callers send: read into its shape, or refused as `invalid` with every fault named."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import payloads
from gateway.payloads import (
    CoursePayload,
    SessionCommandPayload,
    read_body,
    read_cursor,
    read_id,
    read_number,
    read_payload,
    read_roster,
    read_session_body,
)
from shared.errors import Refused
from shared.messages import CheckIn, Student

SESSION: dict[str, Any] = {
    "course_id": "c1",
    "title": "Rings",
    "date": "2026-11-24",
    "start_time": "09:00",
    "end_time": "10:30",
}


def fault(refused: pytest.ExceptionInfo[Refused]) -> dict[str, Any]:
    """The one fault named."""
    assert refused.value.code == "invalid"
    [detail] = refused.value.details
    assert detail["message"]
    return dict(detail)


def field_at_fault(payload: object, kind: Any = SessionCommandPayload) -> str:
    with pytest.raises(Refused) as refused:
        read_payload(payload, kind)
    return str(fault(refused)["field"])


def session_field_at_fault(**changes: Any) -> str:
    with pytest.raises(Refused) as refused:
        read_session_body(json.dumps({**SESSION, **changes}).encode())
    return str(fault(refused)["field"])


def csv_faults(body: str | bytes) -> list[Any]:
    """The lines at fault."""
    with pytest.raises(Refused) as refused:
        read_roster(body if isinstance(body, bytes) else body.encode(), "text/csv")
    assert refused.value.code == "invalid"
    assert all(detail["message"] for detail in refused.value.details)
    return [detail.get("line") for detail in refused.value.details]


def csv_message(body: str) -> str:
    with pytest.raises(Refused) as refused:
        read_roster(body.encode(), "text/csv")
    return str(fault(refused)["message"])


# Payloads


def test_a_payload_is_read() -> None:
    payload = read_payload({"session_id": "5e55", "command_id": "k-1"}, SessionCommandPayload)

    assert payload == SessionCommandPayload(session_id="5e55", command_id="k-1")


def test_deployed_clients_may_say_session_id_in_camel_case() -> None:
    assert read_payload({"sessionId": "5e55"}, SessionCommandPayload).session_id == "5e55"


@pytest.mark.parametrize(
    ("alias", "name"), [("sessionId", "session_id"), ("studentId", "student_id"), ("courseId", "course_id")]
)
def test_each_alias_stands_for_its_name_and_a_fault_is_told_by_the_name(alias: str, name: str) -> None:
    kind = {
        "session_id": SessionCommandPayload,
        "student_id": payloads.StudentPayload,
        "course_id": payloads.SessionPayload,
    }[name]

    assert field_at_fault({**SESSION, "course_id": "c1", "name": "Ann", "session_id": "s", alias: 7}, kind) == name


def test_unknown_keys_are_ignored() -> None:
    payload = read_payload({"session_id": "5e55", "device": {"a": [1]}, "": None}, SessionCommandPayload)

    assert payload.session_id == "5e55"


@pytest.mark.parametrize("payload", [None, [], "5e55", 5, True, b"x"])
def test_a_payload_is_one_object(payload: object) -> None:
    assert field_at_fault(payload) == ""


def test_what_is_missing_is_named() -> None:
    with pytest.raises(Refused, match="session_id: is missing"):
        read_payload({}, SessionCommandPayload)
    assert field_at_fault({}) == "session_id"


@pytest.mark.parametrize("value", [None, 5, 5.0, True, [], {}, "", "a b", "a/b", "ä", "a\n", "a\0", "\0", "a" * 65])
def test_what_is_no_id_is_named(value: object) -> None:
    assert field_at_fault({"session_id": value}) == "session_id"
    if value is not None:
        assert field_at_fault({"session_id": "s", "command_id": value}) == "command_id"


@given(st.from_regex(r"[A-Za-z0-9_.:-]{1,64}", fullmatch=True))
def test_every_id_of_the_contract_is_an_id(value: str) -> None:
    assert read_payload({"session_id": value}, SessionCommandPayload).session_id == value
    assert read_id(value, "course_id") == value


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists)))
def test_whatever_comes_is_read_or_refused_as_invalid(payload: dict[str, Any]) -> None:
    try:
        read_payload(payload, SessionCommandPayload)
    except Refused as refused:
        assert refused.code == "invalid"
        assert refused.details


# Bodies


def test_a_course_is_read() -> None:
    body = b'{"title": "Algebra", "teacher_ids": ["ada", "bob"], "time_zone": "Europe/Berlin", "x": 1}'

    assert read_body(body, CoursePayload) == CoursePayload(
        title="Algebra", teacher_ids=("ada", "bob"), time_zone="Europe/Berlin"
    )


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"title": 5}, "title"),
        ({"title": ""}, "title"),
        ({"title": "a\nb"}, "title"),
        ({"title": "a\0b"}, "title"),
        ({"title": "a" * 201}, "title"),
        ({"teacher_ids": "ada"}, "teacher_ids"),
        ({"teacher_ids": ["ada", 5]}, "teacher_ids[1]"),
        ({"teacher_ids": ["a b"]}, "teacher_ids[0]"),
        ({"teacher_ids": ["ada"] * 101}, "teacher_ids"),
        ({"time_zone": None}, "time_zone"),
    ],
)
def test_what_is_wrong_with_a_course_is_named(changes: dict[str, Any], field: str) -> None:
    body = json.dumps({"title": "Algebra", "teacher_ids": ["ada"], **changes}).encode()

    with pytest.raises(Refused) as refused:
        read_body(body, CoursePayload)

    assert fault(refused)["field"] == field
    assert refused.value.message.startswith(f"{field}: ")


@pytest.mark.parametrize("body", [b"", b"{", b"nope", b"\xff\xfe", b'{"title": "\xff"}', b'{"title": "\\ud800"}'])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(Refused, match="the body is not JSON"):
        read_body(body, CoursePayload)


def test_json_nested_without_end_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        read_body(b"[" * 1_000_000, CoursePayload)
    assert refused.value.code == "invalid"


# Sessions


def test_a_session_is_read_with_its_defaults() -> None:
    payload = read_session_body(json.dumps(SESSION).encode())

    assert (payload.course_id, payload.title, payload.date) == ("c1", "Rings", "2026-11-24")
    assert (payload.start_time, payload.end_time, payload.time_zone) == ("09:00", "10:30", None)
    assert (payload.description, payload.meeting_link, payload.check_in) == (None, None, CheckIn())


def test_a_session_may_say_all_it_knows() -> None:
    said = {
        "description": "line\nline",
        "meeting_link": "https://example.org",
        "time_zone": "Europe/Berlin",
        "check_in": {"late_after_minutes": None, "closes_after_minutes": 1440},
    }

    payload = read_session_body(json.dumps({**SESSION, **said}).encode())

    assert payload.description == "line\nline"
    assert payload.check_in == CheckIn(late_after_minutes=None, closes_after_minutes=1440)


@pytest.mark.parametrize(
    "date",
    ["2026-11-24", "2026-11-24T09:00:00.000Z", "2026-11-24T09:00:00+01:00", "2026-11-24T09:00:00", "1795478400000"],
)
def test_a_day_may_be_said_as_deployed_clients_say_it(date: str) -> None:
    assert read_session_body(json.dumps({**SESSION, "date": date}).encode()).date == "2026-11-24"


@pytest.mark.parametrize("date", ["", "tomorrow", "2026-13-01", "2026-02-30", "24.11.2026", "9" * 30, "9" * 199, "²", "-5"])
def test_what_is_no_day_is_named(date: str) -> None:
    assert session_field_at_fault(date=date) == "date"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"course_id": "c 1"}, "course_id"),
        ({"title": None}, "title"),
        ({"date": 1795478400000}, "date"),
        ({"start_time": "9:00"}, "start_time"),
        ({"start_time": "24:00"}, "start_time"),
        ({"end_time": "10:60"}, "end_time"),
        ({"end_time": "10:30\n"}, "end_time"),
        ({"end_time": "10:30:00"}, "end_time"),
        ({"description": 5}, "description"),
        ({"description": "a\0"}, "description"),
        ({"description": "a" * 2001}, "description"),
        ({"meeting_link": []}, "meeting_link"),
        ({"time_zone": ""}, "time_zone"),
        ({"check_in": 5}, "check_in"),
        ({"check_in": {"late_after_minutes": "5"}}, "check_in.late_after_minutes"),
        ({"check_in": {"late_after_minutes": True}}, "check_in.late_after_minutes"),
        ({"check_in": {"late_after_minutes": -1}}, "check_in"),
        ({"check_in": {"closes_after_minutes": 1441}}, "check_in"),
        ({"check_in": {"code": {"rotate_seconds": 30}}}, "check_in.code"),
    ],
)
def test_what_is_wrong_with_a_session_is_named(changes: dict[str, Any], field: str) -> None:
    assert session_field_at_fault(**changes) == field


@pytest.mark.parametrize("name", SESSION)
def test_what_a_session_lacks_is_named(name: str) -> None:
    with pytest.raises(Refused) as refused:
        read_session_body(json.dumps({key: value for key, value in SESSION.items() if key != name}).encode())

    assert fault(refused) == {"field": name, "message": "is missing"}


# Rosters as JSON


def test_a_roster_is_read_from_json() -> None:
    body = b"""[{"student_id": "ann", "name": "Ann"},
        {"student_id": "ben", "name": "Ben", "email": "ben@example.org", "roll_number": "7", "x": [1]}]"""

    assert read_roster(body, "application/json") == (
        Student(student_id="ann", name="Ann"),
        Student(student_id="ben", name="Ben", email="ben@example.org", roll_number="7"),
    )
    assert read_roster(b"[]", "application/json") == ()


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({"name": "Ann"}, "student_id"),
        ({"student_id": "ann"}, "name"),
        ({"student_id": "a b", "name": "Ann"}, "student_id"),
        ({"student_id": "ann", "name": ""}, "name"),
        ({"student_id": "ann", "name": "A\0"}, "name"),
        ({"student_id": "ann", "name": "Ann", "email": 5}, "email"),
        (5, ""),
    ],
)
def test_what_is_wrong_with_a_line_of_json_is_named(line: object, field: str) -> None:
    with pytest.raises(Refused) as refused:
        read_roster(json.dumps([{"student_id": "first", "name": "First"}, line]).encode(), "application/json")

    found = fault(refused)["field"]
    assert found.startswith("[")
    assert found.endswith(field)


@pytest.mark.parametrize("body", [b"", b"{}", b"5", b"student_id,name\nann,Ann\n", b"\xff", b"[", b'"x"'])
def test_what_is_no_list_of_students_is_refused(body: bytes) -> None:
    with pytest.raises(Refused, match="invalid"):
        read_roster(body, "application/json")


def test_a_roster_nested_without_end_is_refused() -> None:
    body = b'[{"student_id": "ann", "name": "Ann", "x": ' + b"[" * 1_000_000

    with pytest.raises(Refused, match="invalid"):
        read_roster(body, "application/json")


def test_a_student_twice_is_refused_with_both_places() -> None:
    lines = [{"student_id": student, "name": student} for student in ("ann", "ben", "ann", "cid", "ann")]

    with pytest.raises(Refused) as refused:
        read_roster(json.dumps(lines).encode(), "application/json")

    assert [detail["line"] for detail in refused.value.details] == [2, 4]
    assert all("ann" in detail["message"] and " 0 " in detail["message"] for detail in refused.value.details)


# Rosters as CSV


def test_a_roster_is_read_from_csv() -> None:
    body = "student_id,name,email,roll_number\nann,Ann,ann@example.org,7\nben,Ben,,\n"

    assert read_roster(body.encode(), "text/csv") == (
        Student(student_id="ann", name="Ann", email="ann@example.org", roll_number="7"),
        Student(student_id="ben", name="Ben"),
    )


@pytest.mark.parametrize(
    "body",
    [
        "name,extra,student_id\nAnn,x,ann\n",
        "\ufeffstudent_id,name\r\nann,Ann\r\n",
        ' Student_ID , NAME\n ann , "Ann"\n',
        "student_id,name\nann,Ann",
        "student_id,name\n\nann,Ann\n,\n  ,  \n\n",
        "student_id,name\nann,Ann,more,and more\n",
    ],
    ids=["any order", "byte order mark", "spaces and capitals", "no last line end", "empty lines", "too many fields"],
)
def test_csv_as_spreadsheets_write_it(body: str) -> None:
    assert read_roster(body.encode(), "text/csv") == (Student(student_id="ann", name="Ann"),)


def test_quotes_keep_commas_and_quotes() -> None:
    body = 'student_id,name\nann,"Lee, ""Ann"""\n'

    assert read_roster(body.encode(), "text/csv")[0].name == 'Lee, "Ann"'


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("", [1]),
        ("\n", [1]),
        ("\ufeff", [1]),
        ("ann,Ann\n", [1]),
        ("student_id\nann\n", [1]),
        ("student_id;name\nann;Ann\n", [1]),
        ("student_id,name\nann,Ann\na b,Ben\ncid,\ndee\n", [3, 4, 5]),
        ("student_id,name\nann,A\0nn\n", [2]),
        ('student_id,name\nann,"Ann\nAnn"\n', [3]),
        ('student_id,name\nann,"Ann\n', [2]),
        ('student_id,name\nann,"Ann"x\n', [2]),
        ("student_id,name\nann," + "x" * 201 + "\n", [2]),
        ("student_id,name\nann," + "x" * 200_000 + "\n", [2]),
        ("student_id,name\nann,Ann,\nben,Ben\nann,Anna\nben,Benno\n", [4, 5]),
    ],
)
def test_each_line_at_fault_is_named(body: str, lines: list[int]) -> None:
    assert csv_faults(body) == lines


def test_what_is_wrong_with_a_line_is_said_with_the_column() -> None:
    assert csv_message("student_id,name\na b,Ann\n").startswith("student_id: ")
    assert csv_message("student_id,name\nann,\n").startswith("name: ")
    assert csv_message("student_id,name,email\nann,Ann,a\0\n").startswith("email: ")


def test_a_student_twice_in_csv_is_refused_with_both_lines() -> None:
    assert csv_message("student_id,name\nann,Ann\nben,Ben\nann,Anna\n") == "student_id ann stands on line 2 already"
    assert csv_faults("student_id,name\nann,Ann\nben,Ben\nann,Anna\n") == [4]


def test_no_more_faults_are_named_than_anybody_reads() -> None:
    assert len(csv_faults("student_id,name\n" + "a b,Ann\n" * 500)) == 100
    assert len(csv_faults("student_id,name\n" + "ann,Ann\n" * 500)) == 100


@pytest.mark.parametrize("body", [b"student_id,name\nann,\xc4nn\n", "student_id,name\nann,Ann\n".encode("utf-16")])
def test_csv_in_another_encoding_is_refused(body: bytes) -> None:
    with pytest.raises(Refused, match="UTF-8"):
        read_roster(body, "text/csv")


@pytest.mark.parametrize("content_type", ["text/csv", "application/json"])
def test_a_large_roster_is_read_whole(content_type: str) -> None:
    count = 10_000
    if content_type == "text/csv":
        body = "student_id,name\n" + "".join(f"s{number},Student {number}\n" for number in range(count))
    else:
        body = json.dumps([{"student_id": f"s{number}", "name": f"Student {number}"} for number in range(count)])

    students = read_roster(body.encode(), content_type)

    assert len(students) == count
    assert students[-1] == Student(student_id="s9999", name="Student 9999")


def test_a_roster_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "MAX_STUDENTS", 2)

    with pytest.raises(Refused, match="at most 2 students"):
        read_roster(b"student_id,name\na,A\nb,B\nc,C\n", "text/csv")
    assert len(read_roster(b"student_id,name\na,A\nb,B\n", "text/csv")) == 2


# Paths and queries


@pytest.mark.parametrize("text", ["", "a b", "a/b", "a\n", "a" * 65])
def test_an_id_in_a_path_is_an_id(text: str) -> None:
    with pytest.raises(Refused) as refused:
        read_id(text, "course_id")

    assert fault(refused)["field"] == "course_id"


def test_a_number_in_a_query_has_a_default_and_limits() -> None:
    assert read_number(None, "limit", default=50, most=200) == 50
    assert read_number("1", "limit", default=50, most=200) == 1
    assert read_number("200", "limit", default=50, most=200) == 200


@pytest.mark.parametrize("text", ["", "0", "-1", "201", "1.5", "x", "²", "00000002000", "000000001" + "0" * 5000, "9" * 5000])
def test_what_is_no_number_within_the_limits_is_named(text: str) -> None:
    with pytest.raises(Refused) as refused:
        read_number(text, "limit", default=50, most=200)

    assert fault(refused)["field"] == "limit"


def test_a_cursor_is_one_line_or_none() -> None:
    assert (read_cursor(None), read_cursor("c1")) == (None, "c1")
    for text in ("", "a\nb", "a\0", "a" * 201):
        with pytest.raises(Refused, match="cursor"):
            read_cursor(text)
