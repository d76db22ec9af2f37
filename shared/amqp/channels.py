"""Where aiormq is extended, and nowhere else: messages go past it (docs/decisions/0030).

aiormq makes the connection and its channels, declares what there is on the broker and keeps up the heartbeat. What is
frequent is done here, without its queues and tasks: what is published, confirmed, sent back, delivered and acknowledged.
Frames are those of AMQP 0-9-1 (sections 2.3.5, 4.2.3 and 4.2.6); pamqp reads and writes what is in them.
"""

import asyncio
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import takewhile
from random import getrandbits
from typing import Any, Final, SupportsIndex

import pamqp.frame
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from aiormq.abc import AbstractChannel as RawChannel
from aiormq.abc import ArgumentsType, DeliveredMessage
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError, ChannelInvalidStateError, DeliveryError, PublishError
from pamqp.commands import Basic
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat
from yarl import URL

_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_FRAME: Final = struct.Struct(">BHI")
_END: Final = 0xCE
_AROUND: Final = _FRAME.size + 1
"""What a frame has around its payload."""
_RETURN, _DELIVER, _ACK, _NACK = (struct.pack(">HH", 60, method) for method in (50, 60, 80, 120))
_TAGGED: Final = struct.Struct(">QB")
_ACKNOWLEDGEMENT: Final = struct.Struct(">BHI4sQBB")
_BODY_SIZE: Final = struct.Struct(">Q")
_TOGETHER_BYTES: Final = 65536
_NO_LIMIT: Final = 1 << 31
_SIGN_OF_LIFE: Final = Heartbeat().marshal()
_SIGN_EVERY_SECONDS = 1.0


class Transport(TransportFactory):
    """One connection to the broker, as aiormq is given it: reads and writes for aiormq and, past it, for some channels."""

    def __init__(self) -> None:
        self.channels: dict[int, _Channel] = {}
        """Those whose messages go past aiormq, by their numbers."""
        self._writer: asyncio.StreamWriter | None = None
        self._turn = asyncio.Lock()
        self._unsent = bytearray()
        """What one turn of the loop writes leaves together: each write costs the broker a wake, too."""

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, for aiormq; raise AMQPConnectionError."""
        assert url.host is not None
        provider = options.pop("ssl_context_provider")
        context = await provider.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        reader = _Reader(self.channels, loop)
        try:
            transport, protocol = await loop.create_connection(
                lambda: asyncio.StreamReaderProtocol(reader), url.host, url.port or 0, ssl=context, **options
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        self._writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        return reader, self._writer

    async def room(self) -> None:
        """Wait, in turn, until more can be written; raise ConnectionError when nothing can."""
        assert self._writer is not None
        async with self._turn:
            await self._writer.drain()

    def write(self, frames: bytes) -> None:
        """Write whole frames, in one turn of the loop with asking for `room`."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent += frames
        if len(self._unsent) > _TOGETHER_BYTES:
            self._flush()

    def _flush(self) -> None:
        assert self._writer is not None
        unsent, self._unsent = self._unsent, bytearray()
        if unsent:
            try:
                self._writer.write(unsent)
            except (OSError, RuntimeError):
                # uvloop's for a connection that was cut in this very turn; who waits hears of it from aiormq.
                self._writer.transport.abort()


class _Reader(asyncio.StreamReader):
    """What the broker says, frame by frame: to the channel that wants it, and all else to aiormq, which reads here."""

    def __init__(self, channels: Mapping[int, "_Channel"], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._now = loop.time
        self._channels = channels
        self._begun = b""
        """A frame of which not all has come."""
        self._foreign = False
        """Whether what comes is no AMQP, so that aiormq may say what it is."""
        self._sign_at = 0.0

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        """Take what has come."""
        self._take(self._begun + bytes(data) if self._begun else bytes(data))

    def _take(self, data: bytes) -> None:
        if self._foreign:
            super().feed_data(data)
            return
        end, kept = 0, 0
        while len(data) - end >= _AROUND:
            start = end
            kind, number, size = _FRAME.unpack_from(data, start)
            if kind not in (_METHOD, _HEADER, _BODY, _HEARTBEAT):
                self._foreign = True
                end = len(data)
                break
            if start + size + _AROUND > len(data):
                break
            end = start + size + _AROUND
            channel = self._channels.get(number)
            if channel is not None and data[end - 1] == _END and channel.takes(kind, data[start + _FRAME.size : end - 1]):
                self._keep(data[kept:start])
                kept = end
        self._keep(data[kept:end])
        self._begun = data[end:]
        if kept and self._now() >= self._sign_at:
            # It knows by what it reads that the broker lives.
            self._sign_at = self._now() + _SIGN_EVERY_SECONDS
            super().feed_data(_SIGN_OF_LIFE)

    def _keep(self, frames: bytes) -> None:
        if frames:
            super().feed_data(frames)

    def feed_eof(self) -> None:
        """Take that nothing more comes."""
        self._keep(self._begun)
        super().feed_eof()


class _Channel:
    """A channel's messages: puts them together from their frames."""

    def __init__(self, transport: Transport, raw: RawChannel) -> None:
        self._transport = transport
        self.raw = raw
        self._method = b""
        self._header = b""
        self._parts: list[bytes] = []
        self._missing = 0
        transport.channels[raw.number] = self
        raw.closing.add_done_callback(self._on_closed)

    @property
    def closed(self) -> bool:
        """Whether nothing comes or goes by it any more."""
        return self.raw.is_closed

    def takes(self, kind: int, payload: bytes) -> bool:
        """Do what a frame says, unless it is one for aiormq: say which."""
        if kind == _METHOD:
            return self._takes_method(payload)
        if not self._method:
            return False
        if kind == _HEADER:
            self._header = payload
            (self._missing,) = _BODY_SIZE.unpack_from(payload, 4)
        else:
            self._parts.append(payload)
            self._missing -= len(payload)
        if not self._missing:
            method, header, body = self._method, self._header, b"".join(self._parts)
            self._method, self._parts = b"", []
            self._on_message(method, header, body)
        return True

    def _takes_method(self, payload: bytes) -> bool:
        raise NotImplementedError

    def _on_message(self, method: bytes, header: bytes, body: bytes) -> None:
        raise NotImplementedError

    def _on_closed(self, closing: asyncio.Future[Any]) -> None:
        if self._transport.channels.get(self.raw.number) is self:
            del self._transport.channels[self.raw.number]


class PublishingChannel(_Channel):
    """A channel to publish on, with confirms or without."""

    def __init__(self, transport: Transport, raw: RawChannel, *, confirms: bool) -> None:
        super().__init__(transport, raw)
        self._confirms = confirms
        self._published = 0
        self._unconfirmed: dict[int, asyncio.Future[None]] = {}
        """What is awaited, by tags, which ascend."""
        self._ids: dict[str, int] = {}
        """What is awaited by the ids of its messages: one that comes back is known by its id."""
        self._most = (raw.connection.connection_tune.frame_max or _NO_LIMIT) - _AROUND

    async def publish(
        self, body: bytes, *, key: str, exchange: str = "", properties: Basic.Properties, mandatory: bool = False
    ) -> None:
        """Write a message as soon as there is room and, on a channel with confirms, wait for its own.

        Messages leave in the order in which this was called, each with a fresh `message_id`. Raises ConnectionError or one of
        aiormq's errors where the channel is gone, DeliveryError where the broker refuses the message, PublishError where it
        sends it back.
        """
        await self._transport.room()
        if self.raw.is_closed:
            raise ChannelInvalidStateError("the channel is closed")
        properties.message_id = message_id = f"{getrandbits(128):032x}"
        header = pamqp.frame.marshal(ContentHeader(body_size=len(body), properties=properties), self.raw.number)
        self._transport.write(b"".join((_publish(self.raw.number, exchange, key, mandatory), header, *self._bodies(body))))
        if not self._confirms:
            return
        self._published = tag = self._published + 1
        confirmed = self._unconfirmed[tag] = asyncio.get_running_loop().create_future()
        if mandatory:
            self._ids[message_id] = tag
        try:
            await confirmed
        finally:
            self._unconfirmed.pop(tag, None)
            self._ids.pop(message_id, None)

    def _bodies(self, body: bytes) -> Iterator[bytes]:
        for start in range(0, len(body), self._most):
            part = body[start : start + self._most]
            yield _FRAME.pack(_BODY, self.raw.number, len(part))
            yield part
            yield b"\xce"

    def _takes_method(self, payload: bytes) -> bool:
        name = payload[:4]
        if name == _ACK:
            self._settle(payload, refused=False)
        elif name == _NACK:
            self._settle(payload, refused=True)
        elif name == _RETURN:
            self._method = payload
        else:
            return False
        return True

    def _settle(self, payload: bytes, *, refused: bool) -> None:
        tag, bits = _TAGGED.unpack_from(payload, 4)
        settled = takewhile(tag.__ge__, tuple(self._unconfirmed)) if bits & 1 else (tag,)
        for each in settled:
            self._tell(each, DeliveryError(None, Basic.Nack()) if refused else None)

    def _tell(self, tag: int, refusal: Exception | None) -> None:
        confirmed = self._unconfirmed.pop(tag, None)
        if confirmed is None or confirmed.done():
            return
        if refusal is None:
            confirmed.set_result(None)
        else:
            confirmed.set_exception(refusal)

    def _on_message(self, method: bytes, header: bytes, body: bytes) -> None:
        returned = Basic.Return()
        returned.unmarshal(method[4:])
        properties = _read(header)
        message = DeliveredMessage(delivery=returned, header=properties, body=body, channel=self.raw)
        # Its confirm comes behind it, and finds nobody.
        self._tell(self._ids.get(properties.properties.message_id or "", 0), PublishError(message, returned))

    def _on_closed(self, closing: asyncio.Future[Any]) -> None:
        super()._on_closed(closing)
        error = None if closing.cancelled() else closing.exception()
        for tag in tuple(self._unconfirmed):
            if isinstance(error, CONNECTION_EXCEPTIONS):
                self._tell(tag, error)
            else:
                self._tell(tag, ConnectionError("the connection was lost"))


class Delivered:
    """A message that came by a channel."""

    __slots__ = ("_header", "body", "channel", "redelivered", "tag")

    def __init__(self, channel: "ConsumingChannel", tag: int, *, redelivered: bool, header: bytes, body: bytes) -> None:
        self.channel = channel
        self.tag = tag
        self.redelivered = redelivered
        self.body = body
        self._header = header

    @property
    def properties(self) -> Basic.Properties:
        """What travelled beside the body."""
        return _read(self._header).properties

    def ack(self) -> None:
        """Acknowledge it, on the channel it came by; raise ChannelInvalidStateError when that is gone."""
        self.channel.ack(self.tag)


Receive = Callable[[Delivered], None]
"""Gets the messages of a channel in order, in the turn of the loop that brings them; must not raise."""


class ConsumingChannel(_Channel):
    """A channel to consume one queue on."""

    def __init__(self, transport: Transport, raw: RawChannel) -> None:
        super().__init__(transport, raw)
        self._receive: Receive = _forget

    async def consume(
        self, queue: str, receive: Receive, *, no_ack: bool = False, arguments: ArgumentsType | None = None
    ) -> str:
        """Begin to consume a queue; return the consumer's tag."""
        self._receive = receive
        consuming = await self.raw.basic_consume(queue, _nothing, no_ack=no_ack, arguments=arguments)
        return consuming.consumer_tag or ""

    def ack(self, tag: int) -> None:
        """Acknowledge one message."""
        if self.raw.is_closed:
            raise ChannelInvalidStateError("the channel is closed")
        self._transport.write(
            _ACKNOWLEDGEMENT.pack(_METHOD, self.raw.number, _ACKNOWLEDGEMENT.size - _AROUND, _ACK, tag, 0, _END)
        )

    def _takes_method(self, payload: bytes) -> bool:
        if payload[:4] != _DELIVER:
            return False
        self._method = payload
        return True

    def _on_message(self, method: bytes, header: bytes, body: bytes) -> None:
        # Behind the consumer's tag, a short string.
        tag, redelivered = _TAGGED.unpack_from(method, 5 + method[4])
        self._receive(Delivered(self, tag, redelivered=bool(redelivered & 1), header=header, body=body))


def _forget(delivered: Delivered) -> None:
    """Stand for what gets messages, until somebody consumes."""


async def _nothing(message: DeliveredMessage) -> None:
    """Stand for what gets messages, where aiormq is told of one: none reaches it."""


def _read(header: bytes) -> ContentHeader:
    content = ContentHeader()
    content.unmarshal(header)
    return content


@lru_cache(maxsize=1024)
def _publish(channel: int, exchange: str, key: str, mandatory: bool) -> bytes:
    return pamqp.frame.marshal(Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory), channel)
