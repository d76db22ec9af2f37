"""How a batch of commands is done: in one transaction, each refused alone, answered only after the commit."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from msgspec import Struct

from session_service.store import Store, Unit
from shared.clock import Clock
from shared.errors import Refused
from shared.live import Names
from shared.messages import Event, EventData, ReplyTo, SessionCommand
from shared.outbox import OutboxRow, outgoing
from shared.worker import Handler, Outcome

C = TypeVar("C", bound=SessionCommand)
Seen = TypeVar("Seen")


@dataclass(frozen=True, slots=True)
class Work:
    """What a command is done with: the transaction, the time, and the events that leave with the commit."""

    unit: Unit
    names: Names
    now: datetime
    events: list[OutboxRow] = field(default_factory=list)

    def emit(self, event: Event[EventData], course_id: str, reply_to: ReplyTo | None = None) -> None:
        """Have an event leave with the commit, live in its course too; its effect answers `reply_to`."""
        self.events.append(outgoing(event, [self.names.course_channel(course_id)], reply_to))


Begin = Callable[[], AbstractAsyncContextManager[Work]]


def beginning(store: Store, names: Names, clock: Clock) -> Begin:
    """Make what begins a piece of work: one transaction, with the events emitted in it written at its end."""

    @asynccontextmanager
    async def begin() -> AsyncIterator[Work]:
        async with store.unit() as unit:
            work = Work(unit, names, clock())
            yield work
            await unit.emit(work.events)

    return begin


def each(
    begin: Begin,
    handle: Callable[[Work, C], Awaitable[Struct | None]],
    *,
    in_order: Callable[[Unit, Sequence[C]], Awaitable[Sequence[C]]] | None = None,
) -> Handler:
    """Make a handler that does commands one by one, in the order in which every replica locks.

    `handle` refuses before it writes anything, and returns None when another service will answer.
    """

    async def handle_each(commands: Sequence[C]) -> Outcome:
        outcome = Outcome()
        async with begin() as work:
            for command in await in_order(work.unit, commands) if in_order else commands:
                try:
                    answer = await handle(work, command)
                except Refused as refusal:
                    outcome.answer(command.reply_to, refusal)
                else:
                    if answer is not None:
                        outcome.answer(command.reply_to, answer)
        outcome.events = work.events
        return outcome

    return handle_each


def together(
    begin: Begin,
    look_up: Callable[[Unit, Sequence[C]], Awaitable[Sequence[tuple[Seen | None, bool]]]],
    decide: Callable[[C, Seen | None, bool], Struct | Refused],
) -> Handler:
    """Make a handler that looks up a thing for each command, in one round trip, and decides on each."""

    async def handle_together(commands: Sequence[C]) -> Outcome:
        outcome = Outcome()
        async with begin() as work:
            found = await look_up(work.unit, commands)
        for command, (thing, enrolled) in zip(commands, found, strict=True):
            try:
                outcome.answer(command.reply_to, decide(command, thing, enrolled))
            except Refused as refusal:
                outcome.answer(command.reply_to, refusal)
        return outcome

    return handle_together
