"""What may wait for a client: a mebibyte, and besides an answer that is larger by itself."""

import timeit

import pytest

from gateway.engine.outbound import LARGE_BYTES, MAX_WAITING_BYTES, Message, Outbound


class Full(Exception):
    """It was too much."""


def full() -> None:
    raise Full


def a_packet(size: int, letter: str = "x") -> Message:
    return Message(letter.encode() * size)


@pytest.mark.parametrize("letter", ["x", "é"])
async def test_small_packets_may_wait_up_to_the_bound(letter: str) -> None:
    """Of bytes, whatever the letters."""
    queue, size = Outbound(full), 1024 // len(letter.encode())
    for _ in range(MAX_WAITING_BYTES // 1024):
        queue.put_nowait(a_packet(size, letter))
    with pytest.raises(Full):
        queue.put_nowait(a_packet(1, letter))


async def test_what_is_taken_makes_room() -> None:
    queue = Outbound(full)
    for _ in range(10_000):
        queue.put_nowait(a_packet(LARGE_BYTES))
        queue.put_nowait(a_packet(1024))
        assert await queue.get()
        assert queue.get_nowait()
    assert queue.empty()


async def test_an_event_and_its_acknowledgement_may_each_be_larger_than_the_bound_beside_all_else() -> None:
    queue = Outbound(full)
    queue.put_nowait(a_packet(MAX_WAITING_BYTES - 10))
    queue.get_nowait()
    for _ in range(1000):
        queue.put_nowait(a_packet(1024))
    for _ in range(2):
        queue.put_nowait(a_packet(3 * MAX_WAITING_BYTES))
    with pytest.raises(Full):
        queue.put_nowait(a_packet(3 * MAX_WAITING_BYTES))


async def test_what_was_too_much_is_let_go_and_nothing_waits_any_more() -> None:
    queue = Outbound(full)
    queue.put_nowait(a_packet(LARGE_BYTES * 2))
    queue.shut()
    queue.put_nowait(a_packet(3 * MAX_WAITING_BYTES))
    queue.shut()
    assert await queue.get() is None
    assert queue.empty()


async def test_what_is_put_back_comes_first_and_counts_once() -> None:
    queue = Outbound(full)
    first, second = a_packet(10), a_packet(20)
    queue.put_nowait(first)
    queue.put_nowait(second)

    queue.put_back(await queue.get() or first)

    assert [queue.get_nowait(), queue.get_nowait()] == [first, second]
    assert queue._small_bytes == 0


@pytest.mark.parametrize("size", [0, 125, 126, 127, 1023, 1024, 65_535, 65_536])
def test_a_frame_says_how_long_it_is(size: int) -> None:
    """RFC 6455, 5.2: in seven bits, or in two or eight bytes."""
    head, body = Message(b"x" * size).frames[: -size or None], Message(b"x" * size).frames[-size:] if size else b""

    assert body == b"x" * size
    if size < 126:
        assert head == bytes((0x81, size))
    else:
        marker, length = (126, 2) if size < 65_536 else (127, 8)
        assert head == bytes((0x81, marker)) + size.to_bytes(length)


def test_many_packets_are_not_copied_for_each_of_them() -> None:
    """A commit of joins is hundreds, in one message to staff: ten times as many take some ten times as long, not a hundred."""

    def seconds(packets: int) -> float:
        said = [b"x" * 400] * packets
        return min(timeit.repeat(lambda: Message(*said), number=1, repeat=5))

    assert seconds(4000) < 40 * seconds(400)
