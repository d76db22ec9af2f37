"""When a meeting is: the clocks on the wall, also on the nights when they are changed."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from session_service import rules
from session_service.timetable import meeting, zone_fault
from shared.errors import Refused
from tests.unit.session_samples import (
    NOW,
    a_course,
    fields_of,
    to_create,
    utc,
)

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "America/Santiago", "Asia/Kolkata", "UTC")


@pytest.mark.parametrize(
    ("day", "start", "end", "zone", "starts_at", "ends_at"),
    [
        # Winter and summer.
        ("2026-11-24", "09:00", "10:30", "Europe/Berlin", "2026-11-24T08:00", "2026-11-24T09:30"),
        ("2026-07-01", "09:00", "10:30", "Europe/Berlin", "2026-07-01T07:00", "2026-07-01T08:30"),
        ("2026-11-24", "09:00", "10:30", "Asia/Kathmandu", "2026-11-24T03:15", "2026-11-24T04:45"),
        # Over midnight, at midnight, over the new year.
        ("2026-11-24", "22:30", "00:15", "Europe/Berlin", "2026-11-24T21:30", "2026-11-24T23:15"),
        ("2026-11-24", "22:00", "00:00", "UTC", "2026-11-24T22:00", "2026-11-25T00:00"),
        ("2026-12-31", "23:00", "01:00", "Pacific/Auckland", "2026-12-31T10:00", "2026-12-31T12:00"),
        # A night that is an hour shorter, and one that is an hour longer.
        ("2027-03-27", "23:00", "05:00", "Europe/Berlin", "2027-03-27T22:00", "2027-03-28T03:00"),
        ("2026-10-24", "23:00", "05:00", "Europe/Berlin", "2026-10-24T21:00", "2026-10-25T04:00"),
        # Times that are skipped: the offset from before.
        ("2027-03-28", "02:30", "04:00", "Europe/Berlin", "2027-03-28T01:30", "2027-03-28T02:00"),
        ("2027-03-28", "01:00", "02:30", "Europe/Berlin", "2027-03-28T00:00", "2027-03-28T01:30"),
        # Cairo skips midnight itself.
        ("2026-04-23", "22:00", "00:00", "Africa/Cairo", "2026-04-23T20:00", "2026-04-23T22:00"),
        # Times that come twice: the first.
        ("2026-10-25", "02:30", "03:30", "Europe/Berlin", "2026-10-25T00:30", "2026-10-25T02:30"),
        ("2026-10-25", "01:30", "02:30", "Europe/Berlin", "2026-10-24T23:30", "2026-10-25T00:30"),
    ],
)
def test_a_meeting_is_when_the_clocks_on_the_wall_say(
    day: str, start: str, end: str, zone: str, starts_at: str, ends_at: str
) -> None:
    assert meeting(day, start, end, zone)[1:] == (utc(starts_at), utc(ends_at))


def test_a_meeting_that_the_clocks_swallow_is_invalid() -> None:
    """02:30 is read as 03:30, and 03:15 is before that."""
    with pytest.raises(Refused) as refused:
        meeting("2027-03-28", "02:30", "03:15", "Europe/Berlin")

    assert fields_of(refused) == ["start_time"]


@given(
    day=st.dates(min_value=datetime(1970, 1, 1).date(), max_value=datetime(2040, 1, 1).date()),
    start=st.times(),
    end=st.times(),
    zone=st.sampled_from(ZONES),
)
@example(day=datetime(2011, 12, 30).date(), start=NOW.time(), end=NOW.time().replace(hour=10), zone="Pacific/Apia")
def test_a_meeting_ends_after_it_starts_and_shows_the_times_asked_for(day: Any, start: Any, end: Any, zone: str) -> None:
    assume((start.hour, start.minute) != (end.hour, end.minute))
    try:
        on, starts_at, ends_at = meeting(day.isoformat(), f"{start:%H:%M}", f"{end:%H:%M}", zone)
    except Refused as refused:
        assert refused.code == "invalid"
        assert skipped(datetime.combine(day, start.replace(second=0, microsecond=0)), zone)
        return

    assert on == day
    assert starts_at < ends_at <= starts_at + timedelta(hours=26)
    shown = starts_at.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    asked = datetime.combine(day, start.replace(second=0, microsecond=0))
    assert shown == asked or skipped(asked, zone)


def skipped(wall: datetime, zone: str) -> bool:
    """Whether the clocks jump over this time."""
    at = wall.replace(tzinfo=ZoneInfo(zone))
    return at.astimezone(UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None) != wall


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"date": "2026-02-30"}, ["date"]),
        ({"date": "20261124"}, ["date"]),
        ({"date": "2026-W48-2"}, ["date"]),
        ({"date": "0001-01-01"}, ["date"]),
        ({"date": "9999-12-31"}, ["date"]),
        ({"date": "२०२६-११-२४"}, ["date"]),
        ({"start_time": "9:00"}, ["start_time"]),
        ({"start_time": "24:00"}, ["start_time"]),
        ({"end_time": "10:30:00"}, ["end_time"]),
        ({"end_time": "09:00"}, ["end_time"]),
        ({"time_zone": "Mars/Olympus"}, ["time_zone"]),
        (
            {"date": "x", "start_time": "x", "end_time": "y", "time_zone": "z"},
            ["time_zone", "date", "start_time", "end_time"],
        ),
    ],
)
def test_all_that_is_wrong_with_a_time_is_told_at_once(changes: dict[str, Any], fields: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        rules.create_session(a_course(), replace(to_create(), **changes), NOW)

    assert fields_of(refused) == fields


CHANGES_OF_CLOCKS = {
    # Each zone's night that is shorter, the one that is longer, and by how much.
    "Europe/Berlin": ("2027-03-28", "2026-10-25", timedelta(hours=1)),
    "America/New_York": ("2027-03-14", "2026-11-01", timedelta(hours=1)),
    "Australia/Lord_Howe": ("2026-10-04", "2027-04-04", timedelta(minutes=30)),
    "America/Santiago": ("2026-09-06", "2027-04-04", timedelta(hours=1)),
}


@given(
    zone=st.sampled_from(sorted(CHANGES_OF_CLOCKS)),
    shorter=st.booleans(),
    start=st.integers(18 * 60, 24 * 60 - 1),
    end=st.integers(4 * 60, 12 * 60),
)
def test_a_meeting_over_a_night_of_change_is_as_much_shorter_or_longer(zone: str, shorter: bool, start: int, end: int) -> None:
    """The clocks on the wall say the same as on any other night; how long it lasts is what changes."""
    short, long, by = CHANGES_OF_CLOCKS[zone]
    morning = date.fromisoformat(short if shorter else long)
    evening = (morning - timedelta(days=1)).isoformat()

    _, starts_at, ends_at = meeting(evening, wall(start), wall(end), zone)

    shown = timedelta(minutes=24 * 60 - start + end)
    assert ends_at - starts_at == (shown - by if shorter else shown + by)


@given(
    zone=st.sampled_from(["UTC", "Asia/Kolkata", "Asia/Kathmandu", "Africa/Nairobi", "America/Phoenix"]),
    day=st.dates(date(2020, 1, 1), date(2035, 1, 1)),
    start=st.integers(0, 24 * 60 - 1),
    end=st.integers(0, 24 * 60 - 1),
)
def test_where_clocks_are_never_changed_a_meeting_is_as_long_as_it_looks(zone: str, day: date, start: int, end: int) -> None:
    assume(start != end)

    _, starts_at, ends_at = meeting(day.isoformat(), wall(start), wall(end), zone)

    assert ends_at - starts_at == timedelta(minutes=(end - start) % (24 * 60))


def wall(minutes: int) -> str:
    """A time on the wall, so many minutes after midnight."""
    return f"{minutes // 60:02}:{minutes % 60:02}"


def test_every_time_zone_of_a_campus_is_known() -> None:
    assert [zone_fault(name) for name in ("UTC", "Europe/Berlin", "Asia/Kolkata", "America/Argentina/Ushuaia")] == [None] * 4
