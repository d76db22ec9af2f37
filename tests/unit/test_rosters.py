"""Rosters as callers bring them: read whole from JSON or CSV, or refused with every line at fault."""

import json
import time
from typing import Any

import pytest

from gateway import rosters
from gateway.rosters import MAX_ROSTER_BYTES, read_roster
from shared.errors import Refused
from shared.messages import Student


def fault(refused: pytest.ExceptionInfo[Refused]) -> dict[str, Any]:
    """The one fault named."""
    assert refused.value.code == "invalid"
    [detail] = refused.value.details
    assert detail["message"]
    return dict(detail)


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
    monkeypatch.setattr(rosters, "MAX_STUDENTS", 2)

    for body in ("a,A\nb,B\nc,C\n", "\n\na,A\n", ",,\n , \n,\n"):
        with pytest.raises(Refused, match="at most 2 students"):
            read_roster(f"student_id,name\n{body}".encode(), "text/csv")
    with pytest.raises(Refused, match="at most 2 students"):
        read_roster(json.dumps([{"student_id": each, "name": each} for each in "abc"]).encode(), "application/json")
    assert len(read_roster(b"student_id,name\na,A\nb,B\n", "text/csv")) == 2


@pytest.mark.parametrize("line", [b"x,\n", b"\n", b",,,,,\n", b"x,x\n", b'"\n"\n'], ids=repr)
def test_eight_mebibytes_of_rubbish_are_not_read_to_their_end(line: bytes) -> None:
    """Once they were, line by line, and cost up to three quarters of a minute."""
    body = b"student_id,name\n" + line * ((MAX_ROSTER_BYTES - 100) // len(line))
    began = time.process_time()

    with pytest.raises(Refused) as refused:
        read_roster(body, "text/csv")

    assert refused.value.code == "invalid"
    assert time.process_time() - began < 5
