"""What Redis does not take is told once more: RabbitMQ has it, so its row is gone, and nobody else would tell of it."""

from collections.abc import Sequence

import pytest

from shared import outbox as outboxes
from shared.bus import OutgoingEvent
from shared.errors import Unavailable
from shared.memory_bus import MemoryBus
from shared.outbox import Outbox, OutboxRow, outgoing
from tests.contract.room_talk import a_close, a_join


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
