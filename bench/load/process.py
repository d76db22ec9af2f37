"""The load generator as those see it who tell it what to do: a process of its own, asked by line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from bench.load.figures import Joins
from bench.load.generator import Failed
from shared.messages import Role


class LoadGenerator:
    """Has crowds do things, and waits until they have; raises Failed when the figures would mean nothing."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.pid = process.pid

    def come_in(self, crowd: str, urls: Sequence[str], users: Sequence[str], role: Role, *, deflate: bool = False) -> float:
        """Connect more users to a crowd, in turns to these gateways; tell how many seconds it took."""
        return float(self._do("come_in", crowd=crowd, urls=urls, users=users, role=role, deflate=deflate)["seconds"])

    def leave(self, *crowds: str) -> None:
        """Send crowds home."""
        for crowd in crowds:
            self._do("leave", crowd=crowd)

    def start(self, staff: str, sessions: Sequence[str]) -> None:
        """Have each of the staff start its session."""
        self._do("start", staff=staff, sessions=sessions)

    def prepare(self, students: str, staff: str | None, sessions: Sequence[str], *, spread: bool = False) -> None:
        """Get ready to have every student join every session; see `Generator.prepare`."""
        self._do("prepare", students=students, staff=staff, sessions=sessions, spread=spread)

    def join(self, *, in_flight: int = 0, within_seconds: float = 0.0) -> float:
        """Have them join; tell after how many seconds staff had heard of all of it."""
        return float(self._do("join", in_flight=in_flight, within_seconds=within_seconds))

    def joins(self) -> Joins:
        """Tell how that went."""
        return msgspec.convert(self._do("joins"), Joins)

    def mark(self, staff: str, students: str, session: str, *, times: int) -> int:
        """Have a teacher mark the first student again and again; tell how often students heard `attendanceProgress`."""
        return int(self._do("mark", staff=staff, students=students, session=session, times=times))

    def _do(self, what: str, **arguments: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps({'do': what, **arguments})}\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"failed": "the load generator died"}')
        if "failed" in answer:
            raise Failed(f"{what}: {answer['failed']}")
        return answer["ok"]


@contextmanager
def a_load_generator() -> Iterator[LoadGenerator]:
    """Run one; it ends when its input does, so also when we die."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.load"], env=dict(os.environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield LoadGenerator(process)
