"""What is consumed: an inbox for each queue of a service, with its deliveries, and a gateway's queue of answers.

Each is a `lines.Consumer`: begun anew on every connection that consumes.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import datetime
from uuid import uuid4

import structlog
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from shared import topology
from shared.amqp.channels import ConsumingChannel, Delivered
from shared.amqp.failures import own_cancellations, reason
from shared.amqp.lines import Outgoing
from shared.amqp.properties import EVENT_ID_HEADER, QUEUE_HEADER, REASON_HEADER, message_properties
from shared.bus import RETRY_SECONDS, SEND_TIMEOUT_SECONDS, Delivery
from shared.clock import utc_now
from shared.errors import Unavailable
from shared.messages import ReplyTo

log = structlog.get_logger()

# Small: each crash of a consumer counts as a delivery of everything it had been given.
PREFETCH = 32
FAR_AHEAD_MS = 1 << 42
"""A time that no process starts at (the year 2109): the older one is, the more before it."""
_REASON_CHARACTERS = 1000


def seniority(started_at: datetime) -> int:
    """Say with which priority a process consumes: of its replicas, the oldest goes first."""
    return FAR_AHEAD_MS - int(1000 * started_at.timestamp())


class AmqpInbox:
    """Implements `bus.Inbox`. After the bus is closed, `take` waits for ever."""

    def __init__(self, queue: str, outgoing: Outgoing, priority: int) -> None:
        """Of all replicas that can take more, the broker gives a message to the one of the highest priority."""
        self.queue = queue
        self.outgoing = outgoing
        self.inlet = Inlet(self, queue, priority)
        express = topology.EXPRESS.get(queue)
        self.express = Inlet(self, express, priority) if express else None
        """What fills it besides: the short way beside the queue, where there is one."""
        self._arrived: deque[AmqpDelivery] = deque()
        self._arrival = asyncio.Event()

    async def take(self, limit: int) -> list[Delivery]:
        """Wait for a message, then hand over what is there; what a lost connection had brought is not."""
        while not self._arrived:
            self._arrival.clear()
            await self._arrival.wait()
        return [self._arrived.popleft() for _ in range(min(limit, len(self._arrived)))]

    async def park(self, body: bytes, reason: str) -> None:
        """Park a message; raise Unavailable when the broker does not confirm that it has it."""
        headers = {QUEUE_HEADER: self.queue, REASON_HEADER: reason[:_REASON_CHARACTERS]}
        properties = message_properties(headers=headers, timestamp=utc_now())
        await self.outgoing.publish(topology.DEAD, self.queue, body, properties, mandatory=True)

    def arrive(self, delivery: "AmqpDelivery") -> None:
        """Put a delivery behind those that wait to be taken."""
        if delivery.alive:
            self._arrived.append(delivery)
            self._arrival.set()

    async def stand_back(self, back: bool) -> None:
        """Consume with the lowest priority, or with one's own; on the next connection too."""
        inlets = [inlet for inlet in (self.inlet, self.express) if inlet is not None and not inlet.stands(back)]
        # Together, so that a node that does not answer for one does not hold up the other.
        if inlets:
            await asyncio.gather(*(inlet.stand_back(back) for inlet in inlets))

    def forget(self, inlet: "Inlet") -> None:
        """Drop what came by this inlet and was not taken: the broker delivers it again."""
        self._arrived = deque(delivery for delivery in self._arrived if delivery.inlet is not inlet)


class Inlet:
    """One queue that fills an inbox."""

    def __init__(self, inbox: AmqpInbox, queue: str, priority: int) -> None:
        self.queue = queue
        self.inbox = inbox
        self._priority = priority
        self._back = False
        """Whether it is to consume with the lowest priority."""
        self._consumes_back = False
        self._arranging = asyncio.Lock()
        self._channel: ConsumingChannel | None = None
        self._tag = ""
        self._heard = False
        self._unfinished = 0

    @property
    def consumes(self) -> bool:
        """Whether its queue is consumed."""
        return bool(self._tag) and self._channel is not None and not self._channel.closed

    @property
    def idle(self) -> bool:
        """Whether nothing has come since this was last asked, and nothing that came is unfinished."""
        heard, self._heard = self._heard, False
        return not heard and not self._unfinished

    async def start(self, channel: ConsumingChannel) -> None:
        """Begin to consume."""
        await channel.raw.basic_qos(prefetch_count=PREFETCH)
        # First, because messages may come before the broker has said that they will.
        self._channel = channel
        await self._arrange(channel)

    async def _arrange(self, channel: ConsumingChannel) -> None:
        """Consume with the priority that is wanted, also where another is wanted meanwhile."""
        async with self._arranging:
            while channel is self._channel and (not self._tag or self._consumes_back is not self._back):
                if self._tag:
                    await channel.raw.basic_cancel(self._tag)
                back = self._back
                priority = 0 if back else self._priority
                tag = await channel.consume(self.queue, self._receive, arguments={"x-priority": priority})
                if channel is self._channel:
                    self._tag, self._consumes_back = tag, back

    def brought(self, message: Delivered) -> bool:
        """Whether a message came on the channel that is there now; if not, the broker delivers it again."""
        return message.channel is self._channel and not message.channel.closed

    def _receive(self, message: Delivered) -> None:
        if not self.brought(message):
            return
        self._heard = True
        self._unfinished += 1
        self.inbox.arrive(AmqpDelivery(message, self))

    def stands(self, back: bool) -> bool:
        """Whether it consumes as `stand_back` would have it."""
        return self._back is self._consumes_back is back

    async def stand_back(self, back: bool) -> None:
        """See `AmqpInbox.stand_back`."""
        self._back = back
        channel = self._channel
        # Whoever begins to consume just now looks at what is wanted.
        if channel is None or not self._tag or self._consumes_back is back:
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                with own_cancellations():
                    await self._arrange(channel)
        except (TimeoutError, *CONNECTION_EXCEPTIONS) as error:
            # The library closes the channel of a call that was given up; the next connection consumes anew.
            log.warning("bus.consumer_lost", queue=self.queue, reason=reason(error))

    def stop(self) -> None:
        """Forget what was not taken: the broker delivers it again."""
        self._channel = None
        self._tag = ""
        self._unfinished = 0
        self.inbox.forget(self)

    def finished(self, message: Delivered) -> None:
        """Count a delivery as acknowledged, if it is of the present connection."""
        if self.brought(message):
            self._unfinished -= 1


class AmqpDelivery:
    """Implements `bus.Delivery`."""

    __slots__ = ("_message", "body", "inlet")

    def __init__(self, message: Delivered, inlet: Inlet) -> None:
        self._message = message
        self.inlet = inlet
        self.body = message.body

    @property
    def reply_to(self) -> ReplyTo | None:
        """Read from the AMQP properties of that name."""
        properties = self._message.properties
        if not properties.reply_to or not properties.correlation_id:
            return None
        return ReplyTo(properties.reply_to, properties.correlation_id)

    @property
    def redelivered(self) -> bool:
        """As the broker says."""
        return self._message.redelivered

    @property
    def alive(self) -> bool:
        """Whether its connection still is; if not, the broker delivers the message again."""
        return self.inlet.brought(self._message)

    async def ack(self) -> None:
        """Acknowledge on the channel it came on; where that is gone, do nothing."""
        try:
            self._message.ack()
        except CONNECTION_EXCEPTIONS as error:
            log.debug("bus.ack_lost", queue=self.inlet.queue, reason=reason(error))
        self.inlet.finished(self._message)

    async def retry(self) -> None:
        """Move the message to the queue's waiting room, and only then acknowledge it.

        While the broker takes nothing (it may be short of memory), it waits here instead, still unacknowledged.
        """
        properties = self._message.properties
        headers = {name: value for name, value in (properties.headers or {}).items() if name == EVENT_ID_HEADER}
        copy = message_properties(
            content_type=properties.content_type or "application/json",
            kind=properties.message_type,
            headers=headers,
            reply_to=self.reply_to,
        )
        inbox = self.inlet.inbox
        waiting_room = topology.retry_queue(inbox.queue)
        try:
            await inbox.outgoing.publish("", waiting_room, self.body, copy, mandatory=True)
        except Unavailable as error:
            log.warning("bus.retry_kept_here", queue=inbox.queue, reason=str(error))
            asyncio.get_running_loop().call_later(RETRY_SECONDS, inbox.arrive, self)
        else:
            await self.ack()


class AnswerQueue:
    """The queue of answers: exclusive, and new on each connection, since the old one may still be locked."""

    def __init__(self, on_answers: Callable[[bytes], None]) -> None:
        self._on_answers = on_answers
        self._heard = False
        self._channel: ConsumingChannel | None = None
        self.queue = ""
        self.consuming = asyncio.Event()

    @property
    def consumes(self) -> bool:
        """Whether there is one, and it is consumed."""
        return self._channel is not None and not self._channel.closed

    @property
    def idle(self) -> bool:
        """Whether nothing has come since this was last asked."""
        heard, self._heard = self._heard, False
        return not heard

    async def start(self, channel: ConsumingChannel) -> None:
        """Make a queue of a fresh name and consume it."""
        queue = f"rollcall.answers.{uuid4().hex}"
        await channel.raw.queue_declare(queue, exclusive=True, auto_delete=True)
        await channel.consume(queue, self._receive, no_ack=True)
        self.queue = queue
        self._channel = channel
        self.consuming.set()

    def stop(self) -> None:
        """Note that there is none on any connection now; its name is kept as the last there was."""
        self._channel = None
        self.consuming.clear()

    def _receive(self, message: Delivered) -> None:
        self._heard = True
        try:
            self._on_answers(message.body)
        except Exception:
            log.exception("bus.answers_not_taken")
