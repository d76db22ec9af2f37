"""What must not grow during a soak: memory and connections of each process, queue lengths, the age of the outbox."""

import statistics
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import asyncpg

from rollcall.launcher import ServerFailed
from shared import topology
from tests.chaos.evidence import queue_lengths
from tests.chaos.world import World

EVERY_SECONDS = 5.0
WARM_SECONDS = 20.0
"""A process younger than this has not filled its caches and pools yet."""

SAMPLES = 40
"""Fewer than this say nothing; a run of `LONG_SECONDS` takes as many of a process that lives through it."""

LONG_SECONDS = 300.0
"""From this on a run spares one replica of each module: of those that are replaced again and again no leak can show."""

# The last third of a run may lie above the first by this share, and by this much besides.
SHARE = 0.25
BESIDES = {"memory MB": 20.0, "connections": 10.0, "messages waiting": 200.0, "outbox age s": 5.0}


PROCESS = ("memory MB", "connections")


class Growth:
    """Takes samples while a run goes on; most of them meet some fault, so medians are compared.

    A process that was replaced begins anew: what the one before it held says nothing of the one there is.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.failed: list[str] = []
        """What broke the watching itself: a finding, since then nothing was watched."""
        self._samples: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self._since: dict[int, float] = {}

    def watch(self, over: threading.Event) -> None:
        """Sample until it is over."""
        while not over.wait(EVERY_SECONDS):
            try:
                self._sample()
            except Exception as error:
                self.failed.append(f"growth was not watched: {error!r}")

    def _sample(self) -> None:
        for process in self._world.rig.processes.values():
            if process.popen is not None and process.popen.poll() is None:
                self._sample_process(process.name, process.popen.pid)
        # A server that is away says nothing.
        with suppress(ServerFailed, AssertionError):
            self.note("rabbitmq", "messages waiting", _waiting(self._world))
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError):
            self.note("postgres", "outbox age s", self._world.loop.do(_outbox_age(self._world)))

    def findings(self) -> list[str]:
        """Say what has grown."""
        grown = self.failed[:1]
        for (who, what), samples in self._samples.items():
            if len(samples) < SAMPLES:
                continue
            third = len(samples) // 3
            first, last = statistics.median(samples[:third]), statistics.median(samples[-third:])
            if last > first * (1 + SHARE) + BESIDES[what]:
                grown.append(f"grew: {who}, {what}: median {first:.1f} in the first third, {last:.1f} in the last")
        return grown

    def lines(self) -> list[str]:
        """The medians of the first and the last third, for the report of a soak."""
        lines = []
        for (who, what), samples in sorted(self._samples.items()):
            third = max(1, len(samples) // 3)
            first, last = statistics.median(samples[:third]), statistics.median(samples[-third:])
            lines.append(f"  {who}, {what}: {first:.1f}, then {last:.1f}, at most {max(samples):.1f}")
        return lines

    def _sample_process(self, name: str, pid: int) -> None:
        if pid not in self._since:
            for what in PROCESS:
                self._samples.pop((name, what), None)
        began = self._since.setdefault(pid, time.monotonic())
        if time.monotonic() - began < WARM_SECONDS:
            return
        with suppress(OSError, StopIteration):
            status = Path("/proc", str(pid), "status").read_text().splitlines()
            kilobytes = next(line.split()[1] for line in status if line.startswith("VmRSS"))
            self.note(name, "memory MB", int(kilobytes) / 1024)
            links = [link.readlink() for link in Path("/proc", str(pid), "fd").iterdir()]
            self.note(name, "connections", sum(str(link).startswith("socket:") for link in links))

    def note(self, who: str, what: str, value: float) -> None:
        """Keep one sample."""
        self._samples[who, what].append(value)


def _waiting(world: World) -> int:
    return sum(number for name, number in world.loop.do(queue_lengths(world)).items() if name != topology.PARKING)


async def _outbox_age(world: World) -> float:
    connection = await asyncpg.connect(world.database_url, timeout=3)
    try:
        ages = [
            await connection.fetchval(f"SELECT extract(epoch FROM max(clock_timestamp() - created_at)) FROM {schema}.outbox")
            for schema in ("sessions", "attendance")
        ]
    finally:
        await connection.close()
    return max(float(age or 0.0) for age in ages)
