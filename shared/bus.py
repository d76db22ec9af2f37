"""The bus between processes, as an interface: commands to a service's queue, answers to one gateway, events to whoever cares.

A bus moves bytes and knows no message. Two implementations, `amqp.bus.AmqpBus` (RabbitMQ) and `memory_bus.MemoryBus`
(one process), pass the same suite in tests/contract/test_bus.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.messages import ReplyTo

COMMANDS_PER_MESSAGE = 500
SEND_TIMEOUT_SECONDS = 2.0
RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class OutgoingEvent:
    """An encoded event ready to leave: `id` is the event's, `type` the routing key, `reply_to` whom its effect answers."""

    id: str
    type: str
    body: bytes
    reply_to: ReplyTo | None = None


class Delivery(Protocol):
    """One message taken from a queue. Exactly one of `ack` and `retry` ends it; unended, it is delivered again."""

    @property
    def body(self) -> bytes:
        """What was sent: a JSON array of commands, or one event."""

    @property
    def reply_to(self) -> ReplyTo | None:
        """Whom an event's effect answers; commands carry their own."""

    @property
    def redelivered(self) -> bool:
        """Whether it has been handed out before, to anybody, and was not ended; what comes again by `retry` is new."""

    async def ack(self) -> None:
        """Say that it is done. May be lost with the connection: then the message comes once more."""

    async def retry(self) -> None:
        """Have it delivered again after `RETRY_SECONDS`, to any replica; what waits behind it is not held up."""


class Inbox(Protocol):
    """A consumer of one queue; replicas of a service compete for its messages."""

    async def take(self, limit: int) -> list[Delivery]:
        """Wait for at least one message, then hand over what is there, at most `limit`, in order of arrival.

        Never returns an empty list. Deliveries of a lost connection are handed out again after the reconnect.
        """

    async def park(self, body: bytes, reason: str) -> None:
        """Put what cannot be handled on `rollcall.parking`, durably, with its queue of origin and the reason.

        Raises Unavailable when the broker does not confirm it: then the delivery must not be acknowledged.
        """

    async def stand_back(self, back: bool) -> None:
        """Take from now on only what no other replica takes; or be as before. Never raises, and a repeat does nothing."""


class Bus(Protocol):
    """Everything a process may ask of the broker. Raises `errors.Unavailable` when the broker does not confirm."""

    def send_soon(self, queue: str, commands: bytes, count: int, settled: Callable[[str | None], None]) -> None:
        """Begin to send up to `COMMANDS_PER_MESSAGE` encoded commands, with commas between them; raise nothing.

        They stay together, and go out at once when nothing to that queue is unconfirmed; what comes meanwhile gathers and
        leaves as one message of up to `COMMANDS_PER_MESSAGE`, or about 1 MiB, in order.

        `settled` is called once for all of them, in a later turn of the loop, and must not raise: with None when the broker
        has them, else with why they are `unavailable`. That is after `SEND_TIMEOUT_SECONDS`, at once where the queue is
        missing; the commands may have arrived all the same. What a broker has goes with it, where nobody has done it yet:
        who asks waits for an answer, and asks again.
        """

    async def receive_answers(self, on_answers: Callable[[bytes], None]) -> str:
        """Begin to receive answers and return the queue name for `ReplyTo.queue`; called once.

        `on_answers` gets a JSON array of answers, quickly and without I/O. Answers may be lost. The name may change with
        the connection: read `answer_queue` for each command.
        """

    @property
    def answer_queue(self) -> str:
        """This process's current queue of answers."""

    async def answer(self, answers: Sequence[tuple[str, bytes]]) -> None:
        """Send encoded answers to the queues named; those for one queue travel in few messages, in order.

        At most once: an answer for a queue that is gone vanishes, and a broker that is away is logged, never raised.
        """

    async def publish(self, events: Sequence[OutgoingEvent]) -> None:
        """Publish events on `rollcall.events`; return once the broker has all of them safely, else raise Unavailable.

        Each reaches every queue whose patterns match its type, or none where nobody cares. In order as given.
        """

    def inbox(self, queue: str) -> Inbox:
        """Consume a queue of commands or events; at most one inbox for each queue in a process."""

    @property
    def connected(self) -> bool:
        """Whether the broker is reachable now (readiness)."""

    async def close(self) -> None:
        """Stop consuming, then close; what is unacknowledged is delivered to somebody else."""
