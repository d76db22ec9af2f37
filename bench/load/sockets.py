"""One client: a websocket that speaks Engine.IO and Socket.IO by hand, with as little work as there can be.

What it hears goes to its `Ear`; what it sends was made before. Nothing here knows attendance.
"""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, cast
from urllib.parse import urlsplit

TEXT = 0x81
CLOSE = 0x88
PING = 0x89
# The first two bytes of a packet: a message of Engine.IO, and of which kind to Socket.IO.
MESSAGE, EVENT, ACKNOWLEDGEMENT = b"423"
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"


class Ear(Protocol):
    """Hears what servers say to sockets. A packet is handed over where it came: from `begin` to `end` of `data`."""

    @property
    def acknowledged(self) -> "Take":
        """Takes an acknowledgement: `43`, the number, and a list."""

    @property
    def told(self) -> "Take":
        """Takes an event: `42` and a list that begins with its name."""

    def cut_off(self, socket: "Socket", why: str) -> None:
        """Hear that a socket that was open is not."""


Take = Callable[[bytes, int, int], None]


def masked(packet: str) -> bytes:
    """Make the frame of a packet, ready to be sent."""
    body, key = packet.encode(), os.urandom(4)
    size = len(body)
    if size > 0xFFFF:
        raise ValueError("packets of 64 KB and more are not sent here")
    head = bytes((TEXT, 0x80 | size)) if size < 126 else bytes((TEXT, 0xFE)) + size.to_bytes(2)
    mask = int.from_bytes((key * (size // 4 + 1))[:size])
    return head + key + (int.from_bytes(body) ^ mask).to_bytes(size)


PONG = masked("3")


@dataclass(eq=False)
class Socket(asyncio.Protocol):
    """A client's connection. `opened` is done when its namespace is; it fails when the server refuses."""

    user_id: str
    hello: bytes
    """The frame that brings the token."""

    ear: Ear
    opened: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    transport: asyncio.Transport = field(init=False)
    deflates: bool = False
    """Whether the server agreed to compress."""

    _rest: bytes = b""
    _upgraded: bool = False
    _left: bool = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so, unless it was us."""
        if not self.opened.done():
            self.opened.set_exception(ConnectionError(f"{self.user_id} was cut off before it was in: {exc!r}"))
        elif not self._left:
            self.ear.cut_off(self, repr(exc))

    def leave(self) -> None:
        """Let go of the connection."""
        self._left = True
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take whole frames, and keep the rest of one. Everything that is measured comes through here: no calls, no copies."""
        if self._rest:
            data = self._rest + data
        at = 0
        if not self._upgraded and (at := self._upgrade(data)) == 0:
            self._rest = data
            return
        size, ear = len(data), self.ear
        while size - at >= 2:
            begin, length = at + 2, data[at + 1]
            if length >= 126:
                begin += 2 if length == 126 else 8
                if begin > size:
                    break
                length = data[at + 2] << 8 | data[at + 3] if length == 126 else int.from_bytes(data[at + 2 : begin])
            end = begin + length
            if end > size:
                break
            if length < 2 or data[at] != TEXT or data[begin] != MESSAGE:
                self._take(data[at], data[begin:end])
            elif (kind := data[begin + 1]) == EVENT:
                ear.told(data, begin, end)
            elif kind == ACKNOWLEDGEMENT:
                ear.acknowledged(data, begin, end)
            else:
                self._take(TEXT, data[begin:end])
            at = end
        self._rest = data[at:] if at < size else b""

    def _upgrade(self, data: bytes) -> int:
        """Read the answer to the handshake; return its length, 0 while it is not all there."""
        head, found, _ = data.partition(b"\r\n\r\n")
        if not found:
            return 0
        if not head.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(head.decode(errors="replace"))
        self._upgraded = True
        self.deflates = b"permessage-deflate" in head
        return len(head) + 4

    def _take(self, kind: int, packet: bytes) -> None:
        """Take what comes seldom: what opens, keeps and closes a connection."""
        if kind != TEXT:
            if kind == CLOSE:
                self.transport.close()
            elif kind != PING:
                raise ConnectionError(f"a frame begins with {kind:#x}")
            return
        match packet[:2]:
            case b"2":
                self.transport.write(PONG)
            case b"40":
                self.opened.set_result(None)
            case b"44":
                self.opened.set_exception(ConnectionError(packet.decode()))
            case _ if packet[:1] == b"0":
                self.transport.write(self.hello)


async def connect(url: str, user_id: str, bearer: str, ear: Ear, *, deflate: bool = False) -> Socket:
    """Connect one client to the namespace `/`; raise ConnectionError when it is refused."""
    parts = urlsplit(url)
    hello = masked(f"40{json.dumps({'token': bearer})}")
    _, socket = await asyncio.get_running_loop().create_connection(
        lambda: Socket(user_id, hello, ear), parts.hostname or "", parts.port or 0
    )
    socket.transport.write(
        f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        f"{DEFLATE if deflate else ''}\r\n".encode()
    )
    await socket.opened
    return socket
