"""How a bench divides its ten minutes."""

from unittest.mock import Mock

import pytest

from bench import plan
from bench.plan import Run, Sizes, allowances


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(plan, "time", clock)
    return clock


def rounds(clock: Clock, *, seconds: float, each: float) -> int:
    """Play rounds that take so long each."""
    count = 0
    for _ in Run(Mock(), Mock(), Mock(), Sizes(rounds=5), seconds=seconds).rounds():
        clock.now += each
        count += 1
    return count


@pytest.mark.parametrize(("each", "played"), [(1.0, 5), (2.0, 5), (2.5, 4), (4.0, 2), (30.0, 1)])
def test_a_scenario_plays_as_many_rounds_as_fit_and_one_at_least(clock: Clock, each: float, played: int) -> None:
    assert rounds(clock, seconds=10, each=each) == played


def test_a_slow_scenario_takes_what_is_to_spare_and_leaves_the_others_what_they_need(clock: Clock) -> None:
    given = {}
    for name, seconds in allowances({"joins": 100, "two": 30, "growth": 70}, 260):
        given[name] = seconds
        clock.now += seconds

    assert given == {"joins": 160, "two": 30, "growth": 70}


def test_what_one_scenario_does_not_need_the_next_may_take(clock: Clock) -> None:
    given = {}
    for name, seconds in allowances({"joins": 100, "two": 30}, 150):
        given[name] = seconds
        clock.now += 10

    assert given == {"joins": 120, "two": 140}
