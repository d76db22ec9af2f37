"""The coalescer without a bus: who is told what, and when, while the way is blocked."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from shared import coalescer
from shared.coalescer import Coalescer
from shared.errors import Unavailable


class Way:
    """What a coalescer publishes on: it keeps each message until it is opened."""

    def __init__(self) -> None:
        self.messages: list[list[int]] = []
        self.open = asyncio.Event()

    async def publish(self, body: bytes) -> None:
        self.messages.append(json.loads(body))
        await self.open.wait()


@pytest.fixture
def way() -> Way:
    return Way()


@pytest.fixture
async def commands(way: Way) -> AsyncIterator[Coalescer]:
    commands = Coalescer(way.publish)
    yield commands
    await commands.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalescer, "SEND_TIMEOUT_SECONDS", 0.1)


async def send_once(commands: Coalescer, command: bytes) -> None:
    """Send one command; return when its message has gone, and raise Unavailable where it may not have."""
    settled: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    commands.send_soon(command, 1, settled.set_result)
    if (failure := await settled) is not None:
        raise Unavailable(failure)


async def begin(commands: Coalescer, *numbers: int) -> list["asyncio.Task[None]"]:
    """Send commands, and let the first of them leave if the way is free."""
    sending = [asyncio.create_task(send_once(commands, b"%d" % number)) for number in numbers]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return sending


async def test_a_command_alone_leaves_at_once(commands: Coalescer, way: Way) -> None:
    await begin(commands, 1)

    assert way.messages == [[1]]


async def test_what_gathers_leaves_when_the_way_is_free(commands: Coalescer, way: Way) -> None:
    sending = [*await begin(commands, 1), *await begin(commands, 2), *await begin(commands, 3)]
    assert way.messages == [[1]]

    way.open.set()
    await asyncio.gather(*sending)

    assert way.messages == [[1], [2, 3]]


@pytest.mark.usefixtures("hasty")
async def test_everyone_is_told_when_their_own_time_is_up(commands: Coalescer, way: Way) -> None:
    """Under way or still waiting; one timer serves them all."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    told: dict[int, float] = {}

    async def send(number: int) -> None:
        with pytest.raises(Unavailable):
            await send_once(commands, b"%d" % number)
        told[number] = loop.time() - begun

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(send(number))
            await asyncio.sleep(0.03)

    assert list(told) == [0, 1, 2, 3]
    assert all(told[number] >= 0.09 + 0.03 * number for number in told)


@pytest.mark.usefixtures("hasty")
async def test_the_timer_serves_the_next_burst_too(commands: Coalescer) -> None:
    for number in range(2):
        with pytest.raises(Unavailable):
            async with asyncio.timeout(5):
                await send_once(commands, b"%d" % number)


@pytest.mark.usefixtures("hasty")
async def test_who_was_told_unavailable_while_waiting_is_not_sent_any_more(commands: Coalescer, way: Way) -> None:
    """A broker that was away for a minute must not be flooded with what nobody waits for."""
    sending = [*await begin(commands, 1), *await begin(commands, 2)]
    for task in sending:
        with pytest.raises(Unavailable):
            await task

    way.open.set()
    await send_once(commands, b"3")

    assert way.messages == [[1], [3]]


async def test_a_failure_is_told_to_its_message_and_the_next_message_goes(caplog: pytest.LogCaptureFixture) -> None:
    """Whether the broker refused or the code is wrong."""
    failures = [Unavailable("returned"), ValueError("a defect")]

    async def publish(body: bytes) -> None:
        if failures:
            raise failures.pop(0)

    commands = Coalescer(publish)

    for reason in ("returned", "ValueError: a defect"):
        with pytest.raises(Unavailable, match=reason):
            await send_once(commands, b"1")
    await send_once(commands, b"2")
    await commands.close()


async def test_closing_tells_everyone(commands: Coalescer) -> None:
    sending = [*await begin(commands, 1), *await begin(commands, 2)]

    await commands.close()

    for task in (*sending, asyncio.create_task(send_once(commands, b"3"))):
        with pytest.raises(Unavailable):
            await task
