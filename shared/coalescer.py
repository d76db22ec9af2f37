"""What travels together: single items become JSON arrays, as few and as small as the traffic of the moment allows.

Both buses send commands through `Coalescers`, and both group answers with `grouped`. Nothing here knows a broker.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from time import monotonic

import structlog
from msgspec import Struct

from shared.bus import COMMANDS_PER_MESSAGE, SEND_TIMEOUT_SECONDS
from shared.errors import Unavailable

log = structlog.get_logger()

CLOSED = "the bus is closed"
BYTES_PER_MESSAGE = 1024 * 1024
"""A message takes nothing more once it is this long. RabbitMQ 4 refuses messages of 16 MiB, by closing the channel."""


def array(items: Iterable[bytes]) -> bytes:
    """Write encoded items as one JSON array."""
    return b"[" + b",".join(items) + b"]"


def grouped(answers: Sequence[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Gather answers by queue, in order, into messages of about `BYTES_PER_MESSAGE` at most."""
    queues: dict[str, list[bytes]] = {}
    for queue, answer in answers:
        queues.setdefault(queue, []).append(answer)
    for queue, items in queues.items():
        start = size = 0
        for number, item in enumerate(items):
            if size and size + len(item) > BYTES_PER_MESSAGE:
                yield queue, array(items[start:number])
                start, size = number, 0
            size += len(item)
        yield queue, array(items[start:])


Settled = Callable[[str | None], None]
"""Hears what became of commands: None when the broker has their message, else why it may not."""


class _Pending(Struct):
    commands: bytes
    count: int
    settled: Settled | None
    """Whom to tell; None once they were told."""
    deadline: float


class Coalescer:
    """Sends the commands of one queue: at once while nothing is unconfirmed, else together when the way is free.

    `publish` sends one message and returns when the broker has it; it bounds its own time and raises Unavailable. It runs in a
    task of the coalescer's own, so that no sender needs one.
    """

    def __init__(self, publish: Callable[[bytes], Awaitable[None]], *, closed: bool = False) -> None:
        self._publish = publish
        self._waiting: deque[_Pending] = deque()
        self._flying: list[_Pending] = []
        self._flight: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = closed

    def send_soon(self, commands: bytes, count: int, settled: Settled) -> None:
        """Begin to send commands, with commas between them, as part of one message.

        Their `settled` is called once, in a later turn of the loop, and within `SEND_TIMEOUT_SECONDS`.
        """
        if self._closed:
            asyncio.get_running_loop().call_soon(settled, CLOSED)
            return
        self._waiting.append(_Pending(commands, count, settled, monotonic() + SEND_TIMEOUT_SECONDS))
        if self._flight is None:
            self._flight = asyncio.create_task(self._fly(), name="coalescer")
        # One timer for all senders: a timeout context for each costs more than the rest of this method.
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_later(SEND_TIMEOUT_SECONDS, self._expire)

    async def close(self) -> None:
        """Give up what is unconfirmed; its senders are told so."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.gather(self._flight, return_exceptions=True)
        _settle([*self._flying, *self._waiting], CLOSED)

    async def _fly(self) -> None:
        """Send what waits, message after message, until nothing does."""
        try:
            while self._waiting:
                self._flying = self._board()
                _settle(self._flying, await self._carry(self._flying))
                self._flying = []
        finally:
            self._flight = None

    def _board(self) -> list[_Pending]:
        """Take what goes in the next message, in order; who was told while they waited is not among them (`_expire`)."""
        boarded: list[_Pending] = []
        count = size = 0
        while self._waiting:
            count += self._waiting[0].count
            size += len(self._waiting[0].commands)
            if boarded and (count > COMMANDS_PER_MESSAGE or size > BYTES_PER_MESSAGE):
                break
            boarded.append(self._waiting.popleft())
        return boarded

    async def _carry(self, batch: Sequence[_Pending]) -> str | None:
        """Publish one message; return why it may not have arrived, None when it has."""
        try:
            await self._publish(array([pending.commands for pending in batch]))
        except Unavailable as error:
            return str(error)
        except Exception as error:
            log.exception("bus.publish_failed", commands=sum(pending.count for pending in batch))
            return f"{type(error).__name__}: {error}"
        return None

    def _expire(self) -> None:
        """Tell those who waited too long; all wait equally long, so they stand in order of their deadlines."""
        now = monotonic()
        self._expiry = None
        late = [pending for pending in self._flying if pending.deadline <= now]
        while self._waiting and self._waiting[0].deadline <= now:
            late.append(self._waiting.popleft())
        _settle(late, f"not confirmed within {SEND_TIMEOUT_SECONDS:g} s")
        following = next((pending for pending in chain(self._flying, self._waiting) if pending.deadline > now), None)
        if following is not None:
            self._expiry = asyncio.get_running_loop().call_later(following.deadline - now, self._expire)


class Coalescers:
    """A coalescer for each queue that commands are sent to; `publish` gets the queue and one message."""

    def __init__(self, publish: Callable[[str, bytes], Awaitable[None]]) -> None:
        self._publish = publish
        self._by_queue: dict[str, Coalescer] = {}
        self._closed = False

    def to(self, queue: str) -> Coalescer:
        """Return the one of a queue, made when it is first sent to."""
        coalescer = self._by_queue.get(queue)
        if coalescer is None:
            coalescer = self._by_queue[queue] = Coalescer(partial(self._publish, queue), closed=self._closed)
        return coalescer

    async def close(self) -> None:
        """Close all of them, those to come too."""
        self._closed = True
        await asyncio.gather(*(coalescer.close() for coalescer in self._by_queue.values()))


def _settle(batch: Iterable[_Pending], failure: str | None) -> None:
    for pending in batch:
        settled, pending.settled = pending.settled, None
        if settled is not None:
            settled(failure)
