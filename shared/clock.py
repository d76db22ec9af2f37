"""The time: one source of "now", one way to write a time and one to read it back."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Tell the time, aware, in UTC, cut to the milliseconds that every printed time carries."""
    return _EPOCH + timedelta(milliseconds=time.time_ns() // 1_000_000)


def rfc3339(at: datetime) -> str:
    """Write a time as everyone outside sees it: RFC 3339, UTC, milliseconds (`2026-11-24T09:00:00.000Z`)."""
    return (at if at.tzinfo is UTC else at.astimezone(UTC)).isoformat(timespec="milliseconds")[:-6] + "Z"


def rfc3339_or_none(at: datetime | None) -> str | None:
    """Write a time that may be missing."""
    return None if at is None else rfc3339(at)


def parse_rfc3339(text: str) -> datetime:
    """Read a time that `rfc3339` wrote; raise ValueError for anything without an offset."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(f"a time without an offset: {text}")
    return at.astimezone(UTC)
