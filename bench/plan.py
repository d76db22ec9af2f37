"""How much a run does, on what: handed to every scenario."""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from bench.cast import Cast
from bench.load.process import LoadGenerator
from bench.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large everything is. A lecture is a session that all its students join."""

    rounds: int = 5
    case_seconds: float = 40.0
    """No round of a case begins that would end after this time, so that a run takes ten minutes on a slow machine too."""

    students: int = 500
    lectures: int = 60
    fewer_lectures: int = 20
    """Where a full round would take too long."""

    burst: int = 1000
    quiet: int = 200
    room: int = 5000
    marks: int = 8
    crowd: int = 10_000
    width: tuple[int, ...] = (2, 4, 8)
    quiet_seconds: float = 2.0
    filled: tuple[int, ...] = (100, 10_000, 1_000_000)
    """So many records are there already."""

    in_flight: tuple[int, ...] = (2000, 500, 20)


SMALL = Sizes(
    rounds=1,
    students=20,
    lectures=3,
    fewer_lectures=2,
    burst=20,
    quiet=10,
    room=50,
    marks=2,
    crowd=50,
    width=(2, 3),
    quiet_seconds=0.2,
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

    def rounds(self, *, share: float = 1.0) -> Iterator[int]:
        """Count the rounds of a case, as many as fit in its time; `share` says how much more of it than others it has."""
        began = time.monotonic()
        for number in range(self.sizes.rounds):
            took = time.monotonic() - began
            if number and took + took / number > share * self.sizes.case_seconds:
                print(f"only {number} of {self.sizes.rounds} rounds: this machine is slow, or busy", flush=True)
                return
            yield number

    def wants(self, system: str) -> bool:
        """Whether a system is measured."""
        return not self.only or system in self.only
