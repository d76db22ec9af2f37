"""What Redis does not take is told once more: RabbitMQ has it, so its row is gone, and nobody else would tell of it."""

import asyncio
from collections.abc import Sequence

import pytest

from shared import outbox as outboxes
from shared.bus import OutgoingEvent
from shared.errors import Unavailable
from shared.memory_bus import MemoryBus
from shared.outbox import Outbox, OutboxRow, outgoing
from tests.contract.room_events import a_close, a_join
from tests.contract.room_talk import until


async def test_what_redis_did_not_take_is_told_when_it_is_back_and_once() -> None:
    heard: list[str] = []
    away = True

    async def broadcast(rows: Sequence[OutboxRow]) -> None:
        if away:
            raise Unavailable("Redis")
        heard.extend(row.event.id for row in rows)

    outbox = Outbox("attendance", MemoryBus(), broadcast)
    for event in (a_join(2), a_close(3)):
        await outbox.publish([outgoing(event, ["live"])])
    await outbox.settled()
    await outbox.tell_unheard()
    assert heard == []

    away = False
    await outbox.tell_unheard()
    await outbox.tell_unheard()

    assert heard == ["roll:5e55:2", "roll:5e55:3"]


async def test_what_is_to_be_published_leaves_behind_what_is_answered_in_the_same_turn_of_the_loop() -> None:
    """Somebody waits for the answer."""
    order: list[str] = []

    async def broadcast(rows: Sequence[OutboxRow]) -> None:
        order.append("told")

    class Bus(MemoryBus):
        async def publish(self, events: Sequence[OutgoingEvent]) -> None:
            order.append("published")

    outbox = Outbox("attendance", Bus(), broadcast)
    await outbox.publish([told(1)])
    # As what is written to the broker is, at the end of the turn.
    asyncio.get_running_loop().call_soon(order.append, "answered")
    await outbox.settled()
    assert order == ["answered", "told", "published"]


def told(number: int) -> OutboxRow:
    """An event for which there is no queue, so that nobody waits for its handlers."""
    return OutboxRow(OutgoingEvent(str(number), "rollcall.nobody.cares.v1", b"{}"), ("live",))


async def test_of_too_much_the_newest_is_kept_also_after_telling_has_failed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the newest a listener notices that older ones are missing."""
    monkeypatch.setattr(outboxes, "_UNHEARD_ROWS", 3)
    heard: list[str] = []
    away, meanwhile = True, False
    outbox: Outbox

    async def broadcast(rows: Sequence[OutboxRow]) -> None:
        if meanwhile and rows[0].event.id == "1":
            # Something happens while the old ones are told again.
            for seq in (4, 5):
                await outbox.publish([told(seq)])
        if away:
            raise Unavailable("Redis")
        heard.extend(row.event.id for row in rows)

    outbox = Outbox("attendance", MemoryBus(), broadcast)
    for seq in (1, 2, 3):
        await outbox.publish([told(seq)])
    await outbox.settled()
    meanwhile = True
    await outbox.tell_unheard()
    await outbox.settled()

    away = False
    await outbox.tell_unheard()

    assert heard == ["3", "4", "5"]


class SlowBus(MemoryBus):
    """A bus that takes events only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[list[str]] = []
        self.free = asyncio.Event()

    async def publish(self, events: Sequence[OutgoingEvent]) -> None:
        self.taken.append([event.id for event in events])
        await self.free.wait()


async def nobody(_: Sequence[OutboxRow]) -> None:
    """Redis is well."""


async def test_nobody_waits_for_events_and_what_gathers_behind_one_leaves_together_in_order() -> None:
    bus = SlowBus()
    outbox = Outbox("attendance", bus, nobody)
    await outbox.publish([told(0)])
    await until(lambda: bus.taken == [["0"]])
    for seq in range(1, 5):
        await outbox.publish([told(seq)])
        await asyncio.sleep(0)
    assert bus.taken == [["0"]]

    bus.free.set()
    await outbox.settled()

    assert bus.taken == [["0"], ["1", "2", "3", "4"]]


async def test_where_thousands_wait_for_the_broker_whoever_adds_to_them_waits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outboxes, "_WAITING_ROWS", 2)
    bus = SlowBus()
    outbox = Outbox("attendance", bus, nobody)
    await outbox.publish([told(0)])
    await asyncio.sleep(0)
    adding = asyncio.create_task(outbox.publish([told(seq) for seq in (1, 2, 3)]))
    await asyncio.sleep(0)
    assert not adding.done()

    bus.free.set()

    await adding


async def test_of_what_a_slow_redis_lets_wait_the_newest_is_remembered_and_told_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outboxes, "_WAITING_ROWS", 2)
    heard: list[str] = []
    frozen, thawed = asyncio.Event(), asyncio.Event()

    async def broadcast(rows: Sequence[OutboxRow]) -> None:
        frozen.set()
        await thawed.wait()
        heard.extend(row.event.id for row in rows)

    outbox = Outbox("attendance", MemoryBus(), broadcast)
    await outbox.publish([told(0)])
    await frozen.wait()
    for seq in range(1, 6):
        await outbox.publish([told(seq)])
    thawed.set()
    await outbox.settled()
    assert heard == ["0", "1", "2", "3"]

    await outbox.tell_unheard()

    assert heard == ["0", "1", "2", "3", "4", "5"]
