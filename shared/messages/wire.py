"""How messages are written and read: JSON, and CloudEvents 1.0 for events."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from msgspec import DecodeError, Meta, MsgspecError, Raw, Struct, json

from shared.messages.answers import Answer
from shared.messages.commands import AnyCommand, ReplyTo
from shared.messages.events import EVENT_TYPES, Event, EventData
from shared.messages.shapes import Time


class _CloudEvent(Struct, frozen=True, kw_only=True):
    """The envelope on the wire: CloudEvents 1.0, structured JSON."""

    specversion: str = "1.0"
    id: str
    source: str
    type: str
    time: Time
    sequence: Annotated[str, Meta(pattern=r"\A[0-9]{1,20}\Z")]
    datacontenttype: str = "application/json"
    data: Raw


class _Answered(Struct, frozen=True):
    """An `Answer` whose result is still to be written, so that both are in one go."""

    correlation_id: str
    result: Struct


T = TypeVar("T")

_encoder = json.Encoder()
_commands = json.Decoder(list[AnyCommand])
_items = json.Decoder(list[Raw])
_answers = json.Decoder(list[Answer])
_envelope = json.Decoder(_CloudEvent)
_results: dict[type, json.Decoder[Any]] = {}
"""One decoder for each type: to look for what one needs costs a third of reading it."""
_data = {name: json.Decoder(data) for name, data in EVENT_TYPES.items()}


def encode(message: Struct) -> bytes:
    """Write a command, an answer or a result as JSON."""
    return _encoder.encode(message)


def encode_items(messages: Sequence[Struct]) -> bytes:
    """Write messages as the items of a JSON array, without its brackets."""
    return _encoder.encode(messages)[1:-1]


def encode_result(correlation_id: str, result: Struct) -> bytes:
    """Write the answer to a command that was done; read as an `Answer`."""
    return _encoder.encode(_Answered(correlation_id, result))


def decode(kind: type[T], body: bytes | Raw) -> T:
    """Read a result as the type the asker expects; raise msgspec.MsgspecError when it is none."""
    decoder: json.Decoder[T] | None = _results.get(kind)
    if decoder is None:
        decoder = _results[kind] = json.Decoder(kind)
    return _read(decoder, body)


def decode_commands(body: bytes) -> list[AnyCommand]:
    """Read one command message (a JSON array of commands); raise msgspec.MsgspecError when it is none."""
    return _read(_commands, body)


def each_alone(body: bytes) -> list[bytes]:
    """Make of a JSON array a message for each of its items, unread; raise msgspec.MsgspecError when it is none."""
    return [b"[" + bytes(item) + b"]" for item in _read(_items, body)]


def decode_answers(body: bytes) -> list[Answer]:
    """Read one message of answers (a JSON array); raise msgspec.MsgspecError when it is none."""
    return _read(_answers, body)


def encode_event(event: Event[EventData]) -> bytes:
    """Write an event as a CloudEvent; the sequence is zero-padded so that it sorts as text."""
    return _encoder.encode(
        _CloudEvent(
            id=event.id,
            source=event.source,
            type=event.type,
            time=event.time,
            sequence=f"{event.sequence:020d}",
            data=Raw(_encoder.encode(event.data)),
        )
    )


def decode_event(body: bytes | Raw, reply_to: ReplyTo | None = None) -> Event[EventData] | None:
    """Read a CloudEvent; None for a type this version does not know. Raise msgspec.MsgspecError when malformed."""
    envelope = _read(_envelope, body)
    data = _data.get(envelope.type)
    if data is None:
        return None
    return Event(
        id=envelope.id,
        source=envelope.source,
        time=envelope.time,
        sequence=int(envelope.sequence),
        data=_read(data, envelope.data),
        reply_to=reply_to,
    )


def _read(decoder: json.Decoder[T], body: bytes | Raw) -> T:
    """Read, and say of everything that cannot be read the same: what is no UTF-8 and deep nesting have errors of their own."""
    try:
        return decoder.decode(body)
    except MsgspecError:
        raise
    except (ValueError, RecursionError) as error:
        raise DecodeError(str(error)) from error
