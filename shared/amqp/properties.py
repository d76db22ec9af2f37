"""What travels beside the body of each message: its AMQP properties, and the names of our headers among them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from pamqp.commands import Basic
from pamqp.common import FieldValue

from shared.messages import ReplyTo

EVENT_ID_HEADER: Final = "x-rollcall-event-id"
QUEUE_HEADER: Final = "x-rollcall-queue"
REASON_HEADER: Final = "x-rollcall-reason"

TRANSIENT: Final = 1
_PERSISTENT: Final = 2


def message_properties(
    *,
    content_type: str = "application/json",
    kind: str | None = None,
    headers: Mapping[str, FieldValue] | None = None,
    reply_to: ReplyTo | None = None,
    delivery_mode: int = _PERSISTENT,
    timestamp: datetime | None = None,
    expires_after_ms: int | None = None,
) -> Basic.Properties:
    """Describe a message. Who publishes it adds a fresh message_id, and knows by it what comes back: leave that alone."""
    return Basic.Properties(
        content_type=content_type,
        delivery_mode=delivery_mode,
        timestamp=timestamp,
        expiration=None if expires_after_ms is None else str(expires_after_ms),
        headers=dict(headers) if headers else None,
        message_type=kind,
        reply_to=reply_to.queue if reply_to else None,
        correlation_id=reply_to.correlation_id if reply_to else None,
    )
