"""What is known of rolls is bounded."""

from attendance_service.store.attempts import Attempt
from attendance_service.store.known import Known
from tests.unit.roll_makers import a_roll


def read_whole(session_id: str, students: int) -> Attempt:
    attempt = Attempt()
    roll, record = a_roll()
    attempt.rolls[session_id], attempt.versions[session_id] = roll, 1
    attempt.whole[session_id] = {f"s{number}": record for number in range(students)}
    return attempt


def is_known(known: Known, session_id: str) -> bool:
    return known.attempt([(session_id, "s1")]) is not None


def test_of_too_many_records_those_of_the_rolls_longest_unused_are_forgotten() -> None:
    known = Known(most_records=8)
    known.keep(read_whole("a", 3), {})
    known.keep(read_whole("b", 3), {})
    assert is_known(known, "b")
    assert is_known(known, "a")

    known.keep(read_whole("c", 2), {})

    assert [is_known(known, session) for session in "abc"] == [True, False, True]


def test_a_roll_read_whole_again_counts_once() -> None:
    known = Known(most_records=6)

    for _ in range(5):
        known.keep(read_whole("a", 5), {})

    assert is_known(known, "a")


def test_rolls_without_students_are_bounded_too() -> None:
    known = Known(most_records=5)

    for number in range(20):
        known.keep(read_whole(f"r{number}", 0), {})

    assert len(known._rolls) == 5


def test_few_rolls_are_read_whole_at_once_and_none_where_there_is_no_room() -> None:
    known, rolls = Known(most_records=100), {f"r{number}" for number in range(50)}
    counts = [len(known.to_read_whole(rolls)) for _ in range(5)]
    assert counts == [0, 0, 0, 4, 4]

    known.keep(read_whole("large", 99), {})

    assert known.to_read_whole(rolls) == []


def test_a_roll_that_had_to_go_is_not_read_whole_at_once_again() -> None:
    known = Known(most_records=6)
    for session in "ab":
        known.keep(read_whole(session, 4), {})

    known.keep(read_whole("b", 2), {})

    assert known.to_read_whole({"a"}) == []
