"""What only the bus on RabbitMQ promises: what happens when the broker, or the way to it, goes away and comes back.

Everything here runs on a node of its own, since it is stopped and starved. Most losses are made by a proxy in between.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import aio_pika
import aiormq
import pytest
from prometheus_client import REGISTRY
from yarl import URL

from shared import coalescer, link, topology
from shared.amqp import lines
from shared.amqp.bus import AmqpBus, open_amqp
from shared.amqp.inbox import AmqpDelivery
from shared.amqp.properties import EVENT_ID_HEADER
from shared.bus import SEND_TIMEOUT_SECONDS
from shared.errors import StartupFailed, Unavailable
from shared.messages import ATTENDANCE_COMMANDS, ATTENDANCE_EVENTS, SESSION_COMMANDS
from tests.contract.bus_talk import STARTED, Begin, empty, events, eventually, send_once, sent, take
from tests.proxy import Proxy
from tests.rabbitmq import RabbitMQ, start_rabbitmq


class Node:
    """A RabbitMQ that can be stopped, started again on the same data, and told what to do."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._server: RabbitMQ = start_rabbitmq(data)
        self.url = self._server.url
        self._port = URL(self.url).port or 0

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        """Blocks the loop: a server lives as long as the thread that started it."""
        self._server = start_rabbitmq(self._data, port=self._port)

    async def ctl(self, *arguments: str) -> None:
        await asyncio.to_thread(self._server.control, *arguments)


@pytest.fixture(scope="module")
def node(amqp_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Asks for `amqp_url` only to be left out wherever there can be no broker."""
    node = Node(tmp_path_factory.mktemp("rabbitmq"))
    yield node
    node.stop()


@pytest.fixture
async def url(node: Node) -> str:
    await empty(node.url)
    return node.url


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(url)
    await proxy.open()
    yield proxy
    await proxy.end()


@pytest.fixture
async def bus(proxy: Proxy) -> AsyncIterator[AmqpBus]:
    """A bus behind the proxy."""
    async with open_amqp(proxy.url) as bus:
        yield bus


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe the connections more often than in earnest."""
    monkeypatch.setattr(link, "_PROBE_EVERY_SECONDS", 0.2)
    monkeypatch.setattr(link, "_PROBE_TIMEOUT_SECONDS", 0.3)


async def seconds_until_unavailable(bus: AmqpBus) -> float:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    with pytest.raises(Unavailable):
        await send_once(bus, SESSION_COMMANDS, b"0")
    return loop.time() - begun


# Losing the connection


async def test_after_a_cut_unacknowledged_and_later_messages_arrive(bus: AmqpBus, proxy: Proxy) -> None:
    await send_once(bus, ATTENDANCE_COMMANDS, b"1")
    (lost,) = await take(bus, ATTENDANCE_COMMANDS, 1)

    proxy.cut()
    (again,) = await take(bus, ATTENDANCE_COMMANDS, 1)
    await lost.ack()
    await sent(bus, ATTENDANCE_COMMANDS, b"2")
    (later,) = await take(bus, ATTENDANCE_COMMANDS, 1)

    assert again.body == lost.body
    assert later.body == b"[2]"
    for delivery in (again, later):
        await delivery.ack()


async def test_what_a_lost_connection_brought_is_not_handed_out_twice(bus: AmqpBus, proxy: Proxy) -> None:
    """Prefetched but not taken when the connection went: the broker sends it again, so the first copy is forgotten."""
    inbox = bus.inbox(ATTENDANCE_COMMANDS)
    for number in range(3):
        await send_once(bus, ATTENDANCE_COMMANDS, b"%d" % number)
    await eventually(lambda: len(inbox._arrived) == 3)

    proxy.cut()
    await eventually(lambda: not inbox._arrived)
    await sent(bus, ATTENDANCE_COMMANDS, b"9")
    taken = await take(bus, ATTENDANCE_COMMANDS, 4)

    assert [delivery.body for delivery in taken] == [b"[0]", b"[1]", b"[2]", b"[9]"]
    for delivery in taken:
        await delivery.ack()


async def test_while_the_broker_is_away_everything_says_so_in_time(bus: AmqpBus, proxy: Proxy) -> None:
    queue = await bus.receive_answers(lambda answers: None)
    proxy.close()
    await eventually(lambda: not bus.connected)

    async with asyncio.timeout(SEND_TIMEOUT_SECONDS + 1):
        outcomes = await asyncio.gather(
            send_once(bus, SESSION_COMMANDS, b"1"),
            bus.publish(events(STARTED)),
            bus.inbox(SESSION_COMMANDS).park(b"{}", "why"),
            bus.answer([(queue, b"1")]),
            return_exceptions=True,
        )

    assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable, Unavailable, type(None)]


async def test_a_sender_waits_for_a_broker_that_comes_back_in_time(bus: AmqpBus, proxy: Proxy, begin: Begin) -> None:
    proxy.close()
    await eventually(lambda: not bus.connected)
    sending = await begin(send_once(bus, SESSION_COMMANDS, b"1"))

    await proxy.open()

    await sending


async def test_answers_come_under_a_new_name_after_a_loss(bus: AmqpBus, proxy: Proxy, url: str) -> None:
    """The old queue may still be locked by the connection that the broker has not yet given up."""
    received: list[bytes] = []
    old = await bus.receive_answers(received.append)

    proxy.cut()
    await eventually(lambda: bus.connected and bus.answer_queue != old)
    async with open_amqp(url) as service:
        await service.answer([(old, b"1"), (bus.answer_queue, b"2")])
        await eventually(lambda: received == [b"[2]"])


async def test_answers_may_be_asked_for_while_the_broker_is_away(bus: AmqpBus, proxy: Proxy, begin: Begin) -> None:
    received: list[bytes] = []
    proxy.close()
    await eventually(lambda: not bus.connected)
    names: list[str] = []

    async def ask() -> None:
        names.append(await bus.receive_answers(received.append))

    asking = await begin(ask())
    await proxy.open()
    await asking
    await eventually(lambda: bus.connected)
    await bus.answer([(names[0], b"1")])
    await eventually(lambda: received == [b"[1]"])


async def test_a_queue_may_be_consumed_while_the_broker_is_away(bus: AmqpBus, proxy: Proxy) -> None:
    proxy.close()
    await eventually(lambda: not bus.connected)
    bus.inbox(ATTENDANCE_COMMANDS)

    await proxy.open()
    await sent(bus, ATTENDANCE_COMMANDS, b"1")
    (delivery,) = await take(bus, ATTENDANCE_COMMANDS, 1)
    await delivery.ack()

    assert delivery.body == b"[1]"


async def test_a_message_in_flight_when_the_connection_breaks_is_unavailable(bus: AmqpBus, proxy: Proxy, begin: Begin) -> None:
    proxy.freeze()
    sending = [await begin(send_once(bus, SESSION_COMMANDS, b"1")), await begin(bus.publish(events(STARTED)))]
    proxy.cut()

    for task in sending:
        with pytest.raises(Unavailable):
            await task


async def test_a_message_in_flight_when_the_heartbeat_stops_is_unavailable(
    proxy: Proxy, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library fails what waits on such a connection with CancelledError, which must not pass for a cancellation."""
    monkeypatch.setattr(aiormq.Connection, "HEARTBEAT_GRACE_MULTIPLIER", 0.5)
    monkeypatch.setattr(link, "_PROBE_EVERY_SECONDS", 60)
    for module in (lines, coalescer):
        monkeypatch.setattr(module, "SEND_TIMEOUT_SECONDS", 60)
    async with open_amqp(f"{proxy.url}?heartbeat=1") as bus:
        proxy.freeze()
        sending = [await begin(send_once(bus, SESSION_COMMANDS, b"1")), await begin(bus.publish(events(STARTED)))]

        for task in sending:
            with pytest.raises(Unavailable):
                await task
        proxy.thaw()
        await sent(bus, SESSION_COMMANDS, b"2")


@pytest.mark.usefixtures("impatient")
async def test_a_frozen_broker_is_noticed_and_survived(bus: AmqpBus, proxy: Proxy) -> None:
    """A stopped process, or a cable pulled: nothing is refused, nothing answers."""
    await bus.receive_answers(lambda answers: None)
    proxy.freeze()

    assert await seconds_until_unavailable(bus) < SEND_TIMEOUT_SECONDS + 1
    await eventually(lambda: not bus.connected)
    proxy.thaw()
    await sent(bus, ATTENDANCE_COMMANDS, b"1")
    (delivery,) = await take(bus, ATTENDANCE_COMMANDS, 1)
    await delivery.ack()


@pytest.mark.parametrize("size", [1, 30_000_000])
async def test_a_bus_closes_in_time_whatever_the_broker_does(proxy: Proxy, begin: Begin, size: int) -> None:
    """Also with more on the way than the kernel takes: the libraries wait then, however often they are cancelled."""
    before = asyncio.all_tasks()
    async with open_amqp(proxy.url) as bus:
        bus.inbox(ATTENDANCE_COMMANDS)
        proxy.freeze()
        sending = [await begin(send_once(bus, queue, b"1" * size)) for queue in (SESSION_COMMANDS, ATTENDANCE_COMMANDS)]
        async with asyncio.timeout(8):
            await bus.close()
    await proxy.end()

    for outcome in await asyncio.gather(*sending, return_exceptions=True):
        assert outcome is None or isinstance(outcome, Unavailable)
    await eventually(lambda: asyncio.all_tasks() <= before)


# What the broker does of its own accord


async def test_a_channel_the_broker_closes_for_a_late_acknowledgement_is_replaced(node: Node, url: str) -> None:
    """RabbitMQ's delivery timeout, half an hour by default: what was held too long comes again, to a consumer that lives."""
    await node.ctl("eval", acknowledged_within(500, looked_at_every=200))
    try:
        async with open_amqp(url) as bus:
            await send_once(bus, ATTENDANCE_COMMANDS, b"1")
            (held,) = await take(bus, ATTENDANCE_COMMANDS, 1)
            (again,) = await take(bus, ATTENDANCE_COMMANDS, 1, seconds=30)
            await again.ack()
            assert isinstance(held, AmqpDelivery)
            assert (held.body, held.alive) == (again.body, False)
    finally:
        await node.ctl("eval", acknowledged_within(1_800_000, looked_at_every=60_000))


def acknowledged_within(milliseconds: int, *, looked_at_every: int) -> str:
    timeout = f"application:set_env(rabbit, consumer_timeout, {milliseconds})"
    return f"{timeout}, application:set_env(rabbit, channel_tick_interval, {looked_at_every})."


@pytest.mark.usefixtures("impatient")
async def test_what_is_parked_can_be_seen_in_the_metrics(url: str) -> None:
    async with open_amqp(url) as bus:
        await eventually(lambda: gauge("rollcall_parked_messages") == 0)
        await bus.inbox(SESSION_COMMANDS).park(b"{}", "why")
        await eventually(lambda: gauge("rollcall_parked_messages") == 1)
    await empty(url)


def gauge(name: str) -> float | None:
    return REGISTRY.get_sample_value(name)


@pytest.mark.usefixtures("impatient")
async def test_a_command_without_a_queue_is_unavailable_at_once_and_the_queue_comes_back(url: str) -> None:
    """The broker hands an unroutable message back. A gateway consumes no commands, yet restores their queue."""
    async with open_amqp(url) as gateway, await aio_pika.connect(url) as admin:
        await (await admin.channel()).queue_delete(SESSION_COMMANDS)
        assert await seconds_until_unavailable(gateway) < SEND_TIMEOUT_SECONDS / 2

        await sent(gateway, SESSION_COMMANDS, b"1")


async def test_a_missing_exchange_is_mended(url: str) -> None:
    """The broker closes the whole channel for it."""
    async with open_amqp(url) as bus, await aio_pika.connect(url) as admin:
        await (await admin.channel()).exchange_delete(topology.COMMANDS)

        assert await seconds_until_unavailable(bus) < SEND_TIMEOUT_SECONDS / 2
        await sent(bus, SESSION_COMMANDS, b"1")


async def test_the_broker_may_close_every_connection(node: Node, url: str) -> None:
    async with open_amqp(url) as bus:
        old = await bus.receive_answers(lambda answers: None)
        await node.ctl("close_all_connections", "maintenance")

        await eventually(lambda: bus.connected and bus.answer_queue != old)
        await sent(bus, ATTENDANCE_COMMANDS, b"1")
        (delivery,) = await take(bus, ATTENDANCE_COMMANDS, 1)
        await delivery.ack()


async def test_a_broker_short_of_memory_refuses_for_a_while(node: Node, url: str) -> None:
    """It stops reading from who publishes; consumers still get what is there, and what they retry waits with them."""
    async with open_amqp(url) as bus:
        await bus.publish(events(STARTED))
        (delivery,) = await take(bus, ATTENDANCE_EVENTS, 1)
        await node.ctl("set_vm_memory_high_watermark", "0.00001")
        try:
            assert await seconds_until_unavailable(bus) < SEND_TIMEOUT_SECONDS + 1
            await delivery.retry()
            (delivery,) = await take(bus, ATTENDANCE_EVENTS, 1)
        finally:
            await node.ctl("set_vm_memory_high_watermark", "0.4")

        await sent(bus, SESSION_COMMANDS, b"1")
        await delivery.ack()


async def test_confirmed_commands_survive_a_restart_of_the_broker(node: Node, url: str) -> None:
    async with open_amqp(url) as bus:
        queue = await bus.receive_answers(lambda answers: None)
        for number in range(3):
            await send_once(bus, ATTENDANCE_COMMANDS, b"%d" % number)
        await bus.publish(events(STARTED))
        (unacknowledged,) = await take(bus, ATTENDANCE_EVENTS, 1)

        await asyncio.to_thread(node.stop)
        try:
            await eventually(lambda: not bus.connected)
            assert await seconds_until_unavailable(bus) < SEND_TIMEOUT_SECONDS + 1
            await unacknowledged.ack()
        finally:
            node.start()
        await eventually(lambda: bus.connected, 30)

        commands = await take(bus, ATTENDANCE_COMMANDS, 3)
        (event,) = await take(bus, ATTENDANCE_EVENTS, 1)
        for delivery in (*commands, event):
            await delivery.ack()
        assert [delivery.body for delivery in commands] == [b"[0]", b"[1]", b"[2]"]
        assert event.body == STARTED.encode()
        assert bus.answer_queue != queue


# What is on the broker


async def test_many_processes_may_make_the_topology_at_once(url: str) -> None:
    """The first `docker compose up`: everybody connects to an empty broker in the same second."""
    async with await aio_pika.connect(url) as admin:
        channel = await admin.channel()
        for queue in topology.QUEUES:
            await channel.queue_delete(queue.name)
        for exchange in topology.EXCHANGES:
            await channel.exchange_delete(exchange.name)

    async with AsyncExitStack() as stack:
        buses = await asyncio.gather(*(stack.enter_async_context(open_amqp(url)) for _ in range(8)))
        for bus in buses:
            await send_once(bus, SESSION_COMMANDS, b"1")
    await empty(url)


async def test_a_message_that_kills_its_consumer_time_and_again_ends_on_the_parking(url: str) -> None:
    """The last net under the bisecting of batches. With it the broker says itself where the message came from."""
    async with open_amqp(url) as bus, await aio_pika.connect(url) as admin:
        channel = await admin.channel()
        commands, parking = (
            await channel.get_queue(SESSION_COMMANDS),
            await channel.get_queue(topology.PARKING),
        )
        await send_once(bus, SESSION_COMMANDS, b"1")
        deliveries = 0
        while (message := await commands.get(fail=False)) is not None:
            deliveries += 1
            await message.nack(requeue=True)

        async with asyncio.timeout(10), parking.iterator() as messages:
            parked = await anext(messages)
            await parked.ack()

        assert deliveries > 50
        assert parked.body == b"[1]"
        assert SESSION_COMMANDS in str(parked.headers["x-death"])


async def test_every_event_stays_on_the_stream(url: str) -> None:
    """Whatever its type, and long after the services have had it."""
    async with open_amqp(url) as bus, await aio_pika.connect(url) as admin:
        channel = await admin.channel()
        await channel.set_qos(prefetch_count=100)
        stream = await channel.get_queue(topology.STREAM)
        async with stream.iterator(arguments={"x-stream-offset": "next"}, timeout=10) as messages:
            await bus.publish(events("rollcall.something.new.v1"))
            message = await anext(messages)
            await message.ack()

        assert message.body == b"rollcall.something.new.v1"
        assert message.content_type == "application/cloudevents+json"
        assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
        assert message.headers[EVENT_ID_HEADER] == "0:rollcall.something.new.v1"


# A start that fails


async def refusal(url: URL | str) -> str:
    """Open a bus that cannot be opened; return what the operator reads."""
    with pytest.raises(StartupFailed) as failed:
        async with asyncio.timeout(8), open_amqp(str(url)):
            pass
    assert "\n" not in str(failed.value)
    return str(failed.value)


async def test_nobody_listening_is_a_failed_start_without_the_password() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]

        line = await refusal(f"amqp://ann:s3cret@127.0.0.1:{port}/school")

    assert re.fullmatch(rf"ROLLCALL_AMQP_URL: cannot reach amqp://127\.0\.0\.1:{port}/school: .*Connect call failed.*", line)


async def test_somebody_listening_who_never_answers_is_a_failed_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "CONNECT_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        line = await refusal(f"amqp://ann:s3cret@127.0.0.1:{port}/")

    assert line == f"ROLLCALL_AMQP_URL: cannot reach amqp://127.0.0.1:{port}/: no answer within 5 s"


async def test_a_wrong_password_is_a_failed_start_without_it(url: str) -> None:
    line = await refusal(URL(url).with_password("s3cret"))

    assert line.startswith("ROLLCALL_AMQP_URL: cannot reach amqp://127.0.0.1:")
    assert "ACCESS_REFUSED" in line
    assert "s3cret" not in line


async def test_a_virtual_host_that_is_not_there_is_a_failed_start(url: str) -> None:
    line = await refusal(URL(url).with_path("/nowhere"))

    assert line.startswith("ROLLCALL_AMQP_URL: cannot reach amqp://127.0.0.1:")
    assert "/nowhere: " in line
    assert "virtual host" in line


async def test_a_queue_of_another_kind_is_a_failed_start_that_names_it(url: str) -> None:
    """Made by hand, or by an older version: no process can change it, so an operator must."""
    async with await aio_pika.connect(url) as admin:
        channel = await admin.channel()
        await channel.queue_delete(SESSION_COMMANDS)
        await channel.declare_queue(SESSION_COMMANDS, durable=True)
        try:
            line = await refusal(url)
        finally:
            await channel.queue_delete(SESSION_COMMANDS)

    assert line.startswith("ROLLCALL_AMQP_URL: queue session.commands cannot be had: PRECONDITION_FAILED")
