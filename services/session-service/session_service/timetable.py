"""When a class meeting starts and ends: a day and two times on a wall clock, turned into moments. Pure.

Around a change of clocks times are read as RFC 5545 does: one that comes twice is the first of the two, and
one that is skipped is read by the offset from before, so that 02:30 becomes 03:30.
"""

import re
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from shared.errors import Refused

Fault = dict[str, str]

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_TIME = re.compile(r"\d{2}:\d{2}", re.ASCII)
_YEARS = range(1970, 9999)
# Names that mean something else on every machine, or nothing.
_LOCAL_NAMES = frozenset({"localtime", "posixrules", "Factory"})


def meeting(day: str, start_time: str, end_time: str, time_zone: str) -> tuple[date, datetime, datetime]:
    """Read a day (`YYYY-MM-DD`) and two times (`HH:MM`) as that day and the start and the later end in UTC.

    An end before the start is on the next day. Raise Refused `invalid` with all that is wrong.
    """
    on, starts, ends = _read_date(day), _read_time(start_time), _read_time(end_time)
    faults = [fault] if (fault := zone_fault(time_zone)) else []
    if on is None:
        faults.append({"field": "date", "message": "Must be a day like 2026-11-24"})
    if starts is None:
        faults.append({"field": "start_time", "message": "Must be a time like 09:05"})
    if ends is None:
        faults.append({"field": "end_time", "message": "Must be a time like 10:35"})
    elif ends == starts:
        faults.append({"field": "end_time", "message": "Must not be the start_time"})
    if faults or on is None or starts is None or ends is None:
        raise Refused("invalid", details=faults)
    zone = ZoneInfo(time_zone)
    starts_at = datetime.combine(on, starts, zone).astimezone(UTC)
    ends_at = datetime.combine(on + timedelta(days=ends < starts), ends, zone).astimezone(UTC)
    if ends_at <= starts_at:
        skipped = {"field": "start_time", "message": "The clocks skip this time on that day"}
        raise Refused("invalid", details=[skipped])
    return on, starts_at, ends_at


def zone_fault(name: str) -> Fault | None:
    """Say what is wrong with the name of a time zone, None when nothing is."""
    if name in _zones():
        return None
    return {"field": "time_zone", "message": "Must be a time zone like Europe/Berlin"}


@cache
def _zones() -> frozenset[str]:
    # ZoneInfo alone would take folders and copies that only one machine has, such as `right/Europe/Berlin`.
    return frozenset(available_timezones()) - _LOCAL_NAMES


def _read_date(text: str) -> date | None:
    try:
        on = date.fromisoformat(text) if _DATE.fullmatch(text) else None
    except ValueError:
        return None
    return on if on and on.year in _YEARS else None


def _read_time(text: str) -> time | None:
    try:
        return time.fromisoformat(text) if _TIME.fullmatch(text) else None
    except ValueError:
        return None
