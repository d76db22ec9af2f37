"""What callers ask for in an address: read, or refused as `invalid` with the fault named."""

from typing import Any

import pytest
from msgspec import Struct

from gateway.queries import HistoryQuery, Nothing, PageQuery, SessionsQuery, read_query
from shared.errors import Refused


def field_at_fault(query: dict[str, str], kind: type[Struct]) -> Any:
    with pytest.raises(Refused) as refused:
        read_query(query, kind)
    assert refused.value.code == "invalid"
    [detail] = refused.value.details
    assert detail["message"]
    return detail["field"]


def test_a_page_has_defaults_and_limits() -> None:
    assert read_query({}, PageQuery) == PageQuery(limit=50, cursor=None)
    assert read_query({"limit": "1", "cursor": "c1"}, PageQuery) == PageQuery(limit=1, cursor="c1")
    assert read_query({"limit": "200"}, PageQuery).limit == 200


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "+1", " 1", "201", "1.5", "x", "²", "\u0661", "1_0", "true", "null", "00000002000", "9" * 5000]
)
def test_what_is_no_number_within_the_limits_is_named(text: str) -> None:
    assert field_at_fault({"limit": text}, PageQuery) == "limit"


@pytest.mark.parametrize("text", ["", "a\nb", "a\0", "a" * 201])
def test_a_cursor_is_one_line(text: str) -> None:
    assert field_at_fault({"cursor": text}, PageQuery) == "cursor"


def test_sessions_are_asked_for_by_course_and_status() -> None:
    assert read_query({"course_id": "c1", "status": "active"}, SessionsQuery) == SessionsQuery(course_id="c1", status="active")
    assert field_at_fault({"course_id": "a b"}, SessionsQuery) == "course_id"
    assert field_at_fault({"status": "late"}, SessionsQuery) == "status"


def test_what_is_unknown_is_ignored() -> None:
    assert read_query({"x": "1", "": ""}, Nothing) == Nothing()


def test_history_begins_after_a_number_and_goes_on_at_its_cursor() -> None:
    assert read_query({}, HistoryQuery).after == 0
    assert read_query({"since_seq": "7"}, HistoryQuery).after == 7
    assert read_query({"since_seq": "7", "cursor": "57"}, HistoryQuery).after == 57


@pytest.mark.parametrize("name", ["since_seq", "cursor"])
@pytest.mark.parametrize("text", ["", "-1", "x", "9" * 30, "²"])
def test_history_takes_no_other_numbers(name: str, text: str) -> None:
    assert field_at_fault({name: text}, HistoryQuery) == name
