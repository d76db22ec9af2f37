"""A crowd: many sockets, the commands they have under way, and what they hear."""

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.load.sockets import Socket, connect
from shared.messages import Role
from tests.system.rig import token

TOGETHER = 64
"""How many connect at once."""
JOINED = b'42["studentJoinedAttendance"'
UNTIL = b'"student_name"'
LATE = (b'"code":"timeout"', b'"code":"unavailable"')
"""What a system says that is asked more than it can do."""


@dataclass
class Crowd:
    """Some sockets, and what was said to them. One set of commands is under way at a time."""

    sockets: list[Socket] = field(default_factory=list)
    heard: Counter[bytes] = field(default_factory=Counter)
    """How often each event was heard."""

    joined: set[bytes] = field(default_factory=set)
    """Which joins (a session, a student) staff was told of."""

    lost: list[str] = field(default_factory=list)
    """Sockets that were cut off."""

    _expected: int = 0
    _complete: asyncio.Event = field(default_factory=asyncio.Event)

    on_answer: Callable[[int, bytes], None] = lambda number, packet: None
    """Takes the number of an acknowledgement, and all of it."""

    async def come_in(self, urls: Sequence[str], users: Sequence[str], role: Role, *, deflate: bool) -> None:
        """Connect all of them, in turns to these gateways."""
        door = asyncio.Semaphore(TOGETHER)
        bearers = [token(user, role) for user in users]

        async def enter(number: int) -> Socket:
            async with door:
                url = urls[number % len(urls)]
                return await connect(url, users[number], bearers[number], self, deflate=deflate)

        self.sockets += await asyncio.gather(*map(enter, range(len(users))))

    def leave(self) -> None:
        """Go, all of them."""
        for socket in self.sockets:
            socket.leave()
        self.sockets.clear()

    def acknowledged(self, packet: bytes) -> None:
        """Hand it to who waits."""
        self.on_answer(int(packet[2 : packet.index(b"[")]), packet)

    def told(self, packet: bytes) -> None:
        """Count it, and note of whose join it tells."""
        self.heard[packet[4 : packet.index(b'"', 4)]] += 1
        if packet.startswith(JOINED):
            self.joined.add(packet[: packet.find(UNTIL)])
            if len(self.joined) == self._expected:
                self._complete.set()

    async def hear_of(self, joins: int) -> None:
        """Wait until so many joins were told of."""
        self._expected = joins
        if len(self.joined) < joins:
            self._complete.clear()
            await self._complete.wait()

    def cut_off(self, socket: Socket, why: str) -> None:
        """Note it."""
        self.lost.append(f"{socket.user_id}: {why}")


@dataclass
class Asking:
    """Commands that a crowd sends, and when each was sent and answered, in seconds of `perf_counter`."""

    crowd: Crowd
    frames: list[bytes]
    """The frame of each command; its acknowledgement's number is `first` and its place here."""

    first: int
    sent_at: "array[float]" = field(init=False)
    answered_at: "array[float]" = field(init=False)
    refused: list[str] = field(default_factory=list)
    again: int = 0
    """How many were sent again because they were not begun in time, as clients are told to; the wait goes on."""

    done: asyncio.Event = field(default_factory=asyncio.Event)
    _left: int = field(init=False)
    _lanes: int = 0

    def __post_init__(self) -> None:
        """Make room for the times."""
        self.sent_at = array("d", bytes(8 * len(self.frames)))
        self.answered_at = array("d", bytes(8 * len(self.frames)))
        self._left = len(self.frames)
        self.crowd.on_answer = self._answered

    def send(self, number: int) -> None:
        """Send one command, on the socket whose turn it is."""
        self.sent_at[number] = time.perf_counter()
        self._write(number)

    def keep_in_flight(self, count: int) -> None:
        """Send the first so many; whenever one is answered the next of its lane follows, so many places on."""
        self._lanes = count
        for number in range(min(count, len(self.frames))):
            self.send(number)

    def _write(self, number: int) -> None:
        sockets = self.crowd.sockets
        sockets[number % len(sockets)].transport.write(self.frames[number])

    def _answered(self, number: int, packet: bytes) -> None:
        number -= self.first
        # An answer to what an earlier set has asked, and not waited for.
        if number < 0:
            return
        if b'"ok":true' not in packet[:24]:
            if any(code in packet for code in LATE):
                self.again += 1
                self._write(number)
                return
            self.refused.append(packet.decode())
        self.answered_at[number] = time.perf_counter()
        self._left -= 1
        if self._lanes and number + self._lanes < len(self.frames):
            self.send(number + self._lanes)
        if not self._left:
            self.done.set()

    @property
    def unanswered(self) -> int:
        """How many have no answer."""
        return self._left

    def waits(self) -> list[float]:
        """How long each that was answered took, shortest first."""
        pairs = zip(self.sent_at, self.answered_at, strict=True)
        return sorted(answered - sent for sent, answered in pairs if answered)
