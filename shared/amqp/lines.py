"""The two connections, each kept up by a link: one publishes, the other consumes. They move bytes and know no message.

Two, because a broker short of memory stops reading from whoever publishes. The topology is declared anew on each. aio_pika
makes connections and channels; messages go through its underlying aiormq channel, which halves the tasks and spares a third
of the CPU of each.
"""

import asyncio
from collections.abc import Coroutine
from time import monotonic
from typing import Any, Final, Protocol

import structlog
from aio_pika import Connection
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelClosed, ChannelPreconditionFailed, DeliveryError, PublishError
from aiormq.abc import AbstractChannel as RawChannel
from aiormq.exceptions import ChannelAccessRefused
from pamqp.commands import Basic
from prometheus_client import Gauge
from yarl import URL

from shared import topology
from shared.amqp.failures import SETTING, own_cancellations, reason
from shared.amqp.properties import TRANSIENT, message_properties
from shared.bus import SEND_TIMEOUT_SECONDS
from shared.errors import StartupFailed, Unavailable
from shared.link import CONNECT_TIMEOUT_SECONDS, Link, Lose

log = structlog.get_logger()

_HEARTBEAT_SECONDS = 10
_LOOKS, _LOOK_SECONDS = 3, 0.02
_LOOK_AGAIN_SECONDS = 0.5

PARKED: Final = Gauge("rollcall_parked_messages", "Messages that no service could handle (see `rollcall parking`)")


class Line:
    """One supervised connection with its channels; the loss of any of them loses it all, and it is made anew."""

    def __init__(self, url: URL, purpose: str) -> None:
        self._url = url if "heartbeat" in url.query else url.update_query(heartbeat=_HEARTBEAT_SECONDS)
        self._purpose = purpose
        self._link = Link(f"amqp {purpose}", connect=self._connect, probe=self._probe, disconnect=self._disconnect)
        self._connection: Connection | None = None
        # Kept, because a channel that is collected calls nobody back when it is lost.
        self._channels: list[AbstractChannel] = []
        self._control: RawChannel | None = None
        self._without_express: set[str] = set()
        """Whose short way could not be had when it was last asked for: that is said once."""
        self._doing: set[asyncio.Task[None]] = set()
        self._topology_awaited = False
        self._closed = False
        self.lose: Lose = lambda reason: None

    @property
    def up(self) -> bool:
        """Whether the connection is there, as far as anybody knows."""
        return self._link.up

    async def open(self, *, declared_by_another: bool = False) -> None:
        """Connect; the first time without the topology, when another line that opens meanwhile sees to it."""
        self._topology_awaited = declared_by_another
        await self._link.open()

    async def close(self) -> None:
        """Disconnect for good, and begin nothing more; bounded, whatever the broker does."""
        self._closed = True
        doing = list(self._doing)
        # First, so that what these leave half done on the connection is not taken for its loss.
        await self._link.close()
        for task in doing:
            task.cancel()
        await asyncio.gather(*doing, return_exceptions=True)

    def _begin(self, doing: Coroutine[Any, Any, None], what: str) -> None:
        """Do something on the present connection, in the background; where it fails, that connection is taken for lost."""
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
        with own_cancellations():
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

    async def _consumers_of_express(self, queue: str) -> int | None:
        """Declare the short way beside a queue, and tell how many consume it; None where it cannot be had."""
        if self._connection is None:
            return None
        express = topology.express_queue(queue)
        try:
            # On a channel of its own, which a refusal closes.
            async with self._connection.channel() as channel:
                raw = await channel.get_underlay_channel()
                declared = await raw.queue_declare(express.name, durable=True, arguments=dict(express.arguments))
        except ChannelClosed as error:
            if queue not in self._without_express:
                self._without_express.add(queue)
                log.warning("bus.no_express", line=self._purpose, queue=queue, reason=reason(error))
            return None
        self._without_express.discard(queue)
        return declared.consumer_count

    async def _probe(self) -> None:
        """Ask for what must be there; a half-open connection, or a deleted queue, does not pass."""
        assert self._control is not None
        with own_cancellations():
            for queue in topology.WORK_QUEUES:
                await self._control.queue_declare(queue, passive=True)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._channels.clear()
        self._torn_down()
        if connection is not None:
            with own_cancellations():
                await connection.close()


class Outgoing(Line):
    """The connection that publishes."""

    def __init__(self, url: URL) -> None:
        super().__init__(url, "publishing")
        self._confirmed: RawChannel | None = None
        self._unconfirmed: RawChannel | None = None
        self.express: set[str] = set()
        """The queues of commands whose short way was consumed when it was last looked at, and has sent nothing back since."""
        self._looked_at = -_LOOK_AGAIN_SECONDS

    async def _set_up(self) -> None:
        self._confirmed = await self.channel(confirms=True)
        self._unconfirmed = await self.channel()
        await self._look_for_express()

    def _torn_down(self) -> None:
        self._confirmed = self._unconfirmed = None
        self.express = set()

    async def _probe(self) -> None:
        await super()._probe()
        with own_cancellations():
            await self._look_for_express()

    async def _look_for_express(self) -> None:
        self.express = {queue for queue in topology.EXPRESS if await self._consumers_of_express(queue)}

    def _look_again(self) -> None:
        if self.up and (now := monotonic()) >= self._looked_at + _LOOK_AGAIN_SECONDS:
            self._looked_at = now
            self._begin(self._look_for_express(), "looking")

    async def offer(self, queue: str, body: bytes) -> bool:
        """Publish a command on the short way, if it is known to be consumed; say whether the broker has it.

        Raises Unavailable as `publish` does.
        """
        if queue not in self.express:
            if queue in topology.EXPRESS:
                self._look_again()
            return False
        try:
            properties = message_properties(delivery_mode=TRANSIENT)
            await self._publish("", topology.EXPRESS[queue], body, properties, mandatory=True)
        except DeliveryError:
            self.express.discard(queue)
            return False
        return True

    async def publish(self, exchange: str, key: str, body: bytes, properties: Basic.Properties, *, mandatory: bool) -> None:
        """Publish and wait for the confirm, a reconnect included; raise Unavailable after `SEND_TIMEOUT_SECONDS`."""
        try:
            await self._publish(exchange, key, body, properties, mandatory=mandatory)
        except DeliveryError as error:
            if not isinstance(error, PublishError):
                # RabbitMQ 3.10 refuses all there is on a channel that has not used a queue before its leader's node went.
                self.lose("the broker takes nothing")
            raise Unavailable(f"the broker did not take it: {reason(error)}") from error

    async def _publish(self, exchange: str, key: str, body: bytes, properties: Basic.Properties, *, mandatory: bool) -> None:
        """See `publish`; raise DeliveryError where the broker does not want it, PublishError where it sends it back."""
        if self._closed:
            raise Unavailable("the bus is closed")
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                while not self.up:
                    await self._link.wait_up()
                assert self._confirmed is not None
                with own_cancellations():
                    await self._confirmed.basic_publish(
                        body,
                        exchange=exchange,
                        routing_key=key,
                        properties=properties,
                        mandatory=mandatory,
                    )
        except TimeoutError as error:
            raise Unavailable(f"the broker did not confirm within {SEND_TIMEOUT_SECONDS:g} s") from error
        except DeliveryError:
            raise
        except CONNECTION_EXCEPTIONS as error:
            raise Unavailable(f"the broker did not confirm: {reason(error)}") from error

    async def post(self, queue: str, body: bytes) -> None:
        """Write a message for a queue, waiting for nothing but room to write; raise Unavailable when there is none."""
        if self._unconfirmed is None or not self.up:
            raise Unavailable("no connection to the broker")
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                with own_cancellations():
                    await self._unconfirmed.basic_publish(
                        body, routing_key=queue, properties=message_properties(delivery_mode=TRANSIENT)
                    )
        except TimeoutError as error:
            raise Unavailable(f"the broker took nothing for {SEND_TIMEOUT_SECONDS:g} s") from error
        except CONNECTION_EXCEPTIONS as error:
            raise Unavailable(reason(error)) from error


class Consumer(Protocol):
    """What the consuming connection keeps going on one queue, on each connection anew."""

    queue: str
    express_of: str | None
    """The queue beside which this one is the short way, and is done without where it cannot be had."""

    @property
    def idle(self) -> bool:
        """Whether it consumes, nothing has come since this was last asked, and nothing that came is unfinished."""

    async def start(self, channel: RawChannel) -> None:
        """Consume on this channel, which is its own."""

    def stop(self) -> None:
        """Forget what came on a connection that is lost: the broker delivers it again."""


class Incoming(Line):
    """The connection that consumes."""

    def __init__(self, url: URL) -> None:
        super().__init__(url, "consuming")
        self._consumers: list[Consumer] = []
        self._passed_over: set[str] = set()
        self._missing: list[Consumer] = []
        """Those that are tried again at each probe."""

    def add(self, consumer: Consumer) -> None:
        """Consume from now on, on this connection if there is one and on all to come."""
        self._consumers.append(consumer)
        if self.up:
            self._begin(self._start(consumer), "consuming")

    async def _set_up(self) -> None:
        for consumer in self._consumers:
            await self._start(consumer)

    def _torn_down(self) -> None:
        self._passed_over.clear()
        self._missing.clear()
        for consumer in self._consumers:
            consumer.stop()

    async def _probe(self) -> None:
        """See, besides, that consumers get what waits: one may die without a word, and its queue would only grow.

        Between two probes a message may be on its way, so twice in a row is what counts.
        """
        await super()._probe()
        assert self._control is not None
        with own_cancellations():
            PARKED.set((await self._control.queue_declare(topology.PARKING, passive=True)).message_count or 0)
            passed_over: set[str] = set()
            for consumer in self._consumers:
                if consumer.idle and await self._waits(consumer.queue):
                    passed_over.add(consumer.queue)
            missing, self._missing = self._missing, []
            for consumer in missing:
                await self._start(consumer)
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

    async def _start(self, consumer: Consumer) -> None:
        if consumer.express_of is not None and await self._consumers_of_express(consumer.express_of) is None:
            self._missing.append(consumer)
            return
        lose = self.lose
        channel = await self.channel()
        # Without this the consumer of a deleted queue would wait for ever; so the queue is declared and consumed again.
        channel.on_consumer_cancel_callbacks.add(lambda frame: lose(f"consumer cancelled by the broker: {frame}"))
        await consumer.start(channel)


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
