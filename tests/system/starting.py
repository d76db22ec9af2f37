"""Starts a module many times: `python -m tests.system.starting MODULE FOLDER`, environments as JSON in, how each ended out.

Each start is a process of its own. They are forked off one that has loaded the code: loading is what a start costs most of.
"""

import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared import process

AT_ONCE = 4
"""Most only wait, for as long as five seconds; and their seconds are measured."""

KILLED_SECONDS = 30
"""One that does not end by itself is ended, and says so by its status."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    out: str
    err: str
    seconds: float


Main = Callable[[], Coroutine[Any, Any, None]]


def begin(main: Main, environment: Mapping[str, str], out: Path, err: Path) -> int:
    """Run a module's `main` in a process of its own, as the module would, and return its number."""
    if pid := os.fork():
        return pid
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    signal.alarm(KILLED_SECONDS)
    os.environ.clear()
    os.environ.update(environment)
    status = 70  # "internal software error"
    try:
        status = process.run(main)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        # Not by `sys.exit`: taking apart what was loaded costs nearly as much as loading it.
        os._exit(status)


def run(main: Main, environments: list[dict[str, str]], folder: Path) -> list[Ended]:
    """Run it in each of these environments, `AT_ONCE` at a time; what they print lies in the folder."""
    ended: dict[int, Ended] = {}
    running: dict[int, tuple[int, float]] = {}
    waiting = list(enumerate(environments))
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            number, environment = waiting.pop()
            pid = begin(main, environment, folder / f"{number}.out", folder / f"{number}.err")
            running[pid] = number, time.monotonic()
        pid, status = os.wait()
        number, begun = running.pop(pid)
        out, err = ((folder / f"{number}.{name}").read_text() for name in ("out", "err"))
        ended[number] = Ended(os.waitstatus_to_exitcode(status), out, err, time.monotonic() - begun)
    return [ended[number] for number in range(len(environments))]


if __name__ == "__main__":
    module = importlib.import_module(f"{sys.argv[1]}.__main__")
    gc.freeze()
    print(json.dumps([asdict(each) for each in run(module.main, json.load(sys.stdin), Path(sys.argv[2]))]))
