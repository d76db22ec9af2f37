"""The connections, each kept up by a link: one publishes, another consumes. They move bytes and know no message.

Two, because a broker short of memory stops reading from whoever publishes; the short way (`express.py`) has a third. Each
of the two declares the topology when it is made anew. aio_pika and aiormq make connections and channels; messages go past them
(`channels.py`).
"""

import asyncio
from collections.abc import Coroutine
from time import monotonic
from typing import Any, Final, Protocol

import structlog
from aio_pika import Connection
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelPreconditionFailed, DeliveryError, PublishError
from aiormq.abc import AbstractChannel as RawChannel
from aiormq.exceptions import ChannelAccessRefused
from pamqp.commands import Basic
from prometheus_client import Gauge
from yarl import URL

from shared import topology
from shared.amqp.channels import ConsumingChannel, PublishingChannel, Transport
from shared.amqp.failures import SETTING, own_cancellations, reason
from shared.amqp.properties import TRANSIENT, message_properties
from shared.bus import SEND_TIMEOUT_SECONDS
from shared.errors import StartupFailed, Unavailable
from shared.link import CONNECT_TIMEOUT_SECONDS, Link, Lose

log = structlog.get_logger()

_HEARTBEAT_SECONDS = 10
_LOOKS, _LOOK_SECONDS = 3, 0.02
_RENEW_SECONDS = 10.0

PARKED: Final = Gauge("rollcall_parked_messages", "Messages that no service could handle (see `rollcall parking`)")


class Line:
    """One supervised connection with its channels; the loss of any of them loses it all, and it is made anew."""

    def __init__(self, url: URL, purpose: str) -> None:
        self._url = url if "heartbeat" in url.query else url.update_query(heartbeat=_HEARTBEAT_SECONDS)
        self._purpose = purpose
        self._link = Link(f"amqp {purpose}", connect=self._connect, probe=self._probe, disconnect=self._disconnect)
        self._transport = Transport()
        self._connection: Connection | None = None
        # Kept, because a channel that is collected calls nobody back when it is lost.
        self._channels: list[AbstractChannel] = []
        self._control: RawChannel | None = None
        self._doing: set[asyncio.Task[None]] = set()
        self.lose: Lose = lambda reason: None

    @property
    def up(self) -> bool:
        """Whether the connection is there, as far as anybody knows."""
        return self._link.up

    async def open(self) -> None:
        """Connect; raise what the first attempt raises."""
        await self._link.open()

    async def close(self) -> None:
        """Disconnect for good; bounded, whatever the broker does."""
        await self._link.close()

    async def _set_up(self) -> None:
        """Do what the line is for, on each connection anew."""

    async def _probe(self) -> None:
        """Raise where something is not as it should be."""

    def _torn_down(self) -> None:
        """Forget what belonged to the connection."""

    async def channel(self, *, confirms: bool = False) -> RawChannel:
        """Open a channel for the life of the connection; raise ConnectionError when there is none."""
        if self._connection is None:
            raise ConnectionError("no connection")
        lose = self.lose
        channel = self._connection.channel(publisher_confirms=confirms)
        self._channels.append(channel)
        await channel.initialize()
        # Called when the connection goes, too.
        channel.close_callbacks.add(lambda _, error: lose(reason(error)))
        return await channel.get_underlay_channel()

    async def publishing(self, *, confirms: bool) -> PublishingChannel:
        """Open a channel to publish on; raise as `channel` does."""
        return PublishingChannel(self._transport, await self.channel(confirms=confirms), confirms=confirms)

    def _begin(self, doing: Coroutine[Any, Any, None], what: str) -> None:
        """Do something in the background while the present connection lasts, which is taken for lost where that fails."""
        task = asyncio.create_task(self._do_or_lose(doing, what, self.lose), name=f"amqp {what}")
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    async def _do_or_lose(self, doing: Coroutine[Any, Any, None], what: str, lose: Lose) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                with own_cancellations():
                    await doing
        except (TimeoutError, *CONNECTION_EXCEPTIONS) as error:
            lose(f"{what} failed: {reason(error)}")

    async def _connect(self, lose: Lose) -> None:
        self.lose = lose
        self._transport = Transport()
        self._connection = Connection(
            self._url,
            client_properties={"connection_name": f"rollcall {self._purpose}", "product": "rollcall"},
        )
        self._connection.kwargs["transport_factory"] = self._transport
        with own_cancellations():
            await self._connection.connect(timeout=CONNECT_TIMEOUT_SECONDS)
            self._control = await self.channel()
            await self._set_up()

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        doing = list(self._doing)
        for task in doing:
            task.cancel()
        self._channels.clear()
        self._torn_down()
        if connection is not None:
            with own_cancellations():
                await connection.close()
        await asyncio.gather(*doing, return_exceptions=True)


class Outgoing(Line):
    """The connection that publishes."""

    def __init__(self, url: URL) -> None:
        super().__init__(url, "publishing")
        self._confirmed: PublishingChannel | None = None
        self._unconfirmed: PublishingChannel | None = None
        self._renewed_at = -_RENEW_SECONDS
        self._closed = False

    async def close(self) -> None:
        """Publish nothing more, and disconnect for good."""
        self._closed = True
        await super().close()

    async def _set_up(self) -> None:
        assert self._control is not None
        await _declare(self._control)
        self._confirmed = await self.publishing(confirms=True)
        self._unconfirmed = await self.publishing(confirms=False)

    def _torn_down(self) -> None:
        self._confirmed = self._unconfirmed = None

    async def _probe(self) -> None:
        await _look(self._control)

    async def publish(self, exchange: str, key: str, body: bytes, properties: Basic.Properties, *, mandatory: bool) -> None:
        """Publish and wait for the confirm, a reconnect included; raise Unavailable after `SEND_TIMEOUT_SECONDS`."""
        if self._closed:
            raise Unavailable("the bus is closed")
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                while not self.up:
                    await self._link.wait_up()
                assert self._confirmed is not None
                lose = self.lose
                await self._confirmed.publish(body, exchange=exchange, key=key, properties=properties, mandatory=mandatory)
        except TimeoutError as error:
            raise Unavailable(f"the broker did not confirm within {SEND_TIMEOUT_SECONDS:g} s") from error
        except DeliveryError as error:
            if not isinstance(error, PublishError):
                self._renew(lose)
            raise Unavailable(f"the broker did not take it: {reason(error)}") from error
        except CONNECTION_EXCEPTIONS as error:
            raise Unavailable(f"the broker did not confirm: {reason(error)}") from error

    def _renew(self, lose: Lose) -> None:
        """Begin anew, unless that is done, and seldom: it mends only what RabbitMQ 3.10 refuses by mistake (0026)."""
        if (now := monotonic()) >= self._renewed_at + _RENEW_SECONDS:
            self._renewed_at = now
            lose("the broker takes nothing")

    async def post(self, queue: str, body: bytes) -> None:
        """Write a message for a queue, waiting for nothing but room to write; raise Unavailable when there is none."""
        if self._unconfirmed is None or not self.up:
            raise Unavailable("no connection to the broker")
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                await self._unconfirmed.publish(body, key=queue, properties=message_properties(delivery_mode=TRANSIENT))
        except TimeoutError as error:
            raise Unavailable(f"the broker took nothing for {SEND_TIMEOUT_SECONDS:g} s") from error
        except CONNECTION_EXCEPTIONS as error:
            raise Unavailable(reason(error)) from error


class Consumer(Protocol):
    """What a connection that consumes keeps going on one queue, on each connection anew."""

    queue: str

    @property
    def consumes(self) -> bool:
        """Whether it does, on a channel that is open."""

    @property
    def idle(self) -> bool:
        """Whether nothing has come since this was last asked, and nothing that came is unfinished."""

    async def start(self, channel: ConsumingChannel) -> None:
        """Consume on this channel, which is its own."""

    def stop(self) -> None:
        """Forget what came on a connection that is lost: the broker delivers it again."""


class Consuming(Line):
    """A connection that consumes."""

    def __init__(self, url: URL, purpose: str) -> None:
        super().__init__(url, purpose)
        self._consumers: list[Consumer] = []
        self._starting = asyncio.Lock()
        self._passed_over: set[str] = set()

    def add(self, consumer: Consumer) -> None:
        """Consume from now on, on this connection if there is one and on all to come."""
        self._consumers.append(consumer)
        if self.up:
            self._begin(self._start_missing(), "consuming")

    async def _set_up(self) -> None:
        await self._start_missing()

    def _torn_down(self) -> None:
        self._passed_over.clear()
        for consumer in self._consumers:
            consumer.stop()

    async def _start_missing(self) -> None:
        # By one at a time: whoever else wants it would start the same.
        async with self._starting:
            for consumer in self._consumers:
                if not consumer.consumes:
                    await self._start(consumer)

    async def _start(self, consumer: Consumer) -> None:
        lose, transport = self.lose, self._transport
        channel = await self.channel()
        # Without this the consumer of a deleted queue would wait for ever; so the queue is declared and consumed again.
        channel.on_consumer_cancel_callbacks.add(lambda frame: lose(f"consumer cancelled by the broker: {frame}"))
        await consumer.start(ConsumingChannel(transport, channel))

    async def _probe(self) -> None:
        """See that consumers get what waits: one may die without a word, and its queue would only grow.

        Between two probes a message may be on its way, so twice in a row is what counts.
        """
        passed_over = set[str]()
        with own_cancellations():
            for consumer in self._consumers:
                if consumer.consumes and consumer.idle and await self._waits(consumer.queue):
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


class Incoming(Consuming):
    """The connection that consumes what must not be missed."""

    def __init__(self, url: URL) -> None:
        super().__init__(url, "consuming")
        self._opened = False

    async def _set_up(self) -> None:
        assert self._control is not None
        # The first time the line that publishes, opened together with this one, sees to it.
        if self._opened:
            await _declare(self._control)
        self._opened = True
        await super()._set_up()

    async def _probe(self) -> None:
        await _look(self._control)
        assert self._control is not None
        with own_cancellations():
            PARKED.set((await self._control.queue_declare(topology.PARKING, passive=True)).message_count or 0)
        await super()._probe()


async def _look(channel: RawChannel | None) -> None:
    """Ask for what must be there; a half-open connection, or a deleted queue, does not pass."""
    assert channel is not None
    with own_cancellations():
        for queue in topology.WORK_QUEUES:
            await channel.queue_declare(queue, passive=True)


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
