"""A crowd: many sockets, the commands they have under way, and what they hear."""

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.load.sockets import Socket, Take, connect
from shared.messages import Role
from tests.system.rig import token

TOGETHER = 64
"""How many connect at once."""
JOINED = b"studentJoinedAttendance"
UNTIL = b'"student_name"'
OK = b'[{"ok":true'
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

    acknowledged: Take = lambda data, begin, end: None
    """Takes the acknowledgements of the commands that are under way."""

    _expected: int = 0
    _complete: asyncio.Event = field(default_factory=asyncio.Event)

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

    def told(self, data: bytes, begin: int, end: int) -> None:
        """Count an event, and note of whose join it tells."""
        name = data[begin + 4 : data.index(b'"', begin + 4)]
        self.heard[name] += 1
        if name == JOINED:
            joined = self.joined
            joined.add(data[begin : data.index(UNTIL, begin)])
            if len(joined) == self._expected:
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


@dataclass(eq=False)
class Asking:
    """Commands that a crowd sends, and when each was sent and answered, in seconds of `perf_counter`."""

    crowd: Crowd
    event: str
    frames: list[bytes]
    """The frame of each command; its acknowledgement's number is `first` and its place here."""

    first: int
    sent_at: "array[float]" = field(init=False)
    answered_at: "array[float]" = field(init=False)
    refused: list[str] = field(default_factory=list)
    again: int = 0
    """How many were sent again because they were not begun in time, as clients are told to; the wait goes on."""

    unanswered: int = field(init=False)
    """How many have no answer."""

    done: asyncio.Event = field(default_factory=asyncio.Event)
    _lanes: int = 0
    _write: "list[Callable[[bytes], None]]" = field(init=False)

    def __post_init__(self) -> None:
        """Make room for the times."""
        self.unanswered = len(self.frames)
        self.sent_at = array("d", bytes(8 * self.unanswered))
        self.answered_at = array("d", bytes(8 * self.unanswered))
        # Each command goes out on the socket whose turn it is.
        self._write = [socket.transport.write for socket in self.crowd.sockets]
        self.crowd.acknowledged = self.answered

    def send(self, number: int) -> None:
        """Send one command."""
        self.sent_at[number] = time.perf_counter()
        self._write[number % len(self._write)](self.frames[number])

    def keep_in_flight(self, count: int) -> None:
        """Send the first so many; whenever one is answered the next of its lane follows, so many places on."""
        self._lanes = count
        for number in range(min(count, len(self.frames))):
            self.send(number)

    def answered(self, data: bytes, begin: int, end: int) -> None:
        """Note that a command was answered, and when; let the next follow."""
        bracket = data.index(b"[", begin)
        number = int(data[begin + 2 : bracket]) - self.first
        # An answer to what an earlier set has asked, and not waited for.
        if number < 0:
            return
        if not data.startswith(OK, bracket) and self._sent_again(number, data[begin:end]):
            return
        self.answered_at[number] = now = time.perf_counter()
        self.unanswered -= 1
        if self._lanes:
            number += self._lanes
            if number < len(self.frames):
                self.sent_at[number] = now
                self._write[number % len(self._write)](self.frames[number])
        if not self.unanswered:
            self.done.set()

    def _sent_again(self, number: int, packet: bytes) -> bool:
        """Send a command again that was not begun in time; note what was refused."""
        if any(code in packet for code in LATE):
            self.again += 1
            self._write[number % len(self._write)](self.frames[number])
            return True
        self.refused.append(packet.decode())
        return False

    def waits(self) -> list[float]:
        """How long each that was answered took, shortest first."""
        pairs = zip(self.sent_at, self.answered_at, strict=True)
        return sorted(answered - sent for sent, answered in pairs if answered)
