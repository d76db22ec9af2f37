"""Redis as the services share it: the names of keys and channels, and live events on the channel of a roll or course.

Live delivery is at most once; every event carries its numbers, so that a listener sees a gap and fetches what is missing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from shared.errors import StartupFailed, Unavailable
from shared.outbox import OutboxRow

log = structlog.get_logger()

HEARTBEAT_SECONDS = 2.0
DEAF_SECONDS = 6.0
_RECONNECT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Names:
    """Every key and channel: the deployment's prefix, a kind, and the id as the hash tag."""

    prefix: str

    def roll_channel(self, session_id: str) -> str:
        """Live events of one roll."""
        return f"{self.prefix}:live:roll:{{{session_id}}}"

    def course_channel(self, course_id: str) -> str:
        """Live events of one course and its sessions."""
        return f"{self.prefix}:live:course:{{{course_id}}}"

    def roll_head(self, session_id: str) -> str:
        """The roll's newest number: a hash with `seq`."""
        return f"{self.prefix}:roll:{{{session_id}}}:head"

    def heartbeat_channel(self, listener: str) -> str:
        """Where a listener hears itself, so that it notices a connection that has gone deaf."""
        return f"{self.prefix}:live:heartbeat:{{{listener}}}"

    def control_channel(self) -> str:
        """The channel of the Socket.IO manager's control plane."""
        return f"{self.prefix}:control"


@asynccontextmanager
async def open_redis(url: str) -> AsyncIterator[Redis]:
    """Open Redis; raise StartupFailed with one line when it is not there. Never retries by itself: INCR is not safe twice."""
    parts = urlsplit(url)
    where = f"{parts.hostname}:{parts.port or 6379}"
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=16,
            timeout=2,
            socket_timeout=2,
            socket_connect_timeout=2,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
        )
    except (TypeError, ValueError) as error:
        raise StartupFailed(f"ROLLCALL_REDIS_URL: an option is wrong: {error}") from error
    redis = Redis.from_pool(pool)
    try:
        try:
            await redis.ping()
        except TypeError as error:
            raise StartupFailed(f"ROLLCALL_REDIS_URL: an option is wrong: {error}") from error
        except (RedisError, OSError) as error:
            raise StartupFailed(f"ROLLCALL_REDIS_URL: cannot reach {where}: {error}") from error
        yield redis
    finally:
        await redis.aclose()


async def publish_live(redis: Redis, messages: Iterable[tuple[str, bytes]]) -> None:
    """Publish (channel, body) pairs in one round trip; raise Unavailable when Redis is away. At most once."""
    pipeline = redis.pipeline(transaction=False)
    for channel, body in messages:
        pipeline.publish(channel, body)
    try:
        await pipeline.execute()
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis: {error}") from error


async def broadcast(redis: Redis, rows: Sequence[OutboxRow]) -> None:
    """Publish events on their live channels; raise Unavailable when Redis is away."""
    await publish_live(redis, ((channel, row.event.body) for row in rows for channel in row.channels))


class Listener:
    """One subscription connection for all the channels a process listens to; reconnects and resubscribes by itself."""

    def __init__(
        self,
        redis: Redis,
        heartbeat_channel: str,
        on_message: Callable[[str, bytes], None],
        on_reconnected: Callable[[], Awaitable[None]],
    ) -> None:
        """`on_message` gets (channel, body) in order and must not block; `on_reconnected` follows every resubscription."""
        self._redis = redis
        self._heartbeat_channel = heartbeat_channel
        self._on_message = on_message
        self._on_reconnected = on_reconnected
        self._pubsub: PubSub | None = None
        self._channels: dict[str, asyncio.Event] = {heartbeat_channel: asyncio.Event()}
        self._heard_at = time.monotonic()

    @property
    def channels(self) -> frozenset[str]:
        """What is subscribed to, or about to be."""
        return frozenset(self._channels) - {self._heartbeat_channel}

    async def subscribe(self, channel: str) -> None:
        """Return once Redis has confirmed; repeats are free.

        Raises Unavailable at once without a connection, or when Redis is silent for 2 s: the channel is subscribed to then
        as soon as Redis is back.
        """
        ready = self._channels.get(channel)
        if ready is None:
            ready = self._channels[channel] = asyncio.Event()
            await self._tell(channel, subscribe=True)
        if self._pubsub is None:
            raise Unavailable("Redis: no connection")
        try:
            async with asyncio.timeout(2):
                await ready.wait()
        except TimeoutError:
            raise Unavailable("Redis: a subscription was not confirmed") from None

    async def unsubscribe(self, channel: str) -> None:
        """Stop listening to a channel."""
        if self._channels.pop(channel, None) is not None:
            await self._tell(channel, subscribe=False)

    async def _tell(self, channel: str, *, subscribe: bool) -> None:
        if self._pubsub is None:
            return  # the next connection subscribes to what is wanted then
        try:
            await (self._pubsub.subscribe if subscribe else self._pubsub.unsubscribe)(channel)
        except (RedisError, OSError) as error:
            log.warning("live.subscription_failed", reason=str(error))

    async def run(self) -> None:
        """Listen for ever; whoever starts this guards it."""
        connections = 0
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    pubsub = self._redis.pubsub()
                    subscribed = set(self._channels)
                    await _uncancelled(pubsub.subscribe(*subscribed))
                    self._pubsub = pubsub
                    # Whoever wanted a channel while that was on its way could not ask for it themselves.
                    if late := self._channels.keys() - subscribed:
                        await _uncancelled(pubsub.subscribe(*late))
                    self._heard_at = time.monotonic()
                    tasks.create_task(self._read(pubsub))
                    tasks.create_task(self._beat())
                    if connections:
                        tasks.create_task(self._resubscribed())
                    connections += 1
            except* (RedisError, OSError, Unavailable) as errors:
                log.warning("live.connection_lost", reason=str(errors.exceptions[0]))
            finally:
                await self._forget()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _forget(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        for channel in self._channels:
            self._channels[channel] = asyncio.Event()
        if pubsub is not None:
            try:
                await pubsub.aclose()  # type: ignore[no-untyped-call]
            except (RedisError, OSError):
                log.debug("live.close_failed")

    async def _resubscribed(self) -> None:
        await asyncio.gather(*(ready.wait() for ready in self._channels.values()))
        await self._on_reconnected()

    async def _read(self, pubsub: PubSub) -> None:
        while True:
            message = await pubsub.get_message(timeout=HEARTBEAT_SECONDS)
            if time.monotonic() - self._heard_at > DEAF_SECONDS:
                raise Unavailable("Redis: the subscription has gone deaf")
            if message is None:
                continue
            channel = message["channel"].decode()
            if message["type"] == "subscribe":
                ready = self._channels.get(channel)
                if ready is not None:
                    ready.set()
            elif message["type"] == "message":
                self._heard_at = time.monotonic()
                if channel != self._heartbeat_channel:
                    self._on_message(channel, message["data"])

    async def _beat(self) -> None:
        while True:
            await _uncancelled(publish_live(self._redis, [(self._heartbeat_channel, b"")]))
            await asyncio.sleep(HEARTBEAT_SECONDS)


async def _uncancelled(command: Coroutine[Any, Any, None]) -> None:
    """Let a Redis command finish whatever becomes of its caller.

    Cancelled in the middle of a write, redis-py on Python 3.11 may swallow the cancellation (`asyncio.wait_for`), and whoever
    waits for this task to end would wait for ever.
    """
    running = asyncio.ensure_future(command)
    # With its caller gone, nobody asks how it went.
    running.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.shield(running)
