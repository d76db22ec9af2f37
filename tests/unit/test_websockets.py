"""The frames of a websocket, fed by hand: what no client of ours would send, and what ends a connection."""

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.engine import websockets
from gateway.engine.departures import Departures
from gateway.engine.websockets import AT_ONCE, BUSY_SECONDS, FRAMES, PACE_SECONDS, Malformed, WebSocket, Writes

MAX_BYTES = 300_000


class Transport:
    """Keeps what is written, and how the connection was ended."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.ended: list[str] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return bool(self.ended)

    def close(self) -> None:
        self.ended.append("closed")

    def abort(self) -> None:
        self.ended.append("aborted")


class Listener:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.faults: list[str] = []

    def received(self, frame: str) -> None:
        self.heard.append(frame)

    def broken(self, error: Malformed) -> None:
        self.faults.append(str(error))

    def writable(self) -> None: ...

    def lost(self) -> None: ...


@pytest.fixture
def transport() -> Any:
    return Transport()


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
async def websocket(transport: Any, listener: Listener) -> WebSocket:
    return WebSocket(transport, listener, Departures(), Writes(), max_bytes=MAX_BYTES)


def frame(head: int, body: bytes = b"") -> bytes:
    """Write a frame as a client does, masked."""
    size = bytes([0x80 | len(body)]) if len(body) < 126 else b"\xfe" + len(body).to_bytes(2)
    mask = b"\x01\x02\x03\x04"
    return bytes([head]) + size + mask + bytes(letter ^ mask[place % 4] for place, letter in enumerate(body))


TEXT, MORE, LAST, PING = 0x81, 0x00, 0x80, 0x89


async def test_frames_may_come_in_any_pieces(websocket: WebSocket, listener: Listener) -> None:
    said = [f"4{number}" * number for number in range(1, 200, 7)]
    stream = b"".join(frame(TEXT, text.encode()) for text in said)
    for size in (1, 2, 3, 7, 100, len(stream)):
        listener.heard.clear()
        for start in range(0, len(stream), size):
            websocket.data_received(stream[start : start + size])
        assert listener.heard == said


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (b"\x81\x01a" + bytes(6), "no websocket's"),  # not masked
        (frame(0xC1, b"a"), "no websocket's"),  # compressed, which nobody agreed to
        (frame(0x82, b"a"), "binary"),
        (frame(MORE, b"a"), "out of turn"),  # the middle of nothing
        (frame(0x01, b"a") + frame(TEXT, b"b"), "out of turn"),
        (frame(0x83, b"a"), "out of turn"),
        (frame(0x09, b"a"), "control"),  # a ping in fragments
        (frame(0x8B), "control"),
        (frame(PING, b"x" * 126), "control"),
        (frame(TEXT, b"\xff"), "UTF-8"),
        (b"\x81\xff" + MAX_BYTES.to_bytes(8) + bytes(4), None),
        (b"\x81\xff" + (MAX_BYTES + 1).to_bytes(8) + bytes(4), "too large"),
    ],
)
async def test_what_is_no_frame_is_told_once(
    websocket: WebSocket, listener: Listener, stream: bytes, fault: str | None
) -> None:
    websocket.data_received(stream)
    if fault is not None:
        websocket.data_received(frame(TEXT, b"behind it") + stream)
    assert listener.heard == []
    assert len(listener.faults) == (fault is not None)
    assert fault is None or fault in listener.faults[0]


@pytest.mark.parametrize("head", [PING, 0x8A, MORE], ids=["pings", "pongs", "fragments"])
async def test_frames_that_are_no_message_have_a_bound_too(websocket: WebSocket, listener: Listener, head: int) -> None:
    """They pass no other limit, and one client could keep a gateway busy with them."""
    websocket.data_received(frame(0x01))
    websocket.data_received(frame(head) * (FRAMES + 200))
    assert listener.faults == ["sends too many frames"]


async def test_a_message_in_many_fragments_is_not_copied_for_each(websocket: WebSocket, listener: Listener) -> None:
    """That was a second of the gateway's time for one message."""
    part = b"x" * 280
    began = time.process_time()
    websocket.data_received(frame(0x01, part) + frame(MORE, part) * (FRAMES - 20) + frame(LAST, part))
    assert [len(text) for text in listener.heard] == [280 * (FRAMES - 18)]
    assert time.process_time() - began < 0.5


async def test_who_says_goodbye_and_reads_no_more_is_let_go(websocket: WebSocket, transport: Any) -> None:
    """The transport waits for what is buffered to be read, for ever."""
    websocket.data_received(frame(0x88, b"\x03\xe8"))
    assert transport.written == [b"\x88\x02\x03\xe8"]
    assert transport.ended == ["closed"]
    async with asyncio.timeout(5):
        while transport.ended[-1] != "aborted":  # noqa: ASYNC110 (a timer tells nobody)
            await asyncio.sleep(0.01)


async def test_one_that_cannot_be_written_to_holds_up_no_other(listener: Listener) -> None:
    """uvloop raises on a connection that was cut in the same turn."""

    class Cut(Transport):
        def write(self, data: bytes) -> None:
            raise RuntimeError("unable to perform operation on a closed transport")

    writes = Writes()
    cut: Any = Cut()
    well: Any = Transport()
    for transport in (cut, well):
        WebSocket(transport, listener, Departures(), writes, max_bytes=MAX_BYTES).write(b"x")
    await asyncio.sleep(0)
    assert (cut.ended, well.written) == (["aborted"], [b"x"])


async def test_a_defect_in_one_write_silences_no_other(listener: Listener) -> None:
    """The loop logs it, as it does whatever else a callback raises."""

    class Broken(Transport):
        def write(self, data: bytes) -> None:
            raise AssertionError("a defect")

    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    writes = Writes()
    broken: Any = Broken()
    well: list[Any] = [Transport() for _ in range(5)]
    first, second, *crowd, later = [WebSocket(each, listener, Departures(), writes, max_bytes=MAX_BYTES) for each in well]
    faulty = WebSocket(broken, listener, Departures(), writes, max_bytes=MAX_BYTES)
    for websocket in (first, faulty, second):
        websocket.write(b"answer")
    for websocket in crowd:
        websocket.write(b"progress", in_crowd=True)
    for _ in range(3):
        await asyncio.sleep(0)
    assert [str(error) for error in told] == ["a defect"]
    assert [each.written for each in well] == [[b"answer"], [b"answer"], [b"progress"], [b"progress"], []]
    assert broken.ended == ["aborted"], "what it was to get is missing"

    later.write(b"later")
    await asyncio.sleep(0)
    assert well[-1].written == [b"later"]


class Paced:
    """The loop, but for time, which passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.call_soon = asyncio.get_running_loop().call_soon

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        self.later.append((seconds, call))

    async def turn(self, times: int = 1) -> None:
        for _ in range(times):
            await asyncio.sleep(0)


@pytest.fixture
async def loop(monkeypatch: pytest.MonkeyPatch) -> Paced:
    loop = Paced()
    monkeypatch.setattr(websockets, "asyncio", SimpleNamespace(get_running_loop=lambda: loop))
    return loop


async def test_what_goes_to_a_crowd_holds_up_nobody_else_and_keeps_its_place(listener: Listener, loop: Paced) -> None:
    """A part of it leaves in a turn, behind what others get; and before what one of the crowd is told afterwards."""
    writes = Writes()
    transports: list[Any] = [Transport() for _ in range(3 * AT_ONCE)]
    crowd = [WebSocket(each, listener, Departures(), writes, max_bytes=MAX_BYTES) for each in transports]

    def reached() -> int:
        return sum(bool(transport.written) for transport in transports)

    for websocket in crowd:
        websocket.write(b"progress ", in_crowd=True)
    await loop.turn()
    assert reached() == AT_ONCE

    crowd[-1].write(b"answer")
    crowd[0].write(b"answer")
    await loop.turn()
    assert transports[-1].written == [b"progress answer"]
    assert transports[0].written == [b"progress ", b"answer"]
    assert reached() == 2 * AT_ONCE + 1

    crowd[1].write(b"again")
    await loop.turn(3)
    assert transports[1].written == [b"progress ", b"again"]
    assert reached() == 2 * AT_ONCE + 1, "while others are told something, the rest waits"

    [(seconds, go_on)] = loop.later
    go_on()
    assert seconds == PACE_SECONDS
    assert reached() == 3 * AT_ONCE
    assert transports[-1].written == [b"progress answer"]


async def test_where_a_turn_tells_hundreds_the_first_are_written_to_before_the_last_are_told(
    listener: Listener, loop: Paced
) -> None:
    """So that they can ask again meanwhile."""
    writes = Writes()
    transports: list[Any] = [Transport() for _ in range(2 * AT_ONCE + 1)]
    told = [WebSocket(each, listener, Departures(), writes, max_bytes=MAX_BYTES) for each in transports]
    for websocket in told:
        websocket.write(b"event ")
        websocket.write(b"answer")
    told[0].write(b"again")
    assert [transport.written for transport in transports] == [[b"event answer"]] * 2 * AT_ONCE + [[]]

    await loop.turn()
    assert transports[0].written == [b"event answer", b"again"]
    assert transports[-1].written == [b"event answer"]


async def test_a_crowd_has_its_pace_for_as_long_as_others_may_ask_again(listener: Listener, loop: Paced) -> None:
    """And the next one is told as the one before."""
    writes = Writes()
    transports: list[Any] = [Transport() for _ in range(2 * AT_ONCE)]
    crowd = [WebSocket(each, listener, Departures(), writes, max_bytes=MAX_BYTES) for each in transports]
    crowd[0].write(b"answer")
    await loop.turn()

    for number, (passed, waits) in enumerate([(0.0, True), (0.9 * BUSY_SECONDS, True), (0.2 * BUSY_SECONDS, False)], 1):
        loop.now += passed
        for websocket in crowd:
            websocket.write(b"progress", in_crowd=True)
        await loop.turn(2)
        assert bool(loop.later) is waits
        while loop.later:
            loop.later.pop()[1]()
        assert transports[-1].written == [b"progress"] * number


@pytest.mark.parametrize(("size", "turns"), [(AT_ONCE, 1), (3 * AT_ONCE, 3), (32 * AT_ONCE, 27)])
async def test_a_crowd_that_is_alone_is_told_turn_after_turn(listener: Listener, size: int, turns: int) -> None:
    """In larger parts where it is large, since the next is coming: `attendanceProgress` is told four times a second."""
    writes = Writes()
    transports: list[Any] = [Transport() for _ in range(size)]
    for transport in transports:
        WebSocket(transport, listener, Departures(), writes, max_bytes=MAX_BYTES).write(b"progress", in_crowd=True)

    for turn in range(turns):
        assert not transports[-1].written, turn
        await asyncio.sleep(0)

    assert all(transport.written for transport in transports)


async def test_one_of_a_crowd_that_is_closed_is_told_all_before_the_goodbye(websocket: WebSocket, transport: Any) -> None:
    websocket.write(b"progress ", in_crowd=True)
    websocket.close()
    assert transport.written == [b"progress \x88\x02\x03\xe8"]
