"""The subscription connection, on a real Valkey."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvloop
from redis.asyncio import Redis
from structlog.testing import capture_logs

from rollcall.servers import Server
from shared.errors import Unavailable
from shared.live import Listener, open_redis, publish_live
from shared.process import guarded
from tests.contract.room_talk import until
from tests.system.rig import unique


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[tuple[Redis, Listener]]:
    """A listener that has a connection."""
    async with open_redis(url) as redis:
        listener = Listener(redis, unique("beat"))
        async with guarded(listener.run):
            await until(lambda: listener._pubsub is not None)
            yield redis, listener


async def test_without_a_connection_nobody_waits_for_a_subscription(redis_url: str) -> None:
    """A join must not take longer because Redis is away; the channel is listened to once it is back."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    channel = unique("channel")
    async with open_redis(redis_url) as redis:
        listener = Listener(redis, unique("beat"))
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            await listener.subscribe(channel, heard.put_nowait)
        assert time.monotonic() - begun < 1

        running = asyncio.create_task(listener.run())
        async with asyncio.timeout(5):
            while await redis.pubsub_numsub(channel) != [(channel.encode(), 1)]:
                pass
            await publish_live(redis, [(channel, b"news")])
            assert await heard.get() == b"news"
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_nobody_waits_long_for_a_redis_that_says_nothing(valkey: Server) -> None:
    """A frozen one takes what is written to it and confirms nothing; what was asked for holds once it goes on."""
    ready = asyncio.Event()
    async with listening(valkey.url) as (_, listener):
        valkey.process.send_signal(signal.SIGSTOP)
        for _ in range(2):
            begun = time.monotonic()
            with pytest.raises(Unavailable):
                await listener.subscribe("late", lambda _: None, ready.set)
            assert time.monotonic() - begun < 1
        assert not ready.is_set()

        valkey.process.send_signal(signal.SIGCONT)

        async with asyncio.timeout(10):
            await ready.wait()


async def test_who_asks_first_waits_no_longer_than_others_where_it_takes_long_to_ask(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a connection that was cut the library may connect anew first, and Redis may be out of reach: seconds."""
    async with listening(redis_url) as (_, listener):
        assert listener._pubsub is not None
        reached, confirmed = asyncio.Event(), asyncio.Event()
        subscribe = listener._pubsub.subscribe

        async def late(channel: str) -> None:
            await reached.wait()
            await subscribe(channel)

        monkeypatch.setattr(listener._pubsub, "subscribe", late)
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            await listener.subscribe(unique("channel"), lambda _: None, confirmed.set)
        assert time.monotonic() - begun < 1

        reached.set()
        async with asyncio.timeout(10):
            await confirmed.wait()


async def test_each_confirmation_is_told_also_where_others_are_given_up_meanwhile(redis_url: str) -> None:
    """After a reconnection nobody knows what was said, so each channel is caught up with as soon as it is heard again."""
    told: list[str] = []
    kept, given_up = unique("kept"), unique("given-up")
    async with listening(redis_url) as (redis, listener):
        for channel in (kept, given_up):
            await listener.subscribe(channel, lambda _: None, lambda channel=channel: told.append(channel))  # type: ignore[misc]
        assert told == [kept, given_up]
        told.clear()

        await redis.client_kill_filter(_type="pubsub")
        await until(lambda: listener._pubsub is None)
        await listener.unsubscribe(given_up)

        await until(lambda: told == [kept])


async def test_a_catching_up_that_fails_is_logged_whole_and_the_listener_begins_again(redis_url: str) -> None:
    """It is a defect, not a Redis that is away; and the next connection catches up on what this one did not."""
    failures = iter([RuntimeError("dictionary changed size during iteration")])
    caught_up, heard = asyncio.Event(), asyncio.Event()

    async def catch_up() -> None:
        for failure in failures:
            raise failure
        caught_up.set()

    channel = unique("channel")
    with capture_logs() as logs:
        async with listening(redis_url) as (redis, listener):
            listener.after_reconnecting(catch_up)
            await listener.subscribe(channel, lambda _: heard.set())
            await redis.client_kill_filter(_type="pubsub")
            async with asyncio.timeout(20):
                await caught_up.wait()
                while not heard.is_set():
                    await publish_live(redis, [(channel, b"news")])
                    await asyncio.sleep(0)
    assert [entry["event"] for entry in logs if entry.get("exc_info")] == ["process.job_died"]


def test_a_channel_is_left_quietly_on_a_connection_that_was_cut(redis_url: str) -> None:
    """A chaos run cut the way to Redis as a gateway left a channel: on uvloop that was a RuntimeError nobody expected."""

    async def leave() -> None:
        channel = unique("channel")
        async with listening(redis_url) as (_, listener), asyncio.timeout(20):
            await listener.subscribe(channel, lambda _: None)
            assert listener._pubsub is not None
            connection = listener._pubsub.connection
            assert connection is not None
            writer = connection._writer
            assert writer is not None
            writer.transport.abort()
            await listener.unsubscribe(channel)
            assert channel not in listener.channels

    uvloop.run(leave())


async def test_what_is_heard_is_written_into_no_log(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """redis-py makes a line of all it is sent, unasked, which costs a gateway a fifteenth of its CPU."""
    caplog.set_level("DEBUG", logger="push_response")
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    channel = unique("channel")
    async with listening(redis_url) as (redis, listener):
        await listener.subscribe(channel, heard.put_nowait)
        await publish_live(redis, [(channel, b"news")])
        assert await heard.get() == b"news"
    assert not [record for record in caplog.records if record.name == "push_response"]
