"""What a socket costs that is quiet, one that comes in, and one more that hears; and what processes cost that do nothing."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

from bench.meter import Meter, resident_bytes
from bench.ours import MODULES, Ours
from bench.plan import Run
from bench.rows import Row
from bench.scenarios.joins import rivals
from bench.system import System, students
from bench.theirs import Monolith, monolith

SERVING = {Ours.name: "gateway", Monolith.name: "node"}
"""The kind of process that clients connect to."""


def fanout(run: Run) -> Iterator[Row]:
    """One `attendanceProgress` after the other to a room of many: CPU time for each recipient."""
    sizes, load = run.sizes, run.load
    with ExitStack() as stack:
        lectures, systems = {}, rivals(run)
        for system in systems:
            [lecture] = system.schedule(1, sizes.room)
            lectures[system.name] = lecture
            stack.callback(load.leave, f"staff of {system.name}", f"students of {system.name}")
            load.come_in(f"staff of {system.name}", system.urls, ["t0"], "teacher")
            load.start(f"staff of {system.name}", [lecture])
            load.come_in(f"students of {system.name}", system.urls, students(sizes.room), "student")
            load.prepare(f"students of {system.name}", None, [lecture])
            load.join(in_flight=100)
        time.sleep(sizes.settle_seconds)
        for _ in run.rounds():
            for system in systems:
                yield Row("fanout", f"a room of {sizes.room:,}", system.name, told(run, system, lectures[system.name]))


def told(run: Run, system: System, lecture: str) -> dict[str, float]:
    """Have a teacher mark someone again and again. All that the process uses meanwhile counts, now and then its pings too."""
    meter = Meter(system.groups())
    heard = run.load.mark(f"staff of {system.name}", f"students of {system.name}", lecture, times=run.sizes.marks)
    return {"µs a recipient": 1e6 * meter.used()[SERVING[system.name]] / heard, "packets": heard}


def memory(run: Run) -> Iterator[Row]:
    """Many websockets that do nothing, to a fresh process: memory for each, and CPU time for each connect."""
    for deflate, count in ((False, run.sizes.crowd), (True, run.sizes.smaller_crowd)):
        case = "permessage-deflate offered" if deflate else "plain"
        if not count:
            continue
        if run.wants(Ours.name):
            ours = run.cast.ours()
            ours.renew("gateway")
            yield Row("memory", case, ours.name, crowded(run, ours, count, deflate=deflate))
        if run.wants(Monolith.name):
            with monolith(run.stage) as fresh:
                yield Row("memory", case, fresh.name, crowded(run, fresh, count, deflate=deflate))


def crowded(run: Run, system: System, count: int, *, deflate: bool) -> dict[str, float]:
    """Let a crowd in, and see what it takes."""
    [pid] = system.groups()[SERVING[system.name]]()
    load = run.load
    # What is loaded when the first comes is not what each costs.
    load.come_in("first", system.urls, students(10), "student", deflate=deflate)
    load.leave("first")
    time.sleep(run.sizes.settle_seconds)
    before, meter = resident_bytes(pid), Meter(system.groups())
    try:
        seconds = load.come_in("crowd", system.urls, students(count), "student", deflate=deflate)
        used = meter.used()[SERVING[system.name]]
        time.sleep(run.sizes.settle_seconds)
        grown = resident_bytes(pid) - before
    finally:
        load.leave("crowd")
    return {
        "KB a socket": grown / count / 1e3,
        "µs a connect": 1e6 * used / count,
        "connects/s": count / seconds,
        "MB idle": before / 1e6,
    }


def idle(run: Run) -> Iterator[Row]:
    """A process of each kind that does nothing: its memory, and how long it takes to be ready."""
    ours = run.cast.ours()
    for _ in run.rounds():
        seconds = {module: started(ours, module) for module in MODULES}
        time.sleep(run.sizes.settle_seconds)
        for module, start in seconds.items():
            [pid] = ours.pids(module)
            figures = {"start-up s": start, "MB idle": resident_bytes(pid) / 1e6}
            yield Row("idle", module.replace("_", "-"), ours.name, figures)


def started(ours: Ours, module: str) -> float:
    """Start a process of a kind afresh; tell how many seconds it takes until its health says that it is ready."""
    ours.scale({module: 0})
    began = time.monotonic()
    ours.scale({module: 1})
    return time.monotonic() - began
