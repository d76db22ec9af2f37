"""The last numbers of a roll are told before its end, on the loop that is in use."""

import asyncio
from typing import Any

import uvloop

from gateway.relay import Relay, _progress_told
from gateway.room import Room
from shared.messages import Statistics

STATISTICS = Statistics(total_students=1, present_count=1, absent_count=0, late_count=0, excused_count=0, attendance_rate=100.0)


class Ears:
    """Stands where the manager does, and keeps what is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def emit_here(self, event: str, data: Any, room: str) -> None:
        self.heard.append(event)


def test_numbers_that_are_due_at_once_are_waited_for() -> None:
    """With uvloop the timer of what is due at once cannot say when; the end of a roll was not told then."""

    async def end() -> list[str]:
        ears: Any = Ears()

        async def nothing(session_id: str) -> Any:
            raise AssertionError(session_id)

        room = Room("s", "channel")
        Relay(ears, nothing)._progress(room, STATISTICS, 2, at_once=False)
        async with asyncio.timeout(5):
            await _progress_told(room)
        heard: list[str] = ears.heard
        return heard

    assert uvloop.run(end()) == ["attendanceProgress"]
