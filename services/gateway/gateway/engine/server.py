"""Where python-socketio is extended, as subclasses: nothing here knows attendance. `transports.py` does so for Engine.IO."""

import json
import logging
import re
import time
from collections.abc import Awaitable, Iterator
from functools import lru_cache
from typing import Any, Final, Protocol

import msgspec
import socketio
from msgspec import Struct
from socketio import packet

from gateway.engine.fanout import as_message, encode, prefix_of
from gateway.engine.links import REFUSED_SECONDS, Link
from gateway.engine.outbound import Message
from gateway.engine.transports import Engine
from gateway.engine.websockets import Malformed
from gateway.rates import Complaints
from shared.errors import Refused

NAMESPACES: Final = ("/", "/attendance")
PATH: Final = "/socket.io/"
MAX_UNDER_WAY: Final = 256
"""How many commands of one link may be under way at once."""
BUSY_MS: Final = 1000
_FEW: Final = 128
"""How many characters an event has that others may say as well. No good token is as short as that: none is remembered."""
_REMEMBERED: Final = 512
_LINES: Final = (20, 0.5)
_PREFIXES: Final = {namespace: prefix_of(namespace) for namespace in NAMESPACES}
_NO_ENVIRON: Final[dict[str, Any]] = {}

# The kind, the namespace without its query, and the number that an acknowledgement is to bear. Binary kinds are none.
_HEADER: Final = re.compile(
    r"(?P<kind>[0-4])(?:(?P<namespace>/[^,?]{0,100})(?:\?[^,]{0,1000})?(?:,|\Z))?(?P<number>[0-9]{0,15})"
)
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_NAME: Final = re.compile(r'\[\s*"([^"\\]{0,64})')


class Json:
    """JSON for the library's packets, which may then carry msgspec structs."""

    @staticmethod
    def dumps(data: Any, **_: Any) -> str:
        """Write JSON."""
        return encode(data).decode()

    @staticmethod
    def loads(text: str | bytes, **_: Any) -> Any:
        """Read JSON; raise ValueError (msgspec.DecodeError) for anything else."""
        return msgspec.json.decode(text)


class Manager(socketio.AsyncRedisManager):  # type: ignore[misc]
    """Which sockets are connected here. Who listens to what is not its business: no room of the library's is used."""

    def emit_here(self, event: str, data: Any, sid: str, namespace: str) -> None:
        """Send an event to one socket; to one that has gone, nothing."""
        link = self.server.eio.sockets.get(self.eio_sid_from_sid(sid, namespace))
        if link is not None and not link.closed:
            link.put(as_message([(event, data)], namespace))

    def get_participants(self, namespace: str, room: str | None) -> Iterator[tuple[str, str]]:
        """As the library does; every socket is alone in the room of its own name, which takes no memory."""
        eio_sid = self.eio_sid_from_sid(room, namespace)
        if room is not None and eio_sid is not None:
            return iter([(room, eio_sid)])
        participants: Iterator[tuple[str, str]] = super().get_participants(namespace, room)
        return participants

    def basic_enter_room(self, sid: str, namespace: str, room: str | None, eio_sid: str | None = None) -> None:
        """As the library does, but for the room of its own name."""
        if room != sid:
            super().basic_enter_room(sid, namespace, room, eio_sid=eio_sid)


class _Packet(packet.Packet):  # type: ignore[misc]
    """Socket.IO packets without binary attachments; the library looks for these in everything it sends."""

    uses_binary_events = False


class Reply(Struct):
    """The way back to who sent one event. It is used once, also for who has gone: until then the event is under way."""

    link: Link
    namespace: str
    number: str
    sid: str

    def give(self, answer: Any, event: str | None = None) -> None:
        """Acknowledge with an answer, and send it as an event too; nothing to who has said goodbye meanwhile."""
        link, encoded = self.link, encode(answer)
        link.under_way -= 1
        if link.closed or link.namespaces.get(self.namespace) != self.sid:
            return
        packets = []
        if event is not None:
            packets.append(_begun(self.namespace, event) + encoded + b"]")
        if self.number:
            packets.append(b"43%b%d[%b]" % (_PREFIXES[self.namespace], int(self.number), encoded))
        if packets:
            link.put(Message(*packets))

    def drop(self) -> None:
        """Answer nothing: nobody is there."""
        self.link.under_way -= 1


@lru_cache(maxsize=256)
def _begun(namespace: str, event: str) -> bytes:
    """Write the beginning of an event's packet, which is the same for hundreds of answers."""
    return b'42%b["%b",' % (_PREFIXES[namespace], event.encode())


class Spoken(Struct):
    """An event and its payloads, as sent. What hundreds say in the same few words is read once, and is one of these."""

    event: str
    payloads: list[Any]
    size: int
    """How many characters it had."""
    meaning: Any = None
    """What the namespaces, which are alike, have made of it."""


class Namespace(Protocol):
    """What a namespace must be able to do besides what the library asks of it."""

    def begin(self, reply: Reply, spoken: Spoken) -> None:
        """Begin what an event asks; the reply is used once, now or later."""

    def refuse(self, sid: str, event: str, refused: Refused) -> Any:
        """Tell a socket that its command is refused; return the acknowledgement."""


class Server(socketio.AsyncServer):  # type: ignore[misc]
    """A server that hands only well-formed events on, of those who are connected, and not too many."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, serializer=_Packet)

    def _engineio_server_class(self) -> type[Engine]:
        return Engine

    async def _handle_eio_connect(self, eio_sid: str, environ: dict[str, Any]) -> None:
        # The library keeps the request with all its headers for as long as the connection lasts.
        await super()._handle_eio_connect(eio_sid, _NO_ENVIRON)

    def _handle_eio_message(self, eio_sid: str, data: str) -> Awaitable[None] | None:
        """Do what a packet says; what it returns is awaited before the next packet.

        Raises Malformed for what is none, or has no place here.
        """
        link: Link = self.eio.sockets[eio_sid]
        found = _HEADER.match(data)
        if found is None:
            raise Malformed("no Socket.IO packet, or a binary one")
        head, name, number = found.groups()
        kind, namespace, rest = int(head), name or "/", data[found.end() :]
        if kind == packet.EVENT and namespace in link.namespaces:
            self._take_event(link, namespace, number, rest)
        elif not link.within_rate():
            raise Malformed("sends too much")
        elif kind == packet.CONNECT and not number:
            return self._take_connect(link, namespace, rest)
        elif kind == packet.DISCONNECT and not number:
            return self._take_disconnect(link, namespace)
        elif kind not in (packet.EVENT, packet.ACK) or namespace not in link.left | link.namespaces.keys():
            raise Malformed("a packet before its connect")
        return None

    async def _take_connect(self, link: Link, namespace: str, rest: str) -> None:
        auth = _read(rest) if rest else None
        if namespace not in NAMESPACES:
            why = {"message": "Invalid namespace", "data": {"code": "invalid"}}
            await self._send_packet(link.sid, self.packet_class(packet.CONNECT_ERROR, namespace=namespace, data=why))
        else:
            await self._handle_connect(link.sid, namespace, auth)
            sid = self.manager.sid_from_eio_sid(link.sid, namespace)
            if self.manager.is_connected(sid, namespace):
                link.namespaces[namespace] = sid
        link.without_namespace_yet(REFUSED_SECONDS)

    async def _take_disconnect(self, link: Link, namespace: str) -> None:
        await self._handle_disconnect(link.sid, namespace, self.reason.CLIENT_DISCONNECT)
        self._gone_from(link, namespace, link_seconds=self.eio.connect_seconds)

    def _take_event(self, link: Link, namespace: str, number: str, rest: str) -> None:
        within = link.within_rate()
        if not within or link.under_way >= MAX_UNDER_WAY:
            wait_ms = BUSY_MS if within else link.commands.wait_ms()
            self._refuse(link, namespace, number, rest, Refused("rate_limited", retry_after_ms=wait_ms))
            return
        try:
            spoken = _few_words(rest) if len(rest) <= _FEW else _words(rest)
        except HalfALetter as error:
            self._refuse(link, namespace, number, rest, Refused("invalid", str(error), details=error.details))
            return
        handler: Namespace = self.namespace_handlers[namespace]
        link.under_way += 1
        handler.begin(Reply(link, namespace, number, link.namespaces[namespace]), spoken)

    def _refuse(self, link: Link, namespace: str, number: str, rest: str, refused: Refused) -> None:
        """Refuse a command without reading it."""
        handler: Namespace = self.namespace_handlers[namespace]
        name = _NAME.match(rest)
        refusal = handler.refuse(link.namespaces[namespace], name[1] if name else "", refused)
        _acknowledge(link, namespace, number, refusal)

    async def disconnect(self, sid: str, namespace: str | None = None, ignore_queue: bool = False) -> None:
        """As the library does; and the link of a client that is sent away does not stay open."""
        namespace = namespace or "/"
        link = self.eio.sockets.get(self.manager.eio_sid_from_sid(sid, namespace))
        await super().disconnect(sid, namespace=namespace, ignore_queue=ignore_queue)
        if isinstance(link, Link):
            self._gone_from(link, namespace, link_seconds=REFUSED_SECONDS)

    def _gone_from(self, link: Link, namespace: str, *, link_seconds: float) -> None:
        if namespace in link.namespaces and not self.manager.sid_from_eio_sid(link.sid, namespace):
            del link.namespaces[namespace]
            link.left.add(namespace)
            link.without_namespace(link_seconds)


def _acknowledge(link: Link, namespace: str, number: str, answer: Any) -> None:
    if number and not link.closed:
        link.put(Message(b"43%b%d[%b]" % (_PREFIXES[namespace], int(number), encode(answer))))


class HalfALetter(Malformed):
    """Text that ends within a letter: half an emoji is easily cut off, and no reason to end a connection."""

    details = ({"field": "", "message": "text ends within a letter (a lone surrogate)"},)

    def __str__(self) -> str:
        return self.details[0]["message"]


def _read(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise (HalfALetter if _has_half_a_letter(text) else Malformed)("no JSON") from error


def _words(text: str) -> Spoken:
    event = _read(text)
    if not isinstance(event, list) or not event or not isinstance(event[0], str):
        raise Malformed("an event without a name")
    return Spoken(event[0], event[1:], len(text))


_few_words: Final = lru_cache(maxsize=_REMEMBERED)(_words)


def _has_half_a_letter(text: str) -> bool:
    """Say whether that is why text is no JSON: the standard library, which is slow, reads such text."""
    try:
        return _SURROGATE.search(text) is not None and json.loads(text) is not None
    except (ValueError, RecursionError):
        return False


class _Capped(logging.Filter):
    """Lets a library log a few lines in a row; the next one says how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._complaints = Complaints(*_LINES)

    def filter(self, record: logging.LogRecord) -> bool:
        unsaid = self._complaints.about(record.name, time.monotonic())
        if unsaid:
            record.msg, record.args = f"{record.getMessage()} ({unsaid} lines before this were left out)", ()
        return unsaid is not None


def quiet_logger() -> logging.Logger:
    """Make the library's logger: a malformed packet is a caller's mistake, so one line, no traceback and nothing it said.

    What clients can make the libraries below say is capped with it.
    """
    logger = logging.getLogger("rollcall.socketio")
    logger.setLevel(logging.WARNING)
    logger.addFilter(_wordless)
    for each in (logger, *map(logging.getLogger, ("aiohttp.server", "aiohttp.web", "aiohttp.websocket"))):
        if not any(isinstance(present, _Capped) for present in each.filters):
            each.addFilter(_Capped())
    return logger


def _wordless(record: logging.LogRecord) -> bool:
    """Keep the library's own words. What it puts into them, or raises, may be what a client sent, and ids open sessions."""
    kind = record.exc_info[0] if record.exc_info else None
    record.msg, record.args = f"{record.msg}: {kind.__name__}" if kind else record.msg, ()
    record.exc_info = None
    return True
