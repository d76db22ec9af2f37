"""A caller of a service is always answered: by the service, or by the gateway with a code that says whether to try again."""

import asyncio
from datetime import timedelta

import pytest
import uvloop
from msgspec import Struct
from msgspec.structs import replace

from gateway.calls import Calls
from shared.bus import COMMANDS_PER_MESSAGE, Delivery
from shared.clock import utc_now
from shared.coalescer import Settled
from shared.errors import Refused
from shared.memory_bus import MemoryBroker, MemoryBus
from shared.messages import (
    ATTENDANCE_COMMANDS,
    Actor,
    Command,
    Heard,
    JoinRoll,
    ReadRoll,
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
    """Counts what leaves together, and lets nothing be taken."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.left: list[int] = []
        self.departed = asyncio.Event()

    def send_soon(self, queue: str, commands: bytes, count: int, settled: Settled) -> None:
        self.left.append(count)
        self.departed.set()
        super().send_soon(queue, commands, count, settled)


async def test_joins_leave_together_while_one_is_under_way_and_others_do_not_wait_for_them() -> None:
    bus = Counter(MemoryBroker())
    calls = Calls(bus, utc_now)
    await calls.open()
    told: asyncio.Queue[object] = asyncio.Queue()

    def begin(command: Command) -> None:
        calls.begin(command, RollJoined, lambda _, result: told.put_nowait(result), None)

    begin(a_join())
    await bus.departed.wait()
    begin(a_join())
    begin(a_join())
    assert bus.left == [1]
    now = utc_now()
    begin(ReadRoll(command_id="r", actor=ADMIN, received_at=now, deadline=now + timedelta(seconds=0.2), session_id="s"))
    assert bus.left == [1, 1]

    async with asyncio.timeout(5):
        for _ in range(4):
            await told.get()
    assert bus.left == [1, 1, 2]


async def test_a_crowd_leaves_in_as_few_messages_as_there_can_be_and_each_is_answered() -> None:
    broker = MemoryBroker()
    bus, service = Counter(broker), MemoryBus(broker)
    calls = Calls(bus, utc_now)
    await calls.open()
    asking = [asyncio.create_task(calls.ask(a_join(seconds=5), RollJoined)) for _ in range(COMMANDS_PER_MESSAGE + 1)]
    inbox, answered = service.inbox(ATTENDANCE_COMMANDS), 0

    while answered < len(asking):
        for delivery in await inbox.take(10):
            commands = decode_commands(delivery.body)
            addresses = [command.reply_to for command in commands if command.reply_to is not None]
            answered += len(addresses)
            await service.answer([(to.queue, encode_answer(to.correlation_id, JOINED)) for to in addresses])
            await delivery.ack()

    assert await asyncio.gather(*asking) == [JOINED] * len(asking)
    assert bus.left == [COMMANDS_PER_MESSAGE, 1]


async def test_who_leaves_with_others_is_told_in_their_own_time() -> None:
    """Who had to wait for their turn has less of it left."""
    broker = MemoryBroker()
    calls = await calls_on(broker)
    told: asyncio.Queue[str] = asyncio.Queue()
    for seconds, name in ((5, "patient"), (0.1, "in a hurry"), (5, "patient, too")):
        calls.begin(a_join(seconds), RollJoined, lambda name, _: told.put_nowait(name), name)
    _, delivery = await take(broker)
    await delivery.ack()

    async with asyncio.timeout(2):
        assert await told.get() == "in a hurry"
    assert told.empty()


@pytest.mark.parametrize("end", ["answered", "refused", "malformed", "timeout", "unavailable", "closed"])
async def test_whatever_becomes_of_a_join_it_is_under_way_no_more(end: str) -> None:
    """Else the next ones would wait for it, or not wait for anybody any more."""
    broker = MemoryBroker()
    bus = MemoryBus(broker)
    calls = Calls(bus, utc_now)
    await calls.open()
    asking = asyncio.create_task(calls.ask(a_join(), RollJoined))
    if end == "closed":
        await asyncio.sleep(0)
        await bus.close()
    elif end != "unavailable":
        service, delivery = await take(broker)
        (command,) = decode_commands(delivery.body)
        assert command.reply_to is not None
        queue, number = command.reply_to.queue, command.reply_to.correlation_id
        answers: dict[str, Struct | Refused] = {
            "answered": JOINED,
            "refused": Refused("session_not_active"),
            "malformed": Heard(),
        }
        if end in answers:
            await service.answer([(queue, encode_answer(number, answers[end]))])
        else:
            await delivery.ack()

    await asyncio.gather(asking, return_exceptions=True)

    assert calls._gathering._unanswered == 0
