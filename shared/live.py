"""Redis as the services share it: the names of keys and channels, and live events on the channel of a roll or course.

Live delivery is at most once; every event carries its numbers, so that a listener sees a gap and fetches what is missing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from shared.errors import StartupFailed, Unavailable

log = structlog.get_logger()
T = TypeVar("T")

HEARTBEAT_SECONDS = 2.0
DEAF_SECONDS = 6.0
CONFIRM_SECONDS = 0.25
"""How long whoever wants to hear a channel waits for it: a join must be answered in time though Redis says nothing."""
_RECONNECT_SECONDS = 0.5
_PROTOCOL = 3
"""RESP3, which Redis speaks since 6.0. With 2, watchers were not told everything after Redis had been away."""

AWAY: Final = (RedisError, OSError, RuntimeError)
"""What redis-py raises where Redis is away; for right around what Redis is asked, since programming errors raise it as well.

RuntimeError is uvloop's word for writing to a connection that was cut and has not been read from since.
"""

_OF_A_WRITER: Final = ("writelines", "drain")
"""What redis-py misses on its writer when whoever reads has found a connection cut between two steps of a write."""


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

    def presence(self, session_id: str) -> str:
        """Who is connected: a hash of each gateway's id to all that it has to say of the session."""
        return f"{self.prefix}:presence:{{{session_id}}}"

    def presence_channel(self, session_id: str) -> str:
        """Where gateways tell each other who has left, and who is back."""
        return f"{self.prefix}:live:presence:{{{session_id}}}"

    def gateway(self, gateway_id: str) -> str:
        """Lives as long as this gateway does."""
        return f"{self.prefix}:gateway:{{{gateway_id}}}"

    def gateways(self) -> str:
        """A hash of every gateway's id."""
        return f"{self.prefix}:{{gateways}}"

    def rate(self, user_id: str) -> str:
        """How much a user has asked lately: a hash with `level` and `at`."""
        return f"{self.prefix}:rate:{{{user_id}}}"

    def cuts_channel(self) -> str:
        """Where gateways tell each other whose sockets are to go."""
        return f"{self.prefix}:cuts"

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
            protocol=_PROTOCOL,
        )
    except (TypeError, ValueError) as error:
        raise StartupFailed(f"ROLLCALL_REDIS_URL: an option is wrong: {error}") from error
    if pool.connection_kwargs["protocol"] != _PROTOCOL:
        raise StartupFailed(f"ROLLCALL_REDIS_URL: an option is wrong: protocol can only be {_PROTOCOL}")
    redis = Redis.from_pool(pool)
    try:
        try:
            await redis.ping()
        except TypeError as error:
            raise StartupFailed(f"ROLLCALL_REDIS_URL: an option is wrong: {error}") from error
        except AWAY as error:
            raise StartupFailed(f"ROLLCALL_REDIS_URL: cannot reach {where}: {error}") from error
        yield redis
    finally:
        await redis.aclose()


async def publish_live(redis: Redis, messages: Iterable[tuple[str, bytes]]) -> None:
    """Publish (channel, body) pairs in one round trip; raise Unavailable when Redis is away. At most once."""
    pipeline = redis.pipeline(transaction=False)
    for channel, body in messages:
        pipeline.publish(channel, body)
    with _asking():
        await pipeline.execute()


Hear = Callable[[bytes], None]
"""Gets the messages of a channel in order, and must not block."""


Ready = Callable[[], None]
"""Is told that from now on a channel is heard, and that nobody knows what was said on it before; must not block."""


@dataclass(slots=True)
class _Subscription:
    hear: Hear
    ready: Ready
    confirmed: asyncio.Event = field(default_factory=asyncio.Event)


class Listener:
    """One subscription connection for all the channels a process listens to; reconnects and resubscribes by itself."""

    def __init__(self, redis: Redis, heartbeat_channel: str) -> None:
        self._redis = redis
        self._heartbeat_channel = heartbeat_channel
        self._after_reconnecting: list[Callable[[], Awaitable[None]]] = []
        self._pubsub: PubSub | None = None
        self._channels = {heartbeat_channel: _Subscription(lambda _: None, lambda: None)}
        self._heard_at = time.monotonic()
        self._connected_before = False

    @property
    def channels(self) -> frozenset[str]:
        """What is subscribed to, or about to be."""
        return frozenset(self._channels) - {self._heartbeat_channel}

    def hears(self, channel: str) -> bool:
        """Whether Redis has confirmed on the present connection that a channel is subscribed to."""
        subscription = self._channels.get(channel)
        return subscription is not None and self._pubsub is not None and subscription.confirmed.is_set()

    def after_reconnecting(self, catch_up: Callable[[], Awaitable[None]]) -> None:
        """Have this awaited whenever there is a connection again. What was said on a channel meanwhile, `subscribe` tells."""
        self._after_reconnecting.append(catch_up)

    async def subscribe(self, channel: str, hear: Hear, ready: Ready = lambda: None) -> None:
        """Return once Redis has confirmed; repeats are free, and the first to ask is the one who hears.

        Raises Unavailable at once without a connection, or when Redis is silent for `CONFIRM_SECONDS`: the channel is
        subscribed to then as soon as Redis is back. `ready` is called with every confirmation, so again after each
        reconnection.
        """
        wanted = self._channels.get(channel)
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                if wanted is None:
                    wanted = self._channels[channel] = _Subscription(hear, ready)
                    # On a connection that was cut this may connect anew, and go on after it was waited for.
                    await self._tell(channel, subscribe=True)
                if self._pubsub is None:
                    raise Unavailable("Redis: no connection")
                await wanted.confirmed.wait()
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
            with _asking():
                await uncancelled(_awaited(self._pubsub.subscribe if subscribe else self._pubsub.unsubscribe, channel))
        except Unavailable as error:
            log.warning("live.subscription_failed", reason=str(error))

    async def run(self) -> None:
        """Listen for ever; whoever starts this guards it, for a catching up that fails ends it with what was wrong."""
        while True:
            try:
                async with asyncio.TaskGroup() as tasks:
                    pubsub = self._redis.pubsub(push_handler_func=_handed_on)
                    subscribed = set(self._channels)
                    with _asking():
                        await uncancelled(pubsub.subscribe(*subscribed))
                    self._pubsub = pubsub
                    # Whoever wanted a channel while that was on its way could not ask for it themselves.
                    if late := self._channels.keys() - subscribed:
                        with _asking():
                            await uncancelled(pubsub.subscribe(*late))
                    self._heard_at = time.monotonic()
                    tasks.create_task(self._read(pubsub))
                    tasks.create_task(self._beat())
                    if self._connected_before:
                        tasks.create_task(self._catch_up())
                    self._connected_before = True
            except* (RedisError, OSError, Unavailable) as errors:
                log.warning("live.connection_lost", reason=str(errors.exceptions[0]))
            finally:
                await self._forget()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _forget(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        for subscription in self._channels.values():
            subscription.confirmed.clear()
        if pubsub is not None:
            try:
                await pubsub.aclose()  # type: ignore[no-untyped-call]
            except AWAY:
                log.debug("live.close_failed")

    async def _catch_up(self) -> None:
        await asyncio.gather(*(catch_up() for catch_up in self._after_reconnecting))

    async def _read(self, pubsub: PubSub) -> None:
        while True:
            with _asking():
                message = await pubsub.get_message(timeout=HEARTBEAT_SECONDS)
            if time.monotonic() - self._heard_at > DEAF_SECONDS:
                raise Unavailable("Redis: the subscription has gone deaf")
            if message is None:
                continue
            subscription = self._channels.get(message["channel"].decode())
            if subscription is not None and message["type"] == "subscribe":
                subscription.confirmed.set()
                _guarded(subscription.ready)
            elif message["type"] == "message":
                self._heard_at = time.monotonic()
                if subscription is not None:
                    _guarded(partial(subscription.hear, message["data"]))

    async def _beat(self) -> None:
        while True:
            await uncancelled(publish_live(self._redis, [(self._heartbeat_channel, b"")]))
            await asyncio.sleep(HEARTBEAT_SECONDS)


async def _handed_on(response: list[Any]) -> list[Any]:
    """Take the place of redis-py's own, which writes each response into a line for a log, whoever reads that."""
    return response


async def _awaited(ask: Callable[[str], Awaitable[None]], channel: str) -> None:
    await ask(channel)


@contextmanager
def _asking() -> Iterator[None]:
    try:
        yield
    except AWAY as error:
        raise Unavailable(f"Redis: {error}") from error
    except AttributeError as error:
        if error.name not in _OF_A_WRITER:
            raise
        raise Unavailable("Redis: the connection was cut") from error


def _guarded(tell: Callable[[], None]) -> None:
    try:
        tell()
    except Exception:
        # One message that cannot be understood must not cost the connection that everybody listens by.
        log.exception("live.message_failed")


async def uncancelled(command: Coroutine[Any, Any, T]) -> T:
    """Let a Redis command finish whatever becomes of its caller.

    Cancelled in the middle of a write, redis-py on Python 3.11 may swallow the cancellation (`asyncio.wait_for`), and whoever
    waits for this task to end would wait for ever.
    """
    running = asyncio.ensure_future(command)
    # With its caller gone, nobody asks how it went.
    running.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(running)
