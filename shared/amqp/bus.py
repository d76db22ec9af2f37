"""The bus itself: which exchange and key each message leaves by, and which line carries it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import structlog
from aio_pika.connection import make_url

from shared import topology
from shared.amqp.express import Express
from shared.amqp.failures import quiet, reaching
from shared.amqp.inbox import AmqpInbox, AnswerQueue, seniority
from shared.amqp.lines import Incoming, Outgoing
from shared.amqp.properties import EVENT_ID_HEADER, message_properties
from shared.bus import SEND_TIMEOUT_SECONDS, OutgoingEvent
from shared.clock import utc_now
from shared.coalescer import Coalescers, Settled, grouped
from shared.errors import Unavailable

log = structlog.get_logger()


@asynccontextmanager
async def open_amqp(url: str) -> AsyncIterator["AmqpBus"]:
    """Connect to the broker for the length of the block.

    Raises StartupFailed, without the password, when it cannot be reached within about `CONNECT_TIMEOUT_SECONDS` or has
    a queue with other arguments than ours. Later losses are mended in the background, for ever.
    """
    quiet()
    bus = AmqpBus(url)
    try:
        await bus.open()
        yield bus
    finally:
        await bus.close()


class AmqpBus:
    """Implements `bus.Bus`."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._outgoing = Outgoing(self._url)
        self._incoming = Incoming(self._url)
        self._express = Express(self._url)
        self._commands = Coalescers(self._send_message)
        self._inboxes: dict[str, AmqpInbox] = {}
        self._priority = seniority(utc_now())
        self._answers: AnswerQueue | None = None
        self._closed = False

    async def open(self) -> None:
        """Connect for the first time, both ways at once; see `open_amqp`."""
        with reaching(self._url):
            both = self._outgoing.open(), self._incoming.open()
            # Both to their end, so that `close` finds what there is to close.
            for outcome in await asyncio.gather(*both, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
        self._express.begin()

    @property
    def connected(self) -> bool:
        """Whether the two connections are there that must be; that of the short way may be away."""
        return self._outgoing.up and self._incoming.up

    def send_soon(self, queue: str, commands: bytes, count: int, settled: Settled) -> None:
        """Begin to send commands in the next message to their queue; tell when it is confirmed, or is not in time."""
        self._commands.to(queue).send_soon(commands, count, settled)

    async def _send_message(self, queue: str, body: bytes) -> None:
        if await self._express.offer(queue, body):
            return
        key = topology.COMMAND_KEYS.get(queue)
        exchange, key = (topology.COMMANDS, key) if key else ("", queue)
        await self._outgoing.publish(exchange, key, body, message_properties(), mandatory=True)

    async def receive_answers(self, on_answers: Callable[[bytes], None]) -> str:
        """Consume a queue of answers, a new one after each reconnect; raise Unavailable when the broker is away."""
        assert self._answers is None, "answers are received once"
        self._answers = AnswerQueue(on_answers)
        self._incoming.add(self._answers)
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                await self._answers.consuming.wait()
        except TimeoutError as error:
            raise Unavailable("no connection to the broker") from error
        return self._answers.queue

    @property
    def answer_queue(self) -> str:
        """The queue of answers on the present connection, or on the last one there was."""
        return self._answers.queue if self._answers else ""

    async def answer(self, answers: Sequence[tuple[str, bytes]]) -> None:
        """Send answers, unconfirmed: who has gone gets none, and a broker that is away is not waited for."""
        try:
            for queue, body in grouped(answers):
                await self._outgoing.post(queue, body)
        except Unavailable as error:
            log.warning("bus.answers_lost", answers=len(answers), reason=str(error))

    async def publish(self, events: Sequence[OutgoingEvent]) -> None:
        """Publish events in order and wait for all confirms together; raise Unavailable when one is missing."""
        if len(events) == 1:
            await self._publish_one(events[0])
            return
        # On one channel, in one loop: tasks start in order, so the events leave in order.
        await asyncio.gather(*(self._publish_one(event) for event in events))

    async def _publish_one(self, event: OutgoingEvent) -> None:
        properties = message_properties(
            content_type="application/cloudevents+json",
            kind=event.type,
            headers={EVENT_ID_HEADER: event.id},
            reply_to=event.reply_to,
        )
        await self._outgoing.publish(topology.EVENTS, event.type, event.body, properties, mandatory=False)

    def inbox(self, queue: str) -> AmqpInbox:
        """Begin to consume a queue, in the background; asked again, hand out the same inbox."""
        inbox = self._inboxes.get(queue)
        if inbox is None:
            inbox = self._inboxes[queue] = AmqpInbox(queue, self._outgoing, self._priority)
            self._incoming.add(inbox.inlet)
            if inbox.express:
                self._express.add(inbox.express)
        return inbox

    async def close(self) -> None:
        """Let out what is written but unsent, and disconnect; within a few seconds, whatever the broker does."""
        if self._closed:
            return
        self._closed = True
        await self._commands.close()
        await asyncio.gather(self._incoming.close(), self._outgoing.close(), self._express.close())
