"""Websockets (RFC 6455) without a task, a queue or a buffer for each: a connection is taken over from aiohttp once it is
upgraded, and its frames, which are text, go straight to whoever listens.

aiohttp's own costs some 20 KB a connection, and 100 KB more where a client offers permessage-deflate; this one 1 KB, and it
declines that offer. Taking over touches what is private in aiohttp: `tests/contract/test_engine.py` holds it to the same
behaviour as the library's own.
"""

import asyncio
import base64
import hashlib
import socket
from collections import deque
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp._websocket.helpers import websocket_mask
from aiohttp.abc import AbstractStreamWriter
from engineio.exceptions import EngineIOError

from gateway.engine.departures import Departures
from gateway.rates import Bucket

FAREWELL_SECONDS: Final = 0.5
"""How long a client has to read what it is told last."""
FRAMES: Final = 1000
"""How many frames that are no whole message a client may send at once: pings, pongs and fragments."""
FRAMES_PER_SECOND: Final = 50
AT_ONCE: Final = 64
"""To how many is written at once, half a millisecond: of a crowd in one turn, but of a large one to a sixteenth."""
PACE_SECONDS: Final = 0.002
"""How long the rest of a crowd waits then, while others are told something."""
BUSY_SECONDS: Final = 0.02
"""For how long after others were told something more of that is expected: they may be asking again."""
_GATHERED_BYTES: Final = 64 * 1024
"""How much may gather within one turn of the loop before it is written all the same."""
KERNEL_BYTES: Final = 128 * 1024
"""Where the kernel buffers more, nobody sees for megabytes whether a client reads."""
_MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10
_FIN, _RESERVED, _MASKED = 0x80, 0x70, 0x80
_WHOLE_TEXT = _FIN | _TEXT
_GOODBYE: Final = b"\x88\x02\x03\xe8"


class Malformed(EngineIOError):  # type: ignore[misc]
    """A client broke the protocol; its link is closed."""


class Listener(Protocol):
    """Who hears what a websocket brings. None of these may raise."""

    def received(self, frame: str) -> None:
        """Hear a text frame, whole."""

    def broken(self, error: Malformed) -> None:
        """Hear that the client broke the protocol; nothing more comes."""

    def writable(self) -> None:
        """Hear that there is room to write again."""

    def lost(self) -> None:
        """Hear that it is over; this is the last."""


class Writes:
    """What is written in one turn of the loop leaves at its end, in one system call for each websocket. One for a server.

    Where a turn writes to hundreds they leave by 64, so that the first can ask again while others are told. What goes to a
    crowd leaves behind everything else, a part of it in each turn; and where others are told something, at a pace that leaves
    them, and the servers they need, most of the time (docs/decisions/0027).
    """

    def __init__(self) -> None:
        self._due: list[WebSocket] = []
        self._crowd: deque[WebSocket] = deque()
        self._under_way = self._crowd_under_way = False
        self._busy_until = 0.0

    def add(self, websocket: "WebSocket", *, in_crowd: bool) -> None:
        """Have a websocket flushed by the end of this turn, or in one of the next as one of a crowd."""
        if not in_crowd:
            if len(self._due) == AT_ONCE:
                self._flush_due()
            self._due.append(websocket)
            if not self._under_way:
                self._under_way = True
                asyncio.get_running_loop().call_soon(self._flush)
        else:
            self._crowd.append(websocket)
            if not self._crowd_under_way:
                self._crowd_under_way = True
                asyncio.get_running_loop().call_soon(self._flush_some)

    def _flush(self) -> None:
        self._under_way = False
        self._flush_due()

    def _flush_due(self) -> None:
        due, self._due = self._due, []
        for websocket in due:
            websocket.flush()
        if due:
            self._busy_until = asyncio.get_running_loop().time() + BUSY_SECONDS

    def _flush_some(self) -> None:
        """Flush some of the crowd, behind all others."""
        self._flush()
        loop, crowd = asyncio.get_running_loop(), self._crowd
        for _ in range(min(len(crowd), max(AT_ONCE, len(crowd) // 16))):
            crowd.popleft().flush()
        self._crowd_under_way = bool(crowd)
        if crowd and loop.time() < self._busy_until:
            loop.call_later(PACE_SECONDS, self._flush_some)
        elif crowd:
            loop.call_soon(self._flush_some)


class WebSocket(asyncio.Protocol):
    """One connection, after its upgrade."""

    __slots__ = (
        "_broken",
        "_departures",
        "_ended",
        "_fragments",
        "_frames",
        "_gathered",
        "_in_crowd",
        "_max_bytes",
        "_needed",
        "_rest",
        "_writes",
        "listener",
        "over",
        "paused",
        "transport",
    )

    def __init__(
        self, transport: asyncio.Transport, listener: Listener, departures: Departures, writes: Writes, *, max_bytes: int
    ) -> None:
        self.transport = transport
        self.listener = listener
        self.paused = False
        """Whether as much waits to be written as the transport should hold."""
        self.over = False
        """Whether nothing is written any more."""
        self._departures = departures
        self._writes = writes
        self._gathered = b""
        self._in_crowd = False
        self._frames: Bucket | None = None
        self._max_bytes = max_bytes
        self._rest: bytearray | None = None
        self._needed = 0
        self._fragments: bytearray | None = None
        self._ended = self._broken = False

    def write(self, frames: bytes, *, in_crowd: bool = False) -> None:
        """Write encoded frames, with what else this turn of the loop writes; when it is over, they go nowhere.

        Those that go to a crowd may leave a few turns later, with what is written to this websocket until then.
        """
        if self.over:
            return
        if not self._gathered or (self._in_crowd and not in_crowd):
            self._in_crowd = in_crowd
            self._writes.add(self, in_crowd=in_crowd)
        self._gathered += frames
        if len(self._gathered) > _GATHERED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand what has gathered to the transport. Raises nothing: others are to be written to all the same."""
        gathered, self._gathered = self._gathered, b""
        if gathered and not self.transport.is_closing():
            try:
                self.transport.write(gathered)
            except (OSError, RuntimeError):
                # uvloop's for a connection that was cut in this very turn.
                self.transport.abort()
            except Exception as error:
                # What was to be written is missing: better no connection than one with a hole.
                self.transport.abort()
                context = {"message": "a websocket could not be written to", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    def close(self) -> None:
        """Say goodbye and read on only for the client's own; a second time does nothing."""
        if not self.over:
            self.write(_GOODBYE)
            self.flush()
            self.over = True
            asyncio.get_running_loop().call_later(FAREWELL_SECONDS, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        """Take frames, and keep the beginning of one until the rest of it is here. Behind what is none, nothing is read."""
        if self._broken:
            return
        if self._rest is not None:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data, self._rest = bytes(self._rest), None
        try:
            self._read(data)
        except Malformed as error:
            self._broken = True
            if not self.over:
                self.listener.broken(error)

    def _read(self, data: bytes) -> None:
        at, end = 0, len(data)
        while at < end:
            begin = at + 6
            if begin > end:
                return self._keep(data, at, 6)
            head, size = data[at], data[at + 1]
            if head & _RESERVED or not size & _MASKED:
                raise Malformed("a frame is no websocket's")
            size &= 0x7F
            if size > 125:
                begin += 2 if size == 126 else 8
                if begin > end:
                    return self._keep(data, at, begin - at)
                size = int.from_bytes(data[at + 2 : begin - 4])
            if size + len(self._fragments or b"") > self._max_bytes:
                raise Malformed("a frame is too large")
            stop = begin + size
            if stop > end:
                return self._keep(data, at, stop - at)
            body = bytearray(data[begin:stop])
            websocket_mask(data[begin - 4 : begin], body)
            at = stop
            if head == _WHOLE_TEXT and self._fragments is None:
                self._hand_on(body)
            else:
                self._take(head, body)

    def _keep(self, data: bytes, at: int, needed: int) -> None:
        self._rest, self._needed = bytearray(data[at:]), needed

    def _take(self, head: int, body: bytearray) -> None:
        kind = head & 0x0F
        if kind >= _CLOSE:
            self._take_control(head, kind, body)
        elif self.over:
            return
        elif kind == _BINARY:
            raise Malformed("a packet is binary")
        elif (kind == _TEXT) is not (self._fragments is None) or kind > _BINARY:
            raise Malformed("a frame is out of turn")
        else:
            self._count_frame()
            if self._fragments is None:
                self._fragments = body
            else:
                self._fragments += body
            if head & _FIN:
                whole, self._fragments = self._fragments, None
                self._hand_on(whole)

    def _take_control(self, head: int, kind: int, body: bytearray) -> None:
        if not head & _FIN or len(body) > 125 or kind > _PONG:
            raise Malformed("a control frame is none")
        if kind != _CLOSE:
            self._count_frame()
        if kind == _CLOSE:
            self.write(_GOODBYE)
            self.flush()
            self.over = True
            self._hang_up()
        elif kind == _PING and not self.paused:
            self.write(bytes((_FIN | _PONG, len(body))) + body)

    def _count_frame(self) -> None:
        """Count a frame that is no whole message: these pass no other limit."""
        if self._frames is None:
            self._frames = Bucket(FRAMES, FRAMES_PER_SECOND)
        if not self._frames.take(asyncio.get_running_loop().time()):
            raise Malformed("sends too many frames")

    def _hang_up(self) -> None:
        """Close the connection once what waits is read, or a moment later: its client may not read any more."""
        self.transport.close()
        asyncio.get_running_loop().call_later(FAREWELL_SECONDS, self.transport.abort)

    def _hand_on(self, body: bytearray) -> None:
        if self.over:
            return
        try:
            frame = body.decode()
        except UnicodeDecodeError:
            raise Malformed("a frame is not UTF-8") from None
        self.listener.received(frame)

    def pause_writing(self) -> None:
        """As much waits as should."""
        self.paused = True

    def resume_writing(self) -> None:
        """There is room again."""
        self.paused = False
        self.listener.writable()

    def eof_received(self) -> bool:
        """Close, in turn with the others that end now; the transport would by itself, all in one turn of the loop."""
        self._ended = True
        self._departures.add(self._hang_up)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who listens, in turn with the others that end now."""
        self.over = True
        if self._ended:
            self.listener.lost()
        else:
            self._departures.add(lambda: self.listener.lost())


def upgraded(
    request: web.Request, listener: Listener, departures: Departures, writes: Writes, *, max_bytes: int
) -> tuple[WebSocket, bytes, web.StreamResponse]:
    """Take a connection over from aiohttp; return it, what it has read of it too early, and what the handler is to return.

    What came too early is to be handed to `WebSocket.data_received` before the loop turns again.

    Raises Malformed when the request asks for no websocket, or its connection has gone.
    """
    transport = request.transport
    key = request.headers.get("Sec-WebSocket-Key", "")
    if request.headers.get("Sec-WebSocket-Version") != "13" or len(key) != 24 or transport is None or transport.is_closing():
        raise Malformed("no websocket's handshake")
    accept = base64.b64encode(hashlib.sha1(key.encode("ascii", "replace") + _MAGIC).digest())
    early = _let_go(request)
    buffer_little(transport)
    websocket = WebSocket(transport, listener, departures, writes, max_bytes=max_bytes)
    transport.set_protocol(websocket)
    transport.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: "
        + accept
        + b"\r\n\r\n"
    )
    # aiohttp reads no further when much has come too early.
    transport.resume_reading()
    return websocket, early, _TakenOver()


def buffer_little(transport: asyncio.Transport | None) -> None:
    """Have the kernel buffer no more than `KERNEL_BYTES` of what is written."""
    if transport is not None and (connection := transport.get_extra_info("socket")) is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)


def _let_go(request: web.Request) -> bytes:
    """Make aiohttp take the connection for lost, without closing it; return what it has read of it too early."""
    handler: Any = request.protocol
    early: bytes = handler._message_tail
    handler._message_tail = b""
    handler._upgraded = False
    handler.transport = None
    handler.connection_lost(None)
    return early


class _TakenOver(web.StreamResponse):
    """Says nothing: the connection is no longer aiohttp's."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None
