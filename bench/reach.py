"""What Rollcall is to reach, held against what was found."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from bench.ours import Ours
from bench.results import Found, Results
from bench.theirs import Monolith

OURS, PEER = Ours.name, Monolith.name


class Claim(NamedTuple):
    """Something to be reached, the figure that was found, and whether that is enough."""

    text: str
    found: str
    kept: bool


def claims(results: Results) -> Iterator[Claim]:
    """Say of everything that was measured whether it was reached."""
    for scenario, judge in JUDGES.items():
        if scenario in results:
            yield from judge(results[scenario])


def at_least(text: str, figure: float, bound: float, unit: str = " x") -> Claim:
    """Claim that a figure is not below a bound."""
    return Claim(f"{text}: at least {bound:g}{unit}", f"{number(figure)}{unit}", figure >= bound)


def at_most(text: str, figure: float, bound: float, unit: str) -> Claim:
    """Claim that a figure is not above a bound."""
    return Claim(f"{text}: at most {number(bound)}{unit}", f"{number(figure)}{unit}", figure <= bound)


def number(figure: float) -> str:
    """Three digits that count; nothing where there is no figure."""
    if math.isnan(figure):
        return ""
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def joins(found: Found) -> Iterator[Claim]:
    """Joins per second against P1's, and how long the slowest wait."""
    for case in found.cases():
        bound = {"2,000 in flight": 4.0, "500 in flight": 3.0, "20 in flight": 0.8}.get(case)
        if bound is not None:
            yield at_least(f"joins/s against P1, {case}", found.ratio("joins/s", (case, OURS), (case, PEER)), bound)
        theirs = found.figures(case, PEER).get("p99 ms", math.nan)
        yield at_most(f"p99, {case}: P1's", found.figures(case, OURS).get("p99 ms", math.nan), theirs, " ms")


def two(found: Found) -> Iterator[Claim]:
    """Two gateways against P2."""
    for case in found.cases():
        yield at_least("joins/s against P2, two gateways", found.ratio("joins/s", (case, OURS), (case, PEER)), 4.0)


def burst(found: Found) -> Iterator[Claim]:
    """The last of a burst to be answered."""
    for case in found.cases():
        theirs = found.figures(case, PEER).get("last answer ms", math.nan)
        mine = found.figures(case, OURS).get("last answer ms", math.nan)
        yield at_most(f"last answer to {case}: P1's", mine, theirs, " ms")


def quiet(found: Found) -> Iterator[Claim]:
    """One at a time."""
    for case in found.cases():
        theirs = found.figures(case, PEER).get("p50 ms", math.nan)
        yield at_most(
            "median, one at a time: P1's and 3 ms", found.figures(case, OURS).get("p50 ms", math.nan), theirs + 3, " ms"
        )


def width(found: Found) -> Iterator[Claim]:
    """Gateways that host nobody cost nothing."""
    *_, nothing = cases = found.cases()
    first, last = cases[0], cases[-2]
    yield at_least(f"joins/s with {last} against {first}", found.ratio("joins/s", (last, OURS), (first, OURS)), 0.9)
    loaded, without, busy = found.figures(last, OURS), found.figures(nothing, OURS), "busy gateway from Redis bytes/s"
    for name in ("idle gateway channels", "idle gateway from Redis bytes/s"):
        # Of what a busy one hears not a thousandth: heartbeats do not fall alike into every second.
        slack = loaded.get(busy, 0.0) / 1000 if "bytes" in name else 0.0
        bound = without.get(name, math.nan) + slack
        yield at_most(f"{name}: as without load", loaded.get(name, math.nan), bound, "")


def services(found: Found) -> Iterator[Claim]:
    """Two attendance-services are not slower than one: where they cost alike, half of all runs find a little less than 1."""
    one, two = found.cases()
    yield at_least("joins/s with attendance-service x2 against x1", found.ratio("joins/s", (two, OURS), (one, OURS)), 1.0)


def fanout(found: Found) -> Iterator[Claim]:
    """CPU time for each recipient."""
    for case in found.cases():
        ratio = found.ratio("µs a recipient", (case, OURS), (case, PEER))
        yield at_most(f"CPU a recipient against P1, {case}", ratio, 0.5, " x")


def memory(found: Found) -> Iterator[Claim]:
    """What a quiet socket takes, and a connect."""
    for case in found.cases():
        mine = found.figures(case, OURS)
        yield at_most(f"a quiet websocket, {case}", mine.get("KB a socket", math.nan), 6.0, " KB")
        theirs = found.figures(case, PEER).get("µs a connect", math.nan)
        yield at_most(f"CPU a connect, {case}: P1's", mine.get("µs a connect", math.nan), theirs, " µs")


def idle(found: Found) -> Iterator[Claim]:
    """Processes that do nothing."""
    for case in found.cases():
        figures = found.figures(case, OURS)
        yield at_most(f"memory of an idle {case}", figures["MB idle"], 150.0, " MB")
        yield at_most(f"start-up of {case}", figures["start-up s"], 1.0, " s")


def growth(found: Found) -> Iterator[Claim]:
    """Joins per second do not depend on what is there."""
    first, *others = found.cases()
    for case in others:
        yield at_least(f"joins/s with {case} against {first}", found.ratio("joins/s", (case, OURS), (first, OURS)), 0.9)


JUDGES = {judge.__name__: judge for judge in (joins, two, burst, quiet, width, services, fanout, memory, idle, growth)}
