"""Asking a service: a command goes out over the bus, and its answer comes back to this process or not at all."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from itertools import count, islice
from time import monotonic
from typing import Any, Final, TypeVar

import structlog
from msgspec import UNSET, MsgspecError, Struct
from msgspec.structs import replace

from shared.bus import COMMANDS_PER_MESSAGE, Bus
from shared.clock import Clock
from shared.errors import Refused
from shared.messages import Answer, Command, ReplyTo, decode, decode_answers, encode_items

log = structlog.get_logger()
T = TypeVar("T")
W = TypeVar("W")

Told = Sequence[tuple[W, T | Refused]]
"""Who asked, and what came of it: a result of the type expected, or why there is none."""

_TICK_SECONDS: Final = 0.02
"""How exactly a caller's time is kept: no sooner than it is over, and at most so much later."""
_NOBODY: Final = (None, None)


class _Message(Struct):
    """Commands that have left together."""

    calls: "Calls"
    numbers: list[str]
    """Under which their callers wait."""
    expect: type[Any]
    tell: Callable[[Told[Any, Any]], None]
    confirmed: bool = False
    """Whether the broker has them."""

    def settled(self, failure: str | None) -> None:
        """Note that the broker has the commands, or tell their callers that it may not have them."""
        if failure is None:
            self.confirmed = True
        else:
            for number in self.numbers:
                self.calls.end(number, Refused("unavailable"))


class Calls:
    """The commands of this gateway that wait for an answer."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._numbers = count(1)
        self._callers: dict[str, tuple[_Message, Any]] = {}
        """With which message the command of each has left who waits, by number."""
        self._due: dict[int, list[str]] = {}
        """Whose time is over at which tick; who has been answered stays in it until then."""
        self._tick = 0
        self._timer: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        """Begin to receive answers."""
        await self._bus.receive_answers(self._on_answers)

    async def ask(self, command: Command, expect: type[T]) -> T:
        """Send a command and wait, until its deadline, for a result of the type expected; raise what `begin` tells."""
        answered: asyncio.Future[T | Refused] = asyncio.get_running_loop().create_future()
        self.begin(command, expect, _end, answered)
        result = await answered
        if isinstance(result, Refused):
            raise result
        return result

    def begin(self, command: Command, expect: type[T], tell: Callable[[W, T | Refused], None], who: W) -> None:
        """Send a command, and have its result told to somebody, once, in a later turn of the loop.

        Told is a result of the type expected, the service's refusal, `unavailable` when the broker does not take the command,
        or `timeout` when no answer came in time: then it was not begun, or it is done and safe to send again. One whose time
        is over is not even sent.
        """
        [address] = self.addresses(1)
        self.begin_all([(replace(command, reply_to=address), who)], expect, partial(_tell_each, tell))

    def addresses(self, count: int) -> list[ReplyTo]:
        """Make so many return addresses, each for one command."""
        queue = self._bus.answer_queue
        return [ReplyTo(queue, str(number)) for number in islice(self._numbers, count)]

    def begin_all(self, asking: Sequence[tuple[Command, W]], expect: type[T], tell: Callable[[Told[W, T]], None]) -> None:
        """Do what `begin` does with commands to one queue that bear addresses of their own, each with who asks.

        They leave together, and those whose answers come together are told together. None is begun where one of them cannot
        be written: this raises then.
        """
        now = self._clock()
        in_time = [each for each in asking if each[0].deadline > now]
        together = [in_time[start : start + COMMANDS_PER_MESSAGE] for start in range(0, len(in_time), COMMANDS_PER_MESSAGE)]
        bodies = [encode_items([command for command, _ in each]) for each in together]
        if len(in_time) < len(asking):
            late = [(who, Refused("timeout")) for command, who in asking if command.deadline <= now]
            asyncio.get_running_loop().call_soon(_tell, tell, late)
        for each, body in zip(together, bodies, strict=True):
            numbers = [command.reply_to.correlation_id for command, _ in each if command.reply_to is not None]
            message = _Message(self, numbers, expect, tell)
            for number, (_, who) in zip(numbers, each, strict=True):
                self._callers[number] = message, who
            self._expect([command.deadline for command, _ in each], numbers, now)
            self._bus.send_soon(each[0][0].queue, body, len(each), message.settled)

    def end(self, number: str, result: Any) -> None:
        """Tell somebody what came of their command, unless they were told."""
        message, who = self._callers.pop(number, _NOBODY)
        if message is not None:
            _tell(message.tell, [(who, result)])

    def _expect(self, deadlines: Sequence[datetime], numbers: Sequence[str], now: datetime) -> None:
        """Have callers told when their time is over. A timer of the loop for each costs 1 to 2 µs, a heap as much."""
        at = monotonic()
        if self._timer is None:
            self._tick = int(at / _TICK_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._look)
        before = None
        due: list[str] = []
        for deadline, number in zip(deadlines, numbers, strict=True):
            # Most of those who leave together have come together.
            if deadline != before:
                before = deadline
                due = self._due.setdefault(int((at + (deadline - now).total_seconds()) / _TICK_SECONDS) + 1, [])
            due.append(number)

    def _look(self) -> None:
        """Tell those whose time is over, and look again at the next tick while anybody is expected."""
        now = int(monotonic() / _TICK_SECONDS)
        while self._tick < now:
            self._tick += 1
            for number in self._due.pop(self._tick, ()):
                message, _ = self._callers.get(number, _NOBODY)
                if message is not None:
                    self.end(number, Refused("timeout" if message.confirmed else "unavailable"))
        self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._look) if self._due else None

    def _on_answers(self, body: bytes) -> None:
        try:
            answers = decode_answers(body)
        except MsgspecError as error:
            log.error("calls.malformed_answers", reason=type(error).__name__)
            return
        together: _Message | None = None
        told: list[tuple[Any, Any]] = []
        for answer in answers:
            message, who = self._callers.pop(answer.correlation_id, _NOBODY)
            if message is None:
                continue
            if together is not message:
                if together is not None:
                    _tell(together.tell, told)
                together, told = message, []
            told.append((who, _result(answer, message.expect)))
        if together is not None:
            _tell(together.tell, told)


def _result(answer: Answer, expect: type[T]) -> T | Refused:
    if answer.error is not UNSET:
        refusal = answer.error
        return Refused(refusal.code, refusal.message, retryable=refusal.retryable, details=refusal.details)
    try:
        return Refused("internal") if answer.result is UNSET else decode(expect, answer.result)
    except MsgspecError as error:
        log.error("calls.malformed_answer", expected=expect.__name__, reason=type(error).__name__)
        return Refused("internal")


def _tell(tell: Callable[[Told[W, T]], None], told: Told[W, T]) -> None:
    try:
        tell(told)
    except Exception:
        log.exception("calls.not_told")


def _tell_each(tell: Callable[[W, T | Refused], None], told: Told[W, T]) -> None:
    for who, result in told:
        tell(who, result)


def _end(answered: "asyncio.Future[T | Refused]", result: T | Refused) -> None:
    # Whoever asked may have gone.
    if not answered.done():
        answered.set_result(result)
