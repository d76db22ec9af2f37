"""The bus on RabbitMQ. Only this file and `parking.py` import aio_pika; what exists on the broker is listed in `topology.py`.

Two connections, because a broker short of memory stops reading from whoever publishes: one sends, one consumes. Both
come back by themselves (`link.py`), with the topology declared anew each time. aio_pika makes connections and channels;
messages go through its underlying aiormq channel, which halves the tasks and spares a third of the CPU of each.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from functools import partial
from typing import Final, Protocol
from uuid import uuid4

import structlog
from aio_pika import Connection
from aio_pika.abc import AbstractChannel
from aio_pika.connection import make_url
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelPreconditionFailed, InvalidFrameError
from aiormq.abc import AbstractChannel as RawChannel
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused
from pamqp.commands import Basic
from pamqp.common import FieldValue
from prometheus_client import Gauge
from yarl import URL

from shared import topology
from shared.bus import RETRY_SECONDS, SEND_TIMEOUT_SECONDS, Delivery, OutgoingEvent
from shared.clock import utc_now
from shared.coalescer import Coalescer, Settled, grouped
from shared.errors import StartupFailed, Unavailable
from shared.link import CONNECT_TIMEOUT_SECONDS, Link, Lose
from shared.messages import ReplyTo

log = structlog.get_logger()

SETTING: Final = "ROLLCALL_AMQP_URL"
# Small: each crash of a consumer counts as a delivery of everything it had been given.
_PREFETCH = 32
_FAR_AHEAD_MS = 1 << 42
"""A time that no process starts at (the year 2109): the older one is, the more before it."""
_HEARTBEAT_SECONDS = 10
_LOOKS, _LOOK_SECONDS = 3, 0.02
_REASON_CHARACTERS = 1000
_PERSISTENT, _TRANSIENT = 2, 1

PARKED: Final = Gauge("rollcall_parked_messages", "Messages that no service could handle (see `rollcall parking`)")

EVENT_ID_HEADER: Final = "x-rollcall-event-id"
QUEUE_HEADER: Final = "x-rollcall-queue"
REASON_HEADER: Final = "x-rollcall-reason"


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


def quiet() -> None:
    """Silence both libraries: they log every lost connection several times, with tracebacks; `link` says it once."""
    for name in ("aiormq", "aio_pika"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def reaching(url: URL | str) -> Iterator[URL]:
    """Turn what connecting to this address raises into a StartupFailed of one line, without the password."""
    address = make_url(url)
    where = f"{SETTING}: cannot reach {address.scheme}://{address.host}:{address.port}/{address.path.lstrip('/')}"
    try:
        yield address
    except InvalidFrameError as error:
        # The refusal of a virtual host reaches us as this, without the broker's words.
        raise StartupFailed(f"{where}: there is no such virtual host, or this user may not use it") from error
    except TimeoutError as error:
        raise StartupFailed(f"{where}: no answer within {CONNECT_TIMEOUT_SECONDS:g} s") from error
    except CONNECTION_EXCEPTIONS as error:
        raise StartupFailed(f"{where}: {reason(error)}") from error


class AmqpBus:
    """Implements `bus.Bus`."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._outgoing = _Outgoing(self._url)
        self._incoming = _Incoming(self._url)
        self._coalescers: dict[str, Coalescer] = {}
        self._inboxes: dict[str, AmqpInbox] = {}
        self._priority = _FAR_AHEAD_MS - int(1000 * utc_now().timestamp())
        self._answers: _Answers | None = None
        self._closed = False

    async def open(self) -> None:
        """Connect for the first time, both ways at once; see `open_amqp`."""
        with reaching(self._url):
            both = self._outgoing.open(), self._incoming.open(declared_by_another=True)
            # Both to their end, so that `close` finds what there is to close.
            for outcome in await asyncio.gather(*both, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome

    @property
    def connected(self) -> bool:
        """Whether both connections are there."""
        return self._outgoing.up and self._incoming.up

    async def send(self, queue: str, command: bytes) -> None:
        """Send one command in the next message to its queue; raise Unavailable when that is not confirmed in time."""
        await self._coalescer(queue).send(command)

    def send_soon(self, queue: str, command: bytes, settled: Settled) -> None:
        """Begin to send one command in the next message to its queue."""
        self._coalescer(queue).send_soon(command, settled)

    def _coalescer(self, queue: str) -> Coalescer:
        coalescer = self._coalescers.get(queue)
        if coalescer is None:
            carry = partial(self._send_message, queue)
            coalescer = self._coalescers[queue] = Coalescer(carry, closed=self._closed)
        return coalescer

    async def _send_message(self, queue: str, body: bytes) -> None:
        key = topology.COMMAND_KEYS.get(queue)
        exchange, key = (topology.COMMANDS, key) if key else ("", queue)
        await self._outgoing.publish(exchange, key, body, _properties(), mandatory=True)

    async def receive_answers(self, on_answers: Callable[[bytes], None]) -> str:
        """Consume a queue of answers, a new one after each reconnect; raise Unavailable when the broker is away."""
        assert self._answers is None, "answers are received once"
        self._answers = _Answers(on_answers)
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
        properties = _properties(
            content_type="application/cloudevents+json",
            kind=event.type,
            headers={EVENT_ID_HEADER: event.id},
            reply_to=event.reply_to,
        )
        await self._outgoing.publish(topology.EVENTS, event.type, event.body, properties, mandatory=False)

    def inbox(self, queue: str) -> "AmqpInbox":
        """Begin to consume a queue, in the background; asked again, hand out the same inbox."""
        inbox = self._inboxes.get(queue)
        if inbox is None:
            inbox = self._inboxes[queue] = AmqpInbox(queue, self._outgoing, self._priority)
            self._incoming.add(inbox)
        return inbox

    async def close(self) -> None:
        """Let out what is written but unsent, and disconnect; within a few seconds, whatever the broker does."""
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(*(coalescer.close() for coalescer in self._coalescers.values()))
        await asyncio.gather(self._incoming.close(), self._outgoing.close())


class _Line:
    """One supervised connection with its channels; the loss of any of them loses it all, and it is made anew."""

    def __init__(self, url: URL, purpose: str) -> None:
        self._url = url if "heartbeat" in url.query else url.update_query(heartbeat=_HEARTBEAT_SECONDS)
        self._purpose = purpose
        self._link = Link(f"amqp {purpose}", connect=self._connect, probe=self._probe, disconnect=self._disconnect)
        self._connection: Connection | None = None
        # Kept, because a channel that is collected calls nobody back when it is lost.
        self._channels: list[AbstractChannel] = []
        self._control: RawChannel | None = None
        self._topology_awaited = False
        self._closed = False
        self.lose: Lose = lambda reason: None

    @property
    def up(self) -> bool:
        return self._link.up

    async def open(self, *, declared_by_another: bool = False) -> None:
        """Connect; the first time without the topology, when another line that opens meanwhile sees to it."""
        self._topology_awaited = declared_by_another
        await self._link.open()

    async def close(self) -> None:
        self._closed = True
        await self._link.close()

    async def _set_up(self) -> None:
        """Do what the line is for, each time the topology stands."""

    def _torn_down(self) -> None:
        """Forget what belonged to the connection."""

    async def _connect(self, lose: Lose) -> None:
        self.lose = lose
        self._connection = Connection(
            self._url,
            client_properties={"connection_name": f"rollcall {self._purpose}", "product": "rollcall"},
        )
        with _own_cancellations():
            await self._connection.connect(timeout=CONNECT_TIMEOUT_SECONDS)
            self._control = await self.channel()
            if not self._topology_awaited:
                await _declare(self._control)
            self._topology_awaited = False
            await self._set_up()

    async def channel(self, *, confirms: bool = False) -> RawChannel:
        """Open a channel for the life of the connection."""
        assert self._connection is not None
        lose = self.lose
        channel = self._connection.channel(publisher_confirms=confirms, on_return_raises=confirms)
        self._channels.append(channel)
        await channel.initialize()
        # Called when the connection goes, too.
        channel.close_callbacks.add(lambda _, error: lose(reason(error)))
        return await channel.get_underlay_channel()

    async def _probe(self) -> None:
        """Ask for what must be there; a half-open connection, or a deleted queue, does not pass."""
        assert self._control is not None
        with _own_cancellations():
            for queue in topology.WORK_QUEUES:
                await self._control.queue_declare(queue, passive=True)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._channels.clear()
        self._torn_down()
        if connection is not None:
            with _own_cancellations():
                await connection.close()


class _Outgoing(_Line):
    """The connection that publishes."""

    def __init__(self, url: URL) -> None:
        super().__init__(url, "publishing")
        self._confirmed: RawChannel | None = None
        self._unconfirmed: RawChannel | None = None

    async def _set_up(self) -> None:
        self._confirmed = await self.channel(confirms=True)
        self._unconfirmed = await self.channel()

    def _torn_down(self) -> None:
        self._confirmed = self._unconfirmed = None

    async def publish(self, exchange: str, key: str, body: bytes, properties: Basic.Properties, *, mandatory: bool) -> None:
        """Publish and wait for the confirm, a reconnect included; raise Unavailable after `SEND_TIMEOUT_SECONDS`."""
        if self._closed:
            raise Unavailable("the bus is closed")
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                while not self.up:
                    await self._link.wait_up()
                assert self._confirmed is not None
                with _own_cancellations():
                    await self._confirmed.basic_publish(
                        body,
                        exchange=exchange,
                        routing_key=key,
                        properties=properties,
                        mandatory=mandatory,
                    )
        except TimeoutError as error:
            raise Unavailable(f"the broker did not confirm within {SEND_TIMEOUT_SECONDS:g} s") from error
        except CONNECTION_EXCEPTIONS as error:
            raise Unavailable(f"the broker did not confirm: {reason(error)}") from error

    async def post(self, queue: str, body: bytes) -> None:
        """Write a message for a queue, waiting for nothing but room to write; raise Unavailable when there is none."""
        if self._unconfirmed is None or not self.up:
            raise Unavailable("no connection to the broker")
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                with _own_cancellations():
                    await self._unconfirmed.basic_publish(
                        body, routing_key=queue, properties=_properties(delivery_mode=_TRANSIENT)
                    )
        except TimeoutError as error:
            raise Unavailable(f"the broker took nothing for {SEND_TIMEOUT_SECONDS:g} s") from error
        except CONNECTION_EXCEPTIONS as error:
            raise Unavailable(reason(error)) from error


class _Consumer(Protocol):
    queue: str

    @property
    def idle(self) -> bool:
        """Whether nothing has come since this was last asked, and nothing that came is unfinished."""

    async def start(self, channel: RawChannel) -> None:
        """Consume on this channel, which is its own."""

    def stop(self) -> None:
        """Forget what came on a connection that is lost: the broker delivers it again."""


class _Incoming(_Line):
    """The connection that consumes."""

    def __init__(self, url: URL) -> None:
        super().__init__(url, "consuming")
        self._consumers: list[_Consumer] = []
        self._passed_over: set[str] = set()
        self._starting: set[asyncio.Task[None]] = set()

    def add(self, consumer: _Consumer) -> None:
        """Consume from now on, on this connection if there is one and on all to come."""
        self._consumers.append(consumer)
        if self.up:
            task = asyncio.create_task(self._start_now(consumer), name="consumer starting")
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def close(self) -> None:
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        await super().close()

    async def _set_up(self) -> None:
        for consumer in self._consumers:
            await self._start(consumer)

    def _torn_down(self) -> None:
        self._passed_over.clear()
        for consumer in self._consumers:
            consumer.stop()

    async def _probe(self) -> None:
        """See, besides, that consumers get what waits: one may die without a word, and its queue would only grow.

        Between two probes a message may be on its way, so twice in a row is what counts.
        """
        await super()._probe()
        assert self._control is not None
        with _own_cancellations():
            PARKED.set((await self._control.queue_declare(topology.PARKING, passive=True)).message_count or 0)
            passed_over: set[str] = set()
            for consumer in self._consumers:
                if consumer.idle and await self._waits(consumer.queue):
                    passed_over.add(consumer.queue)
        silent, self._passed_over = passed_over & self._passed_over, passed_over
        if silent:
            raise ConnectionError(f"messages wait, and none comes: {', '.join(sorted(silent))}")

    async def _waits(self, queue: str) -> bool:
        """Say whether messages wait: in a queue that another replica empties there are some now and then, not at each look."""
        assert self._control is not None
        for look in range(_LOOKS):
            if look:
                await asyncio.sleep(_LOOK_SECONDS)
            if not (await self._control.queue_declare(queue, passive=True)).message_count:
                return False
        return True

    async def _start_now(self, consumer: _Consumer) -> None:
        lose = self.lose
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                with _own_cancellations():
                    await self._start(consumer)
        except (TimeoutError, *CONNECTION_EXCEPTIONS) as error:
            lose(f"cannot consume: {reason(error)}")

    async def _start(self, consumer: _Consumer) -> None:
        lose = self.lose
        channel = await self.channel()
        # Without this the consumer of a deleted queue would wait for ever; so the queue is declared and consumed again.
        channel.on_consumer_cancel_callbacks.add(lambda frame: lose(f"consumer cancelled by the broker: {frame}"))
        await consumer.start(channel)


class _Answers:
    """The queue of answers: exclusive, and new on each connection, since the old one may still be locked."""

    def __init__(self, on_answers: Callable[[bytes], None]) -> None:
        self._on_answers = on_answers
        self._heard = False
        self.queue = ""
        self.consuming = asyncio.Event()

    @property
    def idle(self) -> bool:
        heard, self._heard = self._heard, False
        return self.consuming.is_set() and not heard

    async def start(self, channel: RawChannel) -> None:
        queue = f"rollcall.answers.{uuid4().hex}"
        await channel.queue_declare(queue, exclusive=True, auto_delete=True)
        await channel.basic_consume(queue, self._receive, no_ack=True)
        self.queue = queue
        self.consuming.set()

    def stop(self) -> None:
        self.consuming.clear()

    async def _receive(self, message: DeliveredMessage) -> None:
        self._heard = True
        try:
            self._on_answers(message.body)
        except Exception:
            log.exception("bus.answers_not_taken")


class AmqpInbox:
    """Implements `bus.Inbox`. After the bus is closed, `take` waits for ever."""

    def __init__(self, queue: str, outgoing: _Outgoing, priority: int) -> None:
        """Of all replicas that can take more, the broker gives a message to the one of the highest priority."""
        self.queue = queue
        self.outgoing = outgoing
        self._priority = priority
        self._back = False
        self._channel: RawChannel | None = None
        self._tag = ""
        self._arrived: deque[AmqpDelivery] = deque()
        self._arrival = asyncio.Event()
        self._heard = False
        self._unfinished = 0

    @property
    def idle(self) -> bool:
        """Whether nothing has come since this was last asked, and nothing that came is unfinished."""
        heard, self._heard = self._heard, False
        return not heard and not self._unfinished

    async def take(self, limit: int) -> list[Delivery]:
        """Wait for a message, then hand over what is there; what a lost connection had brought is not."""
        while not self._arrived:
            self._arrival.clear()
            await self._arrival.wait()
        return [self._arrived.popleft() for _ in range(min(limit, len(self._arrived)))]

    async def park(self, body: bytes, reason: str) -> None:
        """Park a message; raise Unavailable when the broker does not confirm that it has it."""
        headers = {QUEUE_HEADER: self.queue, REASON_HEADER: reason[:_REASON_CHARACTERS]}
        properties = _properties(headers=headers, timestamp=utc_now())
        await self.outgoing.publish(topology.DEAD, self.queue, body, properties, mandatory=True)

    def arrive(self, delivery: "AmqpDelivery") -> None:
        """Put a delivery behind those that wait to be taken."""
        if delivery.alive:
            self._arrived.append(delivery)
            self._arrival.set()

    async def start(self, channel: RawChannel) -> None:
        """Begin to consume."""
        await channel.basic_qos(prefetch_count=_PREFETCH)
        await self._consume(channel)
        self._channel = channel

    async def _consume(self, channel: RawChannel) -> None:
        priority = 0 if self._back else self._priority
        consuming = await channel.basic_consume(self.queue, self._receive, arguments={"x-priority": priority})
        self._tag = consuming.consumer_tag or ""

    async def _receive(self, message: DeliveredMessage) -> None:
        self._heard = True
        self._unfinished += 1
        self.arrive(AmqpDelivery(message, self))

    async def stand_back(self, back: bool) -> None:
        """Consume with the lowest priority, or with one's own; on the next connection too."""
        channel, changed = self._channel, back is not self._back
        self._back = back
        if channel is None or not changed:
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                with _own_cancellations():
                    await channel.basic_cancel(self._tag)
                    await self._consume(channel)
        except (TimeoutError, *CONNECTION_EXCEPTIONS) as error:
            # The next connection consumes anew; so does this one, once the probe finds that nothing comes.
            log.warning("bus.consumer_lost", queue=self.queue, reason=reason(error))

    def stop(self) -> None:
        """Forget what was not taken: the broker delivers it again."""
        self._channel = None
        self._arrived.clear()
        self._unfinished = 0

    def finished(self) -> None:
        """Count a delivery of the present connection as acknowledged."""
        self._unfinished -= 1


class AmqpDelivery:
    """Implements `bus.Delivery`."""

    __slots__ = ("_inbox", "_message", "body")

    def __init__(self, message: DeliveredMessage, inbox: AmqpInbox) -> None:
        self._message = message
        self._inbox = inbox
        self.body = message.body

    @property
    def reply_to(self) -> ReplyTo | None:
        """Read from the AMQP properties of that name."""
        properties = self._message.header.properties
        if not properties.reply_to or not properties.correlation_id:
            return None
        return ReplyTo(properties.reply_to, properties.correlation_id)

    @property
    def redelivered(self) -> bool:
        """As the broker says."""
        return bool(self._message.redelivered)

    @property
    def alive(self) -> bool:
        """Whether its channel still is; if not, the broker delivers the message again."""
        return not self._message.channel.is_closed

    async def ack(self) -> None:
        """Acknowledge on the channel it came on; where that is gone, do nothing."""
        tag = self._message.delivery_tag
        assert tag is not None
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                with _own_cancellations():
                    await self._message.channel.basic_ack(tag, wait=False)
        except CONNECTION_EXCEPTIONS as error:
            log.debug("bus.ack_lost", queue=self._inbox.queue, reason=reason(error))
        if self.alive:
            self._inbox.finished()

    async def retry(self) -> None:
        """Move the message to the queue's waiting room, and only then acknowledge it.

        While the broker takes nothing (it may be short of memory), it waits here instead, still unacknowledged.
        """
        properties = self._message.header.properties
        headers = {name: value for name, value in (properties.headers or {}).items() if name == EVENT_ID_HEADER}
        copy = _properties(
            content_type=properties.content_type or "application/json",
            kind=properties.message_type,
            headers=headers,
            reply_to=self.reply_to,
        )
        waiting_room = topology.retry_queue(self._inbox.queue)
        try:
            await self._inbox.outgoing.publish("", waiting_room, self.body, copy, mandatory=True)
        except Unavailable as error:
            log.warning("bus.retry_kept_here", queue=self._inbox.queue, reason=str(error))
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._inbox.arrive, self)
        else:
            await self.ack()


async def _declare(channel: RawChannel) -> None:
    """Declare the whole topology; raise StartupFailed, with the name, where something else of that name exists."""
    name = ""
    try:
        for exchange in topology.EXCHANGES:
            name = f"exchange {exchange.name}"
            await channel.exchange_declare(exchange.name, exchange_type=exchange.type, durable=True)
        for queue in topology.QUEUES:
            name = f"queue {queue.name}"
            await channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
            for source, key in queue.bindings:
                await channel.queue_bind(queue.name, source, key)
    except (ChannelPreconditionFailed, ChannelAccessRefused) as error:
        raise StartupFailed(f"{SETTING}: {name} cannot be had: {reason(error)}") from error


def _properties(
    *,
    content_type: str = "application/json",
    kind: str | None = None,
    headers: Mapping[str, FieldValue] | None = None,
    reply_to: ReplyTo | None = None,
    delivery_mode: int = _PERSISTENT,
    timestamp: datetime | None = None,
) -> Basic.Properties:
    """Describe a message. aiormq adds a fresh message_id, and knows returned messages by it: leave that alone."""
    return Basic.Properties(
        content_type=content_type,
        delivery_mode=delivery_mode,
        timestamp=timestamp,
        headers=dict(headers) if headers else None,
        message_type=kind,
        reply_to=reply_to.queue if reply_to else None,
        correlation_id=reply_to.correlation_id if reply_to else None,
    )


@contextmanager
def _own_cancellations() -> Iterator[None]:
    """Let only our own cancellation through.

    When the heartbeat stops, aiormq fails everything that waits on the connection with CancelledError: left alone, that
    would end a task of ours for good, and silently.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise ConnectionError("the connection was lost") from error


def reason(error: BaseException | None) -> str:
    """Say in a line what a library's error says in its own way."""
    if error is None:
        return "closed"
    if isinstance(error, asyncio.CancelledError):
        return "no heartbeat from the broker"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = next((arg for arg in reversed(error.args) if isinstance(arg, str) and arg), "")
    return " ".join(text.split()) or type(error).__name__
