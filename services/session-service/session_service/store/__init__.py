"""All SQL of session-service. The store owns the transaction, the rules own the decision.

Locks are taken in one order by everybody (a course before its sessions, both by id), so that two replicas
never wait for each other in a circle.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from session_service.store.courses import Courses
from session_service.store.sessions import DoneOnce, Sessions
from shared.database import transaction
from shared.outbox import Outbox, OutboxRow

__all__ = ["DoneOnce", "Store", "Unit"]


class Unit:
    """One transaction's work on courses, rosters and sessions."""

    def __init__(self, connection: AsyncConnection, outbox: Outbox) -> None:
        self.courses = Courses(connection)
        self.sessions = Sessions(connection)
        self._connection = connection
        self._outbox = outbox

    async def emit(self, events: Sequence[OutboxRow]) -> None:
        """Write events that leave with this commit."""
        if events:
            await self._outbox.add(self._connection, events)


class Store:
    """Courses, rosters and sessions in Postgres."""

    def __init__(self, engine: AsyncEngine, outbox: Outbox) -> None:
        self._engine = engine
        self._outbox = outbox

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[Unit]:
        """Run one transaction; commits at the end of the block. Raise Unavailable when Postgres is away."""
        async with transaction(self._engine) as connection:
            yield Unit(connection, self._outbox)
