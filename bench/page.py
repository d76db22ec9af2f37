"""The results as tables in Markdown, put between two marks of docs/performance.md; the prose around them is written by hand."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.reach import OURS, PEER, claims, number
from bench.results import Found, Results

BEGIN, END = "<!-- results: written by `make bench` -->", "<!-- the end of the results -->"

CPU = tuple(
    f"{name} µs" for name in ("gateway", "attendance", "session", "node", "echo", "postgres", "rabbitmq", "valkey", "load")
)


FIRST = "the first"


class Table(NamedTuple):
    """How a scenario is shown: its title, its figures, and against what the first of these is held."""

    title: str
    figures: Sequence[str]
    against: str = ""
    """The peer in the same case, or the first case, or nothing."""


TABLES = {
    "joins": Table("Joins, one gateway and one of each service", ("joins/s", "p50 ms", "p99 ms", "sent again", *CPU), "P1"),
    "two": Table("Joins, two gateways against two monoliths", ("joins/s", "p50 ms", "p99 ms", "sent again", *CPU), "P2"),
    "burst": Table("A burst", ("last answer ms", "staff knows ms", "p50 ms", "p99 ms", *CPU), "P1"),
    "quiet": Table("Quiet", ("p50 ms", "p99 ms", *CPU), "P1"),
    "spread": Table("Many rooms at once", ("joins/s", "p99 ms", "sent again", "attendanceProgress heard", *CPU), "P1"),
    "width": Table(
        "Width",
        (
            "joins/s",
            "p99 ms",
            "gateway µs",
            "busy gateway from Redis bytes/s",
            "idle gateway from Redis bytes/s",
            "idle gateway channels",
        ),
        FIRST,
    ),
    "services": Table("Two attendance-services", ("joins/s", "p50 ms", "p99 ms", *CPU), FIRST),
    "fanout": Table("Fan-out", ("µs a recipient",), "P1"),
    "memory": Table("Sockets", ("KB a socket", "µs a connect", "connects/s", "MB idle"), "P1"),
    "idle": Table("Idle processes", ("MB idle", "start-up s")),
    "growth": Table("Growth", ("joins/s", "p99 ms", "attendance µs", "postgres µs"), FIRST),
}


def put(page: Path, results: Results) -> None:
    """Write the results into the page, in the place of the last ones."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text("\n".join([before + BEGIN, "", *lines(results), END + after]))


def lines(results: Results) -> Iterator[str]:
    """Say what was found, first whether it is enough."""
    yield from ("### Reached?", "", "| to reach | found | |", "| --- | --- | --- |")
    for claim in claims(results):
        yield f"| {claim.text} | {claim.found} | {'yes' if claim.kept else '**no**'} |"
    yield ""
    for name, found in results.items():
        yield from (f"### {TABLES[name].title}", "")
        yield from table(found, TABLES[name])
        yield from ("", f"Measured {found.at}, medians over the rounds.", "")
    about = {text: None for found in results.values() for text in [described(found.machine)]}
    yield from (f"Measured on: {text}" for text in about)


def table(found: Found, shown: Table) -> Iterator[str]:
    """A row for each case and system."""
    present = {name for row in found.rows for name in row.figures}
    names = [name for name in shown.figures if name in present]
    ratio = [f"x {shown.against}"] if shown.against else []
    heads = ["case", "system", "rounds", names[0], *ratio, *names[1:]]
    yield f"| {' | '.join(heads)} |"
    yield f"| {' | '.join(['---'] * 2 + ['---:'] * (len(heads) - 2))} |"
    for case in found.cases():
        for system in found.systems():
            if figures := found.figures(case, system):
                rounds = sum((row.case, row.system) == (case, system) for row in found.rows)
                other = (found.cases()[0], OURS) if shown.against == FIRST else (case, PEER)
                cells = [number(figures.get(name, math.nan)) for name in names]
                times = [number(found.ratio(names[0], (case, system), other))] if shown.against else []
                yield f"| {' | '.join([case, system, str(rounds), cells[0], *times, *cells[1:]])} |"


def described(machine: dict[str, str]) -> str:
    """A machine in a line."""
    return f"{machine['processor']}, " + ", ".join(f"{name} {value}" for name, value in machine.items() if name != "processor")
