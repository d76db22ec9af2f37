"""Who leaves when, where others are under way: nobody alone waits, and nobody for long. On a clock that the test moves."""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway import gathering
from gateway.gathering import GATHER_SECONDS, MANY, RETURN_SECONDS, Gathering

ROUNDING = 1e-9


class Timer:
    """A timer that may be cancelled."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """A loop whose time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self._due: list[tuple[float, int, Timer]] = []
        self._numbers = count()

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], object]) -> Timer:
        timer = Timer(call)
        heappush(self._due, (self.now + seconds, next(self._numbers), timer))
        return timer

    def call_soon(self, call: Callable[..., object], *arguments: Any) -> Timer:
        return self.call_later(0, partial(call, *arguments))

    def pass_by(self, seconds: float) -> None:
        """Let so much time pass; what is due meanwhile is done then."""
        until = self.now + seconds
        while self._due and self._due[0][0] <= until + ROUNDING:
            self.now, _, timer = heappop(self._due)
            if not timer.cancelled:
                timer.call()
        self.now = until

    @property
    def waits(self) -> bool:
        """Whether anything is still to be done."""
        return any(not timer.cancelled for _, _, timer in self._due)


class Road:
    """Where commands leave, some together."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.left: list[tuple[float, list[str]]] = []
        self.gathering = Gathering[str](self._leave)

    def _leave(self, names: Sequence[str]) -> None:
        self.left.append((self.clock.now, list(names)))

    def ask(self, *names: str) -> None:
        for name in names:
            self.gathering.put(name)

    def answer(self, number: int) -> None:
        self.gathering.answered(number)

    @property
    def messages(self) -> list[list[str]]:
        return [names for _, names in self.left]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(gathering, "asyncio", SimpleNamespace(get_running_loop=lambda: clock))
    return clock


@pytest.fixture
def road(clock: Clock) -> Road:
    return Road(clock)


def test_one_after_the_other_none_waits(road: Road) -> None:
    for name in ("a", "b", "c"):
        road.ask(name)
        road.clock.pass_by(0)
        assert road.left[-1] == (road.clock.now, [name])
        road.clock.pass_by(0.003)
        road.answer(1)


def test_what_one_turn_of_the_loop_brings_leaves_together(road: Road) -> None:
    road.ask("a", "b")
    road.clock.pass_by(0)

    assert road.messages == [["a", "b"]]


def test_who_comes_meanwhile_leaves_with_those_who_come_back(road: Road) -> None:
    road.ask("a", "b")
    road.clock.pass_by(0.003)
    road.ask("c")
    road.clock.pass_by(0.001)

    road.answer(2)
    road.ask("d")
    road.clock.pass_by(RETURN_SECONDS / 2)
    assert len(road.messages) == 1
    road.ask("e")
    road.clock.pass_by(0)

    assert road.messages[1:] == [["c", "d", "e"]]


def test_nobody_waits_for_those_who_do_not_come_back(road: Road) -> None:
    """Neither who came before the answers nor who comes after them."""
    road.ask("a", "b")
    road.clock.pass_by(0.003)
    road.ask("c")
    road.answer(2)
    answered_at = road.clock.now
    road.clock.pass_by(1)
    assert road.messages[1:] == [["c"]]
    assert road.left[-1][0] == pytest.approx(answered_at + RETURN_SECONDS)

    road.ask("d")
    road.clock.pass_by(GATHER_SECONDS)
    road.answer(2)
    answered_at = road.clock.now
    road.clock.pass_by(RETURN_SECONDS / 2)
    road.ask("e")
    road.clock.pass_by(1)
    assert road.messages[2:] == [["d"], ["e"]]
    assert road.left[-1][0] == pytest.approx(answered_at + RETURN_SECONDS)


def test_nobody_waits_for_an_answer_that_does_not_come(road: Road) -> None:
    """However many come while they wait."""
    road.ask("a")
    road.clock.pass_by(0)
    asked_at = road.clock.now
    for name in ("b", "c", "d"):
        road.ask(name)
        road.clock.pass_by(GATHER_SECONDS / 4)
    road.clock.pass_by(1)

    assert road.messages[1:] == [["b", "c", "d"]]
    assert road.left[-1][0] == pytest.approx(asked_at + GATHER_SECONDS)


def test_where_many_are_under_way_nobody_waits(road: Road) -> None:
    names = [str(number) for number in range(MANY)]
    road.ask("first")
    road.clock.pass_by(0.001)
    road.ask(*names[:-1])
    road.clock.pass_by(0)
    assert len(road.messages) == 1

    road.ask(names[-1], "with what this turn brings")
    road.clock.pass_by(0)
    assert road.messages[1:] == [[*names, "with what this turn brings"]]
    road.clock.pass_by(0.001)
    road.ask("one more")
    road.clock.pass_by(0)
    assert road.left[-1] == (road.clock.now, ["one more"])


def test_what_a_busy_loop_has_not_read_when_time_is_up_leaves_too() -> None:
    """On uvloop, as in use, which does timers before it reads."""

    async def be_busy() -> list[list[str]]:
        loop = asyncio.get_running_loop()
        left: list[list[str]] = []
        first_have_left, all_have_left = asyncio.Event(), asyncio.Event()

        def leave(names: Sequence[str]) -> None:
            left.append(list(names))
            (first_have_left if len(left) == 1 else all_have_left).set()

        def read() -> None:
            crowd.put(name := server.recv(1).decode())
            if name == "c":
                client.send(b"d")
                until = time.monotonic() + 2 * RETURN_SECONDS
                while time.monotonic() < until:
                    pass

        crowd = Gathering[str](leave)
        client, server = socket.socketpair()
        with client, server:
            loop.add_reader(server, read)
            crowd.put("a")
            crowd.put("b")
            await first_have_left.wait()
            crowd.answered(2)
            client.send(b"c")
            await all_have_left.wait()
            loop.remove_reader(server)
        return left

    assert uvloop.run(be_busy()) == [["a", "b"], ["c", "d"]]


DEEDS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, MANY + 8)),
        st.tuples(st.just("answer"), st.integers(1, MANY + 8)),
        st.tuples(st.just("pass by"), st.sampled_from((0.0, 0.0001, 0.001, 0.003, 0.02))),
    ),
    max_size=60,
)


@given(DEEDS)
@example([("ask", 2), ("pass by", 0.003), ("answer", 2), ("ask", 1)])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_each_leaves_once_in_order_and_soon(clock: Clock, deeds: list[tuple[str, float]]) -> None:
    road = Road(clock)
    asked: dict[str, float] = {}
    answered = 0
    for deed, much in deeds:
        match deed:
            case "ask":
                for _ in range(int(much)):
                    asked[str(len(asked))] = clock.now
                    road.ask(str(len(asked) - 1))
            case "answer":
                under_way = sum(map(len, road.messages)) - answered
                answered += (number := min(int(much), under_way))
                if number:
                    road.answer(number)
            case _:
                clock.pass_by(much)
        gone = sum(map(len, road.messages))
        assert gone == len(asked) or clock.waits
    clock.pass_by(1)

    assert [name for names in road.messages for name in names] == list(asked)
    for at, names in road.left:
        for name in names:
            assert at - asked[name] <= GATHER_SECONDS + RETURN_SECONDS + ROUNDING


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.integers(1, 3 * MANY), more=st.integers(0, MANY), answered=st.integers(0, 3 * MANY), back=st.integers(0, 2 * MANY)
)
@example(asked=4, more=0, answered=4, back=4)
@example(asked=4, more=0, answered=4, back=3)
def test_answers_that_come_together_count_as_they_do_one_by_one(
    clock: Clock, asked: int, more: int, answered: int, back: int
) -> None:
    together, one_by_one = Road(clock), Road(clock)
    for road in (together, one_by_one):
        road.ask(*(f"asked {number}" for number in range(asked)))
    clock.pass_by(0)
    for road in (together, one_by_one):
        road.ask(*(f"more {number}" for number in range(more)))
    number = min(answered, asked)
    if number:
        together.answer(number)
    for _ in range(number):
        one_by_one.answer(1)
    clock.pass_by(RETURN_SECONDS / 2)
    for road in (together, one_by_one):
        road.ask(*(f"back {number}" for number in range(back)))
    clock.pass_by(2 * GATHER_SECONDS)

    assert together.left == one_by_one.left
