"""Processes as the kernel sees them: who descends from whom, and who still lives."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process by its number and its start, which no later process with the same number shares."""

    pid: int
    parent: int
    started: int
    command: str

    @classmethod
    def find(cls, pid: int) -> "Process | None":
        """The living process with this number; a zombie is none."""
        try:
            names, _, numbers = Path("/proc", str(pid), "stat").read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            return None
        state, *fields = numbers.split()
        return None if state == "Z" else cls(pid, int(fields[0]), int(fields[18]), names.partition("(")[2])

    def lives(self) -> bool:
        found = Process.find(self.pid)
        return found is not None and found.started == self.started

    def user(self) -> int | None:
        """Whose it is; None for one that has gone."""
        try:
            return Path("/proc", str(self.pid)).stat().st_uid
        except (FileNotFoundError, ProcessLookupError):
            return None

    def name(self) -> str:
        """What it ran when it was found: by now it may have gone."""
        return self.command

    def environment(self) -> bytes:
        """What it was started with, each variable ended by a zero; nothing of one that has gone."""
        try:
            return Path("/proc", str(self.pid), "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return b""


def everyone() -> list[Process]:
    """Every process of the machine."""
    return [process for entry in os.listdir("/proc") if entry.isdigit() and (process := Process.find(int(entry)))]


def descendants(pid: int) -> list[Process]:
    """Every process below this one."""
    processes = everyone()
    family: list[Process] = []
    parents = {pid}
    while parents:
        children = [process for process in processes if process.parent in parents]
        family += children
        parents = {child.pid for child in children}
    return family


def eventually(condition: Callable[[], bool], seconds: float, claim: str) -> None:
    """Wait for a condition; fail with the claim when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, claim
        time.sleep(0.01)
