"""Joins come in crowds, and a message costs more than the joins in it: they gather while others are under way.

This is Nagle's algorithm (RFC 896) for commands: who comes alone leaves at once, and who comes while others wait for their
answers leaves when these have come, or a moment later. Why: docs/decisions/0025-joins-gather-while-others-are-under-way.md
"""

import asyncio
from collections.abc import Callable
from typing import Final

from shared.coalescer import Settled

GATHER_SECONDS: Final = 0.01
"""How long a command waits for the answers to others."""
RETURN_SECONDS: Final = 0.002
"""How long it waits then for those who were just answered: they may ask again, and go with it."""
MANY: Final = 32
"""Where more are unanswered nobody waits: messages are large enough, and whoever does the work should not pause."""


Send = Callable[[str, bytes, Settled], None]
"""Begins to send a command to a queue; see `Bus.send_soon`."""


class Gathering:
    """The commands of one process that leave together. Each is `answered` once, or given up."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: list[tuple[str, bytes, Settled]] = []
        self._unanswered = 0
        """Those that wait included."""
        self._expected = 0
        """How many will wait once all have come back who were answered just now."""
        self._answered_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def send_soon(self, queue: str, command: bytes, settled: Settled) -> None:
        """Send a command now, or together with those that come while others are under way."""
        self._unanswered += 1
        if self._unanswered > MANY and not self._waiting:
            self._send(queue, command, settled)
            return
        self._waiting.append((queue, command, settled))
        count = len(self._waiting)
        if self._unanswered > MANY:
            self._leave()
        elif self._unanswered > count:
            if self._timer is None:
                self._leave_in(GATHER_SECONDS)
        elif count >= self._expected:
            # With what else this turn of the loop brings.
            self._leave_in(0)
        elif self._timer is None:
            self._leave_in(self._answered_at + RETURN_SECONDS - _now())

    def answered(self, count: int) -> None:
        """Count some as no longer under way, though they may not have left yet: their callers' time may be over."""
        self._unanswered -= count
        if not count or self._unanswered > MANY:
            return
        now = _now()
        if now > self._answered_at + RETURN_SECONDS:
            self._expected = len(self._waiting)
        self._expected += count
        self._answered_at = now
        if self._waiting and self._unanswered <= len(self._waiting):
            self._leave_in(RETURN_SECONDS)

    def _leave_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(max(0, seconds), self._leave)

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        self._expected = 0
        for queue, command, settled in waiting:
            self._send(queue, command, settled)


def _now() -> float:
    return asyncio.get_running_loop().time()
