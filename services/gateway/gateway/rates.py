"""How often somebody may do something. Pure: the time is passed in, in seconds of any clock that never goes back."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

_REMEMBERED: Final = 1000


@dataclass(slots=True)
class Bucket:
    """A bucket of tokens, full at first, that is refilled all the time. What finds it empty comes too often."""

    size: int
    refill_per_second: float
    level: float = math.inf
    at: float = 0.0

    def take(self, now: float) -> bool:
        """Take a token; False when there is none."""
        level = self.level + (now - self.at) * self.refill_per_second
        if level > self.size:
            level = self.size
        enough = level >= 1
        self.level = level - enough
        self.at = now
        return enough

    def wait_ms(self) -> int:
        """Tell how long after the last `take` the next token comes, in milliseconds."""
        return max(1, math.ceil((1 - self.level) * 1000 / self.refill_per_second))


class Complaints:
    """Who may be complained about in the log: a few lines for each, and what was left unsaid is counted."""

    def __init__(self, size: int, refill_per_second: float) -> None:
        self._size = size
        self._refill_per_second = refill_per_second
        self._buckets: dict[Hashable, Bucket] = {}
        self._unsaid: dict[Hashable, int] = {}

    def about(self, who: Hashable, now: float) -> int | None:
        """Say that there is one more: None when it is to be left unsaid, else how many were since the last that was not.

        Somebody who is forgotten, because a thousand others came after, starts anew.
        """
        bucket = self._buckets.pop(who, None) or Bucket(self._size, self._refill_per_second)
        self._buckets[who] = bucket
        if len(self._buckets) > _REMEMBERED:
            forgotten = next(iter(self._buckets))
            del self._buckets[forgotten]
            self._unsaid.pop(forgotten, None)
        if bucket.take(now):
            return self._unsaid.pop(who, 0)
        self._unsaid[who] = self._unsaid.get(who, 0) + 1
        return None
