"""Which connections are cut off for what they do not say, and which are not: on a real port, with short times."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
from aiohttp import web

from gateway import bodies
from gateway.arrivals import Arrival
from gateway.engine.departures import Departures
from rollcall.launcher import free_port
from shared.process import serving

SECONDS = 0.2
LONG_SECONDS = 5 * SECONDS
A_REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
A_LONG_REQUEST = b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n"
A_POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n"
A_WEBSOCKET = (
    b"GET /websocket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
A_FRAME = b"\x81\x81\0\0\0\0x"

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def answer(request: web.Request) -> web.Response:
    """Say how much was said."""
    return web.Response(text=f"{len(await bodies.receive_body(request, 8))} bytes")


async def answer_late(_: web.Request) -> web.Response:
    await asyncio.sleep(LONG_SECONDS)
    return web.Response(text="late")


async def echo(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(message.data)
    return socket


@asynccontextmanager
async def a_client() -> AsyncIterator[Client]:
    """Connect to a server that expects requests."""
    app, port = web.Application(), free_port()
    app.add_routes([web.get("/", answer), web.post("/", answer), web.get("/long", answer_late), web.get("/websocket", echo)])
    arrive = partial(Arrival, departures=Departures(), seconds=SECONDS)
    async with serving(app, "127.0.0.1", port, setting="PORT", protocol=arrive):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


async def ended(reader: asyncio.StreamReader) -> bool:
    """Say whether the connection ends before long."""
    try:
        async with asyncio.timeout(LONG_SECONDS):
            await reader.read()
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


async def heard(reader: asyncio.StreamReader, text: bytes) -> None:
    async with asyncio.timeout(10):
        await reader.readuntil(text)


@pytest.mark.parametrize("said", [b"", b"GET", A_REQUEST[:-2], b"\r\n", A_POST[:-2]])
async def test_who_brings_no_whole_request_is_cut_off(said: bytes) -> None:
    async with a_client() as (reader, writer):
        writer.write(said)
        assert await ended(reader)


async def test_so_is_who_begins_a_second_one() -> None:
    """Also where it begins while the first is in hand, with a body or without."""
    for first, answered in ((A_REQUEST, b"0 bytes"), (A_POST + b"12345678", b"8 bytes"), (A_LONG_REQUEST, b"")):
        async with a_client() as (reader, writer):
            writer.write(first)
            await heard(reader, answered) if answered else await asyncio.sleep(SECONDS / 4)
            writer.write(A_REQUEST[:10])
            assert await ended(reader), first


async def test_who_says_nothing_between_two_requests_is_not() -> None:
    async with a_client() as (reader, writer):
        for _ in range(2):
            writer.write(A_REQUEST)
            await heard(reader, b"0 bytes")
            await asyncio.sleep(2 * SECONDS)


async def test_nor_is_who_waits_long_for_an_answer() -> None:
    async with a_client() as (reader, writer):
        writer.write(A_LONG_REQUEST)
        await heard(reader, b"late")


async def test_nor_is_a_websocket() -> None:
    async with a_client() as (reader, writer):
        writer.write(A_WEBSOCKET)
        await heard(reader, b"\r\n\r\n")
        for _ in range(2):
            await asyncio.sleep(2 * SECONDS)
            writer.write(A_FRAME)
            await heard(reader, b"\x81\x01x")


async def send_slowly(writer: asyncio.StreamWriter) -> None:
    writer.write(A_POST)
    for _ in range(8):
        await asyncio.sleep(SECONDS / 2)
        writer.write(b"x")


async def send_many(writer: asyncio.StreamWriter) -> None:
    writer.write(A_REQUEST * 200)
    await asyncio.sleep(2 * SECONDS)
    writer.write(A_POST + b"12345678")


@pytest.mark.parametrize("send", [send_slowly, send_many])
async def test_nor_is_whose_body_is_slow_or_who_says_much_at_once(
    send: Callable[[asyncio.StreamWriter], Awaitable[None]],
) -> None:
    async with a_client() as (reader, writer):
        await send(writer)
        await heard(reader, b"8 bytes")


async def test_a_body_is_waited_for_the_longer_the_more_of_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the letter, a body of eight takes four times as long as one that brings nothing may."""
    monkeypatch.setattr(bodies, "BODY_SECONDS", 2 * SECONDS)
    monkeypatch.setattr(bodies, "BYTES_PER_SECOND", 1 / SECONDS)
    async with a_client() as (reader, writer):
        await send_slowly(writer)
        await heard(reader, b"8 bytes")
    monkeypatch.setattr(bodies, "BYTES_PER_SECOND", 1000 / SECONDS)
    async with a_client() as (reader, writer):
        await send_slowly(writer)
        assert await ended(reader)
