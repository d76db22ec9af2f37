"""`make bench`: prints each round as it is measured. BENCH=joins,quiet runs some scenarios only.

`python -m bench joins --in-flight 2000 --only rollcall --rounds 100` plays rounds for a profiler to look at.
"""

import argparse
import os
import resource
import signal
import sys
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from bench import page, plot, reach, results
from bench.cast import Cast
from bench.load.generator import Failed
from bench.load.process import a_load_generator
from bench.plan import SMALL, Run, Sizes, allowances
from bench.rows import Row
from bench.scenarios.table import SCENARIOS
from bench.stage import a_stage
from bench.theirs import Missing

DOCS = Path(__file__).parents[1] / "docs"
SECONDS = 560.0
"""What all scenarios may take together: with the installing before and the stopping after, a run is to take ten minutes."""


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
    found = Outcome()
    try:
        measure(asked, found)
    except Exception as why:
        # Of starting or stopping what is measured: what was found stays.
        found.fail("the bench", why)
    whole = not (asked.only or asked.rounds or asked.in_flight or asked.small)
    if (folder := asked.out or (DOCS if whole else None)) and found.rows:
        write(folder, found.rows)
    for line in found.failed:
        print(f"FAILED: {line}")
    return 1 if found.failed else 0


@dataclass
class Outcome:
    """The rows of the scenarios that came to their end, and why others did not."""

    rows: list[Row] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def fail(self, what: str, why: Exception) -> None:
        """Note a failure, and say where it was unless it speaks for itself."""
        if not isinstance(why, (Failed, Missing)):
            traceback.print_exception(why)
        self.failed.append(f"{what}: {type(why).__name__}: {why}")
        print(self.failed[-1], flush=True)


def measure(asked: argparse.Namespace, found: Outcome) -> None:
    """Play the scenarios one after the other; one that fails takes nothing from the others."""
    began = time.monotonic()
    with a_stage() as stage, a_load_generator() as load, ExitStack() as stack:
        run = Run(stage, Cast(stage, stack), load, sizes(asked), asked.only)
        planned = {name: SCENARIOS[name].seconds for name in asked.scenarios}
        for name, seconds in allowances(planned, SECONDS - (time.monotonic() - began)):
            begins, mine = time.monotonic(), list[Row]()
            try:
                for row in SCENARIOS[name].play(run if asked.rounds else replace(run, seconds=seconds)):
                    mine.append(row)
                    print(f"{time.monotonic() - began:6.1f} s  {row.line()}", flush=True)
                found.rows += mine
            except Exception as why:
                found.fail(name, why)
                run.cast.rest()
            took = time.monotonic() - begins
            print(
                f"{time.monotonic() - began:6.1f} s  {name} took {took:.1f} s, and might have taken {seconds:.1f} s", flush=True
            )


def write(folder: Path, rows: list[Row]) -> None:
    """Put the rows with those of other scenarios, and make page and picture of all."""
    folder.mkdir(parents=True, exist_ok=True)
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
