"""An admin cuts off a user: every socket, on every gateway, whatever it came by and whether or not its client obeys."""

import asyncio
import base64
import os
import struct
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from gateway.engine.server import NAMESPACES
from rollcall.servers import start_valkey
from tests.conftest import thrown_away
from tests.system.gateways import gateways_alone
from tests.system.rig import Rig, token, unique
from tests.system.talk import Caller, an_admin, calling, http, http_once

SECONDS = 20
"""How long a test waits for what must come."""
TRANSPORTS = (["websocket"], ["polling"], ["polling", "websocket"])
TRIES = 4
"""A busy machine may be slow for once; one cut within a second shows that a second is enough."""


async def cut(url: str, user_id: str) -> int:
    """Cut a user off as an admin does, again while that is `unavailable` (another test may have killed a gateway)."""
    async with asyncio.timeout(60):
        while True:
            status, body = await http_once(url, "DELETE", f"/users/{user_id}/sockets", an_admin())
            if status == 200:
                assert body == {"user_id": user_id, "cut": body["cut"]}
                return int(body["cut"])
            assert (status, body["error"]["code"], body["error"]["retryable"]) == (503, "unavailable", True)


async def gone(caller: Caller) -> None:
    """Wait until a client's connection has ended."""
    async with asyncio.timeout(SECONDS):
        while caller.client.eio.state != "disconnected":  # noqa: ASYNC110 (the library tells only of namespaces)
            await asyncio.sleep(0.01)


async def everywhere(stack: AsyncExitStack, rig: Rig, user_id: str) -> list[Caller]:
    """Connect a user to every gateway, in both namespaces, by every transport."""
    return [
        await stack.enter_async_context(calling(url, token(user_id, "student"), namespace=namespace, transports=transports))
        for url in rig.gateways
        for namespace in NAMESPACES
        for transports in TRANSPORTS
    ]


async def test_all_sockets_of_a_user_are_cut_within_a_second_and_nobody_elses(rig: Rig) -> None:
    user_id, other_id, seconds = unique("cut"), unique("stays"), []
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(calling(url, token(other_id, "student"))) for url in rig.gateways]
        for _ in range(TRIES):
            async with AsyncExitStack() as cut_off:
                callers = await everywhere(cut_off, rig, user_id)
                begun = time.monotonic()
                cutting = asyncio.create_task(cut(rig.gateways[0], user_id))
                await asyncio.gather(*map(gone, callers))
                seconds.append(time.monotonic() - begun)
                assert await cutting in (len(callers), 0)  # none, where the answer to a first try was lost
                for caller in callers:
                    error = await caller.heard("attendanceError")
                    assert (error["code"], error["event"], error["retryable"]) == ("unauthenticated", "connect", False)
            if seconds[-1] < 1:
                break
        assert min(seconds) < 1, seconds
        for caller in others:
            assert (await caller.ask("nobody knows this", {}))["error"]["code"] == "invalid"
        assert await cut(rig.gateways[-1], user_id) == 0
        # Their token is still good: it is for whoever makes tokens to make no more.
        async with calling(rig.gateways[0], token(user_id, "student")):
            pass


@pytest.mark.parametrize("role", ["student", "teacher", "service"])
async def test_only_an_admin_cuts_anybody_off(rig: Rig, role: str) -> None:
    user_id = unique("u")
    async with calling(rig.gateways[0], token(user_id, "student")) as caller:
        bearer = token(user_id, role)  # type: ignore[arg-type]
        status, body = await http(rig.gateways[1], "DELETE", f"/users/{user_id}/sockets", bearer)
        assert (status, body["error"]["code"]) == (403, "forbidden")
        assert (await http(rig.gateways[1], "DELETE", f"/users/{user_id}/sockets"))[0] == 401
        assert (await caller.ask("nobody knows this", {}))["error"]["code"] == "invalid"


# Clients that do not obey


@asynccontextmanager
async def a_raw_websocket(url: str, user_id: str) -> AsyncIterator[asyncio.StreamReader]:
    """Connect, and from then on say nothing: no answer to a close, neither Socket.IO's nor the WebSocket's."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            "\r\n".join(
                (
                    "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1",
                    f"Host: {host}:{port}",
                    "Connection: Upgrade",
                    "Upgrade: websocket",
                    "Sec-WebSocket-Version: 13",
                    f"Sec-WebSocket-Key: {key}",
                    "\r\n",
                )
            ).encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        text = f'40{{"token":"{token(user_id, "student")}"}}'.encode()
        writer.write(struct.pack("!BBH4x", 0x81, 0x80 | 126, len(text)) + text)
        await reader.readuntil(b'40{"sid"')
        yield reader
    finally:
        writer.close()


async def test_a_client_that_does_not_close_its_end_is_torn_off(redis_url: str) -> None:
    user_id, seconds = unique("deaf"), []
    async with gateways_alone(redis_url) as (here, there):
        for _ in range(TRIES):
            async with a_raw_websocket(here, user_id) as reader:
                begun = time.monotonic()
                assert await cut(there, user_id) == 1
                async with asyncio.timeout(SECONDS):
                    heard = await ended(reader)
                seconds.append(time.monotonic() - begun)
                assert b'"code":"unauthenticated"' in heard
            if seconds[-1] < 1:
                break
        assert min(seconds) < 1, seconds


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Read until the connection is no more."""
    heard = b""
    try:
        while more := await reader.read(4096):
            heard += more
    except ConnectionResetError:
        pass
    return heard


async def test_a_client_that_polls_no_more_has_no_session_to_come_back_to(redis_url: str) -> None:
    user_id = unique("silent")
    async with gateways_alone(redis_url) as (here, there), aiohttp.ClientSession() as session:
        polling = f"{here}/socket.io/?EIO=4&transport=polling"
        async with session.get(polling) as answer:
            sid = (await answer.text()).partition('"sid":"')[2].partition('"')[0]
        async with session.post(f"{polling}&sid={sid}", data=f'40{{"token":"{token(user_id, "student")}"}}') as answer:
            assert answer.status == 200
        assert await cut(there, user_id) == 1
        for method in ("GET", "POST"):
            async with session.request(method, f"{polling}&sid={sid}", data='42["x"]') as answer:
                assert answer.status == 400


# Without Redis


async def test_a_cut_is_never_lost_in_silence_when_redis_has_been_away(tmp_path: Path) -> None:
    """While it is away and just after: `unavailable`, or done for certain."""
    user_id = unique("cut")
    with thrown_away(start_valkey) as valkey:
        port = int(valkey.url.rpartition(":")[2].partition("/")[0])
        async with gateways_alone(valkey.url) as (here, there), AsyncExitStack() as stack:
            assert await cut(here, user_id) == 0
            callers = [await stack.enter_async_context(calling(url, token(user_id, "student"))) for url in (here, there)]
            valkey.stop()
            status, body = await http_once(here, "DELETE", f"/users/{user_id}/sockets", an_admin())
            assert (status, body["error"]["code"]) == (503, "unavailable")
            assert [caller.client.connected for caller in callers] == [True, True]

            again = start_valkey(tmp_path / "valkey", port=port)
            stack.callback(again.stop)
            await cut(here, user_id)

            await asyncio.gather(*map(gone, callers))
