"""How much a run does, on what: handed to every scenario."""

import math
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from bench.cast import Cast
from bench.load.process import LoadGenerator
from bench.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large everything is. A lecture is a session that all its students join."""

    rounds: int = 6
    students: int = 500
    lectures: int = 60
    fewer_lectures: int = 20
    """Where nothing is said of the most joins that can be had."""

    fewest_lectures: int = 10
    """Where few joins are in flight, and a full round would take too long."""

    burst: int = 1000
    burst_seconds: float = 1.0
    quiet: int = 200
    room: int = 5000
    marks: int = 8
    crowd: int = 10_000
    smaller_crowd: int = 4000
    """When the other crowd has been measured, and this one differs in one thing; 0 leaves it out."""

    width: tuple[int, ...] = (2, 4, 8)
    quiet_seconds: float = 2.0
    gone_seconds: tuple[float, float] = (2.0, 6.5)
    """When, after a round, Rollcall may be telling staff of those who have gone: 5 s after they have, or what a round takes
    sooner."""

    settle_seconds: float = 1.0
    """What processes have to do still when something has begun or ended is not counted: they are left alone so long."""

    filled: tuple[int, ...] = (100, 10_000, 1_000_000)
    """So many records are there already."""

    in_flight: tuple[int, ...] = (2000, 500, 20)


SMALL = Sizes(
    rounds=1,
    students=20,
    lectures=3,
    fewer_lectures=2,
    fewest_lectures=2,
    burst=20,
    burst_seconds=0.2,
    quiet=10,
    room=50,
    marks=2,
    crowd=50,
    smaller_crowd=0,
    width=(2, 3),
    quiet_seconds=0.1,
    gone_seconds=(0.0, 0.0),
    settle_seconds=0.1,
    filled=(100,),
    in_flight=(20,),
)
"""Enough to see that figures come out."""


@dataclass(frozen=True)
class Run:
    """The servers, who is measured on them, the load generator, and what is wanted."""

    stage: Stage
    cast: Cast
    load: LoadGenerator
    sizes: Sizes
    only: Collection[str] = ()
    """The systems that are measured; all when empty."""

    seconds: float = math.inf
    """What a scenario may take: it plays fewer rounds when all of them would take longer."""

    def rounds(self) -> Iterator[int]:
        """Count a scenario's rounds: as many as fit into its time, and one at least."""
        began = last = time.monotonic()
        for number in range(self.sizes.rounds):
            now = time.monotonic()
            if number and (now - began) + (now - last) > self.seconds:
                print(f"only {number} of {self.sizes.rounds} rounds: this machine is slow, or busy", flush=True)
                return
            last = now
            yield number

    def wants(self, system: str) -> bool:
        """Whether a system is measured."""
        return not self.only or system in self.only


def allowances(planned: Mapping[str, float], seconds: float) -> Iterator[tuple[str, float]]:
    """Say of each scenario how long it may take, when its turn comes: until those to come have just what they need left.

    `planned` says how long each takes where nothing is slow, `seconds` how long all may take together.
    """
    began, to_come = time.monotonic(), sum(planned.values())
    for name, mine in planned.items():
        to_come -= mine
        yield name, seconds - (time.monotonic() - began) - to_come
