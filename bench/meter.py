"""What processes cost: CPU time and memory, read from outside. Linux only."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

Pids = Callable[[], Iterable[int]]
"""Lists the processes that are counted as one, now."""

SCHEDULED = 2
"""CPUCLOCK_SCHED of the kernel's posix-timers.h: what all threads of a process have used, to the nanosecond."""


def cpu_seconds(pid: int) -> float:
    """Read how much CPU time a process has used since it began; 0 when it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | SCHEDULED)
    except OSError:
        return 0.0


def resident_bytes(pid: int) -> int:
    """Read how much memory a process has."""
    status = Path("/proc", str(pid), "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def family(pid: int) -> list[int]:
    """List a process and all that descend from it: Postgres is a process for each connection."""
    found = [pid]
    for member in found:
        try:
            threads = list(Path("/proc", str(member), "task").iterdir())
            found += [int(child) for thread in threads for child in (thread / "children").read_text().split()]
        except FileNotFoundError:
            continue
    return found


class Meter:
    """Counts the CPU time of groups of processes from its making on."""

    def __init__(self, groups: Mapping[str, Pids]) -> None:
        self._groups = groups
        self._before = self._read()

    def used(self) -> dict[str, float]:
        """Tell how many CPU seconds each group has used since."""
        now = self._read()
        return {
            name: sum(seconds - self._before[name].get(pid, 0.0) for pid, seconds in pids.items()) for name, pids in now.items()
        }

    def _read(self) -> dict[str, dict[int, float]]:
        return {name: {pid: cpu_seconds(pid) for pid in pids()} for name, pids in self._groups.items()}


def ports(pid: int) -> set[int]:
    """List the ports at this end of a process's TCP connections."""
    links: list[str] = []
    for link in Path("/proc", str(pid), "fd").iterdir():
        # One that has been closed meanwhile.
        with suppress(FileNotFoundError):
            links.append(str(link.readlink()))
    inodes = {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:[")}
    rows = [line.split() for line in Path("/proc", str(pid), "net", "tcp").read_text().splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[9] in inodes}
