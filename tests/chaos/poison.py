"""Messages that cannot be handled, put on the queues on purpose; what is parked must be these, and only these."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import aio_pika

from shared.messages import ATTENDANCE_COMMANDS, ATTENDANCE_EVENTS, SESSION_COMMANDS, Actor, Mark, MarkRecord, encode
from tests.chaos.world import World
from tests.system.rig import unique

ADMIN = Actor("poisoner", "Poisoner", "admin")
PATIENCE = timedelta(minutes=5)
DEPTH = 5000
"""Deeper than any reader of JSON goes."""


@dataclass
class Poisoner:
    """Puts poison on the queues; `somebody` names a session with a roll, and a student on it."""

    world: World
    somebody: Callable[[], tuple[str, str] | None]
    poisons: list[str] = field(default_factory=list)
    """A word out of each."""

    neighbours: list[tuple[str, str]] = field(default_factory=list)
    """(session, command_id) of sound commands in one message with a poisoned one: they must be done."""

    def poison(self, chance: random.Random) -> str:
        """Put one message on a queue; say what it was."""
        word = unique("poison")
        found = self.somebody()
        queue = ATTENDANCE_COMMANDS
        match chance.randrange(7 if found else 5):
            case 0:
                what, queue, body = "no JSON", chance.choice((ATTENDANCE_COMMANDS, SESSION_COMMANDS)), f"{{{word}".encode()
            case 1:
                what, body = "an unknown command", f'[{{"type":"{word}"}}]'.encode()
            case 2:
                what, queue, body = "no event", ATTENDANCE_EVENTS, f'{{"id":"{word}"}}'.encode()
            case 3:
                what, queue = "too deep", chance.choice((ATTENDANCE_COMMANDS, ATTENDANCE_EVENTS))
                body = b"[" * DEPTH + f'"{word}"'.encode() + b"]" * DEPTH
            case 4:
                what, queue, body = "no text", ATTENDANCE_EVENTS, f'{{"id":"{word}'.encode() + b'\xff"}'
            case 5:
                assert found is not None
                what, body = (
                    "no text, beside a sound command",
                    self._beside(found, chance, word, f'{{"type":"{word}'.encode() + b'\xff"}'),
                )
            case _:
                assert found is not None
                # Postgres cannot store it. No gateway would have let it pass.
                bad = self._mark(*found, word, remarks=f"{word}\0")
                what, body = "beside a sound command", self._beside(found, chance, word, encode(bad))
        self.world.loop.do(self._send(queue, body))
        self.poisons.append(word)
        return f"{what}, {queue}"

    def _beside(self, found: tuple[str, str], chance: random.Random, word: str, bad: bytes) -> bytes:
        """Put a bad command and a sound one into one message."""
        sound = self._mark(*found, unique("neighbour"), remarks=word.replace("poison", "sound"))
        self.neighbours.append((sound.session_id, sound.command_id))
        messages = [encode(sound), bad]
        chance.shuffle(messages)
        return b"[" + b",".join(messages) + b"]"

    def _mark(self, session_id: str, student_id: str, command_id: str, *, remarks: str) -> MarkRecord:
        now = datetime.now(UTC)
        return MarkRecord(
            command_id=command_id,
            actor=ADMIN,
            received_at=now,
            deadline=now + PATIENCE,
            session_id=session_id,
            mark=Mark(student_id=student_id, status="late", remarks=remarks),
            reason="poisoned",
        )

    async def _send(self, queue: str, body: bytes) -> None:
        """Send it for certain: the broker may be away at this moment, or full."""
        while True:
            try:
                async with await aio_pika.connect(self.world.broker.url) as connection:
                    channel = await connection.channel()
                    await channel.default_exchange.publish(aio_pika.Message(body, delivery_mode=2), queue)
                    return
            except (OSError, aio_pika.exceptions.AMQPError, asyncio.CancelledError) as error:
                # The library cancels what waits on a connection that is lost.
                if isinstance(error, asyncio.CancelledError) and (task := asyncio.current_task()) and task.cancelling():
                    raise
            await asyncio.sleep(0.5)
