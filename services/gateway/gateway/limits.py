"""How often somebody may ask: leaky buckets, by whom. Pure: the time is passed in, in seconds of one steady clock.

A request fills a bucket by one; it leaks at a steady rate, and what would make it overflow is refused. What several
gateways count apart, they add up elsewhere (`usage`): so each bucket also knows what has not been told yet.
"""

import math
from dataclasses import dataclass

from shared.errors import Refused


@dataclass(frozen=True, slots=True)
class Limit:
    """So many at once, and so many a second for ever."""

    burst: int
    per_second: float


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float
    unsaid: int = 0


class Buckets:
    """A bucket for each name that has asked lately, all under one limit."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self._buckets: dict[str, _Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: str, now: float) -> None:
        """Count one request; raise Refused, `rate_limited`, when it is one too many. Refused ones are not counted."""
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(0.0, now)
        left = bucket.level - (now - bucket.at) * self.limit.per_second
        level = left + 1 if left > 0 else 1.0
        if level > self.limit.burst:
            excess = level - self.limit.burst
            raise Refused("rate_limited", retry_after_ms=math.ceil(1000 * excess / self.limit.per_second))
        bucket.level, bucket.at = level, now
        bucket.unsaid += 1

    def say(self, at_least: int) -> dict[str, int]:
        """List, as said now, how many each name has been let through since the last time; not those who asked less."""
        said = {name: bucket.unsaid for name, bucket in self._buckets.items() if bucket.unsaid >= at_least}
        for name in said:
            self._buckets[name].unsaid = 0
        return said

    def learn(self, name: str, level: float, now: float) -> None:
        """Take over a level that others have counted, too; what has been let through since it was asked for comes on top."""
        bucket = self._buckets.setdefault(name, _Bucket(0.0, now))
        bucket.level, bucket.at = level + bucket.unsaid, now

    def forget_idle(self, now: float) -> None:
        """Forget those whose bucket is empty again."""
        rate = self.limit.per_second
        for name in [name for name, bucket in self._buckets.items() if bucket.level <= (now - bucket.at) * rate]:
            del self._buckets[name]
