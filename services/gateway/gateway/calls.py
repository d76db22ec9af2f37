"""Asking a service: a command goes out over the bus, and its answer comes back to this process or not at all."""

import asyncio
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import TypeVar

import structlog
from msgspec import UNSET, MsgspecError
from msgspec.structs import replace

from shared.bus import Bus
from shared.clock import Clock
from shared.errors import Refused, Unavailable
from shared.messages import Answer, Command, ReplyTo, decode, decode_answers, encode

log = structlog.get_logger()
T = TypeVar("T")


class Calls:
    """The commands of this gateway that wait for an answer."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._numbers = count(1)
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._deadlines: list[tuple[float, int]] = []
        """A heap of who waits until when, by number; who has been answered stays in it until their time is over."""
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0

    async def open(self) -> None:
        """Begin to receive answers."""
        await self._bus.receive_answers(self._on_answers)

    async def ask(self, command: Command, expect: type[T]) -> T:
        """Send a command and wait, until its deadline, for a result of the type expected.

        Raises Refused with the service's refusal, with `unavailable` when the broker does not take the command, and with
        `timeout` when no answer came in time: then it was not begun, or it is done and safe to send again. One whose time
        is over is not even sent.
        """
        seconds = (command.deadline - self._clock()).total_seconds()
        if seconds <= 0:
            raise Refused("timeout")
        number = next(self._numbers)
        address = str(number)
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[Answer] = loop.create_future()
        addressed = encode(replace(command, reply_to=ReplyTo(self._bus.answer_queue, address)))
        self._waiting[address] = waiting
        self._expect(loop.time() + seconds, number)
        sending = self._bus.send_soon(command.queue, addressed)
        sending.add_done_callback(partial(_sent, waiting))
        try:
            answer = await waiting
        except TimeoutError:
            raise Refused("timeout" if sending.done() else "unavailable") from None
        except Unavailable as error:
            raise Refused("unavailable") from error
        finally:
            del self._waiting[address]
        if answer.error is not UNSET:
            refusal = answer.error
            raise Refused(refusal.code, refusal.message, retryable=refusal.retryable, details=refusal.details)
        if answer.result is UNSET:
            raise Refused("internal")
        return decode(expect, answer.result)

    def _expect(self, deadline: float, number: int) -> None:
        """Have a caller told when their time is over. One timer serves all: one for each costs 1 to 2 µs."""
        heappush(self._deadlines, (deadline, number))
        if self._timer is None or deadline < self._timer_at:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._deadlines:
            self._timer_at = self._deadlines[0][0]
            # What it returns for a time that is over cannot say when (uvloop).
            self._timer = asyncio.get_running_loop().call_at(self._timer_at, self._give_up)

    def _give_up(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._deadlines and (self._deadlines[0][0] <= now or str(self._deadlines[0][1]) not in self._waiting):
            _, number = heappop(self._deadlines)
            waiting = self._waiting.get(str(number))
            if waiting is not None and not waiting.done():
                waiting.set_exception(TimeoutError())
        self._set_timer()

    def _on_answers(self, body: bytes) -> None:
        try:
            answers = decode_answers(body)
        except MsgspecError as error:
            log.error("calls.malformed_answers", reason=type(error).__name__)
            return
        for answer in answers:
            waiting = self._waiting.get(answer.correlation_id)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)


def _sent(waiting: asyncio.Future[Answer], sending: asyncio.Future[None]) -> None:
    """Tell the waiting caller if the command could not be sent."""
    error = None if sending.cancelled() else sending.exception()
    if error is not None and not waiting.done():
        waiting.set_exception(error)
