"""The short way beside each queue of commands (docs/decisions/0026): when it is taken, and what happens without it.

On a cluster of three, for it is a queue on one node, and that node may go, or freeze, and come back.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import aio_pika
import pytest
from structlog.testing import capture_logs

from rollcall.launcher import kill
from shared import link, topology
from shared.amqp import express, lines
from shared.amqp.bus import AmqpBus, open_amqp
from shared.amqp.inbox import AmqpDelivery
from shared.bus import Delivery
from shared.errors import Unavailable
from shared.messages import ATTENDANCE_COMMANDS, SESSION_COMMANDS
from tests.contract.bus_talk import consuming, eventually, send_once, sent, take, takes_the_short_way
from tests.rabbitmq import RabbitMQ, start_rabbitmq

EXPRESS = topology.EXPRESS[ATTENDANCE_COMMANDS]


class Cluster:
    """Three nodes, of which the last may be killed and started again on the same data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "third"
        self.nodes: list[RabbitMQ] = [start_rabbitmq(folder / "first")]
        self.nodes += [start_rabbitmq(folder / name, joining=self.nodes[0]) for name in ("second", "third")]

    def new_host(self) -> list[str]:
        """Make a virtual host, and say its URL at each node."""
        host = self.nodes[0].new_host().rpartition("/")[2]
        return [f"{node.url}{host}" for node in self.nodes]

    def kill_the_last(self) -> None:
        kill(self.nodes[-1].node.process)

    @contextmanager
    def short_of_memory(self) -> Iterator[None]:
        """Let the first node believe that it is, for the length of the block, so that it reads from nobody who publishes."""
        self.nodes[0].control("set_vm_memory_high_watermark", "0")
        try:
            yield
        finally:
            self.nodes[0].control("set_vm_memory_high_watermark", "0.4")

    @contextmanager
    def freezing_the_last(self) -> Iterator[None]:
        """Let it stand still, its connections open, for the length of the block."""
        os.kill(self.nodes[-1].node.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.nodes[-1].node.process.pid, signal.SIGCONT)

    def start_the_last(self) -> None:
        """Blocks the loop: a server lives as long as the thread that started it."""
        self.nodes[-1] = start_rabbitmq(self._folder, joining=self.nodes[0])

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.node.stop()
        self.nodes[0].epmd.stop()


@pytest.fixture(scope="module")
def cluster(amqp_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Asks for `amqp_url` only to be left out wherever there can be no broker."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.stop()


@pytest.fixture
def urls(cluster: Cluster) -> list[str]:
    return cluster.new_host()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No probe comes to anybody's help."""
    monkeypatch.setattr(link, "_PROBE_EVERY_SECONDS", 60)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe the connections more often than in earnest."""
    monkeypatch.setattr(link, "_PROBE_EVERY_SECONDS", 0.5)


async def lies_at(url: str) -> None:
    """Have the short ways on the node that this leads to: a queue lives where it was declared first."""
    async with await aio_pika.connect(url) as admin:
        for name in topology.EXPRESS.values():
            await (await admin.channel()).declare_queue(name, durable=True, arguments=dict(topology.EXPRESS_ARGUMENTS))


def way(delivery: Delivery) -> str:
    """Tell by which way a message came."""
    assert isinstance(delivery, AmqpDelivery)
    return "short" if delivery.inlet.queue == EXPRESS else "long"


async def way_of(sender: AmqpBus, service: AmqpBus, command: bytes) -> str:
    """Send a command, and tell by which way it came; Unavailable when it did not leave."""
    await send_once(sender, ATTENDANCE_COMMANDS, command)
    while True:
        (delivery,) = await take(service, ATTENDANCE_COMMANDS, 1)
        await delivery.ack()
        # One that was confirmed too late has come by both.
        if delivery.body == b"[" + command + b"]":
            return way(delivery)


@pytest.mark.usefixtures("patient")
async def test_commands_take_it_as_soon_as_somebody_consumes_it(urls: list[str]) -> None:
    """Before, in a deployment whose services are older, nobody would ever take them there."""
    async with open_amqp(urls[0]) as bus, open_amqp(urls[1]) as service:
        await eventually(lambda: bus._express.up)
        await bus._express._look(EXPRESS)
        assert not bus._express._consumed
        await consuming(service)

        await send_once(bus, ATTENDANCE_COMMANDS, b"1")
        await takes_the_short_way(bus)
        await send_once(bus, ATTENDANCE_COMMANDS, b"2")

        deliveries = await take(service, ATTENDANCE_COMMANDS, 2)
        assert {delivery.body: way(delivery) for delivery in deliveries} == {b"[1]": "long", b"[2]": "short"}
        for delivery in deliveries:
            await delivery.ack()


@pytest.mark.usefixtures("impatient")
async def test_commands_take_the_long_way_again_once_nobody_consumes_it(urls: list[str]) -> None:
    """Its services went back to an older version."""
    async with open_amqp(urls[0]) as bus:
        async with open_amqp(urls[1]) as service:
            await consuming(service)
            await takes_the_short_way(bus)

        await eventually(lambda: EXPRESS not in bus._express._consumed)


@pytest.mark.usefixtures("patient")
async def test_what_it_sends_back_takes_the_long_way(urls: list[str]) -> None:
    """The node it lived on may have gone a moment ago."""
    async with open_amqp(urls[0]) as bus, await aio_pika.connect(urls[0]) as admin:
        async with open_amqp(urls[1]) as service:
            await consuming(service)
            await takes_the_short_way(bus)
        await (await admin.channel()).queue_delete(EXPRESS)

        assert await way_of(bus, bus, b"1") == "long"


@pytest.mark.usefixtures("patient")
async def test_what_it_refuses_takes_the_long_way(cluster: Cluster, urls: list[str]) -> None:
    """An operator has set a limit, say. Nothing of it waits there for ever, either."""
    host = urls[0].rpartition("/")[2]
    async with open_amqp(urls[0]) as bus, await aio_pika.connect(urls[0]) as admin:
        async with open_amqp(urls[1]) as service:
            await consuming(service)
            await takes_the_short_way(bus)
        policy = '{"max-length": 1, "overflow": "reject-publish"}'
        cluster.nodes[0].control("set_policy", "-p", host, "full", r"express$", policy, "--apply-to", "queues")
        # A policy is in force a moment after it was set.
        number = 0
        async with asyncio.timeout(30):
            while EXPRESS in bus._express._consumed:
                await send_once(bus, ATTENDANCE_COMMANDS, b"%d" % (number := number + 1))

        channel = await admin.channel()
        short, long = [await (await channel.get_queue(queue)).get(no_ack=True) for queue in (EXPRESS, ATTENDANCE_COMMANDS)]
        assert (short.body, long.body) == (b"[1]", b"[%d]" % number)
        assert short.expiration == topology.EXPRESS_AGE_MS / 1000


@pytest.mark.usefixtures("patient")
async def test_a_broker_that_goes_on_refusing_costs_one_connection_and_not_one_each_time(
    cluster: Cluster, urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what RabbitMQ 3.10 refuses by mistake is mended by another connection."""
    monkeypatch.setattr(lines, "_RENEW_SECONDS", 60)
    policy = '{"max-length": 1, "overflow": "reject-publish"}'
    host = urls[0].rpartition("/")[2]
    async with open_amqp(urls[0]) as bus:
        cluster.nodes[0].control("set_policy", "-p", host, "full", r"attendance\.commands$", policy, "--apply-to", "queues")
        with capture_logs() as logs:
            refused = 0
            async with asyncio.timeout(30):
                while refused < 10:
                    try:
                        await send_once(bus, ATTENDANCE_COMMANDS, b"1")
                    except Unavailable:
                        refused += 1
        assert [entry["link"] for entry in logs if entry["event"] == "link.lost"] == ["amqp publishing"]


@pytest.mark.usefixtures("patient")
async def test_who_begins_to_send_to_another_queue_while_it_is_looked_for_disturbs_nobody(urls: list[str]) -> None:
    async with open_amqp(urls[0]) as bus, open_amqp(urls[1]) as service:
        await consuming(service)
        await takes_the_short_way(bus)
        looking = asyncio.create_task(bus._express._look_at_all())
        await asyncio.sleep(0)
        assert not await bus._express.offer(SESSION_COMMANDS, b"[]")

        await looking
        assert await way_of(bus, service, b"1") == "short"


@pytest.mark.usefixtures("impatient")
async def test_while_it_rests_everything_takes_the_long_way(urls: list[str]) -> None:
    async with open_amqp(urls[0]) as bus, open_amqp(urls[1]) as service:
        await consuming(service)
        await takes_the_short_way(bus)
        for _ in range(2):
            bus._express._rest()
        assert bus._express._rest_seconds == 2 * express._SHORTEST_REST_SECONDS, "what both queues find out counts once"
        rests_until = bus._express._rests_until
        # Not to the very end: what is sent there may leave a moment later.
        while monotonic() < rests_until - 0.3:
            assert await way_of(bus, service, b"%f" % monotonic()) == "long"

        await takes_the_short_way(bus)
        assert await way_of(bus, service, b"1") == "short"


@pytest.mark.usefixtures("impatient")
async def test_where_it_takes_nothing_and_answers_all_the_same_it_rests_longer_each_time(
    cluster: Cluster, urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under a memory alarm: whoever connects anew may ask whatever they like, and is stopped as soon as they publish."""
    for name, seconds in {"OFFER_SECONDS": 0.2, "_SHORTEST_REST_SECONDS": 0.1, "_LONGEST_REST_SECONDS": 0.2}.items():
        monkeypatch.setattr(express, name, seconds)
    rests: list[float] = []
    async with open_amqp(urls[0]) as bus, open_amqp(urls[1]) as service:
        bus._express._rest_seconds = 0.1
        await consuming(service)
        await takes_the_short_way(bus)
        with cluster.short_of_memory():
            async with asyncio.timeout(60):
                while len(rests) < 3:
                    await takes_the_short_way(bus)
                    rests.append(bus._express._rest_seconds)
                    with pytest.raises(Unavailable):
                        await send_once(bus, ATTENDANCE_COMMANDS, b"0")
        assert rests == [0.1, 0.2, 0.2]

        await takes_the_short_way(bus)
        assert await way_of(bus, service, b"1") == "short"
        assert bus._express._rest_seconds == 0.1


@pytest.mark.usefixtures("impatient")
async def test_where_it_cannot_be_had_everything_takes_the_long_way_until_it_can(urls: list[str]) -> None:
    """Somebody else may hold a queue of its name."""
    async with await aio_pika.connect(urls[0]) as holder:
        await (await holder.channel()).declare_queue(EXPRESS, exclusive=True)
        with capture_logs() as logs:
            async with open_amqp(urls[0]) as bus:
                await eventually(lambda: bus._express.up)
                assert await way_of(bus, bus, b"1") == "long"
                assert bus.connected
                await eventually(lambda: bool(bus._express._refused))

                await holder.close()
                await takes_the_short_way(bus)

                assert await way_of(bus, bus, b"2") == "short"
        assert [entry["queue"] for entry in logs if entry["event"] == "bus.no_express"] == [EXPRESS]


@pytest.mark.usefixtures("impatient")
async def test_one_message_fails_while_its_node_is_frozen_and_nothing_stops(cluster: Cluster, urls: list[str]) -> None:
    """Whatever is asked about it hangs then: it is neither there nor gone. The other queues are led by other nodes."""
    async with open_amqp(urls[0]):
        """They are led from where they were declared first."""
    await lies_at(urls[2])
    async with open_amqp(urls[0]) as sender, open_amqp(urls[1]) as service:
        await consuming(service)
        await takes_the_short_way(sender)
        assert await way_of(sender, service, b"0") == "short"

        number = 0
        with cluster.freezing_the_last():
            # What may have been taken is not sent by the other way, too.
            with pytest.raises(Unavailable):
                await send_once(sender, ATTENDANCE_COMMANDS, b"0")
            # Until both have noticed, and tried in vain to have it again.
            while sender._express.up or service._express.up or number < 20:
                number += 1
                assert await way_of(sender, service, b"%d" % number) == "long"
            assert sender.connected
            assert service.connected

        await takes_the_short_way(sender)
        assert await way_of(sender, service, b"again") == "short"


@pytest.mark.usefixtures("impatient")
async def test_nothing_stops_while_its_node_is_away_and_it_is_taken_again_afterwards(cluster: Cluster, urls: list[str]) -> None:
    await lies_at(urls[2])
    async with open_amqp(urls[0]) as sender, open_amqp(urls[1]) as service:
        await consuming(service)
        await takes_the_short_way(sender)
        assert await way_of(sender, service, b"0") == "short"

        cluster.kill_the_last()
        for number in range(1, 11):
            await sent(sender, ATTENDANCE_COMMANDS, b"%d" % number)
            (delivery,) = await take(service, ATTENDANCE_COMMANDS, 1)
            await delivery.ack()
            assert (delivery.body, way(delivery)) == (b"[%d]" % number, "long")

        cluster.start_the_last()
        await takes_the_short_way(sender)
        assert await way_of(sender, service, b"again") == "short"
