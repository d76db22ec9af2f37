"""What exists on the broker, as data: exchanges, queues with their arguments, bindings. No I/O and no library here.

Every process declares all of it but the short ways each time it connects, so that nobody has to start first; those are
declared by whoever sends or consumes there. The arguments of a queue that
exists can never be changed: a new wish is a new queue. Everything here works on RabbitMQ 3.10 to 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

from shared.bus import RETRY_SECONDS
from shared.messages import (
    ATTENDANCE_COMMANDS,
    ATTENDANCE_EVENTS,
    EVENT_QUEUES,
    SESSION_COMMANDS,
    SESSION_EVENTS,
)

COMMANDS: Final = "rollcall.commands"
EVENTS: Final = "rollcall.events"
DEAD: Final = "rollcall.dead"
PARKING: Final = "rollcall.parking"
STREAM: Final = "rollcall.events.stream"

COMMAND_KEYS: Final = {SESSION_COMMANDS: "session", ATTENDANCE_COMMANDS: "attendance"}
"""The routing key on `rollcall.commands` of each queue of commands."""

EXPRESS: Final = {queue: f"{queue}.express" for queue in COMMAND_KEYS}
"""The short way beside each queue of commands, past the disk (0026); where it cannot be had, it is done without."""

EXPRESS_ARGUMENTS: Final[Mapping[str, "Argument"]] = {"x-queue-type": "classic"}
"""Of each of these: no quorum queue, it lives on one node and is away with it."""

EXPRESS_AGE_MS: Final = 60_000
"""How long a message stays in one of these; every command in it is too late sooner. No queue of commands counts its
deliveries here: without an end, one that kills whoever reads it would come back for ever."""

WORK_QUEUES: Final = (SESSION_COMMANDS, ATTENDANCE_COMMANDS, SESSION_EVENTS, ATTENDANCE_EVENTS)
"""The queues that services empty; each has a parking place and a waiting room for retries."""

_DELIVERY_LIMIT = 50
_NO_DELIVERY_LIMIT = 2**31 - 1
_STREAM_MAX_AGE = "30D"
# Age is looked at when a segment is full. The default, 500 MB, would keep a quiet campus's events for years.
_STREAM_SEGMENT_BYTES = 20_000_000
# Without both, dead-lettering loses what is on its way when the node goes.
_AT_LEAST_ONCE = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}

Argument = str | int


@dataclass(frozen=True, slots=True)
class Exchange:
    """One durable exchange."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Queue:
    """One durable queue; `bindings` are pairs of exchange and key, besides its own name on the default exchange."""

    name: str
    arguments: dict[str, Argument]
    bindings: tuple[tuple[str, str], ...] = field(default=())


EXCHANGES: Final = (Exchange(COMMANDS, "direct"), Exchange(EVENTS, "topic"), Exchange(DEAD, "fanout"))


def retry_queue(queue: str) -> str:
    """Name the waiting room of a queue: what enters it is back in the queue after `RETRY_SECONDS`."""
    return f"{queue}.retry"


def queues_for(event_type: str) -> tuple[str, ...]:
    """Name the services' queues that receive events of this type."""
    return tuple(
        queue for queue, patterns in EVENT_QUEUES.items() if any(_matches(pattern, event_type) for pattern in patterns)
    )


@cache
def _matches(pattern: str, event_type: str) -> bool:
    """Compare as a topic exchange does; of its wildcards only `*`, one word, is in use."""
    wanted, words = pattern.split("."), event_type.split(".")
    return len(wanted) == len(words) and all(a in ("*", b) for a, b in zip(wanted, words, strict=True))


def _work_queue(name: str) -> Queue:
    key = COMMAND_KEYS.get(name)
    bindings = ((COMMANDS, key),) if key else tuple((EVENTS, pattern) for pattern in EVENT_QUEUES[name])
    # The limit is spelled out for events too: RabbitMQ 4 has one of 20 by default, and drops what exceeds it.
    return Queue(name, {**_quorum(_DELIVERY_LIMIT), "x-dead-letter-exchange": DEAD, **_AT_LEAST_ONCE}, bindings)


def _waiting_room(name: str) -> Queue:
    return Queue(
        retry_queue(name),
        {
            **_quorum(_NO_DELIVERY_LIMIT),
            "x-message-ttl": int(RETRY_SECONDS * 1000),
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": name,
            **_AT_LEAST_ONCE,
        },
    )


def _quorum(delivery_limit: int) -> dict[str, Argument]:
    return {"x-queue-type": "quorum", "x-delivery-limit": delivery_limit}


QUEUES: Final = (
    # Looking at what is parked counts as a delivery: with any low limit, looking often enough would delete it.
    Queue(PARKING, _quorum(_NO_DELIVERY_LIMIT), ((DEAD, ""),)),
    *(_work_queue(name) for name in WORK_QUEUES),
    *(_waiting_room(name) for name in WORK_QUEUES),
    Queue(
        STREAM,
        {
            "x-queue-type": "stream",
            "x-max-age": _STREAM_MAX_AGE,
            "x-stream-max-segment-size-bytes": _STREAM_SEGMENT_BYTES,
        },
        ((EVENTS, "#"),),
    ),
)
