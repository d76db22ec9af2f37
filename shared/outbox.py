"""The outbox: events are written in the transaction that caused them and leave after its commit, at least once.

Each schema has one table of this shape. A row is published twice, to RabbitMQ and to the live channels, and no batch waits
for either; once RabbitMQ has it, the row goes with a later transaction. What a crash left behind is swept by any replica.
What Redis did not take is told once more when it is back, as far as this process remembers.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

import structlog
from prometheus_client import Gauge
from sqlalchemy import Column, DateTime, Index, LargeBinary, MetaData, Table, Text, Uuid, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.bus import Bus, OutgoingEvent
from shared.database import transaction
from shared.errors import Unavailable
from shared.messages import Event, EventData, ReplyTo, encode_event

log = structlog.get_logger()

SWEEP_SECONDS = 0.5
_FINISH_SECONDS = 1.0
"""How long each of what is to be finished may take."""
_SWEEP_ROWS = 200
_WAITING_ROWS = 2000
"""Beyond that a broker is waited for, so that memory is bounded."""
_UNHEARD_ROWS = 256
"""As many are told again; by the newest whoever listens notices that older ones are missing."""

AGE: Final = Gauge("rollcall_outbox_age_seconds", "How long the oldest event has waited to be published", ["schema"])


def outbox_table(metadata: MetaData) -> Table:
    """Describe the table, for the schema's metadata and its migrations."""
    return Table(
        "outbox",
        metadata,
        Column("id", Uuid, primary_key=True),
        Column("event_id", Text, nullable=False),
        Column("type", Text, nullable=False),
        Column("channels", ARRAY(Text), nullable=False),
        Column("body", LargeBinary, nullable=False),
        Column("reply_queue", Text),
        Column("correlation_id", Text),
        Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
        Index("outbox_created_at", "created_at"),
    )


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One event on its way; `channels` are full names of live channels."""

    event: OutgoingEvent
    channels: tuple[str, ...]
    id: UUID = field(default_factory=uuid4)


def outgoing(event: Event[EventData], channels: Sequence[str], reply_to: ReplyTo | None = None) -> OutboxRow:
    """Encode an event for the outbox; `reply_to` is whom its effect in another service answers."""
    return OutboxRow(OutgoingEvent(event.id, event.type, encode_event(event), reply_to), tuple(channels))


class _Line:
    """Carries rows away in order: while some are on their way the next gather, and then go together."""

    def __init__(self, carry: Callable[[Sequence[OutboxRow]], Awaitable[None]]) -> None:
        self._carry = carry
        self._waiting: list[OutboxRow] = []
        self._carried: Sequence[OutboxRow] = ()
        self._carrying: asyncio.Task[None] | None = None
        self._fewer = asyncio.Event()

    def rows(self) -> list[OutboxRow]:
        """List what is on its way, or waits."""
        return [*self._carried, *self._waiting]

    def put(self, rows: Sequence[OutboxRow]) -> None:
        """Have rows carried away behind those that wait."""
        self._waiting.extend(rows)
        if self._waiting and self._carrying is None:
            self._carrying = asyncio.create_task(self._carry_all())

    @property
    def full(self) -> bool:
        """Whether far too many wait."""
        return len(self._waiting) > _WAITING_ROWS

    async def room(self) -> None:
        """Wait while far too many wait."""
        while self.full:
            self._fewer.clear()
            await self._fewer.wait()

    async def finish(self) -> None:
        """Wait until all are carried away."""
        if self._carrying is not None:
            await asyncio.wait({self._carrying})

    async def _carry_all(self) -> None:
        try:
            # Whoever is answered in this turn of the loop waits for that, and goes first.
            await asyncio.sleep(0)
            while self._waiting:
                self._carried, self._waiting = self._waiting, []
                self._fewer.set()
                try:
                    await self._carry(self._carried)
                except Exception as error:
                    log.error("outbox.not_carried", events=len(self._carried), exc_info=error)
        finally:
            self._carried, self._carrying = (), None


Broadcast = Callable[[Sequence[OutboxRow]], Awaitable[None]]
"""Publishes rows on their live channels; raises Unavailable when Redis is away."""


class Outbox:
    """A schema's outbox; one for each process."""

    def __init__(self, schema: str, bus: Bus, broadcast: Broadcast) -> None:
        self._bus = bus
        self._broadcast = broadcast
        self._published: list[UUID] = []
        self._to_bus = _Line(self._publish)
        self._to_live = _Line(self._go_live_or_remember)
        self._age_seconds = AGE.labels(schema)
        self._unheard: deque[OutboxRow] = deque(maxlen=_UNHEARD_ROWS)
        self._schema = schema
        self._add = text(f"WITH {self.taking()} {self.adding()}")
        self._delete = text(f"DELETE FROM {schema}.outbox WHERE id = ANY(CAST(:gone AS uuid[]))")
        self._age = text(f"SELECT extract(epoch FROM clock_timestamp() - min(created_at)) FROM {schema}.outbox")
        # What nobody published within a second; rows another replica is sweeping are passed over.
        self._left = text(
            f"""SELECT id, event_id, type, channels, body, reply_queue, correlation_id FROM {schema}.outbox
            WHERE created_at < clock_timestamp() - interval '1 second' AND NOT id = ANY(CAST(:published AS uuid[]))
            ORDER BY created_at LIMIT {_SWEEP_ROWS} FOR UPDATE SKIP LOCKED"""
        )

    def taking(self) -> str:
        """Write the clause (a common table expression) that takes the published rows away."""
        return f"gone AS (DELETE FROM {self._schema}.outbox WHERE id = ANY(CAST(:gone AS uuid[])))"

    def adding(self, condition: str = "") -> str:
        """Write the statement that adds new rows; both in one spare a round trip."""
        return f"""INSERT INTO {self._schema}.outbox (id, event_id, type, channels, body, reply_queue, correlation_id)
            SELECT id, event_id, type, string_to_array(channels, ' '), body, reply_queue, correlation_id
            FROM unnest(CAST(:outbox AS uuid[]), CAST(:event_ids AS text[]), CAST(:types AS text[]),
                CAST(:channels AS text[]), CAST(:bodies AS bytea[]), CAST(:queues AS text[]), CAST(:numbers AS text[]))
            AS new (id, event_id, type, channels, body, reply_queue, correlation_id) {condition}"""

    def leaving(self, rows: Sequence[OutboxRow]) -> dict[str, Any]:
        """Say the parameters of `taking` and `adding`, for one transaction that may fail.

        Should it, the published rows stay and the sweep sends them once more, under the same event id.
        """
        gone, self._published = self._published, []
        return {
            "gone": gone,
            "outbox": [row.id for row in rows],
            "event_ids": [row.event.id for row in rows],
            "types": [row.event.type for row in rows],
            "channels": [" ".join(row.channels) for row in rows],
            "bodies": [row.event.body for row in rows],
            "queues": [row.event.reply_to and row.event.reply_to.queue for row in rows],
            "numbers": [row.event.reply_to and row.event.reply_to.correlation_id for row in rows],
        }

    async def add(self, connection: AsyncConnection, rows: Sequence[OutboxRow]) -> None:
        """Write rows in the caller's transaction; they leave with `publish` once it has committed."""
        await connection.execute(self._add, self.leaving(rows))

    async def publish(self, rows: Sequence[OutboxRow]) -> None:
        """Begin to send what was committed; never raises. What the broker does not take is left to the sweep.

        It leaves behind what this turn of the loop answers. Nobody who handles a batch waits for it, unless the broker is too
        slow by thousands.
        """
        if self._to_live.full:
            # By the newest whoever listens notices that older ones are missing.
            self._unheard.extend(rows)
        else:
            self._to_live.put(rows)
        self._to_bus.put(rows)
        await self._to_bus.room()

    async def settled(self) -> None:
        """Wait until all that was to be published is, or was given up."""
        await self._to_bus.finish()
        await self._to_live.finish()

    async def _publish(self, rows: Sequence[OutboxRow]) -> None:
        try:
            await self._bus.publish([row.event for row in rows])
            self._published.extend(row.id for row in rows)
        except Unavailable as error:
            log.warning("outbox.publish_failed", events=len(rows), reason=str(error))

    async def _go_live(self, rows: Sequence[OutboxRow]) -> bool:
        """Broadcast rows; say whether Redis took them."""
        try:
            await self._broadcast(rows)
        except Unavailable as error:
            log.warning("outbox.broadcast_failed", events=len(rows), reason=str(error))
            return False
        return True

    async def _go_live_or_remember(self, rows: Sequence[OutboxRow]) -> None:
        if not await self._go_live(rows):
            self._unheard.extend(rows)

    async def tell_unheard(self) -> None:
        """Broadcast what Redis did not take, oldest first. It may come after newer events: listeners go by its numbers."""
        rows = list(self._unheard)
        self._unheard.clear()
        if rows and not await self._go_live(rows):
            # In front of what came meanwhile: where there are too many, the newest are kept.
            self._unheard = deque([*rows, *self._unheard], maxlen=_UNHEARD_ROWS)

    async def sweep(self, engine: AsyncEngine) -> None:
        """Publish for ever what was left behind, twice a second; whoever starts this guards it."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                while await self.sweep_once(engine):
                    pass
            except Unavailable as error:
                log.warning("outbox.sweep_failed", reason=str(error))
            await self.tell_unheard()

    async def finish(self, engine: AsyncEngine) -> None:
        """Take away, before the process goes, what it has published: else another would publish it once more."""
        for finish in (self._to_bus.finish, partial(self.sweep_once, engine), self._to_live.finish):
            try:
                async with asyncio.timeout(_FINISH_SECONDS):
                    await finish()
            except (Unavailable, TimeoutError) as error:
                log.warning("outbox.not_finished", reason=str(error) or "no answer in time")

    async def sweep_once(self, engine: AsyncEngine) -> int:
        """Publish and delete one page of old rows; return how many there were."""
        async with transaction(engine) as connection:
            published, self._published = self._published, []
            if published:
                await connection.execute(self._delete, {"gone": published})
            self._age_seconds.set(float(await connection.scalar(self._age) or 0))
            # A row may have left the line since those published were taken.
            ours = [*published, *self._published, *(row.id for row in self._to_bus.rows())]
            rows = [_read(row) for row in await connection.execute(self._left, {"published": ours})]
            if rows:
                await self._bus.publish([row.event for row in rows])
                await connection.execute(self._delete, {"gone": [row.id for row in rows]})
        if rows:
            log.info("outbox.swept", events=len(rows))
            # After the commit: rows must not be locked, nor a connection held, for as long as a frozen Redis takes to fail.
            self._to_live.put(rows)
        return len(rows)


def _read(row: Any) -> OutboxRow:
    reply_to = ReplyTo(row.reply_queue, row.correlation_id) if row.reply_queue is not None else None
    return OutboxRow(OutgoingEvent(row.event_id, row.type, bytes(row.body), reply_to), tuple(row.channels), row.id)
