"""Asking a service: a command goes out over the bus, and its answer comes back to this process or not at all."""

import asyncio
from collections.abc import Callable
from itertools import count
from time import monotonic
from typing import Any, Final, TypeVar

import structlog
from msgspec import UNSET, MsgspecError, Struct
from msgspec.structs import replace

from gateway.gathering import Gathering
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import Refused
from shared.messages import Answer, Command, ReplyTo, decode, decode_answers, encode

log = structlog.get_logger()
T = TypeVar("T")
W = TypeVar("W")

_TICK_SECONDS: Final = 0.02
"""How exactly a caller's time is kept: no sooner than it is over, and at most so much later."""


class _Caller(Struct):
    """Somebody who waits for an answer, by the number under which they wait."""

    calls: "Calls"
    address: str
    expect: type[Any]
    tell: Callable[[Any, Any], None]
    who: Any
    gathers: bool
    """Whether their command travels with others."""
    sent: bool = False
    """Whether the broker has their command."""

    def settled(self, failure: str | None) -> None:
        """Note that the broker has their command, or tell them that it may not have it."""
        if failure is None:
            self.sent = True
        else:
            self.calls.end(self, Refused("unavailable"))


class Calls:
    """The commands of this gateway that wait for an answer."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._gathering = Gathering(bus.send_soon)
        self._numbers = count(1)
        self._callers: dict[str, _Caller] = {}
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
        now = self._clock()
        if command.deadline <= now:
            asyncio.get_running_loop().call_soon(tell, who, Refused("timeout"))
            return
        address = str(next(self._numbers))
        addressed = encode(replace(command, reply_to=ReplyTo(self._bus.answer_queue, address)))
        gathers = command.gathers
        self._callers[address] = caller = _Caller(self, address, expect, tell, who, gathers)
        self._expect((command.deadline - now).total_seconds(), address)
        send = self._gathering.send_soon if gathers else self._bus.send_soon
        send(command.queue, addressed, caller.settled)

    def end(self, caller: _Caller, result: Any) -> None:
        """Tell somebody what came of their command, unless they were told."""
        if self._callers.pop(caller.address, None) is not None:
            self._gathering.answered(caller.gathers)
            _tell(caller, result)

    def _expect(self, seconds: float, address: str) -> None:
        """Have a caller told when their time is over. A timer of the loop for each costs 1 to 2 µs, a heap as much."""
        now = monotonic()
        tick = int((now + seconds) / _TICK_SECONDS) + 1
        due = self._due.get(tick)
        if due is not None:
            due.append(address)
            return
        self._due[tick] = [address]
        if self._timer is None:
            self._tick = int(now / _TICK_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._look)

    def _look(self) -> None:
        """Tell those whose time is over, and look again at the next tick while anybody is expected."""
        now = int(monotonic() / _TICK_SECONDS)
        while self._tick < now:
            self._tick += 1
            for address in self._due.pop(self._tick, ()):
                if (caller := self._callers.get(address)) is not None:
                    self.end(caller, Refused("timeout" if caller.sent else "unavailable"))
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
                gathered += caller.gathers
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
