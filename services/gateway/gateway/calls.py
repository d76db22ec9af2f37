"""Asking a service: a command goes out over the bus, and its answer comes back to this process or not at all."""

import asyncio
from collections.abc import Callable
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

    async def open(self) -> None:
        """Begin to receive answers."""
        await self._bus.receive_answers(self._on_answers)

    async def ask(self, command: Command, expect: type[T]) -> T:
        """Send a command and wait, until its deadline, for a result of the type expected.

        Raises Refused with the service's refusal, with `unavailable` when the broker does not take the command, and with
        `timeout` when no answer came in time: then it was not begun, or it is done and safe to send again.
        """
        number = str(next(self._numbers))
        waiting: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        addressed = encode(replace(command, reply_to=ReplyTo(self._bus.answer_queue, number)))
        self._waiting[number] = waiting
        sending = asyncio.create_task(self._bus.send(command.queue, addressed))
        sending.add_done_callback(_failing(waiting))
        try:
            async with asyncio.timeout((command.deadline - self._clock()).total_seconds()):
                answer = await waiting
        except TimeoutError:
            raise Refused("timeout" if sending.done() else "unavailable") from None
        except Unavailable as error:
            raise Refused("unavailable") from error
        finally:
            del self._waiting[number]
        if answer.error is not UNSET:
            refusal = answer.error
            raise Refused(refusal.code, refusal.message, retryable=refusal.retryable, details=refusal.details)
        if answer.result is UNSET:
            raise Refused("internal")
        return decode(expect, answer.result)

    def _on_answers(self, body: bytes) -> None:
        try:
            answers = decode_answers(body)
        except MsgspecError as error:
            log.error("calls.malformed_answers", reason=str(error))
            return
        for answer in answers:
            waiting = self._waiting.get(answer.correlation_id)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)


def _failing(waiting: asyncio.Future[Answer]) -> Callable[[asyncio.Task[None]], None]:
    """Make what tells the waiting caller that the command could not be sent."""

    def sent(sending: asyncio.Task[None]) -> None:
        error = None if sending.cancelled() else sending.exception()
        if error is not None and not waiting.done():
            waiting.set_exception(error)

    return sent
