"""Asking a service: a command goes out over the bus, and its answer comes back to this process or not at all."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import count, islice
from time import monotonic
from typing import Any, Final, TypeVar

import structlog
from msgspec import UNSET, MsgspecError, Struct
from msgspec.structs import replace

from gateway.gathering import Gathering
from shared.bus import COMMANDS_PER_MESSAGE, Bus
from shared.clock import Clock
from shared.errors import Refused
from shared.messages import Answer, Command, ReplyTo, decode, decode_answers, encode_items

log = structlog.get_logger()
T = TypeVar("T")
W = TypeVar("W")

_TICK_SECONDS: Final = 0.02
"""How exactly a caller's time is kept: no sooner than it is over, and at most so much later."""


class _Caller(Struct):
    """Somebody who waits for an answer."""

    command: Command
    expect: type[Any]
    tell: Callable[[Any, Any], None]
    who: Any
    message: "_Message | None" = None
    """With which their command has left."""

    @property
    def sent(self) -> bool:
        """Whether the broker has their command."""
        return self.message is not None and self.message.confirmed


class _Message(Struct):
    """Commands that have left together."""

    calls: "Calls"
    numbers: list[str]
    """Under which their callers wait."""
    confirmed: bool = False

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
        self._gathering = Gathering(self._leave)
        self._numbers = count(1)
        self._callers: dict[str, _Caller] = {}
        """By the number under which they wait."""
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
        if command.deadline <= self._clock():
            asyncio.get_running_loop().call_soon(tell, who, Refused("timeout"))
            return
        caller = _Caller(command, expect, tell, who)
        if command.gathers:
            self._gathering.put(caller)
        else:
            self._leave([caller])

    def end(self, number: str, result: Any) -> None:
        """Tell somebody what came of their command, unless they were told."""
        if (caller := self._callers.pop(number, None)) is not None:
            self._gathering.answered(caller.command.gathers)
            _tell(caller, result)

    def _leave(self, callers: Sequence[_Caller]) -> None:
        """Send the commands of some callers, all to one queue, in as few messages as there can be."""
        for start in range(0, len(callers), COMMANDS_PER_MESSAGE):
            together = callers[start : start + COMMANDS_PER_MESSAGE]
            message = _Message(self, [str(number) for number in islice(self._numbers, len(together))])
            queue, commands = self._bus.answer_queue, []
            for number, caller in zip(message.numbers, together, strict=True):
                self._callers[number] = caller
                caller.message = message
                commands.append(replace(caller.command, reply_to=ReplyTo(queue, number)))
            self._expect(message.numbers, commands)
            self._bus.send_soon(commands[0].queue, encode_items(commands), len(commands), message.settled)

    def _expect(self, numbers: Sequence[str], commands: Sequence[Command]) -> None:
        """Have callers told when their time is over. A timer of the loop for each costs 1 to 2 µs, a heap as much."""
        now, clock = monotonic(), self._clock()
        if self._timer is None:
            self._tick = int(now / _TICK_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._look)
        deadline = None
        due: list[str] = []
        for number, command in zip(numbers, commands, strict=True):
            # Most of those who leave together have come together.
            if command.deadline != deadline:
                deadline = command.deadline
                seconds = max(0.0, (deadline - clock).total_seconds())
                due = self._due.setdefault(int((now + seconds) / _TICK_SECONDS) + 1, [])
            due.append(number)

    def _look(self) -> None:
        """Tell those whose time is over, and look again at the next tick while anybody is expected."""
        now = int(monotonic() / _TICK_SECONDS)
        while self._tick < now:
            self._tick += 1
            for number in self._due.pop(self._tick, ()):
                if (caller := self._callers.get(number)) is not None:
                    self.end(number, Refused("timeout" if caller.sent else "unavailable"))
        self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._look) if self._due else None

    def _on_answers(self, body: bytes) -> None:
        try:
            answers = decode_answers(body)
        except MsgspecError as error:
            log.error("calls.malformed_answers", reason=type(error).__name__)
            return
        gathered = 0
        for answer in answers:
            if (caller := self._callers.pop(answer.correlation_id, None)) is not None:
                gathered += caller.command.gathers
                _tell(caller, _result(answer, caller.expect))
        self._gathering.answered(gathered)


def _result(answer: Answer, expect: type[T]) -> T | Refused:
    if answer.error is not UNSET:
        refusal = answer.error
        return Refused(refusal.code, refusal.message, retryable=refusal.retryable, details=refusal.details)
    try:
        return Refused("internal") if answer.result is UNSET else decode(expect, answer.result)
    except MsgspecError as error:
        log.error("calls.malformed_answer", expected=expect.__name__, reason=type(error).__name__)
        return Refused("internal")


def _tell(caller: _Caller, result: Any) -> None:
    try:
        caller.tell(caller.who, result)
    except Exception:
        log.exception("calls.not_told")


def _end(answered: "asyncio.Future[T | Refused]", result: T | Refused) -> None:
    # Whoever asked may have gone.
    if not answered.done():
        answered.set_result(result)
