"""The time: one source of "now", one way to write a time and one to read it back."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_last = (0, _EPOCH)
"""The millisecond that was last told, and its time: many ask within one."""

Clock = Callable[[], datetime]

UNSEEN: Final = timedelta(seconds=5)
"""How long what was decided may not be seen yet: until its commit. Postgres ends transactions that are silent for longer."""


def utc_now() -> datetime:
    """Tell the time, aware, in UTC, cut to the milliseconds that every printed time carries."""
    global _last
    milliseconds = time.time_ns() // 1_000_000
    known, at = _last
    if milliseconds != known:
        at = _EPOCH + timedelta(milliseconds=milliseconds)
        _last = milliseconds, at
    return at


def rfc3339(at: datetime) -> str:
    """Write a time as everyone outside sees it: RFC 3339, UTC, milliseconds (`2026-11-24T09:00:00.000Z`)."""
    return _written(at if at.tzinfo is UTC else at.astimezone(UTC))


# A join is told with its time thrice, and many of a batch came in the same millisecond.
@lru_cache(maxsize=1024)
def _written(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")[:-6] + "Z"


def rfc3339_or_none(at: datetime | None) -> str | None:
    """Write a time that may be missing."""
    return None if at is None else rfc3339(at)


def parse_rfc3339(text: str) -> datetime:
    """Read a time that `rfc3339` wrote; raise ValueError for anything without an offset."""
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(f"a time without an offset: {text}")
    return at.astimezone(UTC)
