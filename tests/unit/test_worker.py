"""A worker's promises: acknowledged last, one bad message alone, a pause instead of a refusal when a server is away."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from shared.clock import utc_now
from shared.errors import Unavailable
from shared.memory_bus import MemoryBroker, MemoryBus, _Message
from shared.messages import (
    ATTENDANCE_COMMANDS,
    ATTENDANCE_EVENTS,
    Actor,
    JoinRoll,
    MarkRecords,
    ReplyTo,
    RollJoined,
    decode_answers,
    encode,
)
from shared.outbox import OutboxRow, outgoing
from shared.worker import Outcome, Worker, working
from tests.contract.bus_talk import send_once
from tests.contract.room_events import a_close
from tests.contract.room_talk import until


def a_join(student_id: str, *, seconds: float = 30) -> JoinRoll:
    now = utc_now()
    return JoinRoll(
        command_id=f"c-{student_id}",
        actor=Actor(student_id, student_id.title(), "student"),
        received_at=now,
        deadline=now + timedelta(seconds=seconds),
        session_id="s",
    )


def a_message(student_id: str) -> _Message:
    """A join as it waits in its queue."""
    return _Message(b"[%b]" % encode(a_join(student_id)))


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
                result = RollJoined(session_id="s", status="present", joined_at=at, seq=2, roll_seq=2, course_id="c1")
                outcome.answer(command.reply_to, result)
            return outcome

        worker = Worker(MemoryBus(self.broker), ATTENDANCE_COMMANDS, {JoinRoll: join}, nothing_leaves, utc_now)
        async with working([worker]):
            yield

    async def send(self, *commands: JoinRoll | bytes) -> None:
        """Send them as one gateway would, at once, and wait until they are acknowledged."""
        queue = await self.answer_queue()
        bodies = [
            command if isinstance(command, bytes) else encode(replace(command, reply_to=ReplyTo(queue, command.actor.id)))
            for command in commands
        ]
        await asyncio.gather(*(send_once(self.bus, ATTENDANCE_COMMANDS, body) for body in bodies))
        await asyncio.sleep(0)

    async def send_whole(self, body: bytes) -> None:
        """Put a message on the queue as it is, and wait until it is acknowledged."""
        async with asyncio.timeout(5):
            await self.broker.queues[ATTENDANCE_COMMANDS].put(_Message(body))


def nothing(_: Sequence[str]) -> None:
    """Spoil nothing."""


async def nothing_leaves(_: Sequence[OutboxRow]) -> None:
    """Publish nothing."""


@pytest.mark.parametrize("redelivered", [True, False])
async def test_a_command_says_whether_its_caller_may_have_been_answered_already(redelivered: bool) -> None:
    """Where its message has been delivered before; a command that nobody waits for was answered to nobody."""
    desk, said = Desk(), dict[str, bool]()

    async def join(commands: Sequence[JoinRoll]) -> Outcome:
        said.update({command.actor.id: command.redelivered for command in commands})
        return Outcome()

    asked = replace(a_join("ann"), reply_to=ReplyTo("gateway", "1"))
    message = _Message(b"[%b,%b]" % (encode(asked), encode(a_join("ben"))))
    message.redelivered = redelivered
    async with working([Worker(desk.bus, ATTENDANCE_COMMANDS, {JoinRoll: join}, nothing_leaves, utc_now)]), asyncio.timeout(5):
        await desk.broker.queues[ATTENDANCE_COMMANDS].put(message)

    assert said == {"ann": redelivered, "ben": False}


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


NESTED = b"[" * 5000 + b"]" * 5000
NO_TEXT = b'{"type":"JoinRoll","session_id":"\xff"}'


async def test_what_cannot_even_be_taken_apart_is_parked_and_the_worker_goes_on() -> None:
    """Nesting beyond what can be read, and bytes that are no text, beside a sound command too: each once killed the worker."""
    desk = Desk()
    async with desk.served(nothing):
        await desk.send_whole(NESTED)
        await desk.send_whole(b"[" + NO_TEXT + b"]")
        await desk.send(a_join("ann"), NO_TEXT, a_join("ben"))
    assert desk.answers == {"ann": "joined", "ben": "joined"}
    assert [parked.body for parked in desk.broker.parked] == [NESTED, b"[" + NO_TEXT + b"]", b"[" + NO_TEXT + b"]"]
    assert all(parked.reason.startswith("malformed: ") for parked in desk.broker.parked)


@pytest.mark.parametrize("body", [NESTED, NO_TEXT, b'{"id":"\xff"}'])
async def test_an_event_that_cannot_be_read_is_parked(body: bytes) -> None:
    broker = MemoryBroker()

    async with working([Worker(MemoryBus(broker), ATTENDANCE_EVENTS, {}, nothing_leaves, utc_now)]), asyncio.timeout(5):
        await broker.queues[ATTENDANCE_EVENTS].put(_Message(body))
    assert [parked.body for parked in broker.parked] == [body]


async def test_what_came_while_a_batch_was_done_is_one_batch() -> None:
    """Also what is only to be read: a batch costs more than what is in it."""
    desk = Desk()
    queue = desk.broker.queues[ATTENDANCE_COMMANDS]

    def brings(students: Sequence[str]) -> None:
        if students == ["ann"]:
            queue.bring([a_message("ben")])
            asyncio.get_running_loop().call_soon(queue.bring, [last])

    last = a_message("joe")
    done = last.outcome()
    async with desk.served(brings), asyncio.timeout(5):
        await desk.send(a_join("ann"))
        await done
    assert desk.handled == [["ann"], ["ben", "joe"]]


async def test_a_worker_that_waits_stops_at_once_and_leaves_what_comes_in_that_moment() -> None:
    desk = Desk()
    queue = desk.broker.queues[ATTENDANCE_COMMANDS]

    async def never(_: Sequence[JoinRoll]) -> Outcome:
        raise AssertionError

    worker = Worker(desk.bus, ATTENDANCE_COMMANDS, {JoinRoll: never}, nothing_leaves, utc_now)
    async with asyncio.timeout(5):
        running = asyncio.create_task(worker.run())
        await until(lambda: worker._taking is not None)
        queue.bring([a_message("ann")])
        worker.stop()
        worker.stop()
        await running
        assert len(await MemoryBus(desk.broker).inbox(ATTENDANCE_COMMANDS).take(9)) == 1


async def test_a_worker_told_to_stop_between_two_batches_begins_no_other() -> None:
    desk = Desk()
    queue = desk.broker.queues[ATTENDANCE_COMMANDS]

    async def join(commands: Sequence[JoinRoll]) -> Outcome:
        asyncio.get_running_loop().call_soon(worker.stop)
        queue.bring([a_message("ben")])
        desk.handled.append([command.actor.id for command in commands])
        return Outcome()

    worker = Worker(desk.bus, ATTENDANCE_COMMANDS, {JoinRoll: join}, nothing_leaves, utc_now)
    queue.bring([a_message("ann")])
    async with asyncio.timeout(5):
        await worker.run()
    assert desk.handled == [["ann"]]


@pytest.mark.parametrize("stopped", [True, False])
async def test_a_worker_that_somebody_else_cancels_says_so_though_it_may_be_stopped_too(stopped: bool) -> None:
    """Who cancels it counts on that."""
    worker = Worker(Desk().bus, ATTENDANCE_COMMANDS, {}, nothing_leaves, utc_now)
    running = asyncio.create_task(worker.run())
    await until(lambda: worker._taking is not None)
    if stopped:
        worker.stop()
    running.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait({running})
    assert running.cancelled()


async def test_a_defect_of_the_worker_strands_nothing() -> None:
    """Telling of what was done fails for one of three messages: that one is parked whole, and the others are done."""
    broker, handled, told = MemoryBroker(), list[str](), list[str]()

    async def join(commands: Sequence[JoinRoll]) -> Outcome:
        students = [command.actor.id for command in commands]
        handled.extend(students)
        return Outcome(events=[outgoing(a_close(number), [student]) for number, student in enumerate(students, 1)])

    async def publish(rows: Sequence[OutboxRow]) -> None:
        students = [row.channels[0] for row in rows]
        if "eve" in students:
            raise ZeroDivisionError("\ud800")
        told.extend(students)

    bodies = {name: b"[" + encode(a_join(name)) + b"]" for name in ("ann", "eve", "joe")}
    outcomes = [broker.queues[ATTENDANCE_COMMANDS].put(_Message(body)) for body in bodies.values()]
    worker = Worker(MemoryBus(broker), ATTENDANCE_COMMANDS, {JoinRoll: join}, publish, utc_now)
    with capture_logs() as logs:
        async with working([worker]), asyncio.timeout(5):
            await asyncio.gather(*outcomes)
    assert [(parked.body, parked.reason) for parked in broker.parked] == [(bodies["eve"], "ZeroDivisionError: ?")]
    assert told == ["ann", "joe"]
    assert [entry["event"] for entry in logs] == ["worker.parked"]


async def test_while_a_server_is_away_nothing_is_refused_or_parked() -> None:
    desk = Desk()
    failures = iter([Unavailable("Postgres"), Unavailable("Postgres")])

    def spoils(_: Sequence[str]) -> None:
        for failure in failures:
            raise failure

    async with desk.served(spoils):
        await desk.send(a_join("ann"))
    assert (desk.answers, desk.broker.parked) == ({"ann": "joined"}, [])


async def test_what_is_done_alone_is_each_in_time_or_not_done_and_keeps_nobody_waiting() -> None:
    """A bulk takes as long as hundreds of joins: what came with it is done first, and the next bulk may be too late by then."""
    queue, now = "q", utc_now()
    broker = MemoryBroker()
    handled: list[tuple[str, ...]] = []
    late: list[timedelta] = []

    async def note(commands: Sequence[JoinRoll | MarkRecords]) -> Outcome:
        handled.append(tuple(command.command_id for command in commands))
        if isinstance(commands[0], MarkRecords):
            late.append(timedelta(seconds=31))
        return Outcome()

    def clock() -> datetime:
        return now + sum(late, timedelta())

    bulks = [
        MarkRecords(
            command_id=name,
            actor=Actor("t", "T", "teacher"),
            received_at=now,
            deadline=now + timedelta(seconds=seconds),
            session_id="s",
            marks=(),
            reply_to=ReplyTo(queue, name),
        )
        for name, seconds in (("first", 30), ("late", 30), ("patient", 60))
    ]
    joins = [replace(a_join(name), deadline=now + timedelta(seconds=30)) for name in ("ann", "ben")]
    body = b",".join(map(encode, (bulks[0], joins[0], bulks[1], joins[1], bulks[2])))
    worker = Worker(MemoryBus(broker), ATTENDANCE_COMMANDS, {JoinRoll: note, MarkRecords: note}, nothing_leaves, clock)
    async with working([worker]):
        await send_once(MemoryBus(broker), ATTENDANCE_COMMANDS, body)
    assert handled == [("c-ann", "c-ben"), ("first",), ("patient",)]


async def test_a_command_past_its_deadline_is_never_done() -> None:
    desk = Desk()
    async with desk.served(nothing):
        await desk.send(a_join("ann", seconds=-1), a_join("ben"))
    assert desk.handled == [["ben"]]
    assert desk.answers == {"ben": "joined"}
