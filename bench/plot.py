"""The joins per second as a picture: a bar for the median of each case and system, a dot for every round. SVG, by hand."""

from collections.abc import Iterator
from html import escape
from itertools import groupby
from statistics import median
from typing import NamedTuple

from bench.results import Results

SCENARIOS = ("joins", "two", "spread", "width", "services", "growth")
COLOURS = {"rollcall": "#2563a8", "monolith": "#c26a2d", "python-socketio": "#8a8f98"}
WIDTH, LEFT, RIGHT, ROW, GAP = 860, 230, 90, 16, 12


class Bar(NamedTuple):
    """One case of one system."""

    case: str
    system: str
    rounds: list[float]


def bars(results: Results) -> Iterator[Bar]:
    """Pick what is drawn."""
    for scenario in SCENARIOS:
        if scenario not in results:
            continue
        found = results[scenario]
        for case in found.cases():
            for system in found.systems():
                if rounds := found.rounds(case, system, "joins/s"):
                    yield Bar(case, system, rounds)


def drawn(results: Results) -> str:
    """Draw it; the picture scales with the largest round."""
    groups = [list(group) for _, group in groupby(bars(results), key=lambda bar: bar.case)]
    most = max((max(bar.rounds) for group in groups for bar in group), default=1.0)
    top, parts = 40, list[str]()
    for group in groups:
        parts.append(
            f'<text x="{LEFT - 8}" y="{top + ROW * len(group) / 2 + 4}" text-anchor="end">{escape(group[0].case)}</text>'
        )
        for bar in group:
            parts.append(one(bar, top, (WIDTH - LEFT - RIGHT) / most))
            top += ROW
        top += GAP
    keys = "".join(
        f'<rect x="{LEFT + 150 * n}" y="10" width="12" height="12" fill="{colour}"/>'
        f'<text x="{LEFT + 150 * n + 18}" y="20">{system}</text>'
        for n, (system, colour) in enumerate(COLOURS.items())
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" font-family="sans-serif" font-size="12">'
    paper = f'<title>Durable joins per second</title><rect width="{WIDTH}" height="{top}" fill="white"/>'
    return "\n".join([head, paper, keys, *parts, "</svg>", ""])


def one(bar: Bar, top: float, scale: float) -> str:
    """Draw a bar, its rounds and its figure."""
    middle, colour = median(bar.rounds), COLOURS[bar.system]
    dots = "".join(
        f'<circle cx="{LEFT + scale * each:.1f}" cy="{top + ROW / 2:.1f}" r="2" fill="#222" fill-opacity="0.55"/>'
        for each in bar.rounds
    )
    end = LEFT + scale * max(bar.rounds) + 8
    return (
        f'<rect x="{LEFT}" y="{top + 2:.1f}" width="{scale * middle:.1f}" height="{ROW - 4}" fill="{colour}"/>{dots}'
        f'<text x="{end:.1f}" y="{top + ROW - 4:.1f}">{middle:,.0f}</text>'
    )
