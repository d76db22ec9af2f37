"""What the suites of the buses say to a bus, and how they wait for what it does."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import aio_pika

from shared import topology
from shared.amqp.bus import AmqpBus, open_amqp
from shared.bus import Bus, Delivery, OutgoingEvent
from shared.errors import Unavailable
from shared.messages import ATTENDANCE_COMMANDS, ReplyTo

STARTED = "rollcall.session.started.v1"
ENDED = "rollcall.session.ended.v1"
COURSE = "rollcall.course.changed.v1"
OPENED = "rollcall.roll.opened.v1"
CLOSED = "rollcall.roll.closed.v1"
CHANGED = "rollcall.roll.changed.v1"

Begin = Callable[[Coroutine[Any, Any, None]], Awaitable["asyncio.Task[None]"]]
"""Begins something in the background and returns when it is well on its way (the fixture `begin`)."""


async def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for a condition; TimeoutError when it does not come."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - conditions of many kinds, most of them not ours to signal
            await asyncio.sleep(0.005)


async def send_once(bus: Bus, queue: str, command: bytes) -> None:
    """Send one command; return when it is confirmed, and raise Unavailable where it is not."""
    settled: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def settle(failure: str | None) -> None:
        # The test may have ended meanwhile.
        if not settled.done():
            settled.set_result(failure)

    bus.send_soon(queue, command, 1, settle)
    if (failure := await settled) is not None:
        raise Unavailable(failure)


async def sent(bus: Bus, queue: str, command: bytes) -> None:
    """Send as a client does: again, until it is confirmed."""
    async with asyncio.timeout(20):
        while True:
            with suppress(Unavailable):
                await send_once(bus, queue, command)
                return


async def consuming(*replicas: AmqpBus) -> None:
    """Wait until the broker has said to each of these that it consumes the attendance commands."""
    inboxes = [replica.inbox(ATTENDANCE_COMMANDS) for replica in replicas]
    inlets = [inlet for inbox in inboxes for inlet in (inbox.inlet, inbox.express) if inlet]
    await eventually(lambda: all(inlet.consumes for inlet in inlets))


async def takes_the_short_way(sender: AmqpBus) -> None:
    """Wait until the attendance commands of this bus do, without sending any."""
    express = topology.EXPRESS[ATTENDANCE_COMMANDS]
    sender._express._asked_for.add(express)

    def taken() -> bool:
        sender._express._look_again(express)
        return express in sender._express._consumed

    await eventually(taken)


async def take(bus: Bus, queue: str, number: int, seconds: float = 30) -> list[Delivery]:
    """Take exactly so many deliveries."""
    taken: list[Delivery] = []
    async with asyncio.timeout(seconds):
        while len(taken) < number:
            taken += await bus.inbox(queue).take(number - len(taken))
    return taken


def events(*types: str, reply_to: ReplyTo | None = None) -> list[OutgoingEvent]:
    """Make events whose body is their type; no two have one id."""
    return [OutgoingEvent(f"{number}:{kind}", kind, kind.encode(), reply_to) for number, kind in enumerate(types)]


async def empty(url: str) -> None:
    """Take away what earlier tests left on a RabbitMQ; their buses are closed."""
    async with open_amqp(url), await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for queue in topology.QUEUES:
            if queue.name != topology.STREAM:
                await (await channel.get_queue(queue.name, ensure=False)).purge()
        for express in topology.EXPRESS.values():
            await channel.queue_delete(express)


async def told(sending: "asyncio.Task[None]") -> None:
    """Wait until the sender knows; a message that was retried may have been reported unconfirmed."""
    with suppress(Unavailable):
        await sending
