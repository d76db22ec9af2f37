"""Who leaves when, where others are under way: nobody alone waits, and nobody for long."""

import asyncio

import pytest

from gateway import gathering
from gateway.gathering import MANY, Gathering
from shared.coalescer import Settled

QUEUE = "attendance.commands"


class Road:
    """Where commands leave; those that left in one turn of the loop stand together."""

    def __init__(self) -> None:
        self.left: list[list[bytes]] = []
        self.departed = asyncio.Event()
        self._together: list[bytes] = []
        self.gathering = Gathering(self._send)

    def _send(self, queue: str, command: bytes, settled: Settled) -> None:
        assert queue == QUEUE
        if not self._together:
            self.left.append(self._together)
            self.departed.set()
            asyncio.get_running_loop().call_soon(self._pass)
        self._together.append(command)

    def _pass(self) -> None:
        self._together = []

    def ask(self, *names: str) -> None:
        for name in names:
            self.gathering.send_soon(QUEUE, name.encode(), lambda _: None)

    def answer(self, count: int) -> None:
        for _ in range(count):
            self.gathering.answered()


@pytest.fixture
def road() -> Road:
    return Road()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes that anybody waits for."""
    monkeypatch.setattr(gathering, "GATHER_SECONDS", 60.0)
    monkeypatch.setattr(gathering, "RETURN_SECONDS", 60.0)


async def turns() -> None:
    """Let the loop turn: what is due now is done."""
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.usefixtures("patient")
async def test_one_after_the_other_none_waits(road: Road) -> None:
    for name in ("a", "b", "c"):
        road.ask(name)
        await turns()
        assert road.left[-1] == [name.encode()]
        road.answer(1)


@pytest.mark.usefixtures("patient")
async def test_what_one_turn_of_the_loop_brings_leaves_together(road: Road) -> None:
    road.ask("a", "b")
    await turns()

    assert road.left == [[b"a", b"b"]]


@pytest.mark.usefixtures("patient")
async def test_who_comes_meanwhile_leaves_with_those_who_come_back(road: Road) -> None:
    road.ask("a", "b")
    await turns()
    road.ask("c")
    await turns()
    assert road.left == [[b"a", b"b"]]

    road.answer(2)
    road.ask("d")
    await turns()
    assert len(road.left) == 1
    road.ask("e")
    await turns()

    assert road.left[1:] == [[b"c", b"d", b"e"]]


async def test_nobody_waits_for_those_who_do_not_come_back(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "GATHER_SECONDS", 60.0)
    monkeypatch.setattr(gathering, "RETURN_SECONDS", 0.01)
    road.ask("a", "b")
    await turns()
    road.ask("c")
    road.departed.clear()

    road.answer(2)

    await asyncio.wait_for(road.departed.wait(), 5)
    assert road.left[1:] == [[b"c"]]


async def test_nobody_waits_for_an_answer_that_does_not_come(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "GATHER_SECONDS", 0.01)
    monkeypatch.setattr(gathering, "RETURN_SECONDS", 60.0)
    road.ask("a")
    await turns()
    road.departed.clear()
    road.ask("b", "c")

    await asyncio.wait_for(road.departed.wait(), 5)
    assert road.left[1:] == [[b"b", b"c"]]


@pytest.mark.usefixtures("patient")
async def test_where_many_are_under_way_nobody_waits(road: Road) -> None:
    names = [str(number) for number in range(MANY)]
    road.ask("first")
    await turns()
    road.ask(*names[:-1])
    await turns()
    assert len(road.left) == 1

    road.ask(names[-1])
    road.ask("one more")

    assert road.left[1:] == [[name.encode() for name in [*names, "one more"]]]


@pytest.mark.usefixtures("patient")
async def test_whoever_gave_up_before_they_left_holds_up_nobody(road: Road) -> None:
    road.ask("a")
    await turns()
    road.ask("b")
    # The time of one of them is over.
    road.answer(1)
    road.answer(1)
    road.ask("c", "d")
    await turns()

    assert road.left[1:] == [[b"b", b"c", b"d"]]
    road.answer(2)
    road.ask("e", "f")
    await turns()
    assert road.left[2:] == [[b"e", b"f"]]
