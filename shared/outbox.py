"""The outbox: events are written in the transaction that caused them and leave after its commit, at least once.

Each schema has one table of this shape. A row is published twice, to RabbitMQ and to the live channels; once RabbitMQ has
it, the row goes with the next transaction. What a crash left behind is swept by any replica.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import structlog
from sqlalchemy import Column, DateTime, Index, LargeBinary, MetaData, Table, Text, Uuid, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.bus import Bus, OutgoingEvent
from shared.database import transaction
from shared.errors import Unavailable
from shared.messages import Event, EventData, ReplyTo, encode_event

log = structlog.get_logger()

SWEEP_SECONDS = 0.5
_SWEEP_ROWS = 200


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


Broadcast = Callable[[Sequence[OutboxRow]], Awaitable[None]]
"""Publishes rows on their live channels; raises Unavailable when Redis is away."""


class Outbox:
    """A schema's outbox; one for each process."""

    def __init__(self, schema: str, bus: Bus, broadcast: Broadcast) -> None:
        self._bus = bus
        self._broadcast = broadcast
        self._published: list[UUID] = []
        # Takes the published rows away and adds the new ones, in one round trip.
        self._add = text(
            f"""WITH gone AS (DELETE FROM {schema}.outbox WHERE id = ANY(CAST(:gone AS uuid[])))
            INSERT INTO {schema}.outbox (id, event_id, type, channels, body, reply_queue, correlation_id)
            SELECT id, event_id, type, string_to_array(channels, ' '), body, reply_queue, correlation_id
            FROM unnest(CAST(:ids AS uuid[]), CAST(:event_ids AS text[]), CAST(:types AS text[]),
                CAST(:channels AS text[]), CAST(:bodies AS bytea[]), CAST(:queues AS text[]), CAST(:numbers AS text[]))
            AS new (id, event_id, type, channels, body, reply_queue, correlation_id)"""
        )
        self._delete = text(f"DELETE FROM {schema}.outbox WHERE id = ANY(CAST(:gone AS uuid[]))")
        # What nobody published within a second; rows another replica is sweeping are passed over.
        self._left = text(
            f"""SELECT id, event_id, type, channels, body, reply_queue, correlation_id FROM {schema}.outbox
            WHERE created_at < clock_timestamp() - interval '1 second' AND NOT id = ANY(CAST(:published AS uuid[]))
            ORDER BY created_at LIMIT {_SWEEP_ROWS} FOR UPDATE SKIP LOCKED"""
        )

    async def add(self, connection: AsyncConnection, rows: Sequence[OutboxRow]) -> None:
        """Write rows in the caller's transaction; they leave with `publish` once it has committed."""
        # Should this transaction fail, these rows stay and the sweep sends them once more, under the same event id.
        gone, self._published = self._published, []
        await connection.execute(
            self._add,
            {
                "gone": gone,
                "ids": [row.id for row in rows],
                "event_ids": [row.event.id for row in rows],
                "types": [row.event.type for row in rows],
                "channels": [" ".join(row.channels) for row in rows],
                "bodies": [row.event.body for row in rows],
                "queues": [row.event.reply_to and row.event.reply_to.queue for row in rows],
                "numbers": [row.event.reply_to and row.event.reply_to.correlation_id for row in rows],
            },
        )

    async def publish(self, rows: Sequence[OutboxRow]) -> None:
        """Send what was committed; never raises. What the broker did not take is left to the sweep."""
        if not rows:
            return
        live = asyncio.create_task(self._go_live(rows))
        try:
            await self._bus.publish([row.event for row in rows])
            self._published.extend(row.id for row in rows)
        except Unavailable as error:
            log.warning("outbox.publish_failed", events=len(rows), reason=str(error))
        await live

    async def _go_live(self, rows: Sequence[OutboxRow]) -> None:
        try:
            await self._broadcast(rows)
        except Unavailable as error:
            log.warning("outbox.broadcast_failed", events=len(rows), reason=str(error))

    async def sweep(self, engine: AsyncEngine) -> None:
        """Publish for ever what was left behind, twice a second; whoever starts this guards it."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                while await self.sweep_once(engine):
                    pass
            except Unavailable as error:
                log.warning("outbox.sweep_failed", reason=str(error))

    async def sweep_once(self, engine: AsyncEngine) -> int:
        """Publish and delete one page of old rows; return how many there were."""
        async with transaction(engine) as connection:
            published, self._published = self._published, []
            if published:
                await connection.execute(self._delete, {"gone": published})
            rows = [_read(row) for row in await connection.execute(self._left, {"published": published})]
            if rows:
                await self._bus.publish([row.event for row in rows])
                await self._go_live(rows)
                await connection.execute(self._delete, {"gone": [row.id for row in rows]})
                log.info("outbox.swept", events=len(rows))
        return len(rows)


def _read(row: Any) -> OutboxRow:
    reply_to = ReplyTo(row.reply_queue, row.correlation_id) if row.reply_queue is not None else None
    return OutboxRow(OutgoingEvent(row.event_id, row.type, bytes(row.body), reply_to), tuple(row.channels), row.id)
