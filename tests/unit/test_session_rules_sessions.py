"""The rules of sessions on a timetable: scheduling, changing, explaining."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace

from session_service import rules
from session_service.views import (
    view_session,
)
from shared.errors import Refused
from shared.messages import (
    Actor,
    CheckIn,
    CheckInPatch,
    ExplainNoRoll,
    News,
    Role,
    SessionStatus,
)
from tests.unit.session_samples import (
    BOB,
    NOW,
    a_course,
    a_session,
    code_of,
    envelope,
    fields_of,
    refusal,
    to_change,
    to_create,
    utc,
)


def test_a_session_is_in_the_time_zone_of_its_course_unless_it_names_one() -> None:
    own = rules.create_session(a_course(), to_create(time_zone="Asia/Tokyo"), NOW)
    inherited = rules.create_session(a_course(), to_create(), NOW)

    assert (own.time_zone, own.starts_at) == ("Asia/Tokyo", utc("2026-11-24T00:00"))
    assert (inherited.time_zone, inherited.starts_at) == ("Europe/Berlin", utc("2026-11-24T08:00"))


def test_the_date_is_utc_midnight_of_the_day_wherever_the_class_is() -> None:
    session = rules.create_session(a_course(), to_create(time_zone="Pacific/Auckland"), NOW)

    assert view_session(session).date == str(int(utc("2026-11-24T00:00").timestamp() * 1000))


def test_the_same_key_and_body_is_the_first_session_and_another_body_a_conflict() -> None:
    session = rules.create_session(a_course(), to_create(idempotency_key="k"), NOW)
    again = to_create(idempotency_key="k", session_id="another")

    rules.created_before(session, to_create(idempotency_key="k"))
    rules.created_before(session, again)
    with pytest.raises(Refused) as refused:
        rules.created_before(session, replace(again, fingerprint="g"))
    assert code_of(refused) == "conflict"


@pytest.mark.parametrize(
    ("status", "role", "for_staff", "enrolled", "code", "retryable"),
    [
        ("active", "teacher", True, False, "session_not_active", True),
        ("active", "admin", True, False, "session_not_active", True),
        ("active", "service", True, False, "session_not_active", True),
        ("active", "student", True, True, "forbidden", False),
        ("active", "student", False, True, "session_not_active", True),
        ("active", "student", False, False, "not_enrolled", False),
        ("active", "teacher", False, False, "not_enrolled", False),
        ("scheduled", "student", False, True, "session_not_active", False),
        ("completed", "student", False, True, "session_completed", False),
        ("cancelled", "student", False, True, "session_cancelled", False),
        ("completed", "student", False, False, "not_enrolled", False),
        ("scheduled", "teacher", True, False, "session_not_active", False),
        (None, "admin", True, False, "session_not_found", False),
    ],
)
def test_why_there_is_no_roll_is_told_to_those_who_may_know(
    status: SessionStatus | None, role: Role, for_staff: bool, enrolled: bool, code: str, retryable: bool
) -> None:
    actor = Actor("ada" if role == "teacher" else "somebody", "Somebody", role)
    command = ExplainNoRoll(**envelope(actor), session_id="s", for_staff=for_staff)
    session = None if status is None else a_session(status)

    refused = rules.explain_no_roll(session, command, enrolled=enrolled)

    assert (refused.code, refused.retryable) == (code, retryable)


# Changing


def test_what_is_not_said_stays_and_what_is_none_is_taken_away() -> None:
    session = a_session(description="Ideals", meeting_link="https://example.org")

    changed = rules.change_session(session, to_change(title="Fields", description=None), NOW + timedelta(hours=1))

    wanted = replace(session, title="Fields", description=None, version=2, updated_at=NOW + timedelta(hours=1))
    assert changed == wanted


@given(
    date=st.sampled_from([UNSET, "2026-11-24"]),
    start_time=st.sampled_from([UNSET, "09:00"]),
    end_time=st.sampled_from([UNSET, "10:30"]),
    time_zone=st.sampled_from([UNSET, "Europe/Berlin"]),
    title=st.sampled_from([UNSET, "Rings"]),
    check_in=st.sampled_from([UNSET, CheckInPatch(), CheckInPatch(late_after_minutes=10), CheckInPatch(code=None)]),
)
def test_a_session_changed_to_what_it_is_is_the_same_object(**same: Any) -> None:
    session = a_session("active")

    assert rules.change_session(session, to_change(**same), NOW + timedelta(days=1)) is session


@pytest.mark.parametrize(
    ("patch", "wanted"),
    [
        (CheckInPatch(late_after_minutes=5), CheckIn(late_after_minutes=5, closes_after_minutes=30)),
        (CheckInPatch(closes_after_minutes=20), CheckIn(late_after_minutes=7, closes_after_minutes=20)),
        (CheckInPatch(late_after_minutes=None), CheckIn(late_after_minutes=None, closes_after_minutes=30)),
        (CheckInPatch(closes_after_minutes=None, networks=None), CheckIn(late_after_minutes=7)),
    ],
)
def test_what_is_not_said_of_the_check_in_stays(patch: CheckInPatch, wanted: CheckIn) -> None:
    session = a_session(check_in=CheckIn(late_after_minutes=7, closes_after_minutes=30))

    assert rules.change_session(session, to_change(check_in=patch), NOW).check_in == wanted


@pytest.mark.parametrize(
    ("changes", "starts_at", "ends_at"),
    [
        ({"date": "2026-07-01"}, "2026-07-01T07:00", "2026-07-01T08:30"),
        ({"start_time": "10:00"}, "2026-11-24T09:00", "2026-11-24T09:30"),
        ({"end_time": "08:00"}, "2026-11-24T08:00", "2026-11-25T07:00"),
        ({"time_zone": "Asia/Tokyo"}, "2026-11-24T00:00", "2026-11-24T01:30"),
        ({"start_time": "22:00", "end_time": "00:00", "time_zone": "UTC"}, "2026-11-24T22:00", "2026-11-25T00:00"),
    ],
)
def test_times_are_read_anew_in_the_time_zone_that_holds_then(changes: Any, starts_at: str, ends_at: str) -> None:
    changed = rules.change_session(a_session(), to_change(**changes), NOW)

    assert (changed.starts_at, changed.ends_at) == (utc(starts_at), utc(ends_at))
    assert (changed.created_at, changed.started, changed.version) == (NOW, None, 2)


def test_a_title_leaves_times_alone_that_are_read_otherwise_today() -> None:
    """A country may have moved its clocks since: what was agreed on holds until somebody changes it."""
    session = a_session(starts_at=NOW + timedelta(days=1), ends_at=NOW + timedelta(days=1, hours=1))

    changed = rules.change_session(session, to_change(title="Fields"), NOW)

    assert (changed.starts_at, changed.ends_at) == (session.starts_at, session.ends_at)


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"date": "2026-02-30"}, ["date"]),
        ({"end_time": "09:00"}, ["end_time"]),
        ({"start_time": "10:30"}, ["end_time"]),
        ({"time_zone": "Mars/Olympus", "date": "x", "start_time": "y"}, ["time_zone", "date", "start_time"]),
        ({"date": "2027-03-28", "start_time": "02:30", "end_time": "03:15"}, ["start_time"]),
    ],
)
def test_all_that_is_wrong_with_a_change_is_told_at_once(changes: Any, fields: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        rules.change_session(a_session(), to_change(title="Fields", **changes), NOW)

    assert fields_of(refused) == fields


@pytest.mark.parametrize(
    ("status", "code"),
    [("scheduled", None), ("active", None), ("completed", "session_completed"), ("cancelled", "session_cancelled")],
)
def test_only_what_is_not_over_is_changed(status: SessionStatus, code: str | None) -> None:
    session = a_session(status)

    assert refusal(lambda: rules.change_session(session, to_change(title="Fields"), NOW)) == code
    assert refusal(lambda: rules.change_session(session, to_change(BOB, title="Fields"), NOW)) == "forbidden"


@pytest.mark.parametrize(
    ("status", "followed"), [("scheduled", False), ("active", True), ("cancelled", False), ("completed", False)]
)
def test_there_is_something_to_wait_for_where_a_roll_takes_changes(status: SessionStatus, followed: bool) -> None:
    session = a_session(status)

    news = rules.session_news(session)

    assert news == News(course_id="c1", session_versions={session.id: session.version} if followed else {})
