"""Who may come in, on running gateways: which pages, with which keys, and how many bad tokens from one address."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import structlog

from gateway import door as door_module
from gateway import keys as keys_module
from gateway.limits import Limit
from tests.system.gateways import gateways_alone
from tests.system.rig import token
from tests.system.talk import calling, http, http_once
from tests.unit.published_keys import Provider, jwk, key_set, publishing
from tests.unit.published_keys import token as signed

LISTED, OTHER = "https://school.example", "https://evil.example"
POLLING, WEBSOCKET = "/socket.io/?EIO=4&transport=polling", "/socket.io/?EIO=4&transport=websocket"


# Pages


@pytest.fixture
async def listing(redis_url: str) -> AsyncIterator[str]:
    """A gateway for the pages of one origin."""
    async with gateways_alone(redis_url, {"ROLLCALL_CORS_ORIGINS": f"https://a.example, {LISTED}"}, count=1) as [url]:
        yield url


async def polls(url: str, origin: str | None, **headers: str) -> bool:
    """Begin a handshake by polling; say whether it was let in, and read by the page."""
    headers = {**headers, **({} if origin is None else {"Origin": origin})}
    async with aiohttp.ClientSession() as session, session.get(url + POLLING, headers=headers) as answer:
        allowed = answer.headers.get("Access-Control-Allow-Origin")
        assert answer.status in (200, 400)
        assert allowed == (origin if answer.status == 200 else None)
        return answer.status == 200


async def upgrades(url: str, origin: str | None, sid: str = "", **headers: str) -> bool:
    """Begin a handshake as a WebSocket, or go on with one; say whether it was let in."""
    headers = {**headers, **({} if origin is None else {"Origin": origin})}
    path = f"{url}{WEBSOCKET}{f'&sid={sid}' if sid else ''}"
    try:
        async with aiohttp.ClientSession() as session, session.ws_connect(path, headers=headers) as socket:
            if sid:
                await socket.send_str("2probe")
            return (await socket.receive_str(timeout=10))[0] in "03"
    except aiohttp.WSServerHandshakeError as refused:
        assert refused.status == 400
        return False


@pytest.mark.parametrize("handshake", [polls, upgrades])
async def test_a_socket_is_opened_by_a_listed_page_by_our_own_and_by_who_is_no_browser(listing: str, handshake: Any) -> None:
    assert await handshake(listing, LISTED)
    assert await handshake(listing, listing)
    assert await handshake(listing, None)
    assert await handshake(listing, "https://rollcall.example", Host="rollcall.example", **{"X-Forwarded-Proto": "https"})


@pytest.mark.parametrize("handshake", [polls, upgrades])
@pytest.mark.parametrize("origin", [OTHER, "null", f"{LISTED}.evil.example", f"{LISTED}:8443", "http://127.0.0.1:1", "*"])
async def test_no_other_page_opens_a_socket(listing: str, handshake: Any, origin: str) -> None:
    assert not await handshake(listing, origin)


async def test_no_other_page_goes_on_with_a_socket_that_it_has_heard_of(listing: str) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(listing + POLLING) as answer:
            sid = (await answer.text()).partition('"sid":"')[2].partition('"')[0]
        async with session.post(f"{listing}{POLLING}&sid={sid}", data="40", headers={"Origin": OTHER}) as answer:
            assert answer.status == 400
    assert not await upgrades(listing, OTHER, sid)
    assert await upgrades(listing, LISTED, sid)


async def test_without_a_list_only_our_own_pages_open_sockets(redis_url: str) -> None:
    async with gateways_alone(redis_url, count=1) as [url]:
        for handshake in (polls, upgrades):
            assert await handshake(url, url)
            assert not await handshake(url, OTHER)


# Keys


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with publishing(Provider(key_set(jwk("RS256")))) as provider:
        yield provider


async def test_published_keys_open_sockets_and_requests_and_may_change(
    redis_url: str, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that comes and one that goes, while sockets are open."""
    monkeypatch.setattr(keys_module, "AGAIN_SECONDS", 0.0)
    settings = {"ROLLCALL_JWT_SECRET": "", "ROLLCALL_JWT_JWKS_URL": provider.url}
    old, new = signed("RS256"), signed("ES256", "new")
    async with gateways_alone(redis_url, settings, count=1) as [url], calling(url, old) as caller:
        assert (await http(url, "GET", "/courses", token("t1", "teacher")))[0] == 401
        assert (await http(url, "GET", "/courses?limit=0", old))[0] == 400
        provider.body = key_set(jwk("ES256", "new"))

        assert (await caller.ask("refreshToken", {"token": new}))["ok"]
        async with calling(url, new):
            assert (await http(url, "GET", "/courses?limit=0", new))[0] == 400
        assert (await http(url, "GET", "/courses?limit=0", old))[0] == 401
        assert (await caller.ask("refreshToken", {"token": old}))["error"]["code"] == "unauthenticated"
        assert (await caller.ask("nobody knows this", {}))["error"]["code"] == "invalid"


async def test_nobody_waits_for_somebody_elses_key(redis_url: str, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "AGAIN_SECONDS", 0.0)
    settings = {"ROLLCALL_JWT_SECRET": "", "ROLLCALL_JWT_JWKS_URL": provider.url}
    async with gateways_alone(redis_url, settings, count=1) as [url], calling(url, signed("RS256")) as caller:
        provider.open.clear()
        waiting = asyncio.create_task(http_once(url, "GET", "/courses", signed("ES256", "new")))
        await asyncio.wait_for(provider.asked_again.wait(), 10)

        assert (await caller.ask("nobody knows this", {}))["error"]["code"] == "invalid"
        assert (await http(url, "GET", "/courses?limit=0", signed("RS256")))[0] == 400

        assert not waiting.done()
        provider.status = 503
        provider.open.set()
        status, body = await waiting
        assert (status, body["error"]["code"], body["error"]["retryable"]) == (503, "unavailable", True)


# Addresses


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many bad tokens an address may show here."""
    monkeypatch.setattr(door_module, "REFUSED_TOKENS", limit := Limit(burst=30, per_second=0.5))
    return limit.burst


async def test_too_many_bad_tokens_from_one_address_are_told_so_and_a_good_one_is_good(redis_url: str, few: int) -> None:
    """Also over the socket; whatever a client claims left of what the trusted proxy says."""
    async with gateways_alone(redis_url, {"ROLLCALL_TRUSTED_PROXIES": "127.0.0.0/8"}, count=1) as [url]:

        async def show(shown: str, address: str, claimed: int = 0) -> tuple[int, dict[str, Any]]:
            headers = {"X-Forwarded-For": f"203.0.113.{claimed}, {address}"}
            return await http(url, "GET", "/courses?limit=0", shown, headers=headers)

        expired = token("s1", "student", seconds=-60)
        codes = [(await show(expired, "192.0.2.1"))[1]["error"]["code"] for _ in range(few + 10)]
        assert set(codes) == {"token_expired"}
        async with asyncio.timeout(30):
            while True:
                told = await asyncio.gather(*(show("bad", "192.0.2.1", claimed) for claimed in range(20)))
                if late := [body["error"] for status, body in told if status == 429]:
                    break
        assert late[0]["code"] == "rate_limited"
        assert 0 < late[0]["retry_after_ms"] <= 2000
        assert (await show("bad", "192.0.2.2"))[1]["error"]["code"] == "unauthenticated"
        assert (await show(token("s1", "student"), "192.0.2.1"))[0] == 400


async def test_the_lines_about_bad_clients_are_counted_by_where_they_sit_and_not_by_the_proxy(redis_url: str) -> None:
    async def misbehave(url: str, address: str) -> None:
        headers = {"X-Forwarded-For": address}
        async with aiohttp.ClientSession() as session, session.ws_connect(url + WEBSOCKET, headers=headers) as socket:
            await socket.receive_str(timeout=10)
            await socket.send_str("nonsense")
            assert (await socket.receive(timeout=10)).type is not aiohttp.WSMsgType.TEXT

    with structlog.testing.capture_logs() as logs:
        async with gateways_alone(redis_url, {"ROLLCALL_TRUSTED_PROXIES": "127.0.0.0/8"}, count=1) as [url]:
            await asyncio.gather(*(misbehave(url, "192.0.2.1") for _ in range(10)))
            await misbehave(url, "192.0.2.2")
    addresses = [line["address"] for line in logs if line["event"] == "links.closed"]
    assert set(addresses) == {"192.0.2.1", "192.0.2.2"}
    assert addresses.count("192.0.2.1") < 10


async def test_a_handshake_with_one_bad_token_too_many_is_refused_with_the_time_to_wait(redis_url: str, few: int) -> None:
    async with gateways_alone(redis_url, count=1) as [url]:
        for _ in range(3):
            await asyncio.gather(*(http(url, "GET", "/courses", "bad") for _ in range(few)))
        async with aiohttp.ClientSession() as session, session.ws_connect(url + WEBSOCKET) as socket:
            await socket.receive_str(timeout=10)
            await socket.send_str('40{"token":"bad"}')
            refusal = await socket.receive_str(timeout=10)
    assert refusal.startswith('44{"message":"Too many requests","data":{"code":"rate_limited","retry_after_ms":')
