"""What waits for one client, and how much of it may."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

MAX_WAITING_BYTES: Final = 1024 * 1024
"""How much may wait for a client behind the packet that is being written."""
LARGE_BYTES: Final = 256 * 1024
MAX_LARGE: Final = 2
"""How many packets beyond `LARGE_BYTES` may wait besides: an answer is an event and its acknowledgement, a roll in each."""
_SHORT: Final = 1024


def _head(size: int) -> bytes:
    """Begin a text frame, unmasked (RFC 6455, 5.2)."""
    if size < 126:
        return bytes((0x81, size))
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2)
    return b"\x81\x7f" + size.to_bytes(8)


_HEADS: Final = tuple(map(_head, range(_SHORT)))
"""Most frames are short, and to make a head for each costs as much as the rest of it."""


class Message:
    """Engine.IO packets that go out together: encoded once, for all who get them."""

    __slots__ = ("frames", "packets", "to_crowd")

    def __init__(self, *packets: bytes, to_crowd: bool = False) -> None:
        self.packets = packets
        """As they go into the answer to a poll: UTF-8."""
        frames: list[bytes] = []
        for packet in packets:
            size = len(packet)
            frames += (_HEADS[size] if size < _SHORT else _head(size), packet)
        self.frames = b"".join(frames)
        """As they go over a websocket."""
        self.to_crowd = to_crowd
        """Whether so many get them that others are not to wait for that."""


class Outbound:
    """A queue of what waits for one client. `full` is called when that is too much. An empty one takes next to no memory."""

    __slots__ = ("_getter", "_large", "_large_bytes", "_shut", "_small_bytes", "_waiting", "_when_full")

    def __init__(self, full: Callable[[], None]) -> None:
        self._when_full = full
        self._waiting: deque[Message | None] | None = None
        self._getter: asyncio.Future[None] | None = None
        self._small_bytes = self._large_bytes = self._large = 0
        self._shut = False

    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def put_nowait(self, message: Message | None) -> None:
        """Put a message behind the others; None ends the writing. Nothing waits any more once it was too much."""
        if self._shut:
            return
        self._line().append(message)
        self._count(message, 1)
        if self._getter is not None and not self._getter.done():
            self._getter.set_result(None)
        small = self._small_bytes > MAX_WAITING_BYTES
        if small or (self._large > MAX_LARGE and self._small_bytes + self._large_bytes > MAX_WAITING_BYTES):
            self._when_full()

    def get_nowait(self) -> Message | None:
        """Take the message that is to be written next; raise asyncio.QueueEmpty when nothing waits."""
        if not self._waiting:
            raise asyncio.QueueEmpty
        message = self._waiting.popleft()
        self._count(message, -1)
        if not self._waiting:
            self._waiting = None
        return message

    def put_back(self, message: Message) -> None:
        """Put what was taken too much in front of the others, in the same turn of the loop."""
        self._line().appendleft(message)
        self._count(message, 1)

    def _line(self) -> deque[Message | None]:
        if self._waiting is None:
            self._waiting = deque()
        return self._waiting

    async def get(self) -> Message | None:
        """Wait for the message that is to be written next, and take it; one at a time may wait."""
        while not self._waiting:
            self._getter = asyncio.get_running_loop().create_future()
            try:
                await self._getter
            finally:
                self._getter = None
        return self.get_nowait()

    def shut(self) -> None:
        """Let go of everything, and take nothing any more; whoever waits for a message gets None. A repeat does nothing."""
        if self._shut:
            return
        while not self.empty():
            self.get_nowait()
        self.put_nowait(None)
        self._shut = True

    def _count(self, message: Message | None, sign: int) -> None:
        for size in map(len, () if message is None else message.packets):
            if size > LARGE_BYTES:
                self._large += sign
                self._large_bytes += sign * size
            else:
                self._small_bytes += sign * size
