"""Engine.IO 4 as the gateway speaks it: what any client may rely on, and what ends a connection."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from gateway.payloads import MAX_FRAME_BYTES
from tests.system.gateways import gateways_alone
from tests.system.rig import Rig
from tests.system.rig import token as minted
from tests.wire import SEPARATOR, Polling, a_websocket, polling

PING_SECONDS = 0.4
PONG_SECONDS = 0.6


@pytest.fixture
def url(cluster: Rig) -> str:
    """A gateway as it is in use."""
    return cluster.gateways[0]


def token(user_id: str = "ann", *, seconds: float = 3600) -> str:
    """Mint a student's token."""
    return minted(user_id, "student", seconds=seconds)


@pytest.fixture
async def brisk_url(redis_url: str) -> AsyncIterator[str]:
    """A gateway that pings often."""
    times = {"ping_interval_seconds": PING_SECONDS, "ping_timeout_seconds": PONG_SECONDS}
    async with gateways_alone(redis_url, count=1, times=times) as [url]:
        yield url


def opening(sid: str, upgrades: list[str], **times: int) -> dict[str, Any]:
    """What a handshake says."""
    times = {"pingInterval": 25_000, "pingTimeout": 20_000} | times
    return {"sid": sid, "upgrades": upgrades, "maxPayload": MAX_FRAME_BYTES, **times}


# Handshakes


async def test_a_handshake_says_the_session_and_the_times(url: str) -> None:
    async with a_websocket(url) as websocket, polling(url) as client:
        assert websocket.opening == opening(websocket.opening["sid"], [])
        assert client.opening == opening(client.sid, ["websocket"])
        assert client.sid != websocket.opening["sid"]
        assert len(client.sid) >= 16


async def test_short_times_are_said_exactly(brisk_url: str) -> None:
    async with a_websocket(brisk_url) as websocket:
        assert websocket.opening == opening(websocket.opening["sid"], [], pingInterval=400, pingTimeout=600)


@pytest.mark.parametrize(
    "query",
    [
        "EIO=4",
        "EIO=4&transport=",
        "EIO=4&transport=pigeon",
        "EIO=4&transport=websocket",
        "transport=polling",
        "EIO=3&transport=polling",
        "EIO=5&transport=polling",
        "EIO=x&transport=polling",
        "EIO=4&transport=polling&sid=nobody",
        "EIO=4&transport=polling&sid=",
        "EIO=4&transport=polling&j=0",
        "",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_request_that_is_no_handshake_is_a_bad_request(url: str, query: str, method: str) -> None:
    async with polling(url, opened=False) as client:
        status, _ = await client.request(method, query)
        assert status == (200 if (method, query) == ("GET", "EIO=4&transport=polling&sid=") else 400)


async def test_nobody_begins_with_a_post(url: str) -> None:
    async with polling(url, opened=False) as client:
        assert (await client.request("POST", "EIO=4&transport=polling", data="40"))[0] == 400


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "HEAD"])
async def test_other_methods_are_refused(url: str, method: str) -> None:
    async with polling(url) as client:
        for query in ("EIO=4&transport=polling", f"EIO=4&transport=polling&sid={client.sid}"):
            assert (await client.request(method, query))[0] == 405


# Signs of life


@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_a_ping_comes_at_each_interval_to_who_answers(brisk_url: str, transport: str) -> None:
    began = time.monotonic()
    if transport == "websocket":
        async with a_websocket(brisk_url) as websocket:
            for _ in range(4):
                assert await websocket.next() == "2"
                await websocket.send("3")
    else:
        async with polling(brisk_url) as client:
            for _ in range(4):
                assert await client.get() == (200, ["2"])
                assert await client.post("3") == 200
    assert time.monotonic() - began >= 4 * PING_SECONDS - 0.05


@pytest.mark.parametrize("said", [[], ["42[]"], ["3", "3", "3"]])
async def test_who_does_not_answer_a_ping_is_closed(brisk_url: str, said: list[str]) -> None:
    """Neither do answers count that nobody asked for."""
    async with a_websocket(brisk_url) as websocket:
        await websocket.join(token())
        await websocket.send(*[packet for packet in said if packet == "3"])
        began = time.monotonic()
        assert await websocket.ended() == ["2"]
        assert time.monotonic() - began >= PONG_SECONDS - 0.05


async def test_who_does_not_fetch_a_ping_is_forgotten(brisk_url: str) -> None:
    async with polling(brisk_url) as client:
        await client.join(token())
        await forgotten(client)
        assert (await client.get())[0] == 400


async def forgotten(client: Polling) -> None:
    """Wait until a session is no more; answers to pings that were not sent keep none alive."""
    async with asyncio.timeout(10):
        while await client.post("3") == 200:  # noqa: ASYNC110 (nobody is told)
            await asyncio.sleep(0.05)


# Packets


@pytest.mark.parametrize("frame", ["", "abc", "7", "x", "0", "2", "5", "6", "٣", "b", "bAAEC", "b4", "-1", "\x1e", " 4"])
@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_what_is_no_packet_ends_the_connection(url: str, frame: str, transport: str) -> None:
    """So does a packet that only a server sends, and a binary one."""
    if transport == "websocket":
        async with a_websocket(url) as websocket:
            await websocket.join(token())
            await websocket.send(frame)
            assert await websocket.ended() == []
    else:
        async with polling(url) as client:
            await client.join(token())
            assert await client.post("3", frame, '421["nobodyKnows"]') == 400
            assert (await client.get())[0] == 400


@pytest.mark.parametrize("frame", [b"", b"4", b"\x00", b'42["x"]'])
async def test_a_binary_frame_ends_the_connection(url: str, frame: bytes) -> None:
    async with a_websocket(url) as websocket:
        await websocket.join(token())
        await websocket.send(frame)
        assert await websocket.ended() == []


async def test_several_packets_may_come_in_one_post(url: str) -> None:
    """More than a handful: a client that was busy sends all at once."""
    async with polling(url) as client:
        assert await client.post("40" + json.dumps({"token": token()}), *(f'42{n}["nobodyKnows"]' for n in range(60))) == 200
        answered: list[str] = []
        while len(answered) < 60:
            _, packets = await client.get()
            answered += [packet.partition("[")[0] for packet in packets if packet.startswith("43")]
        assert answered == [f"43{n}" for n in range(60)]


async def test_a_frame_may_have_256_kib_and_its_wrapping_and_no_more(url: str) -> None:
    def event(size: int) -> str:
        return '421["nobodyKnows","' + "x" * (size - len('421["nobodyKnows",""]')) + '"]'

    for size, fits in ((MAX_FRAME_BYTES - 1, True), (MAX_FRAME_BYTES + 1, False), (300 * 1024, False)):
        async with a_websocket(url) as websocket, polling(url) as client:
            await websocket.join(token())
            await client.join(token())
            await websocket.send(event(size))
            assert await client.post(event(size)) == (200 if fits else 400)
            if fits:
                assert (await websocket.until("431["))[:4] == "431["
                assert any(packet.startswith("431[") for packet in (await client.get())[1])
            else:
                assert await websocket.ended() == []
                assert (await client.get())[0] == 400


@pytest.mark.parametrize("body", [b"\xff\xfe", b"4\xed\xa0\x80"])
async def test_a_post_that_is_no_text_ends_the_connection(url: str, body: bytes) -> None:
    async with polling(url) as client:
        assert await client.post(data=body) == 400
        assert (await client.get())[0] == 400


async def test_a_close_packet_closes(url: str) -> None:
    async with a_websocket(url) as websocket, polling(url) as client:
        await websocket.send("1")
        assert await websocket.ended() == []
        assert await client.post("1") == 200
        assert (await client.get())[0] == 400
        assert await client.post("3") == 400


async def test_a_close_packet_lets_go_of_who_polls(url: str) -> None:
    async with polling(url) as client:
        waiting = asyncio.create_task(client.get())
        await held(client)
        assert await client.post("1") == 200
        assert (await waiting)[0] == 400


async def held(client: Polling) -> None:
    """Let a request that waits arrive first: a second one after it is answered at once."""
    status, _ = await client.request("GET", "EIO=4&transport=polling")
    assert status == 200


async def test_two_polls_at_once_end_the_connection(url: str) -> None:
    async with polling(url) as client:
        answers = await asyncio.gather(client.get(), client.get())
        assert sorted(status for status, _ in answers) == [200, 400]
        assert next(packets for status, packets in answers if status == 200) == ["1"]
        assert (await client.get())[0] == 400


@asynccontextmanager
async def a_connection(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect without a word of HTTP; little that is not read fits in."""
    host, port = url.removeprefix("http://").split(":")
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    peer.setblocking(False)
    await asyncio.get_running_loop().sock_connect(peer, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=peer)
    try:
        yield reader, writer
    finally:
        writer.close()


def a_get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode()


async def a_body(reader: asyncio.StreamReader) -> bytes:
    """Read one answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    return await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]))


async def test_the_end_of_one_client_leaves_another_ones_answers_alone(brisk_url: str) -> None:
    """A proxy sends the requests of many on few connections: this one has brought a poll, and now carries what is slow."""
    async with a_connection(brisk_url) as (reader, writer), polling(brisk_url, opened=False) as client, asyncio.timeout(60):
        writer.write(a_get("/socket.io/?EIO=4&transport=polling"))
        client.opening = json.loads((await a_body(reader))[1:])
        writer.write(a_get(f"/socket.io/?EIO=4&transport=polling&sid={client.sid}"))
        assert await a_body(reader) == b"2"
        for _ in range(300):
            writer.write(a_get("/api/v1/openapi.json"))
        await forgotten(client)
        bodies = [await a_body(reader) for _ in range(300)]
        assert len(set(bodies)) == 1
        assert len(bodies) * len(bodies[0]) > 10_000_000


@pytest.mark.parametrize("said", [[], ['421["nobodyKnows"]']])
async def test_who_hangs_up_on_a_poll_has_ended_the_connection(redis_url: str, said: list[str]) -> None:
    """What it was answered with, or would have been, nobody has heard."""
    async with gateways_alone(redis_url, count=1) as [url], polling(url) as client:
        await client.join(token())
        async with a_connection(url) as (_, writer):
            writer.write(a_get(f"/socket.io/?EIO=4&transport=polling&sid={client.sid}"))
            await held(client)
        for _ in range(3):
            await held(client)
        for packet in said:
            assert await client.post(packet) == 200
            await held(client)
        assert (await client.get())[0] == 400


# Upgrades


async def test_a_polling_client_moves_to_a_websocket(url: str) -> None:
    """Who waits for a poll is let go with a noop, and polls no more."""
    async with polling(url) as client:
        await client.join(token())
        waiting = asyncio.create_task(client.get())
        await held(client)
        async with a_websocket(url, sid=client.sid) as websocket:
            await websocket.send("2probe")
            assert await websocket.next() == "3probe"
            assert await waiting == (200, ["6"])
            assert await client.get() == (200, ["6"])
            assert await client.post('421["nobodyKnows"]') == 200
            await websocket.send("5")
            assert (await websocket.until("431["))[:4] == "431["
            await websocket.send('422["nobodyKnows"]')
            assert (await websocket.until("432["))[:4] == "432["
            assert (await client.get())[0] == 400
            assert await client.post("3") == 400
            with pytest.raises(aiohttp.WSServerHandshakeError):
                async with a_websocket(url, sid=client.sid):
                    pass
            await websocket.send('423["nobodyKnows"]')
            assert (await websocket.until("433["))[:4] == "433["


@pytest.mark.parametrize("said", [["2"], ["2prob"], ["5"], ["4"], ["2probe", "4"], ["2probe", "2probe"]])
async def test_a_move_that_goes_wrong_leaves_the_client_polling(url: str, said: list[str]) -> None:
    async with polling(url) as client:
        await client.join(token())
        async with a_websocket(url, sid=client.sid) as websocket:
            await websocket.send(*said)
            assert await websocket.ended() in ([], ["3probe"])
        assert await client.post('421["nobodyKnows"]') == 200
        assert any(packet.startswith("431[") for packet in (await client.get())[1])


async def test_a_websocket_to_nobodys_session_is_a_bad_request(url: str) -> None:
    async with polling(url, opened=False) as client:
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
        status, _ = await client.request("GET", "EIO=4&transport=websocket&sid=nobody", headers=upgrade)
        assert status == 400


# Handshakes that never finish


@pytest.mark.parametrize("said", [[], ['40{"token":"rubbish"}'], ["40/nowhere,"]])
async def test_who_joins_no_namespace_is_closed(redis_url: str, said: list[str]) -> None:
    """By the time that a handshake may take, or soon after a refusal."""
    async with (
        gateways_alone(redis_url, count=1, times={"connect_seconds": 30 if said else 0.5}) as [url],
        a_websocket(url) as websocket,
        polling(url) as client,
        a_websocket(url) as joined,
    ):
        await joined.join(token())
        for packet in said:
            await websocket.send(packet)
            assert await client.post(packet) == 200
        packets = await websocket.ended()
        assert [packet[:2] for packet in packets] == [*(["44"] if said else []), "1"]
        await forgotten(client)
        await joined.ask("nobodyKnows", {})


async def test_who_is_refused_again_and_again_is_closed_no_later(redis_url: str) -> None:
    async with gateways_alone(redis_url, count=1, times={"connect_seconds": 30}) as [url], a_websocket(url) as websocket:

        async def go_on() -> None:
            while True:
                await websocket.send("40/nowhere,")
                await asyncio.sleep(0.2)

        going = asyncio.create_task(go_on())
        packets = await websocket.ended()
        going.cancel()
        await asyncio.wait({going})
        assert (packets[0][:2], packets[-1]) == ("44", "1")


async def test_the_answers_of_a_poll_are_kept_apart(url: str) -> None:
    async with polling(url) as client:
        await client.join(token())
        assert await client.post('421["nobodyKnows"]', '422["nobodyKnows"]') == 200
        status, text = await client.request("GET", f"EIO=4&transport=polling&sid={client.sid}")
        assert status == 200
        assert [packet[:2] for packet in text.split(SEPARATOR)] == ["42", "43"] * 2
