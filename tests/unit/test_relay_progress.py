"""The last numbers of a roll are told before its end, on the loop that is in use."""

import asyncio
from typing import Any

import uvloop

from gateway.engine.outbound import Message
from gateway.relay import Relay, _progress_told
from gateway.room import Member, Room
from shared.messages import Statistics

STATISTICS = Statistics(total_students=1, present_count=1, absent_count=0, late_count=0, excused_count=0, attendance_rate=100.0)


class Connection:
    """Keeps what is told."""

    closed = False

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def put(self, message: Message | None) -> None:
        assert message is not None
        self.heard += message.packets


def test_numbers_that_are_due_at_once_are_waited_for() -> None:
    """With uvloop the timer of what is due at once cannot say when; the end of a roll was not told then."""

    async def end() -> list[bytes]:
        connection = Connection()

        async def nothing(session_id: str) -> Any:
            raise AssertionError(session_id)

        room = Room("s", "channel")
        room.add(Member("sid", "/", "ann", "student", "student", connection))
        Relay(nothing)._progress(room, STATISTICS, 2, at_once=False)
        async with asyncio.timeout(5):
            await _progress_told(room)
        return connection.heard

    [told] = uvloop.run(end())
    assert told.startswith(b'42["attendanceProgress",')
