"""Cutting off all sockets of a user, on every gateway: rare, and never lost in silence.

Gateways talk about it on one channel of Redis, which keeps nothing. So each says now and then that it is there, and who
asks for a cut waits until all of those have confirmed it, and all who heard it: one that is out of hearing is noticed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from uuid import uuid4

import structlog
from msgspec import Struct, json
from redis.asyncio import Redis

from shared.errors import Refused, Unavailable
from shared.live import AWAY, Listener, Names, uncancelled

log = structlog.get_logger()

BEAT_SECONDS: Final = 2.0
PEER_SECONDS: Final = 30.0
"""How long a gateway that is not heard any more, and has not said goodbye, is waited for."""
CONFIRM_SECONDS: Final = 2.0


class Here(Struct, frozen=True, tag=True):
    """A gateway is there, and hears."""

    gateway_id: str


class Gone(Struct, frozen=True, tag=True):
    """A gateway stops."""

    gateway_id: str


class Cut(Struct, frozen=True, tag=True):
    """All sockets of a user are to go."""

    request_id: str
    user_id: str


class Done(Struct, frozen=True, tag=True):
    """They are gone from one gateway; so many there were."""

    request_id: str
    gateway_id: str
    sockets: int


Word = Here | Gone | Cut | Done


@dataclass(slots=True)
class _Request:
    """Who must confirm, how many heard of it, and how many sockets each has cut who confirmed."""

    awaited: frozenset[str]
    hearers: int | None = None
    sockets: dict[str, int] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def look(self) -> None:
        """See whether all have confirmed: who is known, and who heard it without being known yet."""
        if self.hearers is not None and len(self.sockets) >= self.hearers and self.awaited <= self.sockets.keys():
            self.done.set()


class Cuts:
    """This gateway's part: it asks the others, and does what they ask."""

    def __init__(
        self,
        redis: Redis,
        names: Names,
        listener: Listener,
        gateway_id: str,
        dismiss: Callable[[str], Collection[str]],
        hang_up: Callable[[str], Awaitable[None]],
    ) -> None:
        """`dismiss` tells a user's sockets here that they must go, and lists the connection of each; `hang_up` ends one."""
        self._redis = redis
        self._channel = names.cuts_channel()
        self._listener = listener
        self._id = gateway_id
        self._dismiss = dismiss
        self._hang_up = hang_up
        self._peers: dict[str, float] = {}
        """When each other gateway was heard last."""
        self._requests: dict[str, _Request] = {}
        self._left = False
        self._last_word = asyncio.Lock()
        """On another connection to Redis, a goodbye could overtake what is being said."""
        self._dismissed: asyncio.Queue[tuple[str, Collection[str]]] = asyncio.Queue()

    async def cut(self, user_id: str) -> int:
        """Cut off all sockets of a user; return how many, once they are gone from every gateway.

        Raises Refused, `unavailable`, when not every gateway has confirmed in time. To repeat it is safe.
        """
        heard_since = asyncio.get_running_loop().time() - PEER_SECONDS
        self._peers = {peer: heard_at for peer, heard_at in self._peers.items() if heard_at >= heard_since}
        request_id, request = uuid4().hex, _Request(frozenset({self._id, *self._peers}))
        self._requests[request_id] = request
        try:
            request.hearers = await self._say(Cut(request_id, user_id))
            request.look()
            async with asyncio.timeout(CONFIRM_SECONDS):
                await request.done.wait()
        except (Unavailable, TimeoutError):
            log.warning("cuts.unconfirmed", user_id=user_id, gateways=len(request.sockets))
            raise Refused("unavailable", "Not every gateway has said that it is done; send it again") from None
        finally:
            del self._requests[request_id]
        sockets = sum(request.sockets.values())
        log.info("cuts.done", user_id=user_id, sockets=sockets)
        return sockets

    async def run(self) -> None:
        """Be there for the others, for ever; whoever starts this guards it."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat())
            tasks.create_task(self._hang_up_dismissed())

    async def leave(self) -> None:
        """Say goodbye, if anybody hears it, as the last word: nobody need wait for this gateway any more."""
        self._left = True
        with suppress(Unavailable):
            async with self._last_word:
                await self._say(Gone(self._id))

    async def _beat(self) -> None:
        while True:
            with suppress(Unavailable):  # the listener says that Redis is away, and subscribes when it is back
                await self._listener.subscribe(self._channel, self._hear)
                async with self._last_word:
                    if not self._left:
                        await self._say(Here(self._id))
            await asyncio.sleep(BEAT_SECONDS)

    async def _say(self, word: Word) -> int:
        """Tell all gateways; return how many heard it. Raises Unavailable."""
        try:
            return await uncancelled(self._publish(json.encode(word)))
        except AWAY as error:
            raise Unavailable(f"Redis: {error}") from error

    async def _publish(self, body: bytes) -> int:
        return int(await self._redis.publish(self._channel, body))

    def _hear(self, body: bytes) -> None:
        match json.decode(body, type=Word):
            case Here(gateway_id) if gateway_id != self._id:
                self._peers[gateway_id] = asyncio.get_running_loop().time()
            case Gone(gateway_id):
                self._peers.pop(gateway_id, None)
            case Cut(request_id, user_id):
                self._dismissed.put_nowait((request_id, self._dismiss(user_id)))
            case Done(request_id, gateway_id, sockets) if request := self._requests.get(request_id):
                request.sockets[gateway_id] = sockets
                request.look()

    async def _hang_up_dismissed(self) -> None:
        """End the connections of those who have been dismissed; what gathers meanwhile goes together."""
        while True:
            dismissed = [await self._dismissed.get()]
            while not self._dismissed.empty():
                dismissed.append(self._dismissed.get_nowait())
            connections = {connection for _, each in dismissed for connection in each}
            await asyncio.gather(*map(self._hang_up, connections))
            for request_id, each in dismissed:
                with suppress(Unavailable):  # who asked is told so
                    await self._say(Done(request_id, self._id, len(each)))
