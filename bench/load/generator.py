"""What the load generator can be told to do: methods by name, each with what it needs and what it found."""

import asyncio
import gc
import json
import time
from collections import Counter
from collections.abc import Sequence

from bench.load.crowd import Asking, Crowd
from bench.load.figures import Joins, quantile
from bench.load.sockets import masked
from shared.messages import Role

SECONDS = 120.0
"""Within which a set of commands must be answered, and staff have heard of it."""

STARTED_TOGETHER = 8
"""How many sessions are started at once: this is not what is measured."""

PROGRESS = b"attendanceProgress"
MARK_SECONDS = 0.3
"""A room is told at most four times a second."""


class Failed(Exception):
    """A server did not do what it is measured at: the figures would mean nothing."""


class Generator:
    """Crowds by name. Raises Failed when a command is refused, not answered, or not told of."""

    def __init__(self) -> None:
        self._crowds: dict[str, Crowd] = {}
        self._asked = 0

    async def come_in(
        self, crowd: str, urls: Sequence[str], users: Sequence[str], role: Role, deflate: bool = False
    ) -> dict[str, float]:
        """Connect more users to a crowd; tell how long it took."""
        began = time.perf_counter()
        here = self._crowds.setdefault(crowd, Crowd())
        await here.come_in(urls, users, role, deflate=deflate)
        gc.collect()
        gc.freeze()
        return {"seconds": time.perf_counter() - began, "deflating": sum(socket.deflates for socket in here.sockets)}

    async def leave(self, crowd: str) -> None:
        """Send a crowd home, if there is one."""
        self._crowds.pop(crowd, Crowd()).leave()

    async def start(self, staff: str, sessions: Sequence[str]) -> None:
        """Have each of the staff start its session."""
        await self._ask(staff, "startAttendanceSession", [{"session_id": each} for each in sessions], STARTED_TOGETHER)

    async def join(
        self,
        students: str,
        staff: str | None,
        sessions: Sequence[str],
        in_flight: int,
        within_seconds: float = 0.0,
        spread: bool = False,
    ) -> Joins:
        """Have every student join every session, so many at a time; or all sent evenly `within_seconds`.

        All go through the sessions in the same order; when they are `spread` each begins with another one, so that all
        sessions fill together. `staff` must hear of every join.
        """
        crowd = self._crowds[students]
        everybody = [crowd, *([self._crowds[staff]] if staff else [])]
        for each in everybody:
            each.heard.clear()
            each.joined.clear()
        size, meetings = len(crowd.sockets), len(sessions)
        turns = [(n // size + (n % size if spread else 0)) % meetings for n in range(size * meetings)]
        payloads = [{"session_id": sessions[turn]} for turn in turns]
        asking = await self._ask(students, "joinAttendanceSession", payloads, in_flight, within_seconds)
        if staff:
            await self._heard(self._crowds[staff], len(payloads))
        heard_at = time.perf_counter()
        waits, began = asking.waits(), asking.sent_at[0]
        return Joins(
            joins=len(payloads),
            seconds=max(asking.answered_at) - began,
            heard_seconds=heard_at - began,
            p50=quantile(waits, 0.5),
            p99=quantile(waits, 0.99),
            longest=waits[-1],
            again=asking.again,
            heard={name.decode(): count for name, count in sum((each.heard for each in everybody), Counter()).items()},
        )

    async def mark(self, staff: str, students: str, session: str, times: int) -> int:
        """Mark the first student present and absent in turn, MARK_SECONDS apart, until every student has heard each time.

        Return how many `attendanceProgress` they heard.
        """
        crowd = self._crowds[students]
        crowd.heard.clear()
        expected = times * len(crowd.sockets)
        for number in range(times):
            began = time.perf_counter()
            status = ("present", "absent")[number % 2]
            payload = {"session_id": session, "student_id": crowd.sockets[0].user_id, "status": status}
            await self._ask(staff, "markStudentAttendance", [payload], 1)
            await asyncio.sleep(began + MARK_SECONDS - time.perf_counter())
        try:
            async with asyncio.timeout(SECONDS):
                while crowd.heard[PROGRESS] < expected:  # noqa: ASYNC110 (polled: they are many, and this is not timed)
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise Failed(f"students heard of progress {crowd.heard[PROGRESS]} times, not {expected}") from None
        return crowd.heard[PROGRESS]

    async def _ask(
        self, name: str, event: str, payloads: Sequence[object], in_flight: int, within_seconds: float = 0.0
    ) -> Asking:
        crowd, first = self._crowds[name], self._asked
        frames = [
            masked(f"42{first + n}{json.dumps([event, payload], separators=(',', ':'))}") for n, payload in enumerate(payloads)
        ]
        self._asked += len(frames)
        asking = Asking(crowd, frames, first)
        gc.disable()
        try:
            async with asyncio.timeout(SECONDS):
                if within_seconds:
                    await _send_evenly(asking, within_seconds)
                else:
                    asking.keep_in_flight(in_flight)
                await asking.done.wait()
        except TimeoutError:
            raise Failed(f"{asking.unanswered} of {len(frames)} {event} were not answered") from None
        finally:
            gc.enable()
        if asking.refused:
            raise Failed(f"{len(asking.refused)} of {len(frames)} {event} were refused: {asking.refused[0][:300]}")
        if crowd.lost:
            raise Failed(f"{len(crowd.lost)} sockets were cut off: {crowd.lost[0]}")
        return asking

    async def _heard(self, staff: Crowd, joins: int) -> None:
        try:
            await asyncio.wait_for(staff.hear_of(joins), SECONDS)
        except TimeoutError:
            raise Failed(f"staff heard of {len(staff.joined)} joins of {joins}") from None


async def _send_evenly(asking: Asking, seconds: float) -> None:
    """Send all, spread over this time."""
    count, began = len(asking.frames), time.perf_counter()
    sent = 0
    while sent < count:
        due = min(count, 1 + int(count * (time.perf_counter() - began) / seconds))
        for number in range(sent, due):
            asking.send(number)
        sent = due
        await asyncio.sleep(seconds / count)
