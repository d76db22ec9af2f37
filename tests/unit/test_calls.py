"""A caller of a service is always answered: by the service, or by the gateway with a code that says whether to try again."""

import asyncio
from datetime import timedelta

import pytest
import uvloop
from msgspec.structs import replace

from gateway.calls import Calls, Told
from shared.bus import COMMANDS_PER_MESSAGE, Delivery
from shared.clock import utc_now
from shared.coalescer import Settled
from shared.errors import Refused
from shared.memory_bus import MemoryBroker, MemoryBus
from shared.messages import (
    ATTENDANCE_COMMANDS,
    Actor,
    Command,
    JoinRoll,
    RollJoined,
    decode_commands,
)
from shared.worker import encode_answer

ADMIN = Actor("ada", "Ada", "admin")
JOINED = RollJoined(session_id="s", status="present", joined_at="2026-11-24T09:00:00.000Z", seq=2, roll_seq=2, course_id="c1")


def a_join(seconds: float = 0.2) -> JoinRoll:
    now = utc_now()
    return JoinRoll(
        command_id="c",
        actor=Actor("ann", "Ann", "student"),
        received_at=now,
        deadline=now + timedelta(seconds=seconds),
        session_id="s",
    )


async def calls_on(broker: MemoryBroker) -> Calls:
    calls = Calls(MemoryBus(broker), utc_now)
    await calls.open()
    return calls


async def take(broker: MemoryBroker) -> tuple[MemoryBus, Delivery]:
    service = MemoryBus(broker)
    (delivery,) = await service.inbox(ATTENDANCE_COMMANDS).take(10)
    return service, delivery


async def test_an_answer_reaches_whoever_asked() -> None:
    broker = MemoryBroker()
    asking = asyncio.create_task((await calls_on(broker)).ask(a_join(seconds=5), RollJoined))
    service, delivery = await take(broker)
    (command,) = decode_commands(delivery.body)
    assert command.reply_to is not None

    await service.answer([(command.reply_to.queue, encode_answer(command.reply_to.correlation_id, JOINED))])

    assert await asking == JOINED


async def test_an_answer_that_cannot_be_read_keeps_nobody_else_from_theirs() -> None:
    broker = MemoryBroker()
    calls = await calls_on(broker)
    asking = [asyncio.create_task(calls.ask(a_join(seconds=5), RollJoined)) for _ in range(2)]
    # Both leave together.
    await asyncio.sleep(0)
    service, delivery = await take(broker)
    addresses = [command.reply_to for command in decode_commands(delivery.body) if command.reply_to is not None]
    unreadable = b'{"correlation_id":"%b","result":{"session_id":"\xff"}}' % addresses[0].correlation_id.encode()
    good = encode_answer(addresses[1].correlation_id, JOINED)

    await service.answer([(addresses[0].queue, unreadable), (addresses[1].queue, good)])

    async with asyncio.timeout(2):
        with pytest.raises(Refused) as refused:
            await asking[0]
        assert refused.value.code == "internal"
        assert await asking[1] == JOINED


async def test_a_refusal_keeps_its_code() -> None:
    broker = MemoryBroker()
    asking = asyncio.create_task((await calls_on(broker)).ask(a_join(seconds=5), RollJoined))
    service, delivery = await take(broker)
    (command,) = decode_commands(delivery.body)
    assert command.reply_to is not None

    refusal = Refused("session_not_active", retryable=True)
    await service.answer([(command.reply_to.queue, encode_answer(command.reply_to.correlation_id, refusal))])

    with pytest.raises(Refused) as refused:
        await asking
    assert (refused.value.code, refused.value.retryable) == ("session_not_active", True)


async def test_a_command_that_nobody_takes_is_unavailable(caplog: pytest.LogCaptureFixture) -> None:
    """As with a broker that is away; and what becomes of the sending later is no surprise to anybody."""
    calls = await calls_on(MemoryBroker())

    with pytest.raises(Refused) as refused:
        await calls.ask(a_join(), RollJoined)

    assert (refused.value.code, refused.value.retryable) == ("unavailable", True)
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()), return_exceptions=True)
    assert "never retrieved" not in caplog.text


async def test_a_command_taken_but_not_answered_is_a_timeout() -> None:
    broker = MemoryBroker()
    asking = asyncio.create_task((await calls_on(broker)).ask(a_join(), RollJoined))
    _, delivery = await take(broker)

    await delivery.ack()

    with pytest.raises(Refused) as refused:
        await asking
    assert (refused.value.code, refused.value.retryable) == ("timeout", True)


async def test_a_command_whose_time_is_over_is_a_timeout_and_not_sent() -> None:
    sent: list[bytes] = []

    class Bus(MemoryBus):
        def send_soon(self, queue: str, commands: bytes, count: int, settled: Settled) -> None:
            sent.append(commands)

    calls = Calls(Bus(MemoryBroker()), utc_now)
    with pytest.raises(Refused) as refused:
        await calls.ask(a_join(seconds=0), RollJoined)
    await asyncio.sleep(0)

    assert (refused.value.code, refused.value.retryable, sent) == ("timeout", True, [])


def test_who_asks_with_no_time_left_is_told_as_everybody_is() -> None:
    """On uvloop, as in use: a timer that is to fire at once is of another kind there, and callers were told `internal`."""

    async def ask_late() -> None:
        calls = await calls_on(MemoryBroker())
        asking = [asyncio.ensure_future(calls.ask(a_join(), RollJoined)) for _ in range(2)]
        now = utc_now()
        calls._clock = lambda: now
        late = [replace(a_join(), deadline=now + timedelta(microseconds=left)) for left in (400, 200)]
        asking += [asyncio.ensure_future(calls.ask(command, RollJoined)) for command in late]
        refusals = await asyncio.gather(*asking, return_exceptions=True)
        assert [refusal.code for refusal in refusals if isinstance(refusal, Refused)] == ["unavailable"] * 4, refusals

    uvloop.run(ask_late())


class Counter(MemoryBus):
    """Counts what leaves together."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.left: list[int] = []

    def send_soon(self, queue: str, commands: bytes, count: int, settled: Settled) -> None:
        self.left.append(count)
        super().send_soon(queue, commands, count, settled)


def a_crowd(calls: Calls, *seconds: float) -> list[tuple[Command, int]]:
    """Joins with as much time as is said, each asked by its number."""
    return [
        (replace(a_join(each), reply_to=address), number)
        for number, (each, address) in enumerate(zip(seconds, calls.addresses(len(seconds)), strict=True))
    ]


async def test_a_crowd_leaves_in_as_few_messages_as_there_can_be_and_what_is_answered_together_is_told_together() -> None:
    broker = MemoryBroker()
    bus, service = Counter(broker), MemoryBus(broker)
    calls = Calls(bus, utc_now)
    await calls.open()
    told: asyncio.Queue[Told[int, RollJoined]] = asyncio.Queue()
    size = COMMANDS_PER_MESSAGE + 1
    inbox, answered = service.inbox(ATTENDANCE_COMMANDS), 0

    calls.begin_all(a_crowd(calls, *[5] * size), RollJoined, told.put_nowait)
    while answered < size:
        for delivery in await inbox.take(10):
            addresses = [command.reply_to for command in decode_commands(delivery.body) if command.reply_to is not None]
            answered += len(addresses)
            await service.answer([(to.queue, encode_answer(to.correlation_id, JOINED)) for to in addresses])
            await delivery.ack()

    assert bus.left == [COMMANDS_PER_MESSAGE, 1]
    async with asyncio.timeout(5):
        first, last = await told.get(), await told.get()
    assert [*first, *last] == [(number, JOINED) for number in range(size)]
    assert last == [(COMMANDS_PER_MESSAGE, JOINED)]


async def test_who_leaves_with_others_is_told_in_their_own_time() -> None:
    """Who had to wait for their turn has less of it left, or none."""
    broker = MemoryBroker()
    calls = await calls_on(broker)
    told: asyncio.Queue[tuple[int, str]] = asyncio.Queue()

    def tell(together: Told[int, RollJoined]) -> None:
        for who, result in together:
            told.put_nowait((who, result.code if isinstance(result, Refused) else "ok"))

    calls.begin_all(a_crowd(calls, 5, 0.1, 5, 0), RollJoined, tell)
    _, delivery = await take(broker)
    commands = decode_commands(delivery.body)
    await delivery.ack()

    async with asyncio.timeout(2):
        assert [await told.get(), await told.get()] == [(3, "timeout"), (1, "timeout")]
    assert told.empty()
    assert len(commands) == 3
