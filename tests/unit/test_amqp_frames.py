"""What the broker says reaches who it is for, however it comes in pieces: a channel that wants it, or aiormq."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.heartbeat import Heartbeat

from shared.amqp.channels import _Reader

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


frames = st.lists(
    st.one_of(
        st.builds(body, st.integers(1, 4), st.binary(min_size=1, max_size=40)),
        st.builds(method, st.integers(0, 4)),
        st.just(_SIGN),
    ),
    max_size=12,
)


async def read_in_pieces(data: bytes, cuts: Sequence[int], channel: Channel) -> bytes:
    """Feed a reader, and return what it leaves to aiormq, without the signs of life of its own."""
    reader = _Reader({_OURS: channel}, asyncio.get_running_loop())  # type: ignore[dict-item]
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        if start < end:
            reader.feed_data(data[start:end])
    reader.feed_eof()
    return await reader.read()


@given(frames, st.lists(st.integers(0, 600), max_size=20))
def test_frames_reach_who_they_are_for(sent: list[bytes], cuts: list[int]) -> None:
    channel = Channel()
    left = asyncio.run(read_in_pieces(b"".join(sent), cuts, channel))

    ours = [one for one in sent if one[1:3] == _OURS.to_bytes(2)]
    taken = [one for one in ours if len(one) % 2 == len(_SIGN) % 2]
    assert channel.shown == [(one[0], one[7:-1]) for one in ours]
    assert left.replace(_SIGN, b"") == b"".join(one for one in sent if one not in taken and one != _SIGN)


@pytest.mark.parametrize("cut", range(1, 30))
@pytest.mark.parametrize("said", [b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 30, b"\x01"])
async def test_what_is_no_amqp_is_left_to_aiormq(said: bytes, cut: int) -> None:
    assert await read_in_pieces(said, [cut], Channel()) == said
