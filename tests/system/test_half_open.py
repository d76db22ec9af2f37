"""Clients that begin and never finish, a thousand at once: closed in time, and nobody else notices."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import aiohttp

from gateway.bodies import BODY_SECONDS
from gateway.engine.links import CONNECT_SECONDS
from tests.system.footprint import connections, no_connections, rss_kib
from tests.system.rig import Process, Rig, token, unique
from tests.system.talk import Caller, an_admin, calling
from tests.wire import Raw, a_raw_websocket

HALF_OPEN = 1_000
HALF_OPEN_KIB = 40 * HALF_OPEN
"""What so many may cost while they are open; nothing that grows with what they do."""
AGAIN_KIB = 4 * HALF_OPEN
LATE_SECONDS = 5.0
"""For the busy machine: its clocks are read by a thousand tasks in turn."""
SERVED_SECONDS = 2.0

DRIPPING = "Host: gateway\r\nContent-Length: 99\r\n"
BEGINNINGS = {
    "nothing": "",
    "half a line": "GET /socket.io/?EIO=4&tra",
    "half the headers": "GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: gateway\r\n",
    "half a request behind another": "GET /health/live HTTP/1.1\r\nHost: gateway\r\n\r\n",
    "half a body": f"POST /api/v1/sessions HTTP/1.1\r\n{DRIPPING}Authorization: Bearer {{token}}\r\n\r\n",
    "half a body of packets": f"POST /socket.io/?EIO=4&transport=polling&sid={{sid}} HTTP/1.1\r\n{DRIPPING}\r\n",
    "half a body that nobody reads": f"POST /nowhere HTTP/1.1\r\n{DRIPPING}\r\n",
}
LATER = {"half a request behind another": "GET /health/live HTTP/1.1\r\nX-Drip: "}
"""What follows an answer."""


async def test_a_thousand_handshakes_that_never_finish_are_closed_and_cost_little(cluster: Rig, gateway: Process) -> None:
    url = cluster.gateways[0]
    before = rss_kib(gateway)
    clients: list[Raw] = []
    try:
        async with aiohttp.ClientSession() as session:
            sids = []
            for _ in range(HALF_OPEN // 2):
                clients.append(await a_raw_websocket(url))
                async with session.get(f"{url}/socket.io/?EIO=4&transport=polling") as response:
                    sids.append(json.loads((await response.text())[1:])["sid"])
            async with calling(url, an_admin()) as admin:
                assert (await admin.ask("nobodyKnows", {}))["error"]["code"] == "invalid"
            open_kib = rss_kib(gateway) - before
            async with asyncio.timeout(CONNECT_SECONDS + 30):
                for client in clients:
                    assert (await client.next() or "")[0] == "0"
                    assert await client.next() == "1"
                    assert await client.next() is None
            for sid in sids:
                async with session.get(f"{url}/socket.io/?EIO=4&transport=polling&sid={sid}") as response:
                    assert response.status == 400
    finally:
        for client in clients:
            client.drop()
    print(f"{HALF_OPEN} half-open handshakes: {open_kib} KiB while open, {rss_kib(gateway) - before} KiB afterwards")
    assert open_kib < HALF_OPEN_KIB
    assert rss_kib(gateway) - before < HALF_OPEN_KIB


class HalfOpen:
    """A TCP connection on which a request begins."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._begun_at = time.monotonic()

    @classmethod
    async def begin(cls, url: str, beginning: str, later: str) -> "HalfOpen":
        """Connect and say the beginning; `later` behind the answer to it."""
        parts = urlsplit(url)
        begun = cls(*await asyncio.open_connection(parts.hostname, parts.port))
        begun._writer.write(beginning.encode())
        if later:
            assert b" 200 " in await begun._reader.readuntil(b"\r\n\r\n")
            begun._writer.write(later.encode())
            begun._begun_at = time.monotonic()
        return begun

    async def seconds_open(self, *, dripping: bool) -> float:
        """Wait for its end, saying a letter a second meanwhile or nothing; return how long the gateway has stood it."""
        ended = asyncio.create_task(self._reader.read())
        while not (await asyncio.wait([ended], timeout=1))[0]:
            if dripping:
                self._writer.write(b"x")
        # Cut off with something unread on its way, it ends as a reset.
        assert isinstance(ended.exception(), ConnectionError | None)
        return time.monotonic() - self._begun_at

    def drop(self) -> None:
        """Let go of it."""
        self._writer.transport.abort()


async def served(caller: Caller, until: asyncio.Future[list[float]]) -> float:
    """Ask again and again until then; return the longest wait."""
    longest = 0.0
    while not until.done():
        asked_at = time.monotonic()
        assert (await caller.ask("nobodyKnows", {}))["error"]["code"] == "invalid"
        longest = max(longest, time.monotonic() - asked_at)
        await asyncio.sleep(0.1)
    return longest


async def a_thousand_begun(url: str, session: aiohttp.ClientSession) -> AsyncIterator[HalfOpen]:
    """Begin so many requests, of each kind in turn."""
    for number in range(HALF_OPEN):
        kind = list(BEGINNINGS)[number % len(BEGINNINGS)]
        blanks = {}
        if "{sid}" in BEGINNINGS[kind]:
            async with session.get(f"{url}/socket.io/?EIO=4&transport=polling") as response:
                blanks["sid"] = json.loads((await response.text())[1:])["sid"]
        if "{token}" in BEGINNINGS[kind]:
            blanks["token"] = token(unique("a"), "admin")
        yield await HalfOpen.begin(url, BEGINNINGS[kind].format(**blanks), LATER.get(kind, ""))


async def test_a_thousand_connections_that_bring_no_whole_request_are_closed_and_cost_little(
    cluster: Rig, gateway: Process
) -> None:
    """Silent ones and dripping ones of each kind: a letter a second keeps nothing open. The second thousand takes the room
    that the first has left.
    """
    url = cluster.gateways[0]
    for bound_kib in (HALF_OPEN_KIB, AGAIN_KIB):
        await no_connections(gateway)
        before = rss_kib(gateway)
        clients: list[HalfOpen] = []
        async with aiohttp.ClientSession() as session, calling(url, an_admin()) as admin:
            try:
                clients.extend([client async for client in a_thousand_begun(url, session)])
                assert connections(gateway) >= HALF_OPEN
                open_kib = rss_kib(gateway) - before
                waits = [
                    client.seconds_open(dripping=bool(number // len(BEGINNINGS) % 2)) for number, client in enumerate(clients)
                ]
                closed = asyncio.gather(*waits)
                longest_wait = await served(admin, closed)
                longest_open = max(await closed)
            finally:
                for client in clients:
                    client.drop()
        await no_connections(gateway)
        after_kib = rss_kib(gateway) - before
        print(
            f"{HALF_OPEN} half-open connections: {open_kib} KiB while open, {after_kib} KiB afterwards; the last was closed"
            f" after {longest_open:.1f} s, another client waited {longest_wait:.2f} s at most"
        )
        assert longest_open < max(CONNECT_SECONDS, BODY_SECONDS) + LATE_SECONDS
        assert longest_wait < SERVED_SECONDS
        assert max(open_kib, after_kib) < bound_kib
