"""How often somebody may do something, by a clock that the test holds."""

from hypothesis import given
from hypothesis import strategies as some

from gateway.rates import Bucket, Complaints


def test_a_full_bucket_gives_its_size_at_once_and_then_as_fast_as_it_is_refilled() -> None:
    bucket = Bucket(200, 50)
    assert [bucket.take(1000.0) for _ in range(201)] == [True] * 200 + [False]
    assert bucket.wait_ms() == 20
    assert not bucket.take(1000.0 + 0.019)
    assert bucket.take(1000.0 + 0.021)
    assert sum(bucket.take(1001.021) for _ in range(100)) == 50


def test_a_bucket_that_waits_for_long_is_no_more_than_full() -> None:
    bucket = Bucket(3, 1)
    assert bucket.take(0.0)
    assert [bucket.take(1e6) for _ in range(4)] == [True, True, True, False]


@given(some.lists(some.floats(0, 1), max_size=200))
def test_never_more_than_the_bucket_and_its_refill_are_taken(waits: list[float]) -> None:
    """And whoever waits as long as they are told is let through."""
    bucket, now, taken = Bucket(5, 10), 100.0, 0
    for wait in waits:
        now += wait
        taken += bucket.take(now)
        assert taken <= 5 + 10 * (now - 100.0) + 1e-6
    while bucket.take(now):
        pass
    assert bucket.take(now + bucket.wait_ms() / 1000 + 1e-6)


def test_complaints_about_one_are_few_and_the_next_says_how_many_were_left_out() -> None:
    complaints = Complaints(2, 1)
    assert [complaints.about("one", 0.0) for _ in range(5)] == [0, 0, None, None, None]
    assert complaints.about("two", 0.0) == 0
    assert complaints.about("one", 1.0) == 3
    assert complaints.about("one", 2.0) == 0


def test_of_very_many_only_the_last_thousand_are_remembered() -> None:
    complaints = Complaints(1, 0.001)
    for number in range(5_000):
        assert complaints.about(number, 0.0) == 0
        assert complaints.about(number, 0.0) is None
    assert len(complaints._buckets) == len(complaints._unsaid) == 1_000
