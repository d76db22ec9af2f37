"""What the load generator measures, as it is handed to whoever asked for it."""

from collections.abc import Sequence

import msgspec


class Joins(msgspec.Struct, frozen=True, kw_only=True):
    """How a set of joins went. Times are in seconds."""

    joins: int
    seconds: float
    """From the first that was sent to the last answer."""

    p50: float
    p99: float
    longest: float
    again: int
    """How many were sent again because the system had not begun them in time."""

    heard: dict[str, int]
    """How many of each event all sockets heard meanwhile."""


def quantile(ordered: Sequence[float], share: float) -> float:
    """Pick the value below which that share of them lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
