"""What callers send: read into its shape, or refused as `invalid` with every fault named."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from gateway import payloads, rosters
from gateway.payloads import (
    CommandBody,
    CoursePayload,
    ReopenBody,
    SessionCommandPayload,
    read_body,
    read_id,
    read_line,
    read_payload,
    read_session_body,
    read_session_patch,
)
from shared.errors import Refused
from shared.messages import CheckIn, CheckInPatch

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
        "student_id": rosters.StudentPayload,
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


@pytest.mark.parametrize("body", [b"{", b"nope", b"\xff\xfe", b'{"title": "\xff"}', b'{"title": "\\ud800"}'])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(Refused, match="the body is not JSON"):
        read_body(body, CoursePayload)


def test_no_body_is_an_empty_object() -> None:
    """So that a command's body may be left out, and what must be said is named as missing."""
    assert read_body(b"", CommandBody) == CommandBody(command_id=None)
    with pytest.raises(Refused, match="reason: is missing"):
        read_body(b"", ReopenBody)


@pytest.mark.parametrize("body", [b"null", b"[]", b'"text"', b'{"command_id": 5}', b'{"command_id": "a b"}', b" "])
def test_a_body_that_is_there_must_be_one(body: bytes) -> None:
    with pytest.raises(Refused, match="invalid"):
        read_body(body, CommandBody)


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


# Changes of a session


def test_a_change_says_only_what_it_changes() -> None:
    patch = read_session_patch(b'{"title": "Fields", "description": null, "check_in": {"late_after_minutes": 5}, "x": 1}')

    assert (patch.title, patch.description) == ("Fields", None)
    assert (patch.date, patch.start_time, patch.meeting_link) == (UNSET, UNSET, UNSET)
    assert patch.check_in == CheckInPatch(late_after_minutes=5)


def test_a_changed_day_may_be_said_in_every_way() -> None:
    assert read_session_patch(b'{"date": "1795478400000"}').date == "2026-11-24"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"title": None}, "title"),
        ({"title": ""}, "title"),
        ({"date": "tomorrow"}, "date"),
        ({"start_time": None}, "start_time"),
        ({"end_time": "25:00"}, "end_time"),
        ({"time_zone": None}, "time_zone"),
        ({"description": "a\0"}, "description"),
        ({"check_in": None}, "check_in"),
        ({"check_in": {"late_after_minutes": -1}}, "check_in"),
        ({"check_in": {"closes_after_minutes": "5"}}, "check_in.closes_after_minutes"),
    ],
)
def test_what_is_wrong_with_a_change_is_named(body: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as refused:
        read_session_patch(json.dumps(body).encode())

    assert fault(refused)["field"] == field


# Paths and headers


@pytest.mark.parametrize("text", ["", "a b", "a/b", "a\n", "a" * 65])
def test_an_id_in_a_path_is_an_id(text: str) -> None:
    with pytest.raises(Refused) as refused:
        read_id(text, "course_id")

    assert fault(refused)["field"] == "course_id"


@pytest.mark.parametrize("text", ["", "a\nb", "a\0", "a" * 201, b"gr\xfcn".decode(errors="surrogateescape")])
def test_a_header_is_one_line_that_can_be_sent_on(text: str) -> None:
    assert read_line("key 1", "Idempotency-Key") == "key 1"
    with pytest.raises(Refused) as refused:
        read_line(text, "Idempotency-Key")

    assert fault(refused)["field"] == "Idempotency-Key"
