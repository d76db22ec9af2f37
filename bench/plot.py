"""The joins per second as a picture: a bar for the median of each case and system, a dot for every round. SVG, by hand."""

from collections.abc import Iterator
from html import escape
from itertools import groupby
from statistics import median
from typing import NamedTuple

from bench.page import TABLES
from bench.results import Results

SCENARIOS = ("joins", "two", "spread", "width", "services", "growth")
COLOURS = {"rollcall": "#2563a8", "monolith": "#c26a2d", "python-socketio": "#8a8f98"}
SAYS = "Joins per second, durable but for python-socketio alone: a bar is the median, a dot a round; longer is better"
WIDTH, LEFT, RIGHT, ROW, GAP, HEAD, TITLE, KEY = 860, 215, 90, 16, 8, 66, 26, 150


class Bar(NamedTuple):
    """One case of one system."""

    scenario: str
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
                    yield Bar(scenario, case, system, rounds)


def drawn(results: Results) -> str:
    """Draw it; the picture scales with the largest round."""
    chosen = list(bars(results))
    scale = (WIDTH - LEFT - RIGHT) / max((max(bar.rounds) for bar in chosen), default=1.0)
    top, parts = HEAD, list[str]()
    for scenario, mine in groupby(chosen, key=lambda bar: bar.scenario):
        parts.append(f'<text x="10" y="{top + 12}" font-weight="bold">{escape(TABLES[scenario].title)}</text>')
        top += TITLE
        for case, group in groupby(mine, key=lambda bar: bar.case):
            together = list(group)
            middle = top + ROW * len(together) / 2 + 4
            parts.append(f'<text x="{LEFT - 8}" y="{middle}" text-anchor="end">{escape(case)}</text>')
            for bar in together:
                parts.append(one(bar, top, scale))
                top += ROW
            top += GAP
        top += GAP
    keys = "".join(
        f'<rect x="{LEFT + KEY * n}" y="34" width="12" height="12" fill="{colour}"/>'
        f'<text x="{LEFT + KEY * n + 18}" y="44">{system}</text>'
        for n, (system, colour) in enumerate(COLOURS.items())
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" font-family="sans-serif" font-size="12">'
    paper = f'<title>{SAYS}</title><rect width="{WIDTH}" height="{top}" fill="white"/><text x="10" y="20">{SAYS}</text>'
    return "\n".join([head, paper, keys, *parts, "</svg>", ""])


def one(bar: Bar, top: float, scale: float) -> str:
    """Draw a bar, its rounds and its figure."""
    middle, colour = median(bar.rounds), COLOURS[bar.system]
    dots = "".join(
        f'<circle cx="{LEFT + scale * each:.1f}" cy="{top + ROW / 2:.1f}" r="2.5" fill="#222" stroke="white"/>'
        for each in bar.rounds
    )
    end = LEFT + scale * max(bar.rounds) + 8
    return (
        f'<rect x="{LEFT}" y="{top + 2:.1f}" width="{scale * middle:.1f}" height="{ROW - 4}" fill="{colour}"/>{dots}'
        f'<text x="{end:.1f}" y="{top + ROW - 4:.1f}">{middle:,.0f}</text>'
    )
