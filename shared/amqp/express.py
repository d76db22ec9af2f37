"""The short way of commands beside each of their queues, past the broker's disk (docs/decisions/0026).

It is a way more, and never the only one: it lives on one node of the broker, and where that freezes, one message for each queue
fails, after `OFFER_SECONDS`. So it has a connection of its own, on which anything may hang.
"""

import asyncio
from time import monotonic
from typing import Final

import structlog
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelClosed, DeliveryError
from yarl import URL

from shared import topology
from shared.amqp.channels import PublishingChannel
from shared.amqp.failures import own_cancellations, reason
from shared.amqp.lines import Consumer, Consuming
from shared.amqp.properties import TRANSIENT, message_properties
from shared.errors import Unavailable

log = structlog.get_logger()

OFFER_SECONDS: Final = 1.0
"""How long a confirm is waited for here."""
_LOOK_AGAIN_SECONDS = 0.5
_SHORTEST_REST_SECONDS = 1.0
_LONGEST_REST_SECONDS = 30.0


class Express(Consuming):
    """The connection of the short way: a gateway sends by it, a service consumes it."""

    def __init__(self, url: URL) -> None:
        super().__init__(url, "express")
        self._confirmed: PublishingChannel | None = None
        self._asked_for: set[str] = set()
        self._consumed: set[str] = set()
        self._refused: set[str] = set()
        """What could not be had when it was last asked for: that is said once."""
        self._looked_at = -_LOOK_AGAIN_SECONDS
        self._rest_seconds = _SHORTEST_REST_SECONDS
        """For how long it is not used where it confirms nothing: a broker may answer looks, and take no message."""
        self._rests_until = 0.0

    def begin(self) -> None:
        """Connect in the background: nobody waits for this line."""
        self._link.begin()

    async def offer(self, queue: str, body: bytes) -> bool:
        """Publish commands for a queue, if somebody is known to consume them here; say whether the broker has them.

        Raises Unavailable when that is not known within `OFFER_SECONDS`: they may be done, so they are not sent once more.
        """
        express = topology.EXPRESS.get(queue)
        if express is None:
            return False
        if express not in self._consumed:
            self._asked_for.add(express)
            self._look_again(express)
            return False
        if self._confirmed is None or self._confirmed.closed:
            return False
        lose = self.lose
        properties = message_properties(delivery_mode=TRANSIENT, expires_after_ms=topology.EXPRESS_AGE_MS)
        try:
            async with asyncio.timeout(OFFER_SECONDS):
                await self._confirmed.publish(body, key=express, properties=properties, mandatory=True)
        except DeliveryError:
            self._consumed.discard(express)
            return False
        except TimeoutError as error:
            self._rest()
            lose("nothing is confirmed")
            raise Unavailable(f"the broker did not confirm within {OFFER_SECONDS:g} s") from error
        except CONNECTION_EXCEPTIONS as error:
            raise Unavailable(f"the broker did not confirm: {reason(error)}") from error
        self._rest_seconds = _SHORTEST_REST_SECONDS
        return True

    def _rest(self) -> None:
        """Leave it unused for a while. What the other queue's commands find out at the same time counts no further."""
        if monotonic() < self._rests_until:
            return
        self._consumed.clear()
        self._rests_until = monotonic() + self._rest_seconds
        self._rest_seconds = min(2 * self._rest_seconds, _LONGEST_REST_SECONDS)

    async def _set_up(self) -> None:
        self._confirmed = await self.publishing(confirms=True)
        await self._look_at_all()
        await super()._set_up()

    def _torn_down(self) -> None:
        super()._torn_down()
        self._confirmed = None
        self._consumed.clear()

    async def _probe(self) -> None:
        with own_cancellations():
            await self._look_at_all()
            await self._start_missing()
        await super()._probe()

    async def _start(self, consumer: Consumer) -> None:
        if await self._consumers_of(consumer.queue) is not None:
            await super()._start(consumer)

    def _look_again(self, express: str) -> None:
        now = monotonic()
        due = max(self._looked_at + _LOOK_AGAIN_SECONDS, self._rests_until)
        if self.up and not self._doing and express not in self._refused and now >= due:
            self._looked_at = now
            self._begin(self._look(express), "looking")

    async def _look_at_all(self) -> None:
        # Somebody may ask for another meanwhile.
        for express in tuple(self._asked_for):
            await self._look(express)

    async def _look(self, express: str) -> None:
        if await self._consumers_of(express) and monotonic() >= self._rests_until:
            self._consumed.add(express)
        else:
            self._consumed.discard(express)

    async def _consumers_of(self, express: str) -> int | None:
        """Declare a queue, and tell how many consume it; None where it cannot be had, ConnectionError where nothing can."""
        if self._connection is None:
            raise ConnectionError("no connection")
        try:
            # On a channel of its own, which a refusal closes.
            async with self._connection.channel(publisher_confirms=False) as channel:
                raw = await channel.get_underlay_channel()
                declared = await raw.queue_declare(express, durable=True, arguments=dict(topology.EXPRESS_ARGUMENTS))
        except ChannelClosed as error:
            if express not in self._refused:
                self._refused.add(express)
                log.warning("bus.no_express", queue=express, reason=reason(error))
            return None
        self._refused.discard(express)
        return declared.consumer_count
