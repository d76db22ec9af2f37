"""Events on their way to many sockets: encoded once and put on each connection, without a task and without an await.

The library's `emit` starts a task for each recipient and waits for all of them; with some hundreds at once that starves the
loop.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, Protocol

from msgspec import json

from gateway.engine.outbound import Message

encode: Final = json.Encoder().encode
"""Writes JSON, of msgspec's structs too."""

CROWD: Final = 64
"""Who is one of more gets what all of them get behind what others get."""

Said = tuple[str, Any]
"""An event, and what it carries."""


class Connection(Protocol):
    """What leads to a client."""

    closed: bool

    def put(self, message: Message | None) -> None:
        """Send a message behind those that wait."""


class Ear(Protocol):
    """A socket that is connected here, as events reach it."""

    @property
    def namespace(self) -> str:
        """Where it is connected."""

    @property
    def link(self) -> Connection:
        """Its connection."""


def emit(said: Sequence[Said], ears: Collection[Ear]) -> None:
    """Send events, in this order and behind what was sent before, to each of these sockets whose connection is not over."""
    messages: dict[str, Message] = {}
    for ear in ears if said else ():
        link = ear.link
        if link.closed:
            continue
        message = messages.get(ear.namespace)
        if message is None:
            message = messages[ear.namespace] = as_message(said, ear.namespace, to_crowd=len(ears) > CROWD)
        link.put(message)


def as_message(said: Iterable[Said], namespace: str, *, to_crowd: bool = False) -> Message:
    """Write events for the sockets of a namespace."""
    prefix = prefix_of(namespace)
    return Message(*[b"42%b%b" % (prefix, encode(each)) for each in said], to_crowd=to_crowd)


def prefix_of(namespace: str) -> bytes:
    """Write a namespace as it stands in a packet."""
    return b"" if namespace == "/" else f"{namespace},".encode()
