"""Joins that are asked and answered together: each gets its own answer, and whatever becomes of one, the others get theirs."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

import pytest

from gateway.asked import Asked, Socket
from gateway.auth import User
from gateway.calls import Calls
from gateway.joins import Joins
from gateway.payloads import SessionCommandPayload
from gateway.requests import Requests
from gateway.room import Member, Room
from shared.bus import Delivery
from shared.clock import utc_now
from shared.coalescer import Settled
from shared.errors import Refused
from shared.memory_bus import MemoryBroker, MemoryBus
from shared.messages import ATTENDANCE_COMMANDS, Actor, Heard, JoinRoll, RollJoined, decode_commands, encode_items
from shared.worker import encode_answer

SESSION = "5e55"
NOBODY: Any = None


def joined(**fields: Any) -> RollJoined:
    some = {"session_id": SESSION, "status": "present", "joined_at": "2026-11-24T09:00:00.000Z", "seq": 2, "roll_seq": 2}
    return RollJoined(**{**some, "course_id": "c1", **fields})


class Student:
    """A student at a socket, and what becomes of their join: it is the way back as well."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.given: list[Any] = []
        self.refused: list[str] = []
        self.breaks = False
        self.told = asyncio.Event()
        self.socket = Socket(name, "/", NOBODY, User(Actor(name, name.title(), "student"), utc_now()), utc_now())
        self.room = Room(SESSION, "live:roll", holds=1)
        self.socket.take_turn(SESSION)
        reply: Any = self
        payload = SessionCommandPayload(session_id=SESSION)
        self.asked = Asked(self.socket, payload, SESSION, utc_now(), NOBODY, reply, self.room)

    def give(self, answer: Any, event: str) -> None:
        """Stand in for `Reply.give`."""
        if self.breaks:
            raise RuntimeError("a defect")
        self.given.append((event, answer["ok"], answer["seq"]))
        self.told.set()

    def refuse(self, asked: Asked, refused: Refused) -> None:
        """Stand in for the namespace's."""
        assert asked is self.asked
        self.refused.append(refused.code)
        self.told.set()
        asked.over()

    @property
    def over(self) -> bool:
        """Whether the next command about the session has its turn, and the room is not held any more."""
        return not self.socket.turns and self.room.holds == 0


class Gateway:
    """Joins before a service that the test plays, and in place of rooms and presence a list of who is let in."""

    def __init__(self, bus: MemoryBus) -> None:
        self.let_in: list[tuple[str, int]] = []
        self.counted: list[str] = []
        self.calls = Calls(bus, utc_now)
        here: Any = self
        self.joins = Joins(Requests(self.calls, utc_now), here, here, here, utc_now)

    def admit(self, room: Room, member: Member, seq: int, *, course_id: str, statistics_known: bool) -> None:
        """Stand in for `Rooms.admit`."""
        if member.user_id == "unlucky":
            raise RuntimeError("a defect")
        self.let_in.append((member.user_id, seq))

    def host(self, course_id: str) -> None:
        """Stand in for `Courses.host`."""

    def enter(self, session_id: str, student_id: str, sid: str, *, again: bool) -> None:
        """Stand in for `Presence.enter`."""
        self.counted.append(student_id)

    def ask(self, *students: Student) -> None:
        for student in students:
            self.joins.ask(student.asked, student.refuse)

    @property
    def under_way(self) -> int:
        return self.joins._gathering._unanswered


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
async def gateway(broker: MemoryBroker) -> Gateway:
    gateway = Gateway(MemoryBus(broker))
    await gateway.calls.open()
    return gateway


async def take(broker: MemoryBroker) -> tuple[MemoryBus, Delivery, list[JoinRoll]]:
    """Take the message that brings joins, as attendance-service does."""
    service = MemoryBus(broker)
    (delivery,) = await service.inbox(ATTENDANCE_COMMANDS).take(10)
    return service, delivery, cast(list[JoinRoll], decode_commands(delivery.body))


async def answer(broker: MemoryBroker, **results: Any) -> None:
    """Answer each join in the message with what is said of its student."""
    service, delivery, commands = await take(broker)
    addresses = [(command.reply_to, command.actor.id) for command in commands if command.reply_to is not None]
    assert {name for _, name in addresses} == results.keys()
    await service.answer([(to.queue, encode_answer(to.correlation_id, results[name])) for to, name in addresses])
    await delivery.ack()


async def all_told(*students: Student) -> None:
    async with asyncio.timeout(5):
        for student in students:
            await student.told.wait()


async def test_who_joins_together_is_answered_and_let_in_each_by_their_own(broker: MemoryBroker, gateway: Gateway) -> None:
    ann, ben, eve = Student("ann"), Student("ben"), Student("eve")

    gateway.ask(ann, ben, eve)
    await answer(broker, ann=joined(), ben=joined(seq=3, roll_seq=4), eve=Refused("not_enrolled"))
    await all_told(ann, ben, eve)

    event = "attendanceSessionJoined"
    assert (ann.given, ben.given, eve.refused) == ([(event, True, 2)], [(event, True, 3)], ["not_enrolled"])
    assert gateway.let_in == [("ann", 2), ("ben", 4)]
    assert gateway.counted == ["ann", "ben"]
    assert ann.over
    assert ben.over
    assert eve.over


async def test_who_has_gone_or_left_the_course_meanwhile_is_answered_and_not_let_in(
    broker: MemoryBroker, gateway: Gateway
) -> None:
    gone, left = Student("gone"), Student("left")
    gateway.ask(gone, left)
    gone.socket.gone = True

    await answer(broker, gone=joined(), left=joined(enrolled=False))
    await all_told(gone, left)

    assert (len(gone.given), len(left.given)) == (1, 1)
    assert (gateway.let_in, gateway.counted) == ([], [])
    assert gone.over
    assert left.over


async def test_a_defect_with_one_join_keeps_nobody_else_from_theirs(broker: MemoryBroker, gateway: Gateway) -> None:
    broken, unlucky, ann = Student("broken"), Student("unlucky"), Student("ann")
    broken.breaks = True

    gateway.ask(broken, unlucky, ann)
    await answer(broker, broken=joined(), unlucky=joined(), ann=joined())
    await all_told(broken, unlucky, ann)

    assert broken.refused == ["internal"]
    assert (len(unlucky.given), unlucky.refused) == (1, [])
    assert gateway.let_in == [("ann", 2)]
    assert all(student.over for student in (broken, unlucky, ann))
    assert gateway.under_way == 0


async def test_a_join_that_cannot_be_written_keeps_nobody_else_from_being_asked(
    broker: MemoryBroker, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(commands: Sequence[JoinRoll]) -> bytes:
        if any(command.actor.id == "broken" for command in commands):
            raise ValueError("a defect")
        return encode_items(commands)

    monkeypatch.setattr("gateway.calls.encode_items", encode)
    ann, broken, ben = Student("ann"), Student("broken"), Student("ben")

    gateway.ask(ann, broken, ben)
    await answer(broker, ann=joined(), ben=joined(seq=3))
    await all_told(ann, broken, ben)

    assert broken.refused == ["internal"]
    assert ([seq for _, _, seq in ann.given], [seq for _, _, seq in ben.given]) == ([2], [3])
    assert all(student.over for student in (ann, broken, ben))
    assert gateway.under_way == 0


@pytest.mark.parametrize("end", ["answered", "refused", "malformed", "timeout", "unavailable", "closed", "a defect"])
async def test_whatever_becomes_of_a_join_it_is_under_way_no_more(
    broker: MemoryBroker, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next ones would wait for it, or not wait for anybody any more."""
    if end in ("timeout", "unavailable"):
        monkeypatch.setattr("gateway.requests._A_WHILE", timedelta(seconds=0.2))
    bus, ann = MemoryBus(broker), Student("ann")
    gateway = Gateway(bus)
    await gateway.calls.open()
    if end == "a defect":
        monkeypatch.setattr("gateway.calls.encode_items", None)

    gateway.ask(ann)
    results = {"answered": joined(), "refused": Refused("session_not_active"), "malformed": Heard()}
    if end == "closed":
        await bus.close()
    elif end == "timeout":
        _, delivery, _ = await take(broker)
        await delivery.ack()
    elif end in results:
        await answer(broker, ann=results[end])
    await all_told(ann)

    codes = {"answered": [], "refused": ["session_not_active"], "malformed": ["internal"], "a defect": ["internal"]}
    assert ann.refused == codes.get(end, ["timeout" if end == "timeout" else "unavailable"])
    assert ann.over
    assert gateway.under_way == 0


class Counter(MemoryBus):
    """Counts what leaves together, and lets nothing be taken."""

    def __init__(self) -> None:
        super().__init__(MemoryBroker())
        self.left: list[int] = []
        self.departed = asyncio.Event()

    def send_soon(self, queue: str, commands: bytes, count: int, settled: Settled) -> None:
        self.left.append(count)
        self.departed.set()
        super().send_soon(queue, commands, count, settled)


async def test_joins_leave_together_while_one_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.requests._A_WHILE", timedelta(seconds=0.2))
    bus = Counter()
    gateway = Gateway(bus)
    await gateway.calls.open()
    first, second, third = Student("first"), Student("second"), Student("third")

    gateway.ask(first)
    await bus.departed.wait()
    gateway.ask(second)
    for _ in range(3):
        await asyncio.sleep(0)
    assert bus.left == [1]
    gateway.ask(third)
    await all_told(first, second, third)

    assert bus.left == [1, 2]
