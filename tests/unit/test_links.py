"""A link's sense of time, by a clock that the test moves: pings at the usual 25 seconds, and whom they find dead."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.engine.departures import Departures
from gateway.engine.links import PING, Link
from gateway.engine.transports import Engine
from gateway.engine.websockets import Malformed, WebSocket, Writes


class Timer:
    """One that may be cancelled."""

    def __init__(self, at: float, call: Callable[[], Any]) -> None:
        self.at = at
        self.call = call
        self.cancelled = False

    def when(self) -> float:
        return self.at

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """The part of a loop that a link uses."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[..., Any], *arguments: Any) -> Timer:
        self.timers.append(Timer(self.now + seconds, lambda: call(*arguments)))
        return self.timers[-1]

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.at <= end and not timer.cancelled]:
            timer = min(due, key=lambda timer: timer.at)
            self.timers.remove(timer)
            self.now = timer.at
            timer.call()
        self.now = end


class Transport:
    """One whose client reads as slowly as the test says."""

    def __init__(self) -> None:
        self.buffered = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def transport() -> Any:
    return Transport()


@pytest.fixture
async def link(transport: Any) -> Link:
    link = a_link()
    link._loop = Loop()  # type: ignore[assignment]
    websocket = a_websocket(link, transport)
    websocket.pause_writing()
    link.move_to(websocket)
    link.schedule_ping()
    return link


def a_link() -> Link:
    return Link(Engine(async_mode="aiohttp"), "sid", "192.0.2.1")


def a_websocket(link: Link, transport: Any) -> WebSocket:
    return WebSocket(transport, link, Departures(), Writes(), max_bytes=1000)


def clock(link: Link) -> Loop:
    loop: Any = link._loop
    assert isinstance(loop, Loop)
    return loop


def pinged(link: Link) -> bool:
    """Whether a ping waits; it is then written."""
    if link.queue.empty():
        return False
    message = link.queue.get_nowait()
    assert message is PING
    link._take_out(message)
    return True


async def test_a_ping_goes_out_each_25_s_after_the_answer_to_the_one_before(link: Link) -> None:
    for wait in (0.0, 1.0, 19.9):
        clock(link).advance(24.9)
        assert not pinged(link)
        clock(link).advance(0.1)
        assert pinged(link)
        clock(link).advance(wait)
        link.received("3")
    assert not link.closed


async def test_who_does_not_answer_within_20_s_is_cut_off(link: Link, transport: Any) -> None:
    """Also who had answered before being asked."""
    link.received("3")
    clock(link).advance(25)
    assert pinged(link)
    clock(link).advance(19.9)
    assert not link.closed
    clock(link).advance(0.1)
    assert link.closed
    assert transport.aborted


async def test_who_is_still_reading_what_was_written_before_the_ping_is_left_alone(link: Link, transport: Any) -> None:
    transport.buffered = 3_000_000
    clock(link).advance(25)
    for _ in range(10):
        transport.buffered -= 200_000
        clock(link).advance(20)
        assert not link.closed
    clock(link).advance(20)
    assert link.closed


async def test_who_has_just_read_it_all_has_the_whole_time_to_answer(link: Link, transport: Any) -> None:
    """Their last bytes left between two looks: they were cut off at the second, however soon that was."""
    transport.buffered = 3_000_000
    clock(link).advance(25 + 19)
    transport.buffered = 0
    clock(link).advance(1 + 19)
    assert not link.closed
    clock(link).advance(1)
    assert link.closed


async def test_a_connection_that_brought_a_poll_is_torn_off_only_while_it_is_answered(transport: Any) -> None:
    """Then it is the link's own; at any other time a proxy may have another client's answer on it."""
    transport.buffered = 3_000_000
    link = a_link()
    with link._answering_on(transport):
        pass
    link.cut("afterwards")
    assert not transport.aborted

    link = a_link()
    with link._answering_on(transport):
        link.cut("meanwhile")
    assert transport.aborted


async def test_who_polls_again_before_reading_the_last_answer_is_one_too_many(transport: Any) -> None:
    """Else its connection would be forgotten, with all that waits on it."""
    link = a_link()
    request: Any = SimpleNamespace(headers={})
    with link._answering_on(transport):
        transport.buffered = 3_000_000
        with pytest.raises(Malformed, match="at once"):
            await link.answer_poll(request, [])
        link.cut("so it ends")
    assert transport.aborted


async def test_a_link_ends_with_an_answer_that_cannot_be_written(transport: Any) -> None:
    link = a_link()
    with pytest.raises(ConnectionError), link._answering_on(transport):
        raise ConnectionResetError
    assert link.closed


async def test_a_frame_that_comes_as_the_link_is_cut_is_not_taken(transport: Any) -> None:
    """A client that floods and does not read is cut in the middle of both: that was a traceback for each."""
    link = a_link()
    taken: list[Any] = []
    link.server.handlers["message"] = lambda *said: taken.append(said)

    link.move_to(a_websocket(link, transport))
    link.cut("does not read")
    link.received('42["x"]')
    assert link.closed
    assert taken == []
