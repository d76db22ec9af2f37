"""One run: a world, a load on it, faults meanwhile; then quiet, and the verdict."""

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import TimeoutError as NotInTime
from concurrent.futures import wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import evidence
from tests.chaos.checker import Findings, check
from tests.chaos.evidence import Evidence
from tests.chaos.faults import KINDS, LANES, SERVICES, Lane, Trouble
from tests.chaos.growth import LONG_SECONDS, Growth
from tests.chaos.journal import Sent
from tests.chaos.load import Load
from tests.chaos.poison import Poisoner
from tests.chaos.world import a_world

ANSWERED_SECONDS = 300.0
"""How long after the last fault every command must have its answer. Generous: how long it took is in the report."""


@dataclass(frozen=True)
class Plan:
    """What a run does: for so many seconds or, when there are `rounds`, until each kind of fault has come so many times.

    `longest_seconds` is how long a fault lasts at most, `quiet_seconds` the longest pause between two.
    """

    seed: int
    seconds: float = 0.0
    rounds: int | None = None
    courses: int = 3
    students: int = 8
    longest_seconds: float = 4.0
    quiet_seconds: float = 5.0


@dataclass
class Report:
    """What came of it."""

    plan: Plan
    faults: Counter[str] = field(default_factory=Counter)
    evidence: Evidence = field(default_factory=Evidence)
    findings: Findings = field(default_factory=Findings)
    growth: list[str] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    """How large what must not grow was, first and last."""

    @property
    def clean(self) -> bool:
        """Whether the promise was kept."""
        return not self.findings.any and not self.growth

    def lines(self) -> list[str]:
        """The counts, and every finding."""
        sent, findings = self.evidence.journal, self.findings
        waits = sorted((each.answered_at or math.inf) - each.sent_at for each in sent) or [0.0]
        again = sum((each.why_again for each in sent), Counter())
        refused = Counter(each.code for each in sent if each.code)
        accepted = Counter(each.event for each in sent if each.accepted)
        return [
            f"seed {self.plan.seed}",
            f"faults: {self.faults.total()}",
            *(f"  {self.faults[kind]:5} {kind}" for kind in KINDS),
            f"commands sent: {len(sent)}, {sum(each.attempts for each in sent)} times in all",
            f"  sent again for: {_listed(again)}",
            f"answered ok: {accepted.total()}",
            *(f"  {count:5} {event}" for event, count in sorted(accepted.items())),
            f"refused: {_listed(refused)}",
            f"waited: median {waits[len(waits) // 2]:.2f} s, 99 % below {waits[len(waits) * 99 // 100]:.2f} s,"
            f" longest {waits[-1]:.2f} s",
            f"connects: {sum(views.connects for views in self.evidence.views)} by {len(self.evidence.views)} clients",
            f"rolls: {len(self.evidence.heads)}, changes in their history: {sum(map(len, self.evidence.entries.values()))}",
            f"events published: {len(self.evidence.events) - findings.duplicates}, and {findings.duplicates} duplicates",
            f"parked: {len(self.evidence.parked)}, poisoned: {len(self.evidence.poisons)}",
            f"lost: {len(findings.lost)}, doubled: {len(findings.doubled)}, otherwise wrong: {len(findings.wrong)}",
            "sizes, medians of the first and of the last third:",
            *self.sizes,
            *findings.any,
            *self.growth,
        ]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"


def run(plan: Plan, folder: Path, say: Callable[[str], None]) -> Report:
    """Do it; call it from the main thread. Blocks for the plan's seconds, and then until all has settled."""
    report = Report(plan)
    dice = random.Random(plan.seed)
    began = time.monotonic()

    def tell(what: str) -> None:
        say(f"{time.monotonic() - began:7.1f} s  {what}")

    with ExitStack() as stack:
        world = stack.enter_context(a_world(folder))
        stack.enter_context(world.supervised())
        loop = world.loop
        loop.do(evidence.listen_from_now_on(world))
        load = Load(world.gateways, random.Random(dice.random()), courses=plan.courses, students=plan.students)
        loop.do(load.prepare())
        stack.callback(lambda: loop.do(load.close()))
        tell("everything runs; the load begins")
        running = loop.begin(load.run())
        poisoner = Poisoner(world, lambda: _somebody(load))
        lanes = [
            Lane(name, Trouble(world, poisoner, random.Random(dice.random()), plan.longest_seconds), plan.quiet_seconds, tell)
            for name in LANES  # the servers' comes first
        ]
        if plan.seconds >= LONG_SECONDS:
            world.spared = {world.processes(module)[0].name for module in ("gateway", *SERVICES)}
        growth = Growth(world)
        _inject(lanes, plan, growth)
        report.faults = sum((lane.done for lane in lanes), Counter())
        tell("no more faults; waiting until everything is answered")
        loop.do(_end(load))
        try:
            running.result(ANSWERED_SECONDS)
        except NotInTime:
            running.cancel()
            wait([running])
        except BaseException as error:  # a group of them
            report.evidence.left.append(f"the load broke: {error!r}")
        for process in world.rig.processes.values():
            process.wait_ready()
        tell("waiting until everything has settled")
        found = report.evidence
        found.left = loop.do(evidence.settled(world))
        loop.do(load.settle())
        found.left += load.unexpected
        found.journal, found.views = load.journal, load.views
        found.poisons, found.neighbours = poisoner.poisons, poisoner.neighbours
        loop.do(evidence.gather(world, found))
        report.growth, report.sizes = growth.findings(), growth.lines()
    report.findings = check(report.evidence)
    return report


def _inject(lanes: list[Lane], plan: Plan, growth: Growth) -> None:
    """Run the lanes side by side, that of the servers in this thread; raise what broke one of them."""
    over = threading.Event()
    timer = threading.Timer(plan.seconds, over.set)
    if not plan.rounds:
        timer.start()
    watching = threading.Thread(target=growth.watch, args=(over,), name="growth")
    others = [threading.Thread(target=lane.run, args=(over, plan.rounds), name=lane.name) for lane in lanes[1:]]
    for thread in (watching, *others):
        thread.start()
    try:
        lanes[0].run(over, plan.rounds)
        for thread in others:
            thread.join()
    finally:
        over.set()
        timer.cancel()
        for thread in (watching, *others):
            thread.join()
    for lane in lanes:
        if lane.failed is not None:
            raise lane.failed


def _somebody(load: Load) -> tuple[str, str] | None:
    for course in load.courses:
        if course.session_ids:
            return course.session_ids[-1], course.students[0].user_id
    return None


async def _end(load: Load) -> None:
    load.over.set()


def longest_waits(sent: list[Sent], count: int = 5) -> list[Sent]:
    """The commands that waited longest for their answer."""
    return sorted(sent, key=lambda each: each.sent_at - (each.answered_at or math.inf))[:count]
