"""What is extended in python-socketio and python-engineio behaves as their own: one suite, both servers, real sockets."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
import socketio
from aiohttp import web

from gateway.engine.server import Json, Manager, Reply, Server, Spoken
from shared.errors import Refused
from tests.wire import SEPARATOR, Websocket, a_raw_websocket, a_websocket, polling

MAX_BYTES = 300_000
PING_SECONDS, PONG_SECONDS = 0.3, 2.0
BIG = "x" * 200_000
SECONDS = 10.0


class Application:
    """What both servers serve: `say` is echoed, `slow` too once something was said, `flood` sends much, `kick` sends away."""

    def __init__(self) -> None:
        self.server: Any = None
        self.ended: Counter[str] = Counter()
        """How often each socket's end was told."""
        self.heard: list[Any] = []
        self.said = asyncio.Event()
        self.url = ""

    def connect(self, auth: Any) -> None:
        if auth == {"token": "bad"}:
            raise socketio.exceptions.ConnectionRefusedError("No", {"code": "unauthenticated"})

    async def answer(self, sid: str, event: str, payload: Any) -> Any:
        self.heard.append(payload)
        if event == "slow":
            await self.said.wait()
        if event == "say":
            self.said.set()
        if event == "flood":
            for number in range(200):
                await self.server.emit("much", {"number": number, "text": BIG}, to=sid)
        if event == "kick":
            await self.server.disconnect(sid)
        return {"ok": True, "said": payload}

    async def ends(self, count: int) -> None:
        """Wait until that many sockets have ended."""
        async with asyncio.timeout(SECONDS):
            while self.ended.total() < count:  # noqa: ASYNC110 (the application tells nobody)
                await asyncio.sleep(0.01)


class Stock(socketio.AsyncNamespace):  # type: ignore[misc]
    """The application on the library's own server."""

    def __init__(self, application: Application) -> None:
        super().__init__("/")
        self.application = application

    async def trigger_event(self, event: str, *args: Any) -> Any:
        if event == "connect":
            return self.application.connect(args[2] if len(args) > 2 else None)
        if event == "disconnect":
            self.application.ended[args[0]] += 1
            return None
        return await self.application.answer(args[0], event, args[1])


class Ours(socketio.AsyncNamespace):  # type: ignore[misc]
    """The application on ours."""

    def __init__(self, application: Application) -> None:
        super().__init__("/")
        self.application = application
        self._answering: set[asyncio.Task[None]] = set()

    async def trigger_event(self, event: str, *args: Any) -> None:
        if event == "connect":
            self.application.connect(args[2] if len(args) > 2 else None)
        else:
            self.application.ended[args[0]] += 1

    def begin(self, reply: Reply, spoken: Spoken) -> None:
        async def answer() -> None:
            reply.give(await self.application.answer(reply.sid, spoken.event, spoken.payloads[0]))

        answering = asyncio.create_task(answer())
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)

    def refuse(self, sid: str, event: str, refused: Refused) -> Any:
        return {"ok": False, "error": {"code": refused.code}}


def stock(application: Application, redis_url: str, **times: float) -> Any:
    server = socketio.AsyncServer(async_mode="aiohttp", max_http_buffer_size=MAX_BYTES, **times)
    server.register_namespace(Stock(application))
    return server


def ours(application: Application, redis_url: str, **times: float) -> Any:
    # What other processes say is none of this suite's.
    manager = Manager(redis_url, channel="test-engine", write_only=True)
    server = Server(
        async_mode="aiohttp", client_manager=manager, json=Json, namespaces=["/"], max_http_buffer_size=MAX_BYTES, **times
    )
    server.register_namespace(Ours(application))
    return server


Make = Callable[..., Any]


async def serve(make: Make, redis_url: str, stack: AsyncExitStack, **times: float) -> Application:
    application = Application()
    application.server = make(application, redis_url, **times)
    app = web.Application()
    application.server.attach(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    application.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    return application


@pytest.fixture(params=[stock, ours], ids=["stock", "ours"])
def make(request: pytest.FixtureRequest) -> Make:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
async def application(make: Make, redis_url: str) -> AsyncIterator[Application]:
    async with AsyncExitStack() as stack:
        yield await serve(make, redis_url, stack)


@pytest.fixture
async def brisk(make: Make, redis_url: str) -> AsyncIterator[Application]:
    """One that pings often."""
    async with AsyncExitStack() as stack:
        yield await serve(make, redis_url, stack, ping_interval=PING_SECONDS, ping_timeout=PONG_SECONDS)


def said(packet: str) -> Any:
    """The payload of an acknowledgement."""
    return json.loads(packet[packet.index("[") :])[0]["said"]


async def test_packets_are_done_in_the_order_they_came(application: Application) -> None:
    async with a_websocket(application.url) as client:
        await client.join("good")
        await client.send(*(f'42{number}["say",{number}]' for number in range(150)))
        for number in range(150):
            assert said(await client.until(f"43{number}[")) == number
    assert application.heard == list(range(150))


async def test_what_comes_behind_a_handshake_waits_for_it(application: Application) -> None:
    async with a_websocket(application.url) as client:
        await client.send('40{"token":"good"}', '421["say","first"]', '422["say","second"]')
        assert (await client.until("40")).startswith('40{"sid"')
        assert [said(await client.until(f"43{number}")) for number in (1, 2)] == ["first", "second"]


async def test_who_does_not_wait_for_the_upgrade_is_heard_in_order(application: Application) -> None:
    """What came together with the request of the handshake, aiohttp has read."""
    host, _, port = application.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        request = (
            f"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        frames = [text_frame('40{"token":"good"}'), *(text_frame(f'42["say",{number}]') for number in range(20))]
        writer.write(request.encode() + b"".join(frames[:3]) + frames[3][:4])
        await writer.drain()
        writer.write(frames[3][4:] + b"".join(frames[4:]))
        async with asyncio.timeout(SECONDS):
            while len(application.heard) < 20:  # noqa: ASYNC110 (the application tells nobody)
                await asyncio.sleep(0.01)
        assert application.heard == list(range(20))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    finally:
        writer.transport.abort()


def text_frame(text: str) -> bytes:
    body = text.encode()
    return bytes([0x81, 0x80 | len(body)]) + b"\x01\x02\x03\x04" + masked(body)


async def test_an_event_without_a_number_is_not_acknowledged(application: Application) -> None:
    async with a_websocket(application.url) as client:
        await client.join("good")
        await client.send('42["say",1]', '427["say",2]')
        assert await client.next() == '437[{"ok":true,"said":2}]'


async def test_an_answer_that_takes_longer_holds_up_no_other(application: Application) -> None:
    async with a_websocket(application.url) as client:
        await client.join("good")
        await client.send('421["slow",1]', '422["say",2]')
        assert said(await client.until("43")) == 2
        assert said(await client.until("43")) == 1


async def test_a_frame_of_200_kb_goes_both_ways(application: Application) -> None:
    async with a_websocket(application.url) as client:
        await client.join("good")
        await client.send(f'421["say","{BIG}"]')
        assert said(await client.until("431")) == BIG


async def test_a_frame_may_come_in_fragments_with_a_ping_between(application: Application) -> None:
    client = await a_raw_websocket(application.url)
    try:
        await client.until("0")
        client.send('40{"token":"good"}')
        await client.until("40")
        text = '421["say","é' + "y" * 300 + '"]'
        body = text.encode()
        for head, part in ((0x01, body[:11]), (0x00, body[11:100]), (0x89, b"you"), (0x80, body[100:])):
            size = bytes([0x80 | len(part)]) if len(part) < 126 else b"\xfe" + len(part).to_bytes(2)
            client.write(bytes([head]) + size + b"\x01\x02\x03\x04" + masked(part))
        assert said(await client.until("431", passing=b"\x8a")) == "é" + "y" * 300
    finally:
        client.drop()


def masked(body: bytes) -> bytes:
    return bytes(letter ^ (1, 2, 3, 4)[place % 4] for place, letter in enumerate(body))


async def test_a_client_that_polls_is_served_alike(application: Application) -> None:
    async with polling(application.url) as client:
        assert (await client.join("good"))[0].startswith("40")
        # As much as the stock server reads of a body: the rest it drops, and answers 200.
        large = BIG[:20_000]
        assert await client.post('421["say",1]', f'422["say","{large}"]') == 200
        packets: list[str] = []
        while len(packets) < 2:
            packets += (await client.get())[1]
        assert [said(packet) for packet in packets] == [1, large]


async def test_a_client_moves_from_polling_to_a_websocket_and_loses_nothing(application: Application) -> None:
    async with polling(application.url) as client:
        await client.join("good")
        assert await client.post('421["slow","before"]') == 200
        async with a_websocket(application.url, sid=client.sid) as websocket:
            await websocket.send("2probe")
            assert await websocket.next() == "3probe"
            await websocket.send("5", '422["say","after"]')
            heard = [await websocket.until("43"), await websocket.until("43")]
            assert sorted(map(said, heard)) == ["after", "before"]
            assert application.ended.total() == 0
    await application.ends(1)


async def test_a_refusal_is_told_and_leaves_nobody_connected(application: Application) -> None:
    async with a_websocket(application.url) as client:
        refusal = await client.join("bad")
        assert refusal.startswith("44")
        assert json.loads(refusal[2:]) == {"message": "No", "data": {"code": "unauthenticated"}}
        assert list(application.server.manager.get_participants("/", None)) == []
    assert application.ended.total() == 0


async def test_who_is_kicked_is_told_once_and_their_end_too(application: Application) -> None:
    async with a_websocket(application.url) as client:
        await client.join("good")
        await client.send('42["kick",1]')
        assert await client.until("41") == "41"
    await application.ends(1)
    assert set(application.ended.values()) == {1}


@pytest.mark.parametrize("goodbye", [["41"], ["1"], ["41", "1"], []], ids=["leaves", "closes", "both", "hangs up"])
async def test_an_end_is_told_exactly_once_after_what_was_said_before(application: Application, goodbye: list[str]) -> None:
    async with a_websocket(application.url) as client:
        await client.join("good")
        await client.send('421["say",1]', *goodbye)
    await application.ends(1)
    assert (application.heard, set(application.ended.values())) == ([1], {1})


async def test_pings_come_and_who_answers_stays(brisk: Application) -> None:
    async with a_websocket(brisk.url) as client:
        await client.join("good")
        for _ in range(4):
            assert await client.next() == "2"
            await client.send("3")
        assert said_by(await client.ask("say", 1)) == 1


def said_by(answer: dict[str, Any]) -> Any:
    return answer["said"]


async def test_a_client_that_died_is_noticed_and_told_once(brisk: Application) -> None:
    """It neither answers nor hangs up."""
    async with a_websocket(brisk.url) as client:
        await client.join("good")
        await brisk.ends(1)
        assert set(brisk.ended.values()) == {1}


async def test_a_client_that_was_cut_off_is_noticed_at_once(application: Application) -> None:
    client = await a_raw_websocket(application.url)
    await client.until("0")
    client.send('40{"token":"good"}')
    await client.until("40")
    client.drop()
    await application.ends(1)


async def test_a_client_that_stops_reading_does_not_stop_the_others_and_ends_once(brisk: Application) -> None:
    deaf = await a_raw_websocket(brisk.url, buffer_bytes=32_768)
    try:
        await deaf.until("0")
        deaf.send('40{"token":"good"}')
        await deaf.until("40")
        deaf.send('42["flood",1]')
        async with a_websocket(brisk.url) as other:
            await other.join("good")
            async with asyncio.timeout(SECONDS):
                while not brisk.ended:
                    await answered(other)
                    # So often and no more: whoever asks all the time is refused.
                    await other.until("2")
            await answered(other)
        await brisk.ends(2)
        assert set(brisk.ended.values()) == {1}
    finally:
        deaf.drop()


async def answered(client: Websocket) -> None:
    assert said_by(await client.ask("say", "still here")) == "still here"


async def test_many_packets_in_one_body_are_done_in_order(application: Application) -> None:
    async with polling(application.url) as client:
        await client.join("good")
        packets = [f'42["say",{number}]' for number in range(10)]
        assert await client.post(data=SEPARATOR.join(packets)) == 200
        async with asyncio.timeout(SECONDS):
            while len(application.heard) < 10:  # noqa: ASYNC110 (likewise)
                await asyncio.sleep(0.01)
        assert application.heard == list(range(10))


def test_what_is_sent_to_many_is_what_is_sent_to_one() -> None:
    """Json writes what msgspec writes, structs too."""

    class Point(msgspec.Struct):
        x: int

    assert Json.loads(Json.dumps([Point(1)])) == [{"x": 1}]
