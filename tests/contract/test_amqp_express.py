"""The short way beside each queue of commands (docs/decisions/0026): when it is taken, and what happens without it.

On a cluster of three, for it is a queue on one node, and that node may go and come back.
"""

from collections.abc import Iterator
from pathlib import Path

import aio_pika
import pytest

from rollcall.launcher import kill
from shared import link, topology
from shared.amqp.bus import AmqpBus, open_amqp
from shared.amqp.inbox import AmqpDelivery
from shared.bus import Delivery
from shared.messages import ATTENDANCE_COMMANDS
from tests.contract.bus_talk import consuming, eventually, sent, take
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


def way(delivery: Delivery) -> str:
    """Tell by which way a message came."""
    assert isinstance(delivery, AmqpDelivery)
    return "short" if delivery._inlet.express_of else "long"


async def way_of(sender: AmqpBus, service: AmqpBus, command: bytes) -> str:
    """Send a command as a client does, and tell by which way it came."""
    await sent(sender, ATTENDANCE_COMMANDS, command)
    (delivery,) = await take(service, ATTENDANCE_COMMANDS, 1)
    assert delivery.body == b"[" + command + b"]"
    await delivery.ack()
    return way(delivery)


async def takes_the_short_way(bus: AmqpBus) -> None:
    """Wait until commands do."""
    await eventually(lambda: ATTENDANCE_COMMANDS in bus._outgoing.express)


@pytest.mark.usefixtures("patient")
async def test_commands_take_it_as_soon_as_somebody_consumes_it(urls: list[str]) -> None:
    """Before, in a deployment whose services are older, nobody would ever take them there."""
    async with open_amqp(urls[0]) as bus, open_amqp(urls[1]) as service:
        await bus._outgoing._look_for_express()
        assert bus._outgoing.express == set()
        await consuming(service)

        await bus.send(ATTENDANCE_COMMANDS, b"1")
        await takes_the_short_way(bus)
        await bus.send(ATTENDANCE_COMMANDS, b"2")

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
            await bus._outgoing._look_for_express()
            assert ATTENDANCE_COMMANDS in bus._outgoing.express

        await eventually(lambda: ATTENDANCE_COMMANDS not in bus._outgoing.express)


@pytest.mark.usefixtures("patient")
async def test_what_it_sends_back_takes_the_long_way(urls: list[str]) -> None:
    """The node it lived on may have gone a moment ago."""
    async with open_amqp(urls[0]) as bus, await aio_pika.connect(urls[0]) as admin:
        async with open_amqp(urls[1]) as service:
            await consuming(service)
            await bus._outgoing._look_for_express()
        await (await admin.channel()).queue_delete(EXPRESS)

        await bus.send(ATTENDANCE_COMMANDS, b"1")

        (delivery,) = await take(bus, ATTENDANCE_COMMANDS, 1)
        await delivery.ack()
        assert (delivery.body, way(delivery)) == (b"[1]", "long")


@pytest.mark.usefixtures("impatient")
async def test_where_it_cannot_be_had_everything_takes_the_long_way_until_it_can(urls: list[str]) -> None:
    """Somebody else may hold a queue of its name."""
    async with await aio_pika.connect(urls[0]) as holder:
        await (await holder.channel()).declare_queue(EXPRESS, exclusive=True)
        async with open_amqp(urls[0]) as bus:
            assert await way_of(bus, bus, b"1") == "long"
            assert bus.connected

            await holder.close()
            await takes_the_short_way(bus)

            assert await way_of(bus, bus, b"2") == "short"


@pytest.mark.usefixtures("impatient")
async def test_nothing_stops_while_its_node_is_away_and_it_is_taken_again_afterwards(cluster: Cluster, urls: list[str]) -> None:
    async with open_amqp(urls[2]):
        """It lies where it was declared first."""
    async with open_amqp(urls[0]) as sender, open_amqp(urls[1]) as service:
        await consuming(service)
        await sender._outgoing._look_for_express()
        assert await way_of(sender, service, b"1") == "short"

        cluster.kill_the_last()
        for number in range(2, 12):
            assert await way_of(sender, service, b"%d" % number) == "long"
        assert sender._outgoing.express == set()

        cluster.start_the_last()
        await takes_the_short_way(sender)
        assert await way_of(sender, service, b"12") == "short"
