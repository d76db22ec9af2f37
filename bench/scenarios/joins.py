"""Durable joins per second: every student joins every lecture, one lecture after the other, with so many joins in flight."""

import time
from collections.abc import Iterator
from dataclasses import replace

from bench.ours import Ours
from bench.plan import Run, Sizes
from bench.round import Workload, in_turns, play, usual
from bench.rows import Row
from bench.system import System
from bench.theirs import Echo, Monolith

FEW_IN_FLIGHT = 100
"""Below that a join takes so much longer that a round has the fewest lectures."""


def joins(run: Run) -> Iterator[Row]:
    """One gateway and one of each service, against P1; P3 shows, with the most in flight, where the library's ceiling is."""
    aftermath = Aftermath(run.sizes.gone_seconds)
    for _ in run.rounds():
        for in_flight in run.sizes.in_flight:
            case = f"{in_flight:,} in flight"
            workload = Workload(students=run.sizes.students, lectures=lectures(run.sizes, in_flight), in_flight=in_flight)
            for system in rivals(run):
                aftermath.over()
                yield Row("joins", case, system.name, play(run, system, workload))
                if system.name == Ours.name:
                    aftermath.begins()
            if in_flight == max(run.sizes.in_flight) and run.wants(Echo.name):
                aftermath.over()
                yield Row("joins", case, Echo.name, play(run, run.cast.echo, workload, staffed=False))


class Aftermath:
    """What Rollcall does when a round is over: its students have gone, which staff are told after some seconds.

    It is nobody's: no round that would meet it begins before it is over.
    """

    def __init__(self, between: tuple[float, float]) -> None:
        self._first, self._last = between
        self._began = -self._last

    def begins(self) -> None:
        """Note that a round of Rollcall's is over."""
        self._began = time.monotonic()

    def over(self) -> None:
        """Wait, if what begins now would meet it."""
        since = time.monotonic() - self._began
        if self._first < since < self._last:
            time.sleep(self._last - since)


def lectures(sizes: Sizes, in_flight: int) -> int:
    """How many lectures are joined in a round: where few joins are in flight each takes so much longer."""
    return sizes.fewest_lectures if in_flight < FEW_IN_FLIGHT else sizes.lectures


def two(run: Run) -> Iterator[Row]:
    """Two gateways against P2; every lecture's students sit at both."""
    systems = [run.cast.ours(gateways=2)] if run.wants(Ours.name) else []
    peers = [run.cast.pair] if run.wants(Monolith.name) else []
    workload = replace(usual(run.sizes), lectures=run.sizes.lectures)
    yield from in_turns(run, "two", "two gateways", [*systems, *peers], workload)


def spread(run: Run) -> Iterator[Row]:
    """All lectures fill at once, and every student is in the rooms of all of them: the most statistics to be told."""
    case = f"{run.sizes.fewer_lectures} lectures at once"
    yield from in_turns(run, "spread", case, rivals(run), replace(usual(run.sizes), spread=True))


def burst(run: Run) -> Iterator[Row]:
    """One lecture, whose students all join within one second: at once, as when the teacher says so, and spread over it."""
    students, seconds = run.sizes.burst, run.sizes.burst_seconds
    at_once = Workload(students=students, lectures=1, in_flight=students)
    yield from in_turns(run, "burst", f"{students:,} at once", rivals(run), at_once)
    evenly = Workload(students=students, lectures=1, within_seconds=seconds)
    yield from in_turns(run, "burst", f"{students:,} spread over {seconds:g} s", rivals(run), evenly)


def quiet(run: Run) -> Iterator[Row]:
    """One join at a time."""
    workload = Workload(students=run.sizes.quiet, lectures=1, in_flight=1)
    yield from in_turns(run, "quiet", "one at a time", rivals(run), workload)


def rivals(run: Run) -> list[System]:
    """Rollcall with one process of each kind, and P1, as far as they are wanted."""
    systems: list[System] = []
    if run.wants(Ours.name):
        systems.append(run.cast.ours())
    if run.wants(Monolith.name):
        systems.append(run.cast.monolith)
    return systems
