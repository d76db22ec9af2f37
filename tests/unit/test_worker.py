"""A worker's promises: acknowledged last, one bad message alone, a pause instead of a refusal when a server is away."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from msgspec.structs import replace

from shared.clock import utc_now
from shared.errors import Unavailable
from shared.memory_bus import MemoryBroker, MemoryBus
from shared.messages import (
    ATTENDANCE_COMMANDS,
    Actor,
    JoinRoll,
    ReplyTo,
    RollJoined,
    decode_answers,
    encode,
)
from shared.outbox import OutboxRow
from shared.worker import Outcome, Worker, working


def a_join(student_id: str, *, seconds: float = 30) -> JoinRoll:
    now = utc_now()
    return JoinRoll(
        command_id=f"c-{student_id}",
        actor=Actor(student_id, student_id.title(), "student"),
        received_at=now,
        deadline=now + timedelta(seconds=seconds),
        session_id="s",
    )


class Desk:
    """Sends commands as a gateway does, and keeps what is answered; `handled` is what the service committed."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.bus = MemoryBus(self.broker)
        self.answers: dict[str, str] = {}
        self.handled: list[list[str]] = []

    async def answer_queue(self) -> str:
        return await self.bus.receive_answers(self._take)

    def _take(self, body: bytes) -> None:
        for answer in decode_answers(body):
            self.answers[answer.correlation_id] = answer.error.code if answer.error else "joined"

    @asynccontextmanager
    async def served(self, spoils: Callable[[Sequence[str]], None]) -> Any:
        """Run a worker whose handler first lets `spoils` raise."""

        async def join(commands: Sequence[JoinRoll]) -> Outcome:
            students = [command.actor.id for command in commands]
            spoils(students)
            self.handled.append(students)
            outcome = Outcome()
            for command in commands:
                at = "2026-11-24T09:00:00.000Z"
                result = RollJoined(session_id="s", status="present", joined_at=at, seq=2, roll_seq=2)
                outcome.answer(command.reply_to, result)
            return outcome

        async def publish(_: Sequence[OutboxRow]) -> None:
            """Nothing leaves."""

        worker = Worker(MemoryBus(self.broker), ATTENDANCE_COMMANDS, {JoinRoll: join}, publish, utc_now)
        async with working([worker]):
            yield

    async def send(self, *commands: JoinRoll | bytes) -> None:
        """Send them as one gateway would, at once, and wait until they are acknowledged."""
        queue = await self.answer_queue()
        bodies = [
            command if isinstance(command, bytes) else encode(replace(command, reply_to=ReplyTo(queue, command.actor.id)))
            for command in commands
        ]
        await asyncio.gather(*(self.bus.send(ATTENDANCE_COMMANDS, body) for body in bodies))
        await asyncio.sleep(0)


def nothing(_: Sequence[str]) -> None:
    """Spoil nothing."""


async def test_one_bad_command_is_parked_alone_and_its_neighbours_are_done() -> None:
    """The handler dies of one of them; the batch is halved until it stands alone."""
    desk = Desk()

    def spoils(students: Sequence[str]) -> None:
        if "eve" in students:
            raise ZeroDivisionError("eve")

    async with desk.served(spoils):
        await desk.send(*(a_join(name) for name in ("ann", "ben", "eve", "joe", "kim")))
    assert desk.answers == {"ann": "joined", "ben": "joined", "eve": "internal", "joe": "joined", "kim": "joined"}
    assert [(parked.queue, parked.reason) for parked in desk.broker.parked] == [(ATTENDANCE_COMMANDS, "ZeroDivisionError: eve")]
    assert b"c-eve" in desk.broker.parked[0].body


async def test_a_command_nobody_knows_spoils_no_other() -> None:
    """A newer gateway sends what this service has not learnt yet, in one message with joins."""
    desk = Desk()
    async with desk.served(nothing):
        await desk.send(a_join("ann"), a_join("ben"), b'{"type":"DanceOnRoll","session_id":"s"}', a_join("joe"))
    assert desk.answers == {"ann": "joined", "ben": "joined", "joe": "joined"}
    assert [parked.body for parked in desk.broker.parked] == [b'[{"type":"DanceOnRoll","session_id":"s"}]']


async def test_while_a_server_is_away_nothing_is_refused_or_parked() -> None:
    desk = Desk()
    failures = iter([Unavailable("Postgres"), Unavailable("Postgres")])

    def spoils(_: Sequence[str]) -> None:
        for failure in failures:
            raise failure

    async with desk.served(spoils):
        await desk.send(a_join("ann"))
    assert (desk.answers, desk.broker.parked) == ({"ann": "joined"}, [])


async def test_a_command_past_its_deadline_is_never_done() -> None:
    desk = Desk()
    async with desk.served(nothing):
        await desk.send(a_join("ann", seconds=-1), a_join("ben"))
    assert desk.handled == [["ben"]]
    assert desk.answers == {"ben": "joined"}
