"""A client that speaks in raw packets, by websocket or by polling, and so may say what no library would."""

import asyncio
import json
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp

SECONDS = 10.0
"""How long to wait for what must come."""
SEPARATOR = "\x1e"


class Websocket:
    """One connection by websocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.opening: dict[str, Any] = {}

    async def send(self, *packets: str | bytes) -> None:
        """Send packets as they are. Nothing is said of a connection that is over: `ended` does."""
        for packet in packets:
            try:
                await (self.socket.send_bytes(packet) if isinstance(packet, bytes) else self.socket.send_str(packet))
            except OSError:
                return

    async def next(self, *, seconds: float = SECONDS) -> str | None:
        """Wait for the next packet; None when the connection is over."""
        async with asyncio.timeout(seconds):
            message = await self.socket.receive()
        return message.data if message.type is aiohttp.WSMsgType.TEXT else None

    async def until(self, beginning: str, *, seconds: float = SECONDS) -> str:
        """Wait for a packet that begins so; what comes before is dropped, and pings are answered."""
        async with asyncio.timeout(seconds):
            while (packet := await self.next()) is not None:
                if packet == "2":
                    await self.send("3")
                if packet.startswith(beginning):
                    return packet
        raise AssertionError(f"the connection ended before {beginning!r}")

    async def ended(self, *, seconds: float = SECONDS) -> list[str]:
        """Wait until the connection is over; return what came before."""
        packets = []
        async with asyncio.timeout(seconds):
            while (packet := await self.next(seconds=seconds)) is not None:
                packets.append(packet)
        return packets

    async def join(self, token: str, namespace: str = "/") -> str:
        """Connect to a namespace; return the answer."""
        prefix = "" if namespace == "/" else f"{namespace},"
        await self.send(f"40{prefix}{json.dumps({'token': token})}")
        return await self.until("4")

    async def ask(self, event: str, payload: object, *, number: int = 1) -> dict[str, Any]:
        """Send a command on `/` and wait for its acknowledgement."""
        await self.send(f"42{number}{json.dumps([event, payload])}")
        answer: dict[str, Any] = json.loads((await self.until(f"43{number}[")).removeprefix(f"43{number}"))[0]
        return answer


@asynccontextmanager
async def a_websocket(url: str, *, sid: str | None = None, opened: bool = True, **options: Any) -> AsyncIterator[Websocket]:
    """Connect by websocket, also to the session of a polling client; take the handshake."""
    query = "EIO=4&transport=websocket" + (f"&sid={sid}" if sid else "")
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/socket.io/?{query}", max_msg_size=0, **options) as socket,
    ):
        client = Websocket(socket)
        if opened and sid is None:
            packet = await client.next()
            assert packet is not None
            assert packet[0] == "0"
            client.opening = json.loads(packet[1:])
        yield client


class Polling:
    """One connection by polling."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = f"{url}/socket.io/"
        self.opening: dict[str, Any] = {}

    async def request(self, method: str, query: str, **options: Any) -> tuple[int, str]:
        """Send any request; return its status and text."""
        async with (
            asyncio.timeout(SECONDS),
            self._session.request(method, f"{self.url}?{query}", **options) as response,
        ):
            return response.status, await response.text()

    @property
    def sid(self) -> str:
        """The session's id."""
        return str(self.opening["sid"])

    async def get(self) -> tuple[int, list[str]]:
        """Poll once; return the status and the packets."""
        status, text = await self.request("GET", f"EIO=4&transport=polling&sid={self.sid}")
        return status, text.split(SEPARATOR)

    async def post(self, *packets: str, **options: Any) -> int:
        """Send packets; return the status."""
        options = {"data": SEPARATOR.join(packets), **options}
        status, _ = await self.request("POST", f"EIO=4&transport=polling&sid={self.sid}", **options)
        return status

    async def join(self, token: str) -> list[str]:
        """Connect to `/`; return the answer."""
        assert await self.post("40" + json.dumps({"token": token})) == 200
        return (await self.get())[1]


@asynccontextmanager
async def polling(url: str, *, opened: bool = True) -> AsyncIterator[Polling]:
    """Connect by polling; take the handshake."""
    async with aiohttp.ClientSession() as session:
        client = Polling(session, url)
        if opened:
            status, text = await client.request("GET", "EIO=4&transport=polling")
            assert (status, text[0]) == (200, "0")
            client.opening = json.loads(text[1:])
        yield client


class Raw:
    """A websocket of nothing but a stream: it reads as slowly as it is told to, or not at all."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, packet: str) -> None:
        """Send a packet, without waiting."""
        body = packet.encode()
        size = bytes([0x80 | len(body)]) if len(body) < 126 else b"\xfe" + len(body).to_bytes(2)
        # Masked with nothing.
        self._writer.write(b"\x81" + size + bytes(4) + body)

    def write(self, frame: bytes) -> None:
        """Send a frame as it is, without waiting."""
        self._writer.write(frame)

    async def next(self, *, bytes_per_second: float = math.inf, passing: bytes = b"") -> str | None:
        """Read a packet, passing over frames that begin so; None when the connection is over."""
        try:
            head = await self._reader.readexactly(2)
            while head[:1] == passing:
                await self._reader.readexactly(head[1])
                head = await self._reader.readexactly(2)
            size = head[1] if head[1] < 126 else int.from_bytes(await self._reader.readexactly(2 if head[1] == 126 else 8))
            body = await _read_slowly(self._reader, size, bytes_per_second)
        except (OSError, asyncio.IncompleteReadError):
            return None
        return body.decode() if head[0] == 0x81 else None

    async def until(self, beginning: str, *, bytes_per_second: float = math.inf, passing: bytes = b"") -> str:
        """Read until a packet that begins so, answering pings."""
        while (packet := await self.next(bytes_per_second=bytes_per_second, passing=passing)) is not None:
            if packet == "2":
                self.send("3")
            if packet.startswith(beginning):
                return packet
        raise AssertionError(f"the connection ended before {beginning!r}")

    def drop(self) -> None:
        """Let go of it."""
        self._writer.transport.abort()


async def a_raw_websocket(url: str, *, buffer_bytes: int | None = None) -> Raw:
    """Connect, with a receive buffer that small; the handshake's packet is still to be read. `drop` it in the end."""
    reader, writer = await _a_connection(url, buffer_bytes)
    writer.write(
        b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    return Raw(reader, writer)


@asynccontextmanager
async def a_slow_poll(client: Polling, *, buffer_bytes: int) -> AsyncIterator[asyncio.StreamReader]:
    """Poll on a connection of its own, with a receive buffer that small; nothing of the answer is read."""
    parts = urlsplit(client.url)
    reader, writer = await _a_connection(client.url, buffer_bytes)
    try:
        writer.write(f"GET {parts.path}?EIO=4&transport=polling&sid={client.sid} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode())
        yield reader
    finally:
        writer.transport.abort()


async def slow_answer(reader: asyncio.StreamReader, *, bytes_per_second: float) -> str:
    """Read the answer to a poll."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    return (
        await _read_slowly(reader, int(head.lower().partition(b"content-length:")[2].split()[0]), bytes_per_second)
    ).decode()


async def _read_slowly(reader: asyncio.StreamReader, size: int, bytes_per_second: float) -> bytes:
    body = bytearray()
    while len(body) < size:
        body += (chunk := await reader.readexactly(min(16_384, size - len(body))))
        await asyncio.sleep(len(chunk) / bytes_per_second)
    return bytes(body)


async def _a_connection(url: str, buffer_bytes: int | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    connection = socket.socket()
    connection.setblocking(False)
    if buffer_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    await asyncio.get_running_loop().sock_connect(connection, (parts.hostname, parts.port))
    return await asyncio.open_connection(sock=connection, limit=16_384)
