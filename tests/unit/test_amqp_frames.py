"""What the broker says reaches who it is for, however it comes in pieces; what it is told leaves together, or not at all."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.heartbeat import Heartbeat

from shared.amqp.channels import ConsumingChannel, Transport, _Reader

_OURS = 3
_SIGN = Heartbeat().marshal()


class Channel:
    """Takes what is of an even length, of all that it is shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, bytes]] = []

    def takes(self, kind: int, payload: bytes) -> bool:
        self.shown.append((kind, payload))
        return len(payload) % 2 == 0


def body(channel: int, content: bytes) -> bytes:
    return frame.marshal(ContentBody(content), channel)


def method(channel: int) -> bytes:
    return frame.marshal(commands.Channel.OpenOk(), channel)


def spoilt(channel: int, content: bytes) -> bytes:
    """A frame that does not end as one does: aiormq is to complain."""
    return body(channel, content)[:-1] + b"\0"


channels = st.sampled_from((_OURS, _OURS, 1, 0))
frames = st.lists(
    st.one_of(
        st.builds(spoilt, channels, st.binary(min_size=1, max_size=4)),
        st.builds(body, channels, st.binary(min_size=1, max_size=40)),
        st.builds(method, channels),
        st.just(_SIGN),
    ),
    max_size=12,
)


async def read_in_pieces(data: bytes, cuts: Sequence[int], channel: Channel) -> bytes:
    """Feed a reader, at one moment, and return what it leaves to aiormq."""
    reader = _Reader({_OURS: channel}, asyncio.get_running_loop())  # type: ignore[dict-item]
    reader._now = lambda: 0.0
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        if start < end:
            reader.feed_data(data[start:end])
    reader.feed_eof()
    return await reader.read()


@given(frames, st.lists(st.integers(0, 600), max_size=20))
@example([body(_OURS, b"ab"), body(_OURS, b"cd")], [10])
def test_frames_reach_who_they_are_for(sent: list[bytes], cuts: list[int]) -> None:
    channel = Channel()
    left = asyncio.run(read_in_pieces(b"".join(sent), cuts, channel))

    ours = [one for one in sent if one[1:3] == _OURS.to_bytes(2) and one[-1] == _SIGN[-1]]
    taken = [one for one in ours if len(one) % 2 == len(_SIGN) % 2]
    kept = b"".join(one for one in sent if one not in taken)
    assert channel.shown == [(one[0], one[7:-1]) for one in ours]
    assert left.replace(_SIGN, b"") == kept.replace(_SIGN, b"")
    # One sign of life for all that was taken in one moment.
    assert left.count(_SIGN) == kept.count(_SIGN) + bool(taken)


@pytest.mark.parametrize("cut", range(1, 30))
@pytest.mark.parametrize("said", [b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 30, b"\x01"])
async def test_what_is_no_amqp_is_left_to_aiormq(said: bytes, cut: int) -> None:
    assert await read_in_pieces(said, [cut], Channel()) == said


class Writer:
    """Writes, while it can and has room."""

    def __init__(self, error: Exception | None = None) -> None:
        self.written: list[bytes] = []
        self.aborted = False
        self.room = asyncio.Event()
        self.room.set()
        self.transport = SimpleNamespace(abort=self._abort)
        self._error = error

    def write(self, data: bytes) -> None:
        if self._error:
            raise self._error
        self.written.append(bytes(data))

    async def drain(self) -> None:
        await self.room.wait()

    def _abort(self) -> None:
        self.aborted = True


def writing_to(writer: Any) -> Transport:
    transport = Transport()
    transport._writer = writer
    return transport


async def test_what_one_turn_writes_leaves_together_unless_it_is_much() -> None:
    writer = Writer()
    transport = writing_to(writer)
    transport.write(b"a")
    transport.write(b"b")
    assert writer.written == []
    await asyncio.sleep(0)
    transport.write(b"c")
    transport.write(much := bytes(100_000))
    transport.write(b"d")
    await asyncio.sleep(0)
    assert writer.written == [b"ab", b"c" + much, b"d"]


@pytest.mark.parametrize("error", [RuntimeError("the handler is closed"), ConnectionResetError()])
async def test_a_connection_cut_in_the_turn_that_writes_is_no_defect(error: Exception) -> None:
    """uvloop raises then, where nobody waits for it."""
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    writer = Writer(error)
    writing_to(writer).write(b"a")
    await asyncio.sleep(0)
    assert (told, writer.aborted) == ([], True)


async def test_who_has_waited_for_room_goes_before_who_comes_when_there_is_some() -> None:
    writer = Writer()
    transport = writing_to(writer)

    async def say(what: bytes) -> None:
        await transport.room()
        transport.write(what)

    writer.room.clear()
    first = asyncio.create_task(say(b"a"))
    await asyncio.sleep(0)
    writer.room.set()
    await say(b"b")
    await first
    await asyncio.sleep(0)
    assert b"".join(writer.written) == b"ab"


async def test_a_channel_that_ends_late_leaves_its_number_to_the_next() -> None:
    transport = Transport()
    ends = [asyncio.get_running_loop().create_future() for _ in range(2)]
    raws: list[Any] = [SimpleNamespace(number=_OURS, closing=end) for end in ends]
    _, following = [ConsumingChannel(transport, raw) for raw in raws]

    ends[0].set_result(None)
    await asyncio.sleep(0)
    assert transport.channels == {_OURS: following}

    ends[1].set_result(None)
    await asyncio.sleep(0)
    assert not transport.channels
