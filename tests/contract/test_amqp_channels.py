"""Channels whose messages go past aiormq, and aiormq's own: the same claims, against the same broker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol
from uuid import uuid4

import aiormq
import pytest
from aiormq.abc import AbstractChannel as RawChannel
from aiormq.abc import ArgumentsType, DeliveredMessage
from aiormq.exceptions import ChannelInvalidStateError, ChannelNotFoundEntity, DeliveryError, PublishError
from pamqp.commands import Basic

from shared.amqp.channels import ConsumingChannel, Delivered, PublishingChannel, Transport
from tests.proxy import Proxy

BIG = bytes(range(256)) * 2_000
"""More than a few frames: RabbitMQ's are of 128 KiB."""
_WAIT_SECONDS = 20


class Came:
    """A message that was delivered, whoever brought it."""

    def __init__(self, body: bytes, properties: Basic.Properties, *, redelivered: bool, ack: Callable[[], Any]) -> None:
        self.body = body
        self.properties = properties
        self.redelivered = redelivered
        self._ack = ack

    async def ack(self) -> None:
        acknowledging = self._ack()
        if acknowledging is not None:
            await acknowledging


class Publish(Protocol):
    """Publishes a message, and waits for its confirm."""

    async def __call__(
        self, body: bytes, *, key: str, exchange: str = "", properties: Basic.Properties, mandatory: bool = False
    ) -> None: ...


class Channels(Protocol):
    """What makes channels on one connection."""

    connection: aiormq.Connection

    def __init__(self, url: str) -> None: ...

    async def publishing(self, *, confirms: bool = True) -> Publish: ...

    async def consuming(self, queue: str, *, prefetch: int = 0, no_ack: bool = False) -> "asyncio.Queue[Came]": ...


class Aiormqs:
    """aiormq's own."""

    def __init__(self, url: str) -> None:
        self.connection = aiormq.Connection(url)

    async def publishing(self, *, confirms: bool = True) -> Publish:
        channel = await self.connection.channel(publisher_confirms=confirms)

        async def publish(
            body: bytes, *, key: str, exchange: str = "", properties: Basic.Properties, mandatory: bool = False
        ) -> None:
            await channel.basic_publish(body, exchange=exchange, routing_key=key, properties=properties, mandatory=mandatory)

        return publish

    async def consuming(self, queue: str, *, prefetch: int = 0, no_ack: bool = False) -> "asyncio.Queue[Came]":
        channel = await self.connection.channel()
        came = asyncio.Queue[Came]()

        async def receive(message: DeliveredMessage) -> None:
            tag = message.delivery_tag or 0
            came.put_nowait(
                Came(
                    message.body,
                    message.header.properties,
                    redelivered=bool(message.redelivered),
                    ack=lambda: channel.basic_ack(tag),
                )
            )

        await channel.basic_qos(prefetch_count=prefetch)
        await channel.basic_consume(queue, receive, no_ack=no_ack)
        return came


class Past:
    """Those past it."""

    def __init__(self, url: str) -> None:
        self._transport = Transport()
        self.connection = aiormq.Connection(url, transport_factory=self._transport)

    async def publishing(self, *, confirms: bool = True) -> Publish:
        raw = await self.connection.channel(publisher_confirms=confirms)
        return PublishingChannel(self._transport, raw, confirms=confirms).publish

    async def consuming(self, queue: str, *, prefetch: int = 0, no_ack: bool = False) -> "asyncio.Queue[Came]":
        channel = ConsumingChannel(self._transport, await self.connection.channel())
        came = asyncio.Queue[Came]()

        def receive(message: Delivered) -> None:
            came.put_nowait(Came(message.body, message.properties, redelivered=message.redelivered, ack=message.ack))

        await channel.raw.basic_qos(prefetch_count=prefetch)
        await channel.consume(queue, receive, no_ack=no_ack)
        return came


@pytest.fixture
async def proxy(amqp_url: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(amqp_url)
    await proxy.open()
    yield proxy
    await proxy.end()


@pytest.fixture(params=[Aiormqs, Past])
async def channels(request: pytest.FixtureRequest, proxy: Proxy) -> AsyncIterator[Channels]:
    channels: Channels = request.param(proxy.url)
    await channels.connection.connect()
    yield channels
    proxy.thaw()
    await channels.connection.close()


@pytest.fixture
async def control(amqp_url: str) -> AsyncIterator[RawChannel]:
    """A channel of somebody else's."""
    connection = await aiormq.connect(amqp_url)
    yield await connection.channel()
    await connection.close()


async def a_queue(control: RawChannel, arguments: ArgumentsType | None = None) -> str:
    """Make a queue that goes a minute after the last who cared."""
    name = f"test.{uuid4().hex}"
    await control.queue_declare(name, durable=True, arguments={"x-expires": 60_000, **(arguments or {})})
    return name


def plain() -> Basic.Properties:
    return Basic.Properties(delivery_mode=1)


async def waiting(control: RawChannel, queue: str) -> int:
    """How many messages a queue holds that nobody has been given."""
    return (await control.queue_declare(queue, passive=True)).message_count or 0


async def next_of(came: "asyncio.Queue[Came]") -> Came:
    async with asyncio.timeout(_WAIT_SECONDS):
        return await came.get()


async def test_what_is_published_comes_in_order_and_as_it_was(channels: Channels, control: RawChannel) -> None:
    queue = await a_queue(control)
    publish, came = await channels.publishing(), await channels.consuming(queue)
    bodies = [b"one", b"", BIG, b"\xce" * 10, BIG[:131_064], BIG[:131_065], b"last"]

    async with asyncio.timeout(_WAIT_SECONDS):
        await asyncio.gather(*(publish(body, key=queue, properties=plain()) for body in bodies))

    assert [(await next_of(came)).body for _ in bodies] == bodies


async def test_what_travels_beside_a_body_arrives(channels: Channels, control: RawChannel) -> None:
    queue = await a_queue(control)
    publish, came = await channels.publishing(), await channels.consuming(queue)
    beside = Basic.Properties(
        content_type="application/json",
        headers={"x-id": "1", "x-count": 7},
        delivery_mode=2,
        correlation_id="c",
        reply_to="r",
        expiration="60000",
        message_type="of.this.type",
    )

    await publish(b"body", key=queue, properties=beside)

    properties = (await next_of(came)).properties
    assert properties.message_id
    for name in ("content_type", "headers", "delivery_mode", "correlation_id", "reply_to", "expiration", "message_type"):
        assert getattr(properties, name) == getattr(beside, name)


async def test_what_is_not_acknowledged_comes_again(channels: Channels, control: RawChannel, amqp_url: str) -> None:
    queue = await a_queue(control)
    publish, came = await channels.publishing(), await channels.consuming(queue)
    await publish(b"done", key=queue, properties=plain())
    await publish(b"left", key=queue, properties=plain())
    done, left = await next_of(came), await next_of(came)
    await done.ack()
    # Behind the acknowledgement, on the same connection.
    await publish(b"last", key=queue, properties=plain())
    last = await next_of(came)

    await channels.connection.close()
    others = type(channels)(amqp_url)
    await others.connection.connect()
    came = await others.consuming(queue)
    again = [await next_of(came), await next_of(came)]

    assert [message.redelivered for message in (done, left, last)] == [False] * 3
    assert [(message.body, message.redelivered) for message in again] == [(b"left", True), (b"last", True)]
    await others.connection.close()


async def test_an_acknowledgement_makes_room_for_the_next(channels: Channels, control: RawChannel) -> None:
    queue = await a_queue(control)
    publish, came = await channels.publishing(), await channels.consuming(queue, prefetch=2)
    for number in range(5):
        await publish(b"%d" % number, key=queue, properties=plain())

    bodies = []
    for _ in range(5):
        message = await next_of(came)
        bodies.append(message.body)
        await message.ack()

    assert bodies == [b"%d" % number for number in range(5)]


async def test_who_need_not_acknowledge_is_not_waited_for(channels: Channels, control: RawChannel) -> None:
    queue = await a_queue(control)
    publish, came = await channels.publishing(confirms=False), await channels.consuming(queue, no_ack=True)

    await asyncio.gather(*(publish(b"%d" % number, key=queue, properties=plain()) for number in range(200)))

    assert [(await next_of(came)).body for _ in range(200)] == [b"%d" % number for number in range(200)]


async def test_what_no_queue_takes_is_sent_back_and_nothing_else(channels: Channels, control: RawChannel) -> None:
    queue = await a_queue(control)
    publish = await channels.publishing()
    keys = [queue, "test.nowhere", queue, "test.nowhere"]

    told = await asyncio.gather(
        *(publish(BIG, key=key, properties=plain(), mandatory=True) for key in keys), return_exceptions=True
    )

    assert [type(outcome) for outcome in told] == [type(None), PublishError, type(None), PublishError]
    assert await waiting(control, queue) == 2


async def test_what_need_not_be_taken_is_confirmed_all_the_same(channels: Channels) -> None:
    publish = await channels.publishing()

    await publish(b"gone", key="test.nowhere", properties=plain())


async def test_what_a_queue_refuses_is_told_to_who_sent_it(channels: Channels, control: RawChannel) -> None:
    queue = await a_queue(control, {"x-max-length": 2, "x-overflow": "reject-publish"})
    publish = await channels.publishing()

    told = [await asyncio.gather(publish(b"1", key=queue, properties=plain()), return_exceptions=True) for _ in range(5)]

    refused = [isinstance(outcome, DeliveryError) and not isinstance(outcome, PublishError) for (outcome,) in told]
    # A queue may take one more than it should while it hands nothing out.
    assert refused[:2] == [False, False]
    assert refused[-1]
    assert await waiting(control, queue) == refused.count(False)


async def test_many_are_confirmed_each_to_who_sent_it(channels: Channels, control: RawChannel) -> None:
    """RabbitMQ confirms several at once where it can."""
    queue = await a_queue(control)
    publish = await channels.publishing()

    async with asyncio.timeout(_WAIT_SECONDS):
        await asyncio.gather(*(publish(b"x", key=queue, properties=plain()) for _ in range(1_000)))

    assert await waiting(control, queue) == 1_000


async def test_who_gives_up_waiting_changes_nothing_for_others(channels: Channels, control: RawChannel, proxy: Proxy) -> None:
    queue = await a_queue(control)
    publish = await channels.publishing()
    await publish(b"before", key=queue, properties=plain())
    proxy.freeze()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await publish(b"given up", key=queue, properties=plain())
    waits = asyncio.create_task(publish(b"waits", key=queue, properties=plain()))
    proxy.thaw()
    async with asyncio.timeout(_WAIT_SECONDS):
        await waits
        await publish(b"after", key=queue, properties=plain())

    assert await waiting(control, queue) == 4


async def test_a_channel_that_the_broker_closes_fails_who_waits_and_who_comes(channels: Channels) -> None:
    publish = await channels.publishing()

    with pytest.raises(ChannelNotFoundEntity):
        await publish(b"x", exchange="test.no-such-exchange", key="", properties=plain())
    with pytest.raises(RuntimeError):
        await publish(b"x", key="", properties=plain())


async def test_a_channel_on_the_number_of_one_that_was_closed_is_as_good(channels: Channels, control: RawChannel) -> None:
    queue = await a_queue(control)
    publish = await channels.publishing()
    with pytest.raises(ChannelNotFoundEntity):
        await publish(b"x", exchange="test.no-such-exchange", key="", properties=plain())

    publish, came = await channels.publishing(), await channels.consuming(queue)
    await publish(b"x", key=queue, properties=plain())

    assert (await next_of(came)).body == b"x"


async def test_a_connection_that_is_cut_fails_who_waits(channels: Channels, control: RawChannel, proxy: Proxy) -> None:
    queue = await a_queue(control)
    publish = await channels.publishing()
    proxy.freeze()
    waits = asyncio.create_task(publish(b"x", key=queue, properties=plain()))
    await asyncio.sleep(0)

    proxy.cut()

    async with asyncio.timeout(_WAIT_SECONDS):
        # aiormq may say it by a cancellation.
        own: tuple[type[BaseException], ...] = (asyncio.CancelledError,) if isinstance(channels, Aiormqs) else ()
        with pytest.raises((ConnectionError, aiormq.AMQPError, *own)):
            await waits


async def test_who_acknowledges_on_a_connection_that_has_gone_is_told(channels: Channels, control: RawChannel) -> None:
    queue = await a_queue(control)
    publish, came = await channels.publishing(), await channels.consuming(queue)
    await publish(b"x", key=queue, properties=plain())
    message = await next_of(came)

    await channels.connection.close()

    with pytest.raises(ChannelInvalidStateError):
        await message.ack()


async def test_nothing_is_kept_of_what_was_settled(amqp_url: str, control: RawChannel) -> None:
    """Confirmed, sent back, or given up."""
    transport = Transport()
    connection = await aiormq.connect(amqp_url, transport_factory=transport)
    queue = await a_queue(control)
    channel = PublishingChannel(transport, await connection.channel(), confirms=True)
    sending = [
        asyncio.create_task(channel.publish(b"x", key=key, properties=plain(), mandatory=True))
        for key in (queue, "test.nowhere", queue)
    ]
    await asyncio.sleep(0)
    assert len(channel._unconfirmed) == len(channel._ids) == 3
    sending[2].cancel()

    told = await asyncio.gather(*sending, return_exceptions=True)

    assert [type(outcome) for outcome in told] == [type(None), PublishError, asyncio.CancelledError]
    assert not channel._unconfirmed
    assert not channel._ids
    await connection.close()


async def test_a_broker_that_reads_nothing_is_waited_for(channels: Channels, control: RawChannel, proxy: Proxy) -> None:
    """What the connection takes no more waits with who sends it, in order; who gives up then has sent nothing."""
    queue = await a_queue(control)
    publish, came = await channels.publishing(), await channels.consuming(queue, no_ack=True)
    proxy.freeze()
    bodies = [b"%03d" % number + bytes(1_000_000) for number in range(40)]
    sending = [asyncio.create_task(publish(body, key=queue, properties=plain())) for body in bodies]
    await asyncio.wait(sending, timeout=0.3)
    assert not any(task.done() for task in sending)
    for task in sending[20:]:
        task.cancel()

    proxy.thaw()

    async with asyncio.timeout(_WAIT_SECONDS):
        await asyncio.gather(*sending[:20])
        await publish(b"end", key=queue, properties=plain())
    assert [(await next_of(came)).body[:3] for _ in range(21)] == [*(body[:3] for body in bodies[:20]), b"end"]


async def test_slow_pieces_are_put_together(channels: Channels, control: RawChannel, proxy: Proxy) -> None:
    queue = await a_queue(control)
    publish, came = await channels.publishing(), await channels.consuming(queue, no_ack=True)
    proxy.slow(0.001)

    async with asyncio.timeout(_WAIT_SECONDS):
        await asyncio.gather(*(publish(BIG[:size], key=queue, properties=plain()) for size in range(0, 500_000, 50_000)))

    assert [len((await next_of(came)).body) for _ in range(10)] == list(range(0, 500_000, 50_000))


@pytest.mark.parametrize("heartbeat_seconds", [1])
async def test_a_connection_with_messages_and_no_heartbeats_is_alive(
    amqp_url: str, control: RawChannel, heartbeat_seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ sends none while it sends anything else, and aiormq reads nothing of what goes past it."""
    monkeypatch.setattr(aiormq.Connection, "HEARTBEAT_GRACE_MULTIPLIER", 1)
    channels = Past(f"{amqp_url}?heartbeat={heartbeat_seconds}")
    await channels.connection.connect()
    queue = await a_queue(control)
    publish, came = await channels.publishing(), await channels.consuming(queue, no_ack=True)
    loop = asyncio.get_running_loop()
    until = loop.time() + 5 * heartbeat_seconds

    while loop.time() < until:
        await publish(b"x", key=queue, properties=plain())
        await next_of(came)

    assert channels.connection.is_opened
    await channels.connection.close()
