"""Which pages of other origins may call the API: those that are listed, whatever they are answered, and nobody unless told."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.http import PREFIX, cors, refusals

LISTED, OTHER = "https://school.example", "https://evil.example"
Client = TestClient[web.Request, web.Application]


@asynccontextmanager
async def serving(origins: Collection[str]) -> AsyncIterator[Client]:
    """Serve one page within the API, one without."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="page")

    app = web.Application(middlewares=[cors(origins, PREFIX), refusals])
    app.add_routes([web.get(f"{PREFIX}/page", page), web.get("/health/live", page)])
    async with TestClient(TestServer(app)) as client:
        yield client


def granted(headers: object) -> set[str]:
    """The grants among headers."""
    assert isinstance(headers, Collection)
    return {name for name in headers if name.startswith("Access-Control-")}


def preflight(origin: str) -> dict[str, str]:
    return {"Origin": origin, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}


@pytest.mark.parametrize(("path", "status"), [("page", 200), ("nothing", 404)])
async def test_a_listed_page_may_read_what_it_is_answered_and_refused(path: str, status: int) -> None:
    async with serving([LISTED]) as client, client.get(f"{PREFIX}/{path}", headers={"Origin": LISTED}) as response:
        assert response.status == status
        assert response.headers["Access-Control-Allow-Origin"] == LISTED
        assert response.headers["Access-Control-Expose-Headers"] == "Content-Disposition, Retry-After"
        assert response.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in response.headers


async def test_a_listed_page_may_ask_beforehand() -> None:
    async with serving([OTHER, LISTED]) as client, client.options(f"{PREFIX}/page", headers=preflight(LISTED)) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == LISTED
        assert set(response.headers["Access-Control-Allow-Methods"].split(", ")) == {"GET", "POST", "PUT", "PATCH", "DELETE"}
        assert set(response.headers["Access-Control-Allow-Headers"].split(", ")) == {
            "Authorization",
            "Content-Type",
            "Idempotency-Key",
        }


@pytest.mark.parametrize("origin", [OTHER, "null", f"{LISTED}.evil.example", LISTED.upper(), ""])
async def test_any_other_page_may_not(origin: str) -> None:
    async with serving([LISTED]) as client:
        async with client.get(f"{PREFIX}/page", headers={"Origin": origin}) as response:
            assert (response.status, granted(response.headers)) == (200, set())
            assert response.headers["Vary"] == "Origin"
        async with client.options(f"{PREFIX}/page", headers=preflight(origin)) as response:
            assert (response.status, granted(response.headers)) == (405, set())


async def test_a_star_stands_for_every_page() -> None:
    async with serving(["*"]) as client, client.get(f"{PREFIX}/page", headers={"Origin": OTHER}) as response:
        assert response.headers["Access-Control-Allow-Origin"] == OTHER


@pytest.mark.parametrize("ask", [TestClient.get, TestClient.options])
async def test_nobody_is_let_in_unless_told(ask: Callable[..., Awaitable[web.Response]]) -> None:
    async with serving([]) as client:
        response = await ask(client, f"{PREFIX}/page", headers=preflight(LISTED))
        assert granted(response.headers) == set()
        assert "Vary" not in response.headers


async def test_what_is_not_the_api_grants_nothing() -> None:
    async with serving([LISTED]) as client, client.get("/health/live", headers={"Origin": LISTED}) as response:
        assert (response.status, granted(response.headers)) == (200, set())
