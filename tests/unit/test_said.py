"""Events as said: what hundreds say in the same few words is read once, and what is no event is never taken for one."""

import pytest

from gateway.engine import server
from gateway.engine.websockets import Malformed

JOIN = '["joinAttendanceSession",{"session_id":"69a1a4951f0c2b7d9e3a5c48"}]'


def test_the_same_few_words_are_one_thing_and_others_another() -> None:
    said = server._few_words(JOIN)

    assert (said.event, said.payloads, said.size) == (
        "joinAttendanceSession",
        [{"session_id": "69a1a4951f0c2b7d9e3a5c48"}],
        len(JOIN),
    )
    assert server._few_words(JOIN[:10] + JOIN[10:]) is said
    assert server._few_words(JOIN.replace("c48", "c49")) is not said


def test_no_token_is_short_enough_to_be_remembered() -> None:
    """The shortest that can be good: a header, `sub`, `role` and `exp`, and the 43 letters of a signature."""
    shortest = "eyJhbGciOiJIUzI1NiJ9." + "x" * len("eyJzdWIiOiJhIiwicm9sZSI6ImFkbWluIiwiZXhwIjoxfQ") + "." + "s" * 43

    assert len(f'["refreshToken",{{"token":"{shortest}"}}]') > server._FEW


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", '["x"', "nonsense", '{"event":"x"}'])
def test_what_is_no_event_is_malformed_each_time(text: str) -> None:
    for _ in range(2):
        with pytest.raises(Malformed):
            server._few_words(text)
