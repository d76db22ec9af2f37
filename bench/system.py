"""What is measured: anything that knows sessions and lets students join them."""

from collections.abc import Sequence
from typing import Protocol

from bench.meter import Pids

STUDENT = "s{}"
TEACHER = "t{}"


def students(count: int) -> list[str]:
    """The ids of the first so many students."""
    return [STUDENT.format(number) for number in range(count)]


def teachers(count: int) -> list[str]:
    """The ids of the first so many teachers."""
    return [TEACHER.format(number) for number in range(count)]


class System(Protocol):
    """Rollcall, or a peer."""

    name: str

    @property
    def urls(self) -> Sequence[str]:
        """Where clients connect."""

    def schedule(self, sessions: int, students: int) -> list[str]:
        """Schedule so many sessions; the n-th is for teacher n to start, and for the first so many students to join."""

    def groups(self) -> dict[str, Pids]:
        """Its own processes, by kind."""
