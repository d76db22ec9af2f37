"""Of all gateways that saw a student go, one tells; whatever they say of others is nothing to it."""

from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec import json

from gateway.statements import Statement, decode_statement, must_tell

ANN, BEN = "s2", "s3"
gateway_ids = st.sampled_from("abcdef")
times = st.integers(0, 9).map(lambda second: f"2026-11-24T09:00:0{second}.000Z")
of_ben = st.builds(Statement, here=st.just({BEN: 1}) | st.just({}), gone=st.just({}) | times.map(lambda at: {BEN: at}))
departures = st.dictionaries(gateway_ids, times, min_size=1)


def tellers(saw: dict[str, str], others: dict[str, Statement]) -> list[str]:
    """List the gateways that tell of Ann, where each sees what all say."""
    said = others | {gateway_id: Statement(gone={ANN: left_at}) for gateway_id, left_at in saw.items()}
    return [
        gateway_id
        for gateway_id, left_at in saw.items()
        if must_tell(gateway_id, ANN, left_at, {id: each for id, each in said.items() if id != gateway_id})
    ]


@given(departures, st.dictionaries(gateway_ids, of_ben))
def test_the_gateway_that_saw_a_student_last_tells_and_no_other(saw: dict[str, str], others: dict[str, Statement]) -> None:
    """Of two at the same moment, the one whose id is the greater."""
    assert tellers(saw, others) == [max(saw, key=lambda gateway_id: (saw[gateway_id], gateway_id))]


@given(departures, gateway_ids)
def test_nobody_tells_of_a_student_who_is_connected_to_one_of_them(saw: dict[str, str], gateway_id: str) -> None:
    assume(gateway_id not in saw)

    assert tellers(saw, {gateway_id: Statement(here={ANN: 1})}) == []


@given(departures, gateway_ids, times)
def test_what_was_before_a_telling_was_told_with_it(saw: dict[str, str], gateway_id: str, told_at: str) -> None:
    assume(gateway_id not in saw)

    told = tellers(saw, {gateway_id: Statement(told={ANN: told_at})})

    assert told == [each for each in tellers(saw, {}) if saw[each] > told_at]


def test_what_a_later_version_says_besides_is_passed_over() -> None:
    statement = Statement(here={ANN: 2}, gone={BEN: "2026-11-24T09:00:00.000Z"})

    later = json.encode({**json.decode(json.encode(statement)), "away": 1})

    assert decode_statement(later) == statement
