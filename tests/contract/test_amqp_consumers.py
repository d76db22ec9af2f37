"""How queues are consumed on RabbitMQ: consumers that end are replaced, and of several replicas the oldest goes first."""

import asyncio
import json
import re
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any

import aio_pika
import pytest
from aiormq.channel import Channel

from shared import link
from shared.amqp.bus import open_amqp
from shared.amqp.inbox import PREFETCH, AmqpDelivery
from shared.clock import utc_now
from shared.errors import Unavailable
from shared.messages import ATTENDANCE_COMMANDS, Actor, ReadRoll, encode
from shared.outbox import OutboxRow
from shared.worker import Outcome, Worker, working
from tests.contract.bus_talk import consuming, eventually, send_once, sent, take, takes_the_short_way
from tests.rabbitmq import RabbitMQ


@pytest.fixture
def url(private_rabbitmq: RabbitMQ) -> str:
    return private_rabbitmq.new_host()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe the connections more often than in earnest."""
    monkeypatch.setattr(link, "_PROBE_EVERY_SECONDS", 0.2)


async def test_a_consumer_cancelled_by_the_broker_consumes_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is deleted under its consumers: it is declared and consumed again, without waiting for a probe."""
    monkeypatch.setattr(link, "_PROBE_EVERY_SECONDS", 60)
    async with open_amqp(url) as bus, await aio_pika.connect(url) as admin:
        bus.inbox(ATTENDANCE_COMMANDS)
        await send_once(bus, ATTENDANCE_COMMANDS, b"1")
        (delivery,) = await take(bus, ATTENDANCE_COMMANDS, 1)
        await delivery.ack()

        await (await admin.channel()).queue_delete(ATTENDANCE_COMMANDS)
        await sent(bus, ATTENDANCE_COMMANDS, b"2")
        (delivery,) = await take(bus, ATTENDANCE_COMMANDS, 1)
        await delivery.ack()

        assert delivery.body == b"[2]"


@pytest.mark.usefixtures("impatient")
async def test_a_consumer_that_died_without_a_word_is_replaced(url: str) -> None:
    """Its channel is well and nobody says anything, only messages wait and none comes."""
    async with open_amqp(url) as bus, await aio_pika.connect(url) as admin:
        bus.inbox(ATTENDANCE_COMMANDS)
        await send_once(bus, ATTENDANCE_COMMANDS, b"1")
        (delivery,) = await take(bus, ATTENDANCE_COMMANDS, 1)
        await delivery.ack()
        channels = [await channel.get_underlay_channel() for channel in bus._incoming._channels]
        for channel in channels:
            for tag in list(getattr(channel, "consumers")):  # noqa: B009
                await channel.basic_cancel(tag)
        assert (
            await (await admin.channel()).declare_queue(ATTENDANCE_COMMANDS, passive=True)
        ).declaration_result.consumer_count == 0

        await send_once(bus, ATTENDANCE_COMMANDS, b"2")
        (delivery,) = await take(bus, ATTENDANCE_COMMANDS, 1)

        assert delivery.body == b"[2]"
        await delivery.ack()


@pytest.mark.usefixtures("impatient")
async def test_a_consumer_with_work_in_hand_is_left_alone(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages wait because the first ones are not done: a worker that is paused is no dead consumer."""
    async with open_amqp(url) as bus:
        # All by the long way: the two together would hold what is sent here.
        monkeypatch.setattr(bus._express, "_look", nobody_looks)
        inbox = bus.inbox(ATTENDANCE_COMMANDS)
        for number in range(PREFETCH + 1):
            await send_once(bus, ATTENDANCE_COMMANDS, b"%d" % number)
        (first, *_) = taken = await take(bus, ATTENDANCE_COMMANDS, PREFETCH)
        probes = 0
        probe = bus._incoming._link._probe

        async def counted() -> None:
            nonlocal probes
            await probe()
            probes += 1

        bus._incoming._link._probe = counted
        await eventually(lambda: probes >= 4)

        assert isinstance(first, AmqpDelivery)
        assert first.alive
        for delivery in taken:
            await delivery.ack()
        (last,) = await take(bus, ATTENDANCE_COMMANDS, 1)
        await last.ack()
        assert not inbox.inlet._unfinished


async def test_what_a_lost_connection_brought_does_not_count_on_the_next(url: str) -> None:
    """Its channel may stay open for as long as a frozen broker is waited for. Less than none would hide a dead consumer."""
    async with open_amqp(url) as bus:
        inlet = bus.inbox(ATTENDANCE_COMMANDS).inlet
        await send_once(bus, ATTENDANCE_COMMANDS, b"1")
        (first,) = await take(bus, ATTENDANCE_COMMANDS, 1)
        bus._incoming.lose("a test says so")
        (second,) = await take(bus, ATTENDANCE_COMMANDS, 1)
        assert isinstance(first, AmqpDelivery)

        inlet.finished(first._message)
        inlet._receive(first._message)

        assert inlet._unfinished == 1
        await second.ack()
        assert inlet._unfinished == 0


async def test_who_stands_back_while_it_begins_to_consume_does_so(
    url: str, private_rabbitmq: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose server is away, and the broker was with it."""
    async with open_amqp(url) as bus:
        inlet = bus.inbox(ATTENDANCE_COMMANDS).inlet
        await consuming(bus)
        consume = Channel.basic_consume

        async def consumed_meanwhile(channel: Channel, queue: str, *arguments: Any, **options: Any) -> Any:
            consumed = await consume(channel, queue, *arguments, **options)
            if queue == ATTENDANCE_COMMANDS:
                await inlet.stand_back(True)
            return consumed

        monkeypatch.setattr(Channel, "basic_consume", consumed_meanwhile)
        bus._incoming.lose("a test says so")

        await eventually(lambda: inlet.consumes and inlet._consumes_back)
        host = url.rpartition("/")[2]
        listed = private_rabbitmq.control("list_consumers", "-p", host, "queue_name", "arguments")
        (consumer,) = [line for line in listed.splitlines() if line.startswith(f"{ATTENDANCE_COMMANDS}\t")]
        assert re.search(r'"x-priority",\s*0\b', consumer), consumer


@pytest.mark.parametrize("express", [True, False])
async def test_one_replica_gets_all_it_can_take_and_only_what_is_more_goes_to_another(
    url: str, monkeypatch: pytest.MonkeyPatch, *, express: bool
) -> None:
    """So that those who join one lecture meet in one batch, and not in two that are in each other's way."""
    monkeypatch.setattr(link, "_PROBE_EVERY_SECONDS", 60)
    async with open_amqp(url) as sender, open_amqp(url) as one, open_amqp(url) as other:
        await consuming(one, other)
        if express:
            await takes_the_short_way(sender)
        else:
            monkeypatch.setattr(sender._express, "_look", nobody_looks)
        for number in range(2 * PREFETCH):
            await send_once(sender, ATTENDANCE_COMMANDS, b"%d" % number)

        shares = [await take(replica, ATTENDANCE_COMMANDS, PREFETCH) for replica in (one, other)]

        bodies = sorted([json.loads(delivery.body)[0] for delivery in share] for share in shares)
        assert bodies == [list(range(PREFETCH)), list(range(PREFETCH, 2 * PREFETCH))]
        for delivery in chain(*shares):
            await delivery.ack()


async def nobody_looks(express: str) -> None:
    """So the short way is never taken."""


async def test_a_replica_whose_server_is_away_leaves_the_work_to_another(url: str) -> None:
    """It would else be given all of it, and keep it until it is too late."""
    handled: list[tuple[int, str]] = []
    sick: set[int] = set()

    async def work(replica: int, commands: Sequence[ReadRoll]) -> Outcome:
        if replica in sick:
            raise Unavailable("Postgres")
        handled.extend((replica, command.command_id) for command in commands)
        return Outcome()

    async def publish(_: Sequence[OutboxRow]) -> None:
        """Nothing leaves."""

    async with AsyncExitStack() as stack:
        sender, *replicas = [await stack.enter_async_context(open_amqp(url)) for _ in range(3)]
        workers = [
            Worker(bus, ATTENDANCE_COMMANDS, {ReadRoll: partial(work, number)}, publish, utc_now)
            for number, bus in enumerate(replicas)
        ]
        await stack.enter_async_context(working(workers))
        await consuming(*replicas)

        async def ask(name: str) -> None:
            await send_once(sender, ATTENDANCE_COMMANDS, encode(to_read(name)))

        await ask("first")
        await eventually(lambda: len(handled) == 1)
        [(preferred, _)] = handled
        sick.add(preferred)
        await ask("held")
        await eventually(lambda: replicas[preferred].inbox(ATTENDANCE_COMMANDS).inlet._back)
        for number in range(20):
            await ask(f"{number}")
        await eventually(lambda: len(handled) >= 21)
        assert handled[1:] == [(1 - preferred, f"{number}") for number in range(20)]

        sick.clear()
        await eventually(lambda: (preferred, "held") in handled)
        async with asyncio.timeout(30):
            while handled[-1][0] != preferred or handled[-1][1] == "held":
                await ask("more")


def to_read(name: str) -> ReadRoll:
    """A command that may wait."""
    now = utc_now()
    return ReadRoll(
        command_id=name,
        actor=Actor("ann", "Ann", "teacher"),
        received_at=now,
        deadline=now + timedelta(seconds=60),
        session_id="s",
    )
