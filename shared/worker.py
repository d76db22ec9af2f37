"""A worker empties one queue: it takes what waits, hands it to the handlers in batches, and only then acknowledges.

One bad message never takes its neighbours with it: a batch that fails is halved until the bad one stands alone and is
parked. A server that is away pauses the worker; nothing is refused, and nothing parked, for that.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog
from msgspec import MsgspecError, Struct
from msgspec.structs import replace

from shared.bus import Bus, Delivery, Inbox
from shared.clock import Clock
from shared.errors import NotYet, Refused, Unavailable
from shared.messages import (
    Answer,
    Command,
    Event,
    Refusal,
    ReplyTo,
    decode_commands,
    decode_event,
    each_alone,
    encode,
    encode_result,
)
from shared.outbox import OutboxRow
from shared.process import guarded

log = structlog.get_logger()

COMMANDS_PER_BATCH = 512
STOP_SECONDS = 10
_DELIVERIES_AT_ONCE = 32
_PAUSE_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(slots=True)
class Outcome:
    """What a handler made of a batch, all of it committed: who is answered what, and the events that leave now."""

    answers: list[tuple[ReplyTo, Struct | Refused]] = field(default_factory=list)
    events: list[OutboxRow] = field(default_factory=list)

    def answer(self, reply_to: ReplyTo | None, result: Struct | Refused) -> None:
        """Answer somebody; nobody asking is fine."""
        if reply_to is not None:
            self.answers.append((reply_to, result))


Message = Command | Event[Any]
Handler = Callable[[Sequence[Any]], Awaitable[Outcome]]
Handlers = Mapping[type[Struct], Handler]
"""The map of a service: the command type, or the type of an event's data, to what handles a batch of them.

A handler commits before it returns. It may meet the same message again and must then change nothing. It raises
Unavailable when a server is away, and NotYet for an event that came too early; anything else is a defect.
"""


@dataclass(slots=True)
class _Job:
    message: Message
    delivery: Delivery

    @property
    def kind(self) -> type[Struct]:
        return type(self.message.data) if isinstance(self.message, Event) else type(self.message)

    def expired(self, now: datetime) -> bool:
        return isinstance(self.message, Command) and self.message.deadline < now


class Worker:
    """Empties one queue until it is stopped; run one for each queue of the process."""

    def __init__(
        self,
        bus: Bus,
        queue: str,
        handlers: Handlers,
        publish: Callable[[Sequence[OutboxRow]], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._bus = bus
        self._queue = queue
        self._handlers = handlers
        self._publish = publish
        self._clock = clock
        self._stopping = False
        self._taking: asyncio.Task[Any] | None = None
        """What `run` runs in, while it only waits for what comes."""

    def stop(self) -> None:
        """Let `run` return after the batch in hand."""
        if self._taking is not None and not self._stopping:
            self._taking.cancel()
        self._stopping = True

    async def run(self) -> None:
        """Take, handle, acknowledge, until stopped."""
        inbox = self._bus.inbox(self._queue)
        while not self._stopping:
            await self._handle(inbox, await self._take(inbox))
            # A batch costs more than what is in it, so what came while this one was done is read before the next begins.
            await asyncio.sleep(0)

    async def _take(self, inbox: Inbox) -> list[Delivery]:
        """Take what has come; nothing once stopped."""
        task = self._taking = asyncio.current_task()
        assert task is not None
        try:
            return await inbox.take(_DELIVERIES_AT_ONCE)
        except asyncio.CancelledError:
            # By `stop`, or by somebody else, who is to hear of it.
            if not self._stopping or task.uncancel():
                raise
            return []
        finally:
            self._taking = None

    async def _handle(self, inbox: Inbox, deliveries: Sequence[Delivery]) -> None:
        """Handle everything in these deliveries and end each of them, last of all.

        A defect of the worker itself is no reason to sit on them: each is tried alone, and parked whole where it fails again.
        """
        try:
            retried = await self._do(inbox, deliveries)
        except Exception as error:
            if len(deliveries) > 1:
                for delivery in deliveries:
                    await self._handle(inbox, [delivery])
                return
            log.error("worker.parked", queue=self._queue, reason="defect", exc_info=error)
            await self._park(inbox, deliveries[0].body, f"{type(error).__name__}: {error}")
            retried = set()
        for delivery in deliveries:
            if id(delivery) in retried:
                await delivery.retry()
            else:
                await delivery.ack()

    async def _do(self, inbox: Inbox, deliveries: Sequence[Delivery]) -> set[int]:
        """Do everything in these deliveries; return the ids of those that are to come again later."""
        jobs: list[_Job] = []
        retried: set[int] = set()
        for delivery in deliveries:
            good, bad = _read(delivery, self._queue)
            jobs.extend(good)
            for body, reason in bad:
                # Why is with the parked message: it may quote from it.
                log.error("worker.parked", queue=self._queue, reason="malformed")
                await self._park(inbox, body, reason)
        for batch in _batches(jobs):
            retried |= await self._settle(inbox, batch)
        return retried

    async def _settle(self, inbox: Inbox, jobs: Sequence[_Job]) -> set[int]:
        """Do a batch of one kind; return the ids of the deliveries that are to come again later."""
        attempt = 0
        while jobs := self._in_time(jobs):
            kind = jobs[0].kind
            if kind not in self._handlers and isinstance(jobs[0].message, Event):
                return set()  # an event that this service does not care for
            try:
                outcome = await self._handlers[kind]([job.message for job in jobs])
            except Unavailable as error:
                pause = _PAUSE_SECONDS[min(attempt, len(_PAUSE_SECONDS) - 1)]
                attempt += 1
                log.warning("worker.paused", queue=self._queue, seconds=pause, reason=str(error))
                # Another replica may reach what this one does not.
                await inbox.stand_back(True)
                await asyncio.sleep(pause)
            except Exception as error:
                return await self._divide(inbox, jobs, error)
            else:
                await inbox.stand_back(False)
                await self._tell(outcome)
                return set()
        return set()

    def _in_time(self, jobs: Sequence[_Job]) -> list[_Job]:
        """Leave out what is past its deadline: its caller has been told `timeout`, so it must not be done."""
        now = self._clock()
        kept = [job for job in jobs if not job.expired(now)]
        if len(kept) < len(jobs):
            log.warning("worker.expired", queue=self._queue, commands=len(jobs) - len(kept))
        return kept

    async def _divide(self, inbox: Inbox, jobs: Sequence[_Job], error: Exception) -> set[int]:
        """Halve a batch that failed; a job that fails alone is retried when it came too early, else parked."""
        if len(jobs) > 1:
            middle = len(jobs) // 2
            return await self._settle(inbox, jobs[:middle]) | await self._settle(inbox, jobs[middle:])
        job = jobs[0]
        if isinstance(error, NotYet):
            return {id(job.delivery)}
        reason = f"{type(error).__name__}: {error}"
        name = job.message.command_id if isinstance(job.message, Command) else job.message.id
        log.error("worker.parked", queue=self._queue, kind=job.kind.__name__, id=name, exc_info=error)
        body = b"[" + encode(job.message) + b"]" if isinstance(job.message, Command) else job.delivery.body
        await self._park(inbox, body, reason)
        await self._tell(Outcome([(job.message.reply_to, Refused("internal"))] if job.message.reply_to else []))
        return set()

    async def _park(self, inbox: Inbox, body: bytes, reason: str) -> None:
        """Park a message for certain: while the broker is away this waits, and the delivery stays unacknowledged."""
        # It may quote what nobody can write.
        reason = reason.encode(errors="replace").decode()
        while True:
            try:
                return await inbox.park(body, reason)
            except Unavailable as error:
                log.warning("worker.paused", queue=self._queue, seconds=_PAUSE_SECONDS[-1], reason=str(error))
                await asyncio.sleep(_PAUSE_SECONDS[-1])

    async def _tell(self, outcome: Outcome) -> None:
        """Begin to publish, and answer; what is published leaves behind the answers (`Outbox.publish`)."""
        answers = [(to.queue, encode_answer(to.correlation_id, result)) for to, result in outcome.answers]
        await self._publish(outcome.events)
        await self._bus.answer(answers)


@asynccontextmanager
async def working(workers: Sequence[Worker]) -> AsyncIterator[None]:
    """Run workers for the length of the block; then each finishes the batch in hand, within `STOP_SECONDS`."""
    async with guarded(*(worker.run for worker in workers)) as tasks:
        try:
            yield
        finally:
            for worker in workers:
                worker.stop()
            _, unfinished = await asyncio.wait(tasks, timeout=STOP_SECONDS)
            if unfinished:
                log.warning("worker.stopped_unfinished", queues=len(unfinished))


def encode_answer(correlation_id: str, result: Struct | Refused) -> bytes:
    """Write the answer to one command."""
    if isinstance(result, Refused):
        refusal = Refusal(
            code=result.code,
            message=result.message,
            retryable=result.retryable,
            details=tuple(dict(detail) for detail in result.details),
        )
        return encode(Answer(correlation_id=correlation_id, error=refusal))
    return encode_result(correlation_id, result)


def _commands(body: bytes, delivery: Delivery) -> list[_Job]:
    """Read commands; those whose caller may have been answered already say so."""
    commands: Sequence[Command] = decode_commands(body)
    if delivery.redelivered:
        commands = [replace(command, redelivered=True) if command.reply_to else command for command in commands]
    return [_Job(command, delivery) for command in commands]


def _read(delivery: Delivery, queue: str) -> tuple[list[_Job], list[tuple[bytes, str]]]:
    """Read a delivery's messages, and apart from them what is none, with the reason; a bad command spoils no other."""
    commands = queue.endswith(".commands")
    try:
        if commands:
            return _commands(delivery.body, delivery), []
        event = decode_event(delivery.body, delivery.reply_to)
        return [] if event is None else [_Job(event, delivery)], []
    except MsgspecError as error:
        reason = f"malformed: {error}"
    try:
        parts = each_alone(delivery.body) if commands else []
    except MsgspecError:
        parts = []
    if len(parts) < 2:
        return [], [(delivery.body, reason)]
    jobs: list[_Job] = []
    bad: list[tuple[bytes, str]] = []
    for part in parts:
        try:
            jobs.extend(_commands(part, delivery))
        except MsgspecError as error:
            bad.append((part, f"malformed: {error}"))
    return jobs, bad


def _batches(jobs: Iterable[_Job]) -> list[list[_Job]]:
    """Gather what is of one kind, in order of arrival, in batches of at most `COMMANDS_PER_BATCH`.

    What is done alone comes last: each of these is looked at for its deadline, answered and told on its own.
    """
    kinds: dict[type[Struct], list[_Job]] = {}
    alone: list[list[_Job]] = []
    for job in jobs:
        if isinstance(job.message, Command) and job.message.alone:
            alone.append([job])
        else:
            kinds.setdefault(job.kind, []).append(job)
    return [
        gathered[start : start + COMMANDS_PER_BATCH]
        for gathered in kinds.values()
        for start in range(0, len(gathered), COMMANDS_PER_BATCH)
    ] + alone
