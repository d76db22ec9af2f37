"""When a socket must go: not before its time, not after, and not when it was given more."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from gateway.expiries import Expiries

NINE = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)


def at(seconds: int) -> datetime:
    return NINE + timedelta(seconds=seconds)


def test_nobody_is_due_where_nobody_is() -> None:
    assert Expiries().due(datetime.max.replace(tzinfo=UTC)) == []


def test_a_socket_is_due_when_its_time_has_come_and_once() -> None:
    expiries = Expiries()
    expiries.put("ann", at(10))

    assert expiries.due(at(9)) == []
    assert expiries.due(at(10)) == ["ann"]
    assert expiries.due(at(11)) == []


def test_a_socket_that_has_gone_is_never_due() -> None:
    expiries = Expiries()
    expiries.put("ann", at(10))

    expiries.drop("ann")
    expiries.drop("ann")

    assert expiries.due(at(11)) == []


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abc"), st.integers(0, 20)),
        st.tuples(st.just("drop"), st.sampled_from("abc"), st.just(0)),
        st.tuples(st.just("due"), st.just(""), st.integers(0, 20)),
    )
)


@given(steps)
def test_whatever_happens_just_those_are_due_whose_last_word_has_passed(steps: list[tuple[str, str, int]]) -> None:
    expiries, expected = Expiries(), dict[str, int]()
    for what, sid, seconds in steps:
        match what:
            case "put":
                expiries.put(sid, at(seconds))
                expected[sid] = seconds
            case "drop":
                expiries.drop(sid)
                expected.pop(sid, None)
            case _:
                due = {sid for sid, until in expected.items() if until <= seconds}
                assert set(expiries.due(at(seconds))) == due
                for sid in due:
                    del expected[sid]
