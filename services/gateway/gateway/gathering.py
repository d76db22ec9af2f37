"""Joins come in crowds, and a message costs more than the joins in it: they gather while others are under way.

This is Nagle's algorithm (RFC 896) for commands: who comes alone leaves at once, and who comes while others wait for their
answers leaves when these have come, or a moment later. Why: docs/decisions/0025-joins-gather-while-others-are-under-way.md
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

T = TypeVar("T")

GATHER_SECONDS: Final = 0.01
"""How long a command waits for the answers to others."""
RETURN_SECONDS: Final = 0.002
"""How long it waits then for those who were just answered: they may ask again, and go with it."""
MANY: Final = 32
"""Where more are unanswered nobody waits: messages are large enough, and whoever does the work should not pause."""


class Gathering(Generic[T]):
    """What leaves together. Each is `answered` once, after it has left."""

    def __init__(self, leave: Callable[[Sequence[T]], None]) -> None:
        self._leave = leave
        self._waiting: list[T] = []
        self._unanswered = 0
        """Those that wait included."""
        self._expected = 0
        """How many will wait once all have come back who were answered just now."""
        self._answered_at = 0.0
        self._timer: asyncio.Handle | None = None
        self._leaving = False
        """Whether those that wait leave at the end of this turn of the loop."""

    def put(self, item: T) -> None:
        """Let something leave at the end of this turn of the loop or the next, or with others, while some are under way."""
        self._unanswered += 1
        self._waiting.append(item)
        if self._leaving:
            return
        count = len(self._waiting)
        alone = self._unanswered == count
        if self._unanswered > MANY or (alone and count >= self._expected):
            self._leave_now()
        elif self._timer is None:
            self._leave_in(self._answered_at + RETURN_SECONDS - _now() if alone else GATHER_SECONDS)

    def answered(self, count: int) -> None:
        """Count some as no longer under way."""
        self._unanswered -= count
        if self._unanswered > MANY:
            return
        now = _now()
        if now > self._answered_at + RETURN_SECONDS:
            self._expected = len(self._waiting)
        self._expected += count
        self._answered_at = now
        if self._waiting and self._unanswered == len(self._waiting) and not self._leaving:
            self._leave_in(RETURN_SECONDS)

    def _leave_now(self) -> None:
        """Have all leave with what else this turn of the loop brings."""
        self._stop()
        self._leaving = True
        self._timer = asyncio.get_running_loop().call_soon(self._leave_all)

    def _leave_in(self, seconds: float) -> None:
        self._stop()
        self._timer = asyncio.get_running_loop().call_later(max(0, seconds), self._leave_once_read)

    def _leave_once_read(self) -> None:
        """Have all leave once what has come is read: of what a busy loop has kept waiting, uvloop does timers first."""
        self._leaving = True
        loop = asyncio.get_running_loop()
        self._timer = loop.call_soon(loop.call_soon, self._leave_all)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _leave_all(self) -> None:
        self._timer, self._leaving = None, False
        waiting, self._waiting = self._waiting, []
        self._expected = 0
        self._leave(waiting)


def _now() -> float:
    return asyncio.get_running_loop().time()
