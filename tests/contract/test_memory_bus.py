"""What only the bus in memory promises: it confirms late, so that a killed process loses nothing, and never sticks."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared import memory_bus
from shared.bus import SEND_TIMEOUT_SECONDS, OutgoingEvent
from shared.errors import Unavailable
from shared.memory_bus import MemoryBroker, MemoryBus
from shared.messages import ATTENDANCE_COMMANDS, ATTENDANCE_EVENTS, SESSION_COMMANDS, SESSION_EVENTS
from tests.contract.bus_talk import ENDED, OPENED, STARTED, Begin, events, eventually, send_once, take


@pytest.fixture
async def bus() -> AsyncIterator[MemoryBus]:
    bus = MemoryBus()
    yield bus
    await bus.close()


async def test_a_command_is_confirmed_when_it_is_acknowledged_and_not_before(bus: MemoryBus, begin: Begin) -> None:
    """Answered means committed: the process may be killed at any moment, and memory with it."""
    sending = await begin(send_once(bus, ATTENDANCE_COMMANDS, b"1"))
    (delivery,) = await take(bus, ATTENDANCE_COMMANDS, 1)
    assert not sending.done()

    await delivery.ack()

    await sending


async def test_an_event_is_published_when_its_last_handler_is_done(bus: MemoryBus, begin: Begin) -> None:
    """Until then its row stays in the outbox."""
    publishing = await begin(bus.publish(events(STARTED, OPENED)))
    (started,) = await take(bus, ATTENDANCE_EVENTS, 1)
    (opened,) = await take(bus, SESSION_EVENTS, 1)

    await started.ack()
    await asyncio.sleep(0)
    assert not publishing.done()
    await opened.ack()

    await publishing


async def test_an_event_sent_back_is_unconfirmed_at_once(bus: MemoryBus, begin: Begin) -> None:
    """A handler that publishes is not held up by another that cannot handle the event yet."""
    publishing = await begin(bus.publish(events(ENDED)))
    (early,) = await take(bus, ATTENDANCE_EVENTS, 1)

    await early.retry()

    with pytest.raises(Unavailable):
        async with asyncio.timeout(SEND_TIMEOUT_SECONDS / 2):
            await publishing


async def test_sweeping_an_outbox_does_not_multiply_an_event_that_waits(bus: MemoryBus, begin: Begin) -> None:
    """The row of an event that comes too early stays in the outbox, and is published twice a second meanwhile."""
    sweeps = [await begin(bus.publish(events(ENDED))) for _ in range(3)]
    (early,) = await take(bus, ATTENDANCE_EVENTS, 1)
    await early.retry()
    for sweep in sweeps:
        with pytest.raises(Unavailable):
            await sweep
    sweep = await begin(bus.publish(events(ENDED)))

    (again,) = await take(bus, ATTENDANCE_EVENTS, 1)
    await again.ack()
    await sweep
    await begin(bus.publish([OutgoingEvent("another", STARTED, b"another")]))
    (following,) = await take(bus, ATTENDANCE_EVENTS, 1)
    await following.ack()

    assert following.body == b"another"


async def test_a_command_that_nobody_handles_is_unavailable(bus: MemoryBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_bus, "SEND_TIMEOUT_SECONDS", 0.05)

    with pytest.raises(Unavailable):
        await send_once(bus, ATTENDANCE_COMMANDS, b"1")


async def test_a_command_that_takes_its_time_is_confirmed_meanwhile(
    bus: MemoryBus, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A roster of thousands is in hand for longer than a broker would take to confirm it; nobody is told `unavailable`."""
    monkeypatch.setattr(memory_bus, "SEND_TIMEOUT_SECONDS", 0.05)
    sending = await begin(send_once(bus, SESSION_COMMANDS, b"roster"))
    (delivery,) = await take(bus, SESSION_COMMANDS, 1)

    await sending

    await delivery.ack()


async def test_handlers_may_publish_to_each_other(begin: Begin) -> None:
    """The start of a session: each of the three handlers acknowledges only when what it published has been handled."""
    broker = MemoryBroker()
    gateway, sessions, attendance = MemoryBus(broker), MemoryBus(broker), MemoryBus(broker)
    done: list[str] = []

    async def handle(bus: MemoryBus, queue: str, *published: str) -> None:
        for delivery in await bus.inbox(queue).take(32):
            await bus.publish(events(*published))
            done.append(queue)
            await delivery.ack()

    await begin(handle(sessions, SESSION_COMMANDS, STARTED))
    await begin(handle(attendance, ATTENDANCE_EVENTS, OPENED))
    await begin(handle(sessions, SESSION_EVENTS))
    await send_once(gateway, SESSION_COMMANDS, b"{}")

    assert done == [SESSION_EVENTS, ATTENDANCE_EVENTS, SESSION_COMMANDS]


async def test_a_handler_that_waits_for_itself_is_told_in_time(
    bus: MemoryBus, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event is for its own queue, which nobody else empties. Slow, never stuck: the event comes when it returns."""
    monkeypatch.setattr(memory_bus, "SEND_TIMEOUT_SECONDS", 0.05)
    handled: list[bytes] = []
    refused: list[Unavailable] = []

    async def handle() -> None:
        while True:
            for delivery in await bus.inbox(ATTENDANCE_EVENTS).take(32):
                if delivery.body == STARTED.encode():
                    try:
                        await bus.publish(events(ENDED))
                    except Unavailable as error:
                        refused.append(error)
                handled.append(delivery.body)
                await delivery.ack()

    await begin(handle())
    await begin(bus.publish(events(STARTED)))
    await eventually(lambda: len(handled) == 2)

    assert handled == [STARTED.encode(), ENDED.encode()]
    assert len(refused) == 1
