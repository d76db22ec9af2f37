"""The bus within one process, for `rollcall dev` and for tests: no broker, nothing on disk.

RabbitMQ keeps what it has confirmed; memory does not. So this bus confirms later, commands and events alike: when the
message's handlers are done with it, that is, have acknowledged it. Until then a command is unanswered and an event is
still in its outbox, and a killed process loses nothing that was answered.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from uuid import uuid4

import structlog

from shared import topology
from shared.bus import RETRY_SECONDS, SEND_TIMEOUT_SECONDS, Delivery, OutgoingEvent
from shared.coalescer import Coalescers, Settled, grouped
from shared.errors import Unavailable
from shared.messages import ReplyTo

log = structlog.get_logger()


class Parked(NamedTuple):
    """What could not be handled: the message, the queue it came from, and why."""

    body: bytes
    queue: str
    reason: str


class MemoryBroker:
    """What the buses of one process share, as replicas share RabbitMQ."""

    def __init__(self) -> None:
        self.queues = {name: _Queue() for name in topology.WORK_QUEUES}
        self.answers: dict[str, Callable[[bytes], None]] = {}
        self.parked: list[Parked] = []


class MemoryBus:
    """Implements `bus.Bus`, with these differences that the interface allows.

    - A message is confirmed when it has been acknowledged. Sent back by `retry`, it is not: whoever waits gets
      Unavailable at once, and the message comes again all the same. Nobody waits longer than `SEND_TIMEOUT_SECONDS`.
    - A command that a handler has had in hand for half that time is confirmed though it is not done: a roster may take
      longer, and those behind it are not to wait. It is still answered only when it is done.
    - An event published again while its first copy is still waiting joins that copy, so that an outbox that is swept
      time and again does not multiply it.
    - Services may publish to each other from inside their handlers. A handler that waits in `publish` for an event that
      only it can handle, directly or round a circle of handlers, waits for itself: it gets Unavailable after the time
      limit, the event stays in the outbox, and is handled once the handler has returned. Slow, never stuck, not lost.
    """

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        self.broker = broker or MemoryBroker()
        self._commands = Coalescers(self._send_message)
        self._inboxes: dict[str, MemoryInbox] = {}
        self._answer_queue = ""
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether the bus is open."""
        return not self._closed

    def send_soon(self, queue: str, commands: bytes, count: int, settled: Settled) -> None:
        """Begin to send commands; tell when they have been handled, or that they are not in time (see the class)."""
        self._commands.to(queue).send_soon(commands, count, settled)

    async def _send_message(self, queue: str, body: bytes) -> None:
        if queue not in self.broker.queues:
            raise Unavailable(f"no queue {queue}")
        message = _Message(body)
        handling = asyncio.create_task(_handled([self.broker.queues[queue].put(message)]))
        try:
            await asyncio.wait({handling}, timeout=SEND_TIMEOUT_SECONDS / 2)
            if handling.done() or not message.taken:
                await handling
        finally:
            handling.cancel()

    async def receive_answers(self, on_answers: Callable[[bytes], None]) -> str:
        """Receive answers until the bus is closed."""
        assert not self._answer_queue, "answers are received once"
        self._answer_queue = f"rollcall.answers.{uuid4().hex}"
        self.broker.answers[self._answer_queue] = on_answers
        return self._answer_queue

    @property
    def answer_queue(self) -> str:
        """The name that `receive_answers` returned."""
        return self._answer_queue

    async def answer(self, answers: Sequence[tuple[str, bytes]]) -> None:
        """Hand answers over in the next turns of the loop, never inside this call."""
        loop = asyncio.get_running_loop()
        for queue, body in grouped(answers):
            loop.call_soon(self._hand_over, queue, body)

    def _hand_over(self, queue: str, body: bytes) -> None:
        on_answers = self.broker.answers.get(queue)
        if on_answers is None:
            return
        try:
            on_answers(body)
        except Exception:
            log.exception("bus.answers_not_taken")

    async def publish(self, events: Sequence[OutgoingEvent]) -> None:
        """Publish events; return when all their handlers are done, else raise Unavailable (see the class)."""
        if self._closed:
            raise Unavailable("the bus is closed")
        await _handled(
            [
                self.broker.queues[name].put(_Message(event.body, event.reply_to, event.id))
                for event in events
                for name in topology.queues_for(event.type)
            ]
        )

    def inbox(self, queue: str) -> "MemoryInbox":
        """Consume a queue; asked again, hand out the same inbox."""
        inbox = self._inboxes.get(queue)
        if inbox is None:
            inbox = self._inboxes[queue] = MemoryInbox(queue, self.broker)
        return inbox

    async def close(self) -> None:
        """Give up what is unconfirmed, and put back what was taken but not ended."""
        self._closed = True
        self.broker.answers.pop(self._answer_queue, None)
        await self._commands.close()
        for inbox in self._inboxes.values():
            inbox.close()


class _Message:
    """A message and those who wait to hear that it has been handled."""

    def __init__(self, body: bytes, reply_to: ReplyTo | None = None, event_id: str | None = None) -> None:
        self.body = body
        self.reply_to = reply_to
        self.event_id = event_id
        self.taken = False
        self.redelivered = False
        self._waiters: list[asyncio.Future[None]] = []

    def outcome(self) -> asyncio.Future[None]:
        """Return a future of one's own: done when the message is acknowledged, Unavailable when it is sent back."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    def settle(self, failure: str | None = None) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if failure is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(Unavailable(failure))


class _Queue:
    """The messages of one queue, waiting or in somebody's hands."""

    def __init__(self) -> None:
        self._waiting: deque[_Message] = deque()
        self._arrival = asyncio.Event()
        self._events: dict[tuple[str, ReplyTo | None], _Message] = {}

    def put(self, message: _Message) -> asyncio.Future[None]:
        """Append a message, or join the copy of it that is not handled yet; return how it ends."""
        if message.event_id is not None:
            key = (message.event_id, message.reply_to)
            if key in self._events:
                return self._events[key].outcome()
            self._events[key] = message
        self.bring([message])
        return message.outcome()

    def bring(self, messages: Iterable[_Message]) -> None:
        """Append messages."""
        self._waiting.extend(messages)
        self._arrival.set()

    def put_back(self, messages: Sequence[_Message]) -> None:
        """Put messages before the others, where they came from."""
        self._waiting.extendleft(reversed(messages))
        self._arrival.set()

    async def take(self, limit: int) -> list[_Message]:
        while not self._waiting:
            self._arrival.clear()
            await self._arrival.wait()
        return [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]

    def done(self, message: _Message) -> None:
        """Forget a message that has been handled."""
        if message.event_id is not None:
            self._events.pop((message.event_id, message.reply_to), None)
        message.settle()


class MemoryInbox:
    """Implements `bus.Inbox`. After the bus is closed, `take` waits for ever."""

    def __init__(self, name: str, broker: MemoryBroker) -> None:
        self._name = name
        self._broker = broker
        self._queue = broker.queues[name]
        self._taken: dict[_Message, None] = {}
        self._closed = False

    async def take(self, limit: int) -> list[Delivery]:
        """Wait for a message, then hand over what is there."""
        messages = await self._queue.take(limit)
        if self._closed:
            self._queue.put_back(messages)
            await asyncio.get_running_loop().create_future()
        for message in messages:
            message.taken = True
        self._taken.update(dict.fromkeys(messages))
        return [MemoryDelivery(message, self) for message in messages]

    async def park(self, body: bytes, reason: str) -> None:
        """Keep a message in the broker's list."""
        self._broker.parked.append(Parked(body, self._name, reason))

    async def stand_back(self, back: bool) -> None:
        """There is nobody else."""

    def ack(self, message: _Message) -> None:
        """End a message that this inbox still holds."""
        if message in self._taken:
            del self._taken[message]
            self._queue.done(message)

    def retry(self, message: _Message) -> None:
        """Let a message that this inbox still holds come again later."""
        if message in self._taken:
            del self._taken[message]
            message.settle("it was sent back to be retried")
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._queue.bring, [message])

    def close(self) -> None:
        """Put back what was not ended."""
        self._closed = True
        taken, self._taken = self._taken, {}
        for message in taken:
            message.redelivered = True
        self._queue.put_back(list(taken))


class MemoryDelivery:
    """Implements `bus.Delivery`."""

    __slots__ = ("_inbox", "_message", "body", "redelivered", "reply_to")

    def __init__(self, message: _Message, inbox: MemoryInbox) -> None:
        self._message = message
        self._inbox = inbox
        self.body = message.body
        self.redelivered = message.redelivered
        self.reply_to = message.reply_to

    async def ack(self) -> None:
        """End it, and confirm it to whoever sent it."""
        self._inbox.ack(self._message)

    async def retry(self) -> None:
        """Have it come again, and tell whoever sent it that it is not done."""
        self._inbox.retry(self._message)


async def _handled(outcomes: Sequence[asyncio.Future[None]]) -> None:
    """Wait until all of these messages are handled; raise Unavailable for the first that is not, or not in time."""
    try:
        async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
            await asyncio.gather(*outcomes)
    except TimeoutError as error:
        raise Unavailable(f"not handled within {SEND_TIMEOUT_SECONDS:g} s") from error
