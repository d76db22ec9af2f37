"""The parking place on the broker as an operator meets it: what no service could handle, each message to be sent back.

Whoever looks holds the messages until they have done, so one operator looks at a time: the others wait for a lock that goes
with its holder's connection.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, DeliveryError
from aiormq.exceptions import ChannelLockedResource, ChannelNotFoundEntity

from shared import topology
from shared.amqp.failures import SETTING, quiet, reaching, reason
from shared.amqp.properties import EVENT_ID_HEADER, QUEUE_HEADER, REASON_HEADER
from shared.errors import StartupFailed
from shared.link import CONNECT_TIMEOUT_SECONDS

LOCK: Final = "rollcall.parking.operator"
LOCK_SECONDS: Final = 10.0
_AGAIN_SECONDS: Final = 0.2
_CONFIRM_SECONDS: Final = 5.0
_ID_CHARACTERS: Final = 12


@dataclass(frozen=True, slots=True)
class Parked:
    """One message; `queue` is where it came from ("" when nobody knows), `id` stays the same however often it is looked at."""

    id: str
    queue: str
    reason: str
    parked_at: datetime | None
    body: bytes
    _message: AbstractIncomingMessage
    _sending: AbstractChannel

    async def send_back(self, body: bytes) -> None:
        """Put it on the queue it came from, with this body, and only when the broker has it there take it from the parking.

        Interrupted in between, it is in both places: at least once. Raises StartupFailed when the broker does not take it.
        """
        headers = {name: value for name, value in self._message.headers.items() if name == EVENT_ID_HEADER}
        copy = aio_pika.Message(
            body,
            content_type=self._message.content_type or "application/json",
            type=self._message.type,
            headers=headers,
            reply_to=self._message.reply_to,
            correlation_id=self._message.correlation_id,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        try:
            await self._sending.default_exchange.publish(copy, self.queue, mandatory=True, timeout=_CONFIRM_SECONDS)
            await self._message.ack()
        except (DeliveryError, TimeoutError, *CONNECTION_EXCEPTIONS) as error:
            raise StartupFailed(
                f"{SETTING}: the broker did not take {self.id} back, it stays parked: {reason(error)}"
            ) from error


@asynccontextmanager
async def open_parking(url: str) -> AsyncIterator["Parking"]:
    """Connect, and keep other operators waiting, for the length of the block.

    Raises StartupFailed in one line: the broker is not reachable, or somebody else does not finish.
    """
    quiet()
    with reaching(url) as address:
        connection = await aio_pika.connect(address, timeout=CONNECT_TIMEOUT_SECONDS)
    async with connection:
        with _connected():
            await _lock(connection)
        yield Parking(connection)


@contextmanager
def _connected() -> Iterator[None]:
    """Say in one line that the broker has gone; only around what is asked of it, for what the operator does fails otherwise."""
    try:
        yield
    except ChannelNotFoundEntity as error:
        raise StartupFailed(f"{SETTING}: no Rollcall has used this broker yet: {reason(error)}") from error
    except CONNECTION_EXCEPTIONS as error:
        raise StartupFailed(f"{SETTING}: the connection was lost, run it again: {reason(error)}") from error


class Parking:
    """What is parked."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    async def messages(self) -> AsyncGenerator[Parked, None]:
        """Hand out what is parked now, in no certain order; what is not sent back is parked again when this ends.

        Raises StartupFailed in one line: the broker has no parking, or the connection was lost.
        """
        with _connected():
            async with self._connection.channel(on_return_raises=True) as sending, self._connection.channel() as holding:
                queue = await holding.get_queue(topology.PARKING)
                # No more than there were: what is sent back may be parked again while we look.
                for _ in range(queue.declaration_result.message_count or 0):
                    message = await queue.get(fail=False)
                    if message is None:
                        return
                    yield _parked(message, sending)


async def _lock(connection: AbstractConnection) -> None:
    try:
        async with asyncio.timeout(LOCK_SECONDS):
            while True:
                # A refusal closes the channel; the one that gets the lock stays open as long as the connection.
                channel = await connection.channel()
                try:
                    await channel.declare_queue(LOCK, exclusive=True)
                    return
                except ChannelLockedResource:
                    await asyncio.sleep(_AGAIN_SECONDS)
    except TimeoutError as error:
        raise StartupFailed(f"somebody else has been at the parking for {LOCK_SECONDS:g} s; try again") from error


def _parked(message: AbstractIncomingMessage, sending: AbstractChannel) -> Parked:
    headers = message.headers
    queue, why, at = str(headers.get(QUEUE_HEADER, "")), str(headers.get(REASON_HEADER, "")), message.timestamp
    if QUEUE_HEADER not in headers and (death := _death(headers.get("x-death"))):
        queue, why, at = death["queue"], f"dead-lettered by the broker: {death.get('reason')}", death.get("time")
    # aiormq gives each message a number of its own; what comes from elsewhere may have none.
    identity = (message.message_id or "").encode() + b"\0" + message.body
    return Parked(
        sha256(identity).hexdigest()[:_ID_CHARACTERS],
        queue if queue in topology.WORK_QUEUES else "",
        why or "unknown",
        at if isinstance(at, datetime) else None,
        message.body,
        message,
        sending,
    )


def _death(deaths: Any) -> dict[str, Any] | None:
    """Find the last queue of ours the broker took it from; waiting for a retry counts as a death too, and is none of these."""
    entries = deaths if isinstance(deaths, list) else []
    return next((death for death in entries if isinstance(death, dict) and death.get("queue") in topology.WORK_QUEUES), None)
