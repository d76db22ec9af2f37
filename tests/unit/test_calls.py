"""A caller of a service is always answered: by the service, or by the gateway with a code that says whether to try again."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import pytest
import uvloop
from msgspec.structs import replace

from gateway.calls import Calls, Told
from shared.bus import COMMANDS_PER_MESSAGE, Delivery
from shared.clock import utc_now
from shared.coalescer import Settled, array
from shared.errors import Refused
from shared.memory_bus import MemoryBroker, MemoryBus
from shared.messages import (
    ATTENDANCE_COMMANDS,
    Actor,
    Command,
    JoinRoll,
    ReplyTo,
    RollJoined,
    decode_commands,
    encode_items,
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


def a_crowd(calls: Calls, *seconds: float) -> list[tuple[Command, int]]:
    """Joins with as much time as is said, each asked by its number."""
    return [
        (replace(a_join(each), reply_to=address), number)
        for number, (each, address) in enumerate(zip(seconds, calls.addresses(len(seconds)), strict=True))
    ]


async def take_all(broker: MemoryBroker, count: int) -> list[list[ReplyTo]]:
    """Take messages until so many commands have come; tell for each message whom it wants answered."""
    inbox, messages = MemoryBus(broker).inbox(ATTENDANCE_COMMANDS), list[list[ReplyTo]]()
    while sum(map(len, messages)) < count:
        for delivery in await inbox.take(10):
            messages.append([command.reply_to for command in decode_commands(delivery.body) if command.reply_to is not None])
            await delivery.ack()
    return messages


def answers(addresses: Sequence[ReplyTo]) -> bytes:
    """Write one message of answers."""
    return array(encode_answer(to.correlation_id, JOINED) for to in addresses)


async def test_a_crowd_leaves_in_as_few_messages_as_there_can_be_and_what_is_answered_together_is_told_together() -> None:
    broker = MemoryBroker()
    calls = await calls_on(broker)
    told: list[Told[int, RollJoined]] = []
    size = COMMANDS_PER_MESSAGE + 1

    calls.begin_all(a_crowd(calls, *[5] * size), RollJoined, told.append)
    messages = await take_all(broker, size)
    for addresses in messages:
        calls._on_answers(answers(addresses))

    assert [len(addresses) for addresses in messages] == [COMMANDS_PER_MESSAGE, 1]
    assert [len(together) for together in told] == [COMMANDS_PER_MESSAGE, 1]
    assert [each for together in told for each in together] == [(number, JOINED) for number in range(size)]


async def test_answers_to_several_messages_in_one_are_each_told_once_and_in_order() -> None:
    calls = await calls_on(MemoryBroker())
    told: dict[str, list[tuple[int, object]]] = {"one": [], "other": []}
    addresses = list[ReplyTo]()
    for heard in told.values():
        asking = a_crowd(calls, 5, 5)
        calls.begin_all(asking, RollJoined, heard.extend)
        addresses += [command.reply_to for command, _ in asking if command.reply_to is not None]

    # The last is a repeat, and for nobody.
    calls._on_answers(answers([addresses[0], addresses[2], addresses[1], addresses[3], addresses[0]]))

    assert told == {"one": [(0, JOINED), (1, JOINED)], "other": [(0, JOINED), (1, JOINED)]}


async def test_where_one_of_a_crowd_cannot_be_written_none_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those in the messages before: whoever asks is to be told once, by whom they asked."""
    calls = await calls_on(MemoryBroker())
    told: list[object] = []
    crowd = a_crowd(calls, *[5] * COMMANDS_PER_MESSAGE, 5, 0)

    def encode(commands: Sequence[Command]) -> bytes:
        if len(commands) == 1:
            raise ValueError("a defect")
        return encode_items(commands)

    monkeypatch.setattr("gateway.calls.encode_items", encode)
    with pytest.raises(ValueError, match="a defect"):
        calls.begin_all(crowd, RollJoined, told.append)
    await asyncio.sleep(0)

    assert (calls._callers, calls._due, told) == ({}, {}, [])


async def test_a_message_that_fails_is_told_to_who_was_not_answered_and_once() -> None:
    failures: list[Settled] = []

    class Bus(MemoryBus):
        def send_soon(self, queue: str, commands: bytes, count: int, settled: Settled) -> None:
            failures.append(settled)

    broker = MemoryBroker()
    calls = Calls(Bus(broker), utc_now)
    await calls.open()
    told: list[tuple[int, object]] = []
    asking = a_crowd(calls, 5, 5, 5)
    calls.begin_all(asking, RollJoined, told.extend)
    calls._on_answers(answers([command.reply_to for command, _ in asking[:1] if command.reply_to is not None]))

    for fail in (*failures, *failures):
        fail("the broker is away")

    assert told[0] == (0, JOINED)
    assert [(who, result.code) for who, result in told[1:] if isinstance(result, Refused)] == [
        (1, "unavailable"),
        (2, "unavailable"),
    ]


async def test_who_leaves_with_others_is_told_in_their_own_time() -> None:
    """Who had to wait for their turn has less of it left, or none."""
    broker = MemoryBroker()
    calls = await calls_on(broker)
    told: asyncio.Queue[tuple[int, str]] = asyncio.Queue()

    def tell(together: Told[int, RollJoined]) -> None:
        for who, result in together:
            told.put_nowait((who, result.code if isinstance(result, Refused) else "ok"))

    calls.begin_all(a_crowd(calls, 5, 0.5, 5, 0), RollJoined, tell)
    _, delivery = await take(broker)
    commands = decode_commands(delivery.body)
    await delivery.ack()

    async with asyncio.timeout(4):
        assert [await told.get(), await told.get()] == [(3, "timeout"), (1, "timeout")]
    assert told.empty()
    assert len(commands) == 3
