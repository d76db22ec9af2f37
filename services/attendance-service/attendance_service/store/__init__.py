"""All SQL of attendance-service: rolls, records, history. The store owns the transaction, the rules own the decision.

A unit of work locks the rolls it is about, loads only the records touched, collects the steps that the rules decide, and
writes them in array statements: the number of round trips does not grow with the batch. An attempt does as much in two round
trips, where nobody else is at the same rolls. A snapshot reads and locks nothing.
"""

from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from attendance_service.store.attempts import Attempt, Attempts
from attendance_service.store.drafts import Draft
from attendance_service.store.known import Known
from attendance_service.store.snapshots import Line, Snapshot
from attendance_service.store.units import Unit
from shared.database import Connection, driver, transaction
from shared.outbox import Outbox

__all__ = ["Draft", "Line", "RollStore", "Snapshot", "Unit"]

T = TypeVar("T")

LOCKED_BATCHES = 16
"""How many batches lock their rolls at once after an attempt was in vain: two replicas at one roll would only waste work."""


class RollStore:
    """The rolls in Postgres."""

    def __init__(self, engine: AsyncEngine, outbox: Outbox) -> None:
        self._engine = engine
        self._outbox = outbox
        self._attempts = Attempts(outbox)
        self._known = Known()
        self._locking = 0

    async def decide(self, keys: Collection[tuple[str, str]], decide: Callable[[Draft], T]) -> T:
        """Have records decided upon, named by (session id, student id), and commit the steps taken, with their events.

        `decide` only changes records, and may be called up to three times: on what is known here, on what is read without a
        lock, and under the rolls' locks, as long as the rolls are not as they were when it comes to writing. Raises as
        `locked` does.
        """
        if self._locking:
            self._locking -= 1
        else:
            async with driver(self._engine) as connection:
                known = self._known.attempt(keys)
                if known is not None:
                    decided = decide(known)
                    # What changes nothing is not compared with anything: it must be decided on what there is now.
                    if known.rests_on_itself() and await self._written(connection, known):
                        return decided
                attempt = await self._attempts.read(connection, keys, self._known.to_read_whole({id for id, _ in keys}))
                self._known.met(attempt.rolls.values())
                decided = decide(attempt)
                if await self._written(connection, attempt):
                    return decided
            self._locking = LOCKED_BATCHES
        async with self.locked(keys) as unit:
            return decide(unit)

    async def _written(self, connection: Connection, attempt: Attempt) -> bool:
        """Write an attempt, and know what it has made of its rolls; forget them where it comes to nothing."""
        versions = None
        try:
            versions = await self._attempts.write(connection, attempt)
        finally:
            if versions is None:
                self._known.contested(attempt.rolls)
            else:
                self._known.keep(attempt, versions)
        return versions is not None

    @asynccontextmanager
    async def locked(self, keys: Iterable[tuple[str, str | None]]) -> AsyncIterator[Unit]:
        """Run one transaction over the rolls and records named by (session id, student id or None).

        Rolls and records that do not exist are simply not in the unit. Commits at the end of the block, steps and events
        together; raises Unavailable when Postgres is away or a lock was not had in time.
        """
        wanted = set(keys)
        async with transaction(self._engine) as connection:
            unit = Unit(connection)
            await unit.lock({session_id for session_id, _ in wanted})
            await unit.load({(session_id, student_id) for session_id, student_id in wanted if student_id is not None})
            yield unit
            await unit.write()
            if unit.events:
                await self._outbox.add(connection, unit.events)
        self._known.written(unit)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """Read for the length of the block, everything as it stood at one moment."""
        async with transaction(self._engine) as connection:
            await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            yield Snapshot(connection)
