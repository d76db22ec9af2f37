"""Events as said: what hundreds say in the same few words is read once, and what may be a secret is not remembered."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.engine import server
from gateway.engine.links import Link
from gateway.engine.server import Reply, Server, Spoken
from gateway.engine.websockets import Malformed

JOIN = '["joinAttendanceSession",{"session_id":"69a1a4951f0c2b7d9e3a5c48"}]'
SHORTEST_TOKEN = "eyJhbGciOiJIUzI1NiJ9." + "x" * len("eyJzdWIiOiJhIiwicm9sZSI6ImFkbWluIiwiZXhwIjoxfQ") + "." + "s" * 43
"""Of those that can be good: an algorithm, `sub`, `role` and `exp`, and a signature of 32 bytes."""
REFRESH = f'["refreshToken",{{"token":"{SHORTEST_TOKEN}"}}]'


class Hearing:
    """A namespace that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Spoken] = []

    def begin(self, reply: Reply, spoken: Spoken) -> None:
        self.heard.append(spoken)


def said(*texts: str) -> list[Spoken]:
    """Have clients say something, each on a link of their own; return what their namespace hears."""
    hearing = Hearing()
    library = object.__new__(Server)
    library.namespace_handlers = {"/": hearing}
    for text in texts:
        link = SimpleNamespace(within_rate=lambda: True, under_way=0, namespaces={"/": "sid"})
        library._take_event(cast(Link, link), "/", "", text)
    return hearing.heard


def test_the_same_few_words_are_one_thing_and_others_another() -> None:
    first, second, other = said(JOIN, JOIN[:10] + JOIN[10:], JOIN.replace("c48", "c49"))

    payload: dict[str, Any] = {"session_id": "69a1a4951f0c2b7d9e3a5c48"}
    assert (first.event, first.payloads, first.size) == ("joinAttendanceSession", [payload], len(JOIN))
    assert second is first
    assert other.payloads == [{"session_id": "69a1a4951f0c2b7d9e3a5c49"}]


def test_no_token_is_remembered() -> None:
    before = server._few_words.cache_info().currsize

    first, second = said(REFRESH, REFRESH)

    assert first is not second
    assert first.payloads == second.payloads == [{"token": SHORTEST_TOKEN}]
    assert server._few_words.cache_info().currsize == before


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", '["x"', "nonsense", '{"event":"x"}'])
def test_what_is_no_event_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        said(text)
