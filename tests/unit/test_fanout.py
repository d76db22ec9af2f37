"""Events for many sockets: each gets them in order, encoded once, and who has gone holds up nobody."""

from gateway.engine.fanout import CROWD, emit
from gateway.engine.outbound import Message


class Ear:
    """A socket, and its connection."""

    def __init__(self, namespace: str = "/", *, closed: bool = False) -> None:
        self.namespace = namespace
        self.closed = closed
        self.link = self
        self.heard: list[Message] = []

    def put(self, message: Message | None) -> None:
        assert message is not None
        self.heard.append(message)


def test_everybody_hears_the_same_in_order() -> None:
    ears = [Ear(), Ear(), Ear("/attendance")]

    emit([("first", {"seq": 1}), ("second", "é")], ears)

    first, second, other = (ear.heard for ear in ears)
    assert [message.packets for message in first] == [(b'42["first",{"seq":1}]', '42["second","é"]'.encode())]
    assert [message.packets for message in other] == [
        (b'42/attendance,["first",{"seq":1}]', '42/attendance,["second","é"]'.encode())
    ]
    assert first[0] is second[0]


def test_who_has_gone_hears_nothing() -> None:
    gone, there = Ear(closed=True), Ear()

    emit([("first", {})], [gone, there])

    assert (len(gone.heard), len(there.heard)) == (0, 1)


def test_who_is_told_nothing_is_sent_nothing() -> None:
    ear = Ear()

    emit([], [ear])

    assert ear.heard == []


def test_whether_they_are_a_crowd_is_said() -> None:
    few, many = [Ear() for _ in range(CROWD)], [Ear() for _ in range(CROWD + 1)]

    for ears in (few, many):
        emit([("first", {})], ears)

    assert ([ear.heard[0].to_crowd for ear in (few[0], many[-1])]) == [False, True]
