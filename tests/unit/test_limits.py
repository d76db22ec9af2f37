"""How often somebody may ask: a burst at once, a rate for ever, and what others have counted."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits import Buckets, Limit
from shared.errors import Refused

LIMIT = Limit(burst=5, per_second=2)


def refused(buckets: Buckets, name: str, now: float) -> int:
    """How long one is told to wait, in ms."""
    with pytest.raises(Refused) as caught:
        buckets.take(name, now)
    assert caught.value.code == "rate_limited"
    assert caught.value.retry_after_ms is not None
    return caught.value.retry_after_ms


def filled(buckets: Buckets, name: str = "ann", now: float = 0.0) -> Buckets:
    for _ in range(buckets.limit.burst):
        buckets.take(name, now)
    return buckets


def test_a_burst_is_let_through_and_the_next_is_told_when() -> None:
    buckets = filled(Buckets(LIMIT))

    assert refused(buckets, "ann", 0.0) == 500
    assert refused(buckets, "ann", 0.25) == 250
    buckets.take("ann", 0.5)
    assert refused(buckets, "ann", 0.5) == 500


def test_nobody_is_refused_for_another() -> None:
    filled(Buckets(LIMIT)).take("ben", 0.0)


@given(st.lists(st.floats(0, 3), min_size=1, max_size=60))
def test_no_more_than_the_burst_and_the_rate_are_let_through(waits: list[float]) -> None:
    """And who waits as long as they are told is let through."""
    buckets, now, let_through = Buckets(LIMIT), 0.0, 0
    for wait in waits:
        now += wait
        try:
            buckets.take("ann", now)
            let_through += 1
        except Refused as error:
            assert error.retry_after_ms is not None
            now += error.retry_after_ms / 1000
            buckets.take("ann", now)
            let_through += 1
        assert let_through <= LIMIT.burst + LIMIT.per_second * now + 1e-6


def test_what_was_let_through_is_told_once_and_only_where_it_is_enough() -> None:
    buckets = filled(Buckets(LIMIT))
    buckets.take("ben", 0.0)
    refused(buckets, "ann", 0.0)

    assert buckets.say(at_least=2) == {"ann": 5}
    assert buckets.say(at_least=2) == {}
    buckets.take("ben", 0.0)
    assert buckets.say(at_least=2) == {"ben": 2}


def test_what_others_have_counted_counts_here() -> None:
    buckets = Buckets(LIMIT)
    buckets.take("ann", 0.0)
    buckets.say(1)
    buckets.take("ann", 0.0)  # while Redis adds up

    buckets.learn("ann", 7.0, 0.0)

    assert refused(buckets, "ann", 0.0) == 2000
    assert refused(buckets, "ann", 1.0) == 1000
    buckets.take("ann", 2.0)


def test_who_has_not_asked_for_a_while_is_forgotten() -> None:
    buckets = filled(Buckets(LIMIT))
    buckets.take("ben", 0.0)

    buckets.forget_idle(1.0)
    assert len(buckets) == 1
    buckets.forget_idle(2.5)
    assert len(buckets) == 0


def test_a_thousand_names_are_a_thousand_buckets_until_they_are_forgotten() -> None:
    buckets = Buckets(LIMIT)
    for number in range(1000):
        buckets.take(str(number), 0.0)
    assert len(buckets) == 1000
    buckets.forget_idle(next(count(1)))
    assert len(buckets) == 0
