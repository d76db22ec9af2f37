"""One round of joins: everybody comes in, the teachers start, the students join, everybody goes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.meter import Meter, Pids
from bench.plan import Run, Sizes
from bench.rows import Row
from bench.system import System, students, teachers


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Every student joins every lecture: so many in flight, or all sent evenly within a time; see `Generator.join`."""

    students: int
    lectures: int
    in_flight: int = 0
    within_seconds: float = 0.0
    spread: bool = False


def usual(sizes: Sizes) -> Workload:
    """The load on which systems are compared when it is not the load that differs."""
    return Workload(students=sizes.students, lectures=sizes.fewer_lectures, in_flight=max(sizes.in_flight))


def play(run: Run, system: System, workload: Workload, *, urls: Sequence[str] = (), staffed: bool = True) -> dict[str, float]:
    """Play one round; return its figures.

    Everybody connects to the system's URLs, or to these of them. CPU time is counted from the first join until staff had
    heard of the last.
    """
    ids = system.schedule(workload.lectures, workload.students)
    load, urls = run.load, urls or system.urls
    staff = "staff" if staffed else None
    try:
        if staff:
            load.come_in(staff, urls, teachers(workload.lectures), "teacher")
            load.start(staff, ids)
        load.come_in("students", urls, students(workload.students), "student")
        load.prepare("students", staff, ids, spread=workload.spread)
        meter = Meter(groups(run, system))
        heard_seconds = load.join(in_flight=workload.in_flight, within_seconds=workload.within_seconds)
        used = meter.used()
        joins = load.joins()
    finally:
        load.leave("students", "staff")
    return {
        "joins/s": joins.joins / joins.seconds,
        "p50 ms": 1e3 * joins.p50,
        "p99 ms": 1e3 * joins.p99,
        "longest ms": 1e3 * joins.longest,
        "last answer ms": 1e3 * joins.seconds,
        "staff knows ms": 1e3 * heard_seconds,
        "sent again": joins.again,
        **{f"{name} µs": 1e6 * seconds / joins.joins for name, seconds in used.items()},
        **{f"{name} heard": count / joins.joins for name, count in joins.heard.items()},
    }


def in_turns(run: Run, scenario: str, case: str, systems: Sequence[System], workload: Workload) -> Iterator[Row]:
    """Play the run's rounds, each system in its turn."""
    for _ in run.rounds():
        for system in systems:
            yield Row(scenario, case, system.name, play(run, system, workload))


def groups(run: Run, system: System) -> dict[str, Pids]:
    """Everybody whose CPU time is counted."""
    return {**system.groups(), **run.stage.groups(), "load": lambda: [run.load.pid]}
