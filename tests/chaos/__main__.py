"""`make chaos`: prints the seed first, then what goes wrong as it goes wrong, then the counts; 1 when the promise was broken.

CHAOS_SEED repeats the faults of a run (not its races), CHAOS_SECONDS says how long faults come.
"""

import logging
import math
import os
import shutil
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar

from tests.chaos.run import Plan, longest_waits, run

DEFAULT_SECONDS = 180.0
N = TypeVar("N", int, float)


def number(name: str, kind: type[N], default: N) -> N:
    """Read one from the environment; end with one line where it is none."""
    text = os.environ.get(name) or str(default)
    try:
        value = kind(text)
    except ValueError:
        value = kind(-1)
    if not 0 <= value < math.inf:
        sys.exit(f"{name} must be a number from 0 on, not {text!r}")
    return value


def main() -> int:
    """Run as the environment says."""
    seed = number("CHAOS_SEED", int, int.from_bytes(os.urandom(3)))
    seconds = number("CHAOS_SECONDS", float, DEFAULT_SECONDS)
    print(f"CHAOS_SEED={seed} CHAOS_SECONDS={seconds:g}", flush=True)
    # A connection that is refused is what this is about.
    for name in ("aiormq", "engineio.client", "socketio.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    folder = Path(mkdtemp(prefix="rollcall-chaos-"))
    report = run(Plan(seed, seconds), folder, lambda line: print(line, flush=True))
    print("\n".join(report.lines()))
    for sent in longest_waits(list(report.evidence.journal)):
        print(f"waited {(sent.answered_at or math.inf) - sent.sent_at:.1f} s: {sent}, again for {dict(sent.why_again)}")
    if report.clean:
        shutil.rmtree(folder)
        print("Nothing answered was lost.")
        return 0
    print(f"The promise was broken. Logs are in {folder}.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
