"""Who leaves together is seen off a few at a time, in order, and each once."""

import asyncio
import itertools

import pytest

from gateway.engine.departures import TOGETHER, Connection, Departures


class Guest(asyncio.Protocol):
    """Notes its end."""

    def __init__(self, name: int, gone: list[int]) -> None:
        self.name = name
        self.gone = gone

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.append(self.name)
        if self.name == 0:
            raise ZeroDivisionError("one that fails holds up nobody")


class Line(asyncio.Transport):
    """A transport that knows only how to close."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.BaseProtocol | None = None

    def close(self) -> None:
        assert isinstance(self.protocol, asyncio.Protocol)
        self.protocol.connection_lost(None)


@pytest.mark.parametrize("by", ["loss", "end of file"])
async def test_a_crowd_is_seen_off_a_few_in_each_turn_of_the_loop(by: str) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    departures, gone = Departures(), list[int]()
    for number in range(3 * TOGETHER):
        protocol, line = Connection(Guest(number, gone), departures), Line()
        line.protocol = protocol
        protocol.connection_made(line)
        if by == "loss":
            protocol.connection_lost(None)
        else:
            # The transport is to stay until it is closed in its turn.
            assert protocol.eof_received()

    counts = [0]
    while counts[-1] < 3 * TOGETHER:
        await asyncio.sleep(0)
        counts.append(len(gone))

    assert gone == list(range(3 * TOGETHER))
    assert max(after - before for before, after in itertools.pairwise(counts)) <= TOGETHER
