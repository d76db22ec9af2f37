"""`make bench`: prints each round as it is measured. BENCH=joins,quiet runs some scenarios only.

`python -m bench joins --in-flight 2000 --only rollcall --rounds 100` plays rounds for a profiler to look at.
"""

import argparse
import os
import resource
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType

from bench import page, plot, reach, results
from bench.cast import Cast
from bench.load.generator import Failed
from bench.load.process import a_load_generator
from bench.plan import SMALL, Run, Sizes
from bench.rows import Row
from bench.scenarios.table import SCENARIOS
from bench.stage import a_stage
from bench.theirs import Missing

DOCS = Path(__file__).parents[1] / "docs"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Rollcall and its peers.")
    chosen = [name for name in os.environ.get("BENCH", "").split(",") if name]
    parser.add_argument("scenarios", nargs="*", default=chosen or list(SCENARIOS), help=f"of: {', '.join(SCENARIOS)}; all")
    parser.add_argument("--only", action="append", default=[], help="measure this system only: rollcall, monolith, …")
    parser.add_argument("--rounds", type=int, help="how many rounds of each case")
    parser.add_argument("--in-flight", type=int, action="append", help="so many joins in flight")
    parser.add_argument("--out", type=Path, help="where to write the results; docs, when nothing is left out")
    parser.add_argument("--small", action="store_true", help="tiny sizes: only to see that figures come out")
    asked = parser.parse_args()
    if unknown := set(asked.scenarios) - SCENARIOS.keys():
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    return asked


def sizes(asked: argparse.Namespace) -> Sizes:
    """Turn the command line into sizes."""
    chosen = SMALL if asked.small else Sizes()
    if asked.rounds:
        chosen = replace(chosen, rounds=asked.rounds)
    if asked.in_flight:
        chosen = replace(chosen, in_flight=tuple(asked.in_flight))
    return chosen


def main() -> int:
    """Run what was asked for, and write it down when it is comparable: all systems, every round, full size."""
    asked = arguments()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, end)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    rows, failed = measured(asked)
    whole = not (asked.only or asked.rounds or asked.in_flight or asked.small)
    if (folder := asked.out or (DOCS if whole else None)) and rows:
        write(folder, rows)
    for why in failed:
        print(f"FAILED: {why}")
    return 1 if failed else 0


def measured(asked: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Play the scenarios one after the other; return the rows of those that came to their end, and why others did not."""
    began, rows, failed = time.monotonic(), list[Row](), list[str]()
    with a_stage() as stage, a_load_generator() as load, ExitStack() as stack:
        run = Run(stage, Cast(stage, stack), load, sizes(asked), asked.only)
        for name in asked.scenarios:
            mine = []
            try:
                for row in SCENARIOS[name](run):
                    mine.append(row)
                    print(f"{time.monotonic() - began:6.1f} s  {row.line()}", flush=True)
            except (Failed, Missing) as why:
                failed.append(f"{name}: {why}")
                print(failed[-1], flush=True)
            else:
                rows += mine
        print(f"{time.monotonic() - began:6.1f} s  all is measured", flush=True)
    return rows, failed


def write(folder: Path, rows: list[Row]) -> None:
    """Put the rows with those of other scenarios, and make page and picture of all."""
    raw = folder / "performance.json"
    found = results.merged(results.read(raw), rows, SCENARIOS)
    results.write(raw, found)
    (folder / "performance.svg").write_text(plot.drawn(found))
    if (page_file := folder / "performance.md").exists():
        page.put(page_file, found)
    for claim in reach.claims(found):
        print(f"{'yes' if claim.kept else 'NO ':3}  {claim.text}: {claim.found}")


def end(number: int, frame: FrameType | None) -> None:
    """End, so that servers are stopped."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
