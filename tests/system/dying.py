"""Runs a service that goes before its replicas, and kills itself at a point where one is named; see `command`.

The points lie where a crash hurts most; the service's own code holds no trace of them.
"""

import asyncio
import os
import runpy
import signal
import sys
from collections.abc import Sequence

from shared.amqp import inbox
from shared.amqp.bus import AmqpBus
from shared.amqp.inbox import AmqpDelivery
from shared.outbox import Outbox, OutboxRow


def command(module: str, *point: str) -> list[str]:
    """Write the command that runs a service, to die at this point."""
    return [sys.executable, "-m", "tests.system.dying", module, *point]


def die() -> None:
    """Die as SIGKILL makes one die: nothing is finished, nothing is said."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_between_commit_and_event() -> None:
    """Committed, but neither published nor answered."""

    async def publish(self: Outbox, rows: Sequence[OutboxRow]) -> None:
        if rows:
            die()

    async def answer(self: AmqpBus, answers: Sequence[tuple[str, bytes]]) -> None:
        await asyncio.sleep(0)

    Outbox.publish = publish  # type: ignore[method-assign]
    AmqpBus.answer = answer  # type: ignore[method-assign]


def die_between_event_and_acknowledgement() -> None:
    """Published and answered, but the command comes again."""
    published: Outbox | None = None
    publish = Outbox.publish

    async def publish_and_remember(self: Outbox, rows: Sequence[OutboxRow]) -> None:
        nonlocal published
        await publish(self, rows)
        if rows:
            published = self

    ack = AmqpDelivery.ack

    async def ack_or_die(self: AmqpDelivery) -> None:
        if published is not None:
            await published.settled()
            die()
        await ack(self)

    Outbox.publish = publish_and_remember  # type: ignore[method-assign]
    AmqpDelivery.ack = ack_or_die  # type: ignore[method-assign]


def die_between_commit_and_answer() -> None:
    """Committed and published, but nobody was answered."""
    publish = Outbox.publish

    async def publish_and_die(self: Outbox, rows: Sequence[OutboxRow]) -> None:
        await publish(self, rows)
        if rows:
            await self.settled()
            die()

    async def answer(self: AmqpBus, answers: Sequence[tuple[str, bytes]]) -> None:
        await asyncio.sleep(0)

    Outbox.publish = publish_and_die  # type: ignore[method-assign]
    AmqpBus.answer = answer  # type: ignore[method-assign]


def die_between_answer_and_event() -> None:
    """Committed, answered and acknowledged, but nobody else was told."""

    async def carry(self: Outbox, rows: Sequence[OutboxRow]) -> None:
        die()

    # To Redis first, and not before what the turn of the loop answers is written.
    Outbox._go_live_or_remember = carry  # type: ignore[method-assign]


POINTS = {
    "between commit and event": die_between_commit_and_event,
    "between commit and answer": die_between_commit_and_answer,
    "between answer and event": die_between_answer_and_event,
    "between event and acknowledgement": die_between_event_and_acknowledgement,
}

if __name__ == "__main__":
    # The replica that runs longest may do all there is, and another would never come by: this one began before all of them.
    inbox.FAR_AHEAD_MS *= 2
    for point in sys.argv[2:]:
        POINTS[point]()
    runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
