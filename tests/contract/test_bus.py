"""What both buses promise: the same claims against memory and against RabbitMQ.

A bus object stands for a process. On the memory bus a message is confirmed when it is acknowledged, so a test that
sends does it in the background, or has a service at the other end.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Protocol

import aio_pika
import pytest

from shared import topology
from shared.amqp.bus import open_amqp
from shared.amqp.properties import QUEUE_HEADER, REASON_HEADER
from shared.bus import COMMANDS_PER_MESSAGE, RETRY_SECONDS, Bus, Delivery, OutgoingEvent
from shared.coalescer import BYTES_PER_MESSAGE
from shared.errors import Unavailable
from shared.memory_bus import MemoryBroker, MemoryBus, Parked
from shared.messages import ATTENDANCE_COMMANDS, ATTENDANCE_EVENTS, SESSION_COMMANDS, SESSION_EVENTS, ReplyTo
from tests.contract.bus_talk import (
    CHANGED,
    CLOSED,
    COURSE,
    ENDED,
    OPENED,
    STARTED,
    Begin,
    empty,
    events,
    eventually,
    send_once,
    take,
    told,
)


class Broker(Protocol):
    async def bus(self) -> Bus:
        """Open the bus of one more process."""

    async def parked(self) -> list[Parked]:
        """Take what is parked."""


class Memory:
    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._broker = MemoryBroker()

    async def bus(self) -> Bus:
        bus = MemoryBus(self._broker)
        self._stack.push_async_callback(bus.close)
        return bus

    async def parked(self) -> list[Parked]:
        return self._broker.parked


class RabbitMQ:
    def __init__(self, stack: AsyncExitStack, url: str) -> None:
        self._stack = stack
        self._url = url

    async def bus(self) -> Bus:
        return await self._stack.enter_async_context(open_amqp(self._url))

    async def parked(self) -> list[Parked]:
        async with await aio_pika.connect(self._url) as connection:
            channel = await connection.channel()
            queue = await channel.get_queue(topology.PARKING)
            parked = []
            while (message := await queue.get(no_ack=True, fail=False)) is not None:
                headers = message.headers
                parked.append(Parked(message.body, str(headers[QUEUE_HEADER]), str(headers[REASON_HEADER])))
            return parked


@pytest.fixture(params=["memory", "rabbitmq"])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield Memory(stack)
        else:
            url = request.getfixturevalue("amqp_url")
            await empty(url)
            yield RabbitMQ(stack, url)


class Service:
    """Takes everything from a queue, remembers the messages and acknowledges them."""

    def __init__(self, bus: Bus, queue: str) -> None:
        self._inbox = bus.inbox(queue)
        self.messages: list[bytes] = []

    async def run(self) -> None:
        while True:
            for delivery in await self._inbox.take(32):
                self.messages.append(delivery.body)
                await delivery.ack()

    @property
    def commands(self) -> list[list[Any]]:
        return [json.loads(message) for message in self.messages]

    async def has(self, messages: int) -> None:
        await eventually(lambda: len(self.messages) >= messages)


@pytest.fixture
def a_service(begin: Begin) -> Callable[[Bus, str], Awaitable[Service]]:
    async def a_service(bus: Bus, queue: str) -> Service:
        service = Service(bus, queue)
        await begin(service.run())
        return service

    return a_service


AService = Callable[[Bus, str], Awaitable[Service]]


# Commands


async def test_commands_that_are_sent_together_stay_together_and_are_settled_once(broker: Broker, a_service: AService) -> None:
    """With others in one message, as far as it may have so many."""
    gateway = await broker.bus()
    service = await a_service(await broker.bus(), SESSION_COMMANDS)
    told: list[tuple[str, str | None]] = []
    many = b",".join([b"2"] * (COMMANDS_PER_MESSAGE - 1))
    for name, commands, count in (("a", b"1", 1), ("b", many, COMMANDS_PER_MESSAGE - 1), ("c", b"3,3", 2), ("d", b"4", 1)):
        gateway.send_soon(SESSION_COMMANDS, commands, count, lambda failure, name=name: told.append((name, failure)))  # type: ignore[misc]

    await eventually(lambda: len(told) == 4)
    # Confirmed by the broker is not yet delivered.
    await service.has(2)

    messages = [[command, *rest] for command, *rest in service.commands]
    assert [(message[0], message[-1], len(message)) for message in messages] == [(1, 2, COMMANDS_PER_MESSAGE), (3, 4, 3)]
    assert told == [("a", None), ("b", None), ("c", None), ("d", None)]


async def test_a_command_reaches_the_inbox_of_its_service(broker: Broker, begin: Begin) -> None:
    gateway, service = await broker.bus(), await broker.bus()

    sending = await begin(send_once(gateway, SESSION_COMMANDS, b'{"type":"StartSession"}'))
    (delivery,) = await take(service, SESSION_COMMANDS, 1)
    await delivery.ack()
    await sending

    assert delivery.body == b'[{"type":"StartSession"}]'
    assert delivery.reply_to is None


async def test_each_queue_of_commands_has_its_own_commands(broker: Broker, a_service: AService) -> None:
    gateway, bus = await broker.bus(), await broker.bus()
    sessions, rolls = await a_service(bus, SESSION_COMMANDS), await a_service(bus, ATTENDANCE_COMMANDS)

    await asyncio.gather(send_once(gateway, SESSION_COMMANDS, b"1"), send_once(gateway, ATTENDANCE_COMMANDS, b"2"))
    await sessions.has(1)
    await rolls.has(1)

    assert sessions.messages == [b"[1]"]
    assert rolls.messages == [b"[2]"]


async def test_what_is_sent_while_a_message_is_unconfirmed_leaves_as_one_message_in_order(
    broker: Broker, begin: Begin, a_service: AService
) -> None:
    """A burst costs one message. The first command left alone, because it could not know."""
    gateway, bus = await broker.bus(), await broker.bus()

    first = await begin(send_once(gateway, ATTENDANCE_COMMANDS, b"0"))
    rest = [await begin(send_once(gateway, ATTENDANCE_COMMANDS, b"%d" % number)) for number in range(1, 4)]
    service = await a_service(bus, ATTENDANCE_COMMANDS)
    await asyncio.gather(first, *rest)
    await service.has(2)

    assert service.commands == [[0], [1, 2, 3]]


async def test_quiet_traffic_waits_for_nothing(broker: Broker, a_service: AService) -> None:
    """A command sent while nothing is on its way is a message of its own: it has not waited for company."""
    gateway = await broker.bus()
    service = await a_service(await broker.bus(), ATTENDANCE_COMMANDS)

    for number in range(3):
        await send_once(gateway, ATTENDANCE_COMMANDS, b"%d" % number)
    await service.has(3)

    assert service.commands == [[0], [1], [2]]


async def test_a_message_takes_five_hundred_commands_and_no_more(broker: Broker, a_service: AService) -> None:
    gateway = await broker.bus()
    service = await a_service(await broker.bus(), ATTENDANCE_COMMANDS)

    await asyncio.gather(*(send_once(gateway, ATTENDANCE_COMMANDS, b"%d" % number) for number in range(1200)))
    await service.has(3)

    assert [len(message) for message in service.commands] == [COMMANDS_PER_MESSAGE, COMMANDS_PER_MESSAGE, 200]
    assert [number for message in service.commands for number in message] == list(range(1200))


async def test_a_message_of_long_commands_is_closed_early(broker: Broker, a_service: AService) -> None:
    """Five hundred rosters together would be more than RabbitMQ 4 takes, and cost the connection."""
    gateway = await broker.bus()
    service = await a_service(await broker.bus(), SESSION_COMMANDS)
    roster = b'"' + b"x" * (BYTES_PER_MESSAGE * 2 // 5) + b'"'

    await asyncio.gather(*(send_once(gateway, SESSION_COMMANDS, roster) for _ in range(5)))
    await service.has(3)

    assert [len(message) for message in service.commands] == [2, 2, 1]


async def test_a_command_longer_than_a_message_travels_alone(broker: Broker, a_service: AService) -> None:
    gateway = await broker.bus()
    service = await a_service(await broker.bus(), SESSION_COMMANDS)
    roster = b'"' + b"x" * (3 * BYTES_PER_MESSAGE) + b'"'

    await asyncio.gather(*(send_once(gateway, SESSION_COMMANDS, command) for command in (b"1", roster, b"2")))
    await service.has(3)

    assert [message == [1] or message == [2] or len(message[0]) for message in service.commands] == [
        True,
        3 * BYTES_PER_MESSAGE,
        True,
    ]


async def test_replicas_share_the_messages_and_none_comes_twice(broker: Broker, a_service: AService) -> None:
    gateway = await broker.bus()
    replicas = [await a_service(await broker.bus(), ATTENDANCE_COMMANDS) for _ in range(2)]

    for number in range(40):
        await send_once(gateway, ATTENDANCE_COMMANDS, b"%d" % number)
    await eventually(lambda: sum(len(replica.messages) for replica in replicas) >= 40)

    numbers = sorted(number for replica in replicas for message in replica.commands for number in message)
    assert numbers == list(range(40))


async def test_a_queue_that_is_missing_is_unavailable(broker: Broker) -> None:
    with pytest.raises(Unavailable):
        await send_once(await broker.bus(), "nobody.commands", b"1")


# What a consumer may do with a message


async def test_take_hands_over_what_is_there_in_order_and_no_more_than_asked(broker: Broker, begin: Begin) -> None:
    bus = await broker.bus()
    await begin(bus.publish(events(STARTED, COURSE, ENDED, STARTED, COURSE)))
    inbox = bus.inbox(ATTENDANCE_EVENTS)

    taken: list[Sequence[Delivery]] = []
    while sum(map(len, taken)) < 5:
        taken.append(await inbox.take(2))

    assert all(1 <= len(deliveries) <= 2 for deliveries in taken)
    assert [d.body.decode() for deliveries in taken for d in deliveries] == [
        STARTED,
        COURSE,
        ENDED,
        STARTED,
        COURSE,
    ]
    for deliveries in taken:
        for delivery in deliveries:
            await delivery.ack()


async def test_a_cancelled_take_loses_nothing(broker: Broker, begin: Begin) -> None:
    bus = await broker.bus()
    inbox = bus.inbox(ATTENDANCE_COMMANDS)
    taking = asyncio.create_task(inbox.take(1))
    await asyncio.sleep(0)
    taking.cancel()

    await begin(send_once(bus, ATTENDANCE_COMMANDS, b"1"))
    (delivery,) = await take(bus, ATTENDANCE_COMMANDS, 1)
    await delivery.ack()

    assert delivery.body == b"[1]"


async def test_an_unacknowledged_message_comes_again_when_its_consumer_closes(broker: Broker, begin: Begin) -> None:
    gateway, dying, living = await broker.bus(), await broker.bus(), await broker.bus()
    await begin(send_once(gateway, ATTENDANCE_COMMANDS, b"1"))
    (lost,) = await take(dying, ATTENDANCE_COMMANDS, 1)

    await dying.close()
    (found,) = await take(living, ATTENDANCE_COMMANDS, 1)
    assert (lost.redelivered, found.redelivered) == (False, True)
    await lost.ack()
    await lost.retry()
    await found.ack()

    assert found.body == lost.body == b"[1]"


async def test_acknowledged_messages_do_not_come_again(broker: Broker, begin: Begin) -> None:
    """Not even when the bus is closed in the same breath: what is written is let out first."""
    publisher, closing, living = await broker.bus(), await broker.bus(), await broker.bus()
    first = await begin(publisher.publish(events(*[STARTED] * 30)))
    deliveries = await take(closing, ATTENDANCE_EVENTS, 30)

    for delivery in deliveries:
        await delivery.ack()
    await closing.close()
    await first
    await begin(publisher.publish(events(ENDED)))
    (following,) = await take(living, ATTENDANCE_EVENTS, 1)
    await following.ack()

    assert following.body == ENDED.encode()


async def test_answers_given_before_closing_still_arrive(broker: Broker) -> None:
    """A service that drains has answered whom it can."""
    asker, closing = await broker.bus(), await broker.bus()
    received: list[bytes] = []
    queue = await asker.receive_answers(received.append)

    for number in range(30):
        await closing.answer([(queue, b"%d" % number)])
    await closing.close()
    await eventually(lambda: len(received) == 30)

    assert received == [b"[%d]" % number for number in range(30)]


async def test_a_retried_message_comes_again_later_and_holds_up_nobody(broker: Broker, begin: Begin) -> None:
    """An event that came before its roll is open waits a second aside, and still answers whom it would have."""
    bus = await broker.bus()
    asker = ReplyTo("rollcall.answers.somebody", "17")
    early = await begin(bus.publish(events(ENDED, reply_to=asker)))
    (too_early,) = await take(bus, ATTENDANCE_EVENTS, 1)
    retried_at = asyncio.get_running_loop().time()
    await too_early.retry()

    behind = await begin(bus.publish(events(STARTED)))
    (next_one,) = await take(bus, ATTENDANCE_EVENTS, 1)
    await next_one.ack()
    (again,) = await take(bus, ATTENDANCE_EVENTS, 1)
    await again.ack()
    await told(early)
    await behind

    assert next_one.body == STARTED.encode()
    assert (again.body, again.reply_to) == (ENDED.encode(), asker)
    assert asyncio.get_running_loop().time() - retried_at >= 0.9 * RETRY_SECONDS


async def test_a_message_may_be_retried_time_and_again(broker: Broker, begin: Begin) -> None:
    bus = await broker.bus()
    await begin(bus.publish(events(ENDED)))

    for _ in range(2):
        (delivery,) = await take(bus, ATTENDANCE_EVENTS, 1)
        await delivery.retry()
    (delivery,) = await take(bus, ATTENDANCE_EVENTS, 1)
    await delivery.ack()

    assert delivery.body == ENDED.encode()


async def test_a_parked_message_keeps_its_queue_and_the_reason(broker: Broker) -> None:
    bus = await broker.bus()

    await bus.inbox(ATTENDANCE_COMMANDS).park(b'[{"bad":1}]', "ValueError: no such thing")

    assert await broker.parked() == [Parked(b'[{"bad":1}]', ATTENDANCE_COMMANDS, "ValueError: no such thing")]


async def test_a_reason_may_be_long(broker: Broker) -> None:
    bus = await broker.bus()

    await bus.inbox(SESSION_EVENTS).park(b"{}", "é" * 100_000)

    ((_, queue, reason),) = await broker.parked()
    assert queue == SESSION_EVENTS
    assert reason.startswith("éé")


async def test_the_same_queue_has_one_inbox_in_a_process(broker: Broker) -> None:
    bus = await broker.bus()
    assert bus.inbox(SESSION_EVENTS) is bus.inbox(SESSION_EVENTS)


# Answers


async def test_answers_reach_only_who_asked_in_order_and_together(broker: Broker) -> None:
    ann, bob, service = await broker.bus(), await broker.bus(), await broker.bus()
    for_ann: list[bytes] = []
    for_bob: list[bytes] = []
    queue_of_ann = await ann.receive_answers(for_ann.append)
    queue_of_bob = await bob.receive_answers(for_bob.append)
    assert (queue_of_ann, queue_of_bob) == (ann.answer_queue, bob.answer_queue)

    await service.answer([(queue_of_ann, b"1"), (queue_of_bob, b"2"), (queue_of_ann, b"3")])
    await service.answer([(queue_of_ann, b"4")])
    await service.answer([])
    await eventually(lambda: len(for_ann) == 2 and len(for_bob) == 1)

    assert for_ann == [b"[1,3]", b"[4]"]
    assert for_bob == [b"[2]"]


async def test_many_long_answers_travel_in_several_messages(broker: Broker) -> None:
    bus = await broker.bus()
    received: list[bytes] = []
    queue = await bus.receive_answers(received.append)
    roll = b'"' + b"x" * (BYTES_PER_MESSAGE * 3 // 5) + b'"'

    await bus.answer([(queue, roll), (queue, roll), (queue, b"1"), (queue, b"2")])
    await eventually(lambda: len(received) == 2)

    assert [len(json.loads(message)) for message in received] == [1, 3]


async def test_an_answer_to_who_has_gone_vanishes(broker: Broker) -> None:
    """The neighbour's answer in the same call arrives, and so do later ones."""
    asker, gone, service = await broker.bus(), await broker.bus(), await broker.bus()
    received: list[bytes] = []
    queue = await asker.receive_answers(received.append)
    queue_of_gone = await gone.receive_answers(received.append)
    await gone.close()

    await service.answer([(queue_of_gone, b"1"), (queue, b"2")])
    await service.answer([(queue, b"3")])
    await eventually(lambda: len(received) == 2)

    assert received == [b"[2]", b"[3]"]


async def test_an_asker_who_stumbles_over_an_answer_gets_the_next(broker: Broker) -> None:
    bus = await broker.bus()
    received: list[bytes] = []

    def stumble(answers: bytes) -> None:
        received.append(answers)
        raise ValueError("unreadable")

    queue = await bus.receive_answers(stumble)
    await bus.answer([(queue, b"1")])
    await bus.answer([(queue, b"2")])
    await eventually(lambda: len(received) == 2)


# Events


async def test_an_event_reaches_the_queues_whose_patterns_match_and_no_other(broker: Broker, a_service: AService) -> None:
    bus = await broker.bus()
    sessions, rolls = await a_service(bus, SESSION_EVENTS), await a_service(bus, ATTENDANCE_EVENTS)

    await bus.publish(events(STARTED, OPENED, CHANGED, COURSE, CLOSED, ENDED))
    await sessions.has(2)
    await rolls.has(3)

    assert [message.decode() for message in sessions.messages] == [OPENED, CLOSED]
    assert [message.decode() for message in rolls.messages] == [STARTED, COURSE, ENDED]


async def test_an_event_carries_whom_its_effect_answers(broker: Broker, begin: Begin) -> None:
    bus = await broker.bus()
    asker = ReplyTo("rollcall.answers.somebody", "17")

    await begin(bus.publish([*events(STARTED, reply_to=asker), *events(ENDED)]))
    asked, unasked = await take(bus, ATTENDANCE_EVENTS, 2)
    await asked.ack()
    await unasked.ack()

    assert asked.reply_to == asker
    assert unasked.reply_to is None


async def test_an_event_may_be_published_again(broker: Broker, a_service: AService) -> None:
    """A repeat under the same id is delivered again: it is the handler that knows repeats."""
    bus = await broker.bus()
    service = await a_service(bus, ATTENDANCE_EVENTS)

    for _ in range(2):
        await bus.publish(events(STARTED))
    await service.has(2)


async def test_many_events_at_once_keep_their_order(broker: Broker, a_service: AService) -> None:
    bus = await broker.bus()
    service = await a_service(bus, ATTENDANCE_EVENTS)

    several = [OutgoingEvent(str(n), STARTED, b"%d" % n) for n in range(300)]
    while True:
        # A broker that is busy with other tests may not confirm so many in time; then all are sent again, as an outbox does.
        with suppress(Unavailable):
            await bus.publish(several)
            break
    await eventually(lambda: len(set(service.messages)) == 300)

    assert list(dict.fromkeys(service.messages)) == [b"%d" % n for n in range(300)]


async def test_an_event_that_nobody_wants_is_fine(broker: Broker) -> None:
    bus = await broker.bus()
    await bus.publish(events(CHANGED, "rollcall.something.new.v1"))
    await bus.publish([])


# The end


async def test_closing_twice_is_fine_and_leaves_no_task_behind(broker: Broker, begin: Begin) -> None:
    """Even with commands and takers still waiting."""
    before = asyncio.all_tasks()
    bus = await broker.bus()
    assert bus.connected
    await bus.receive_answers(lambda answers: None)
    taking = await begin(_forever(bus, ATTENDANCE_EVENTS))
    sending = await begin(send_once(bus, ATTENDANCE_COMMANDS, b"1"))

    await bus.close()
    await bus.close()
    with suppress(Unavailable):
        await sending
    taking.cancel()

    await eventually(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})
    assert not bus.connected


async def test_a_closed_bus_is_unavailable(broker: Broker) -> None:
    bus = await broker.bus()
    await bus.close()

    # At once, and it is not sent: this queue had none before.
    with pytest.raises(Unavailable, match="closed"):
        await send_once(bus, SESSION_COMMANDS, b"1")
    with pytest.raises(Unavailable):
        await bus.publish(events(STARTED))
    await bus.answer([("rollcall.answers.somebody", b"1")])


async def _forever(bus: Bus, queue: str) -> None:
    while True:
        await bus.inbox(queue).take(1)
