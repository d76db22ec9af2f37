"""What the load generator can be told to do: methods by name, each with what it needs and what it found."""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Sequence

from msgspec.json import encode

from bench.load.crowd import Asking, Crowd
from bench.load.figures import Joins, quantile
from bench.load.sockets import masked
from shared.messages import Role

SECONDS = 120.0
"""Within which a set of commands must be answered, and staff have heard of it."""

STARTED_TOGETHER = 8
"""How many sessions are started at once: this is not what is measured."""

PROGRESS = b"attendanceProgress"
DEAF_SECONDS = 0.3
"""For how long nobody reads what a room is told, which is at most four times a second."""

SENT_SECONDS = 0.005
"""Within which a command is on its way."""


class Failed(Exception):
    """A server did not do what it is measured at: the figures would mean nothing."""


class Generator:
    """Crowds by name. Raises Failed when a command is refused, not answered, or not told of."""

    def __init__(self) -> None:
        self._crowds: dict[str, Crowd] = {}
        self._asked = 0
        self._joins: Asking
        self._staff: Crowd | None = None

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
        asking = self._asking(staff, "startAttendanceSession", [{"session_id": each} for each in sessions])
        await _answered(asking, STARTED_TOGETHER)

    async def prepare(self, students: str, staff: str | None, sessions: Sequence[str], spread: bool = False) -> None:
        """Get everything ready for `join`: what that costs is not measured.

        Every student is to join every session, and `staff` to hear of every join. All go through the sessions in the same
        order; when they are `spread` each begins with another one, so that all sessions fill together.
        """
        size, meetings = len(self._crowds[students].sockets), len(sessions)
        turns = [(n // size + (n % size if spread else 0)) % meetings for n in range(size * meetings)]
        self._staff = self._crowds[staff] if staff else None
        self._joins = self._asking(students, "joinAttendanceSession", [{"session_id": sessions[turn]} for turn in turns])
        for each in self._listeners():
            each.heard.clear()
            each.joined.clear()
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    async def join(self, in_flight: int, within_seconds: float = 0.0) -> float:
        """Have everybody join as was prepared, so many at a time; or all sent evenly `within_seconds`.

        Return when every join was answered, and staff have heard of every one; tell how many seconds the latter took.
        """
        await _answered(self._joins, in_flight, within_seconds)
        if self._staff:
            await _heard(self._staff, len(self._joins.frames))
        return time.perf_counter() - self._joins.sent_at[0]

    async def joins(self) -> Joins:
        """Tell how the last joins went."""
        asking = self._joins
        waits, began = asking.waits(), asking.sent_at[0]
        return Joins(
            joins=len(waits),
            seconds=max(asking.answered_at) - began,
            p50=quantile(waits, 0.5),
            p99=quantile(waits, 0.99),
            longest=waits[-1],
            again=asking.again,
            heard={name.decode(): count for name, count in sum((each.heard for each in self._listeners()), Counter()).items()},
        )

    def _listeners(self) -> list[Crowd]:
        return [self._joins.crowd, *([self._staff] if self._staff else [])]

    async def mark(self, staff: str, students: str, session: str, times: int) -> int:
        """Mark the first student present and absent in turn, until every student has heard each time.

        Nobody reads while they are told: on one machine the sender would be charged for waking whoever waits, which in a real
        room is the work of other machines. Return how many `attendanceProgress` they heard.
        """
        crowd = self._crowds[students]
        crowd.heard.clear()
        expected = times * len(crowd.sockets)
        for number in range(times):
            status = ("present", "absent")[number % 2]
            payload = {"session_id": session, "student_id": crowd.sockets[0].user_id, "status": status}
            await _answered(self._asking(staff, "markStudentAttendance", [payload]), 1, deaf_seconds=DEAF_SECONDS)
        try:
            async with asyncio.timeout(SECONDS):
                while crowd.heard[PROGRESS] < expected:  # noqa: ASYNC110 (polled: they are many, and this is not timed)
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise Failed(f"students heard of progress {crowd.heard[PROGRESS]} times, not {expected}") from None
        return crowd.heard[PROGRESS]

    def _asking(self, crowd: str, event: str, payloads: Sequence[object]) -> Asking:
        first = self._asked
        frames = [masked(f"42{first + n}{encode([event, payload]).decode()}") for n, payload in enumerate(payloads)]
        self._asked += len(frames)
        return Asking(self._crowds[crowd], event, frames, first)


async def _answered(asking: Asking, in_flight: int, within_seconds: float = 0.0, deaf_seconds: float = 0.0) -> None:
    """Send commands, and wait until all are answered; read nothing for a while first."""
    gc.disable()
    try:
        async with asyncio.timeout(SECONDS):
            if within_seconds:
                await _send_evenly(asking, within_seconds)
            else:
                asking.keep_in_flight(in_flight)
            if deaf_seconds:
                await asyncio.sleep(SENT_SECONDS)
                time.sleep(deaf_seconds)  # noqa: ASYNC251 (the loop is not to read)
            await asking.done.wait()
    except TimeoutError:
        raise Failed(f"{asking.unanswered} of {len(asking.frames)} {asking.event} were not answered") from None
    finally:
        gc.enable()
    refused, lost = asking.refused, asking.crowd.lost
    if refused:
        raise Failed(f"{len(refused)} of {len(asking.frames)} {asking.event} were refused: {refused[0][:300]}")
    if lost:
        raise Failed(f"{len(lost)} sockets were cut off: {lost[0]}")


async def _heard(staff: Crowd, joins: int) -> None:
    """Wait until staff have heard of so many joins."""
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
