"""Ways to Postgres that go silent, are cut or cannot be had: nobody is waited on in vain, and no connection is lost."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import greenlet  # type: ignore[import-untyped]
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared import database
from shared.database import Connection, Statement, driver, open_engine, transaction
from shared.errors import Unavailable
from tests.proxy import Proxy

SILENCE_SECONDS = 2
CLEARED_AWAY_SECONDS = 2
"""How long SQLAlchemy waits for a connection that it closes."""

MARGIN_SECONDS = 3


async def ask(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        await connection.execute(text("SELECT 1"))


async def ask_the_driver(engine: AsyncEngine) -> None:
    async with driver(engine) as connection:
        await Statement("SELECT 1").fetch(connection, {})


@pytest.mark.parametrize("ask", [ask, ask_the_driver])
async def test_connections_gone_silent_cost_one_wait_together(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, ask: Callable[[AsyncEngine], Awaitable[None]]
) -> None:
    """A chaos run found a replica deaf for half a minute for every connection in its pool: a failover, or a firewall that
    forgets, leaves them half-open, each waited 30 s for its own answer, and the queues waited with it.
    """
    monkeypatch.setattr(database, "STATEMENT_SECONDS", SILENCE_SECONDS)
    proxy = Proxy(postgres_url)
    await proxy.open()
    engine = open_engine(proxy.url, application="test")
    try:
        await asyncio.gather(*(ask(engine) for _ in range(database.POOL_SIZE)))
        assert proxy.connections == database.POOL_SIZE
        proxy.half_open()

        began = time.monotonic()
        with pytest.raises(Unavailable):
            await ask(engine)
        await ask(engine)

        assert time.monotonic() - began < SILENCE_SECONDS + CLEARED_AWAY_SECONDS + MARGIN_SECONDS
    finally:
        await proxy.end()
        await engine.dispose()


async def test_an_idle_connection_is_lent_and_given_back_without_a_greenlet(postgres_url: str) -> None:
    """Each has a stack of its own, mapped and unmapped: more than all else that lending takes."""
    engine = open_engine(postgres_url, application="test")
    switched: list[str] = []
    try:
        await ask_the_driver(engine)
        before = greenlet.settrace(lambda event, _: switched.append(event))
        try:
            await ask_the_driver(engine)
            assert not switched
            await ask(engine)
            assert switched
        finally:
            greenlet.settrace(before)
    finally:
        await engine.dispose()


@pytest.mark.filterwarnings("error")
async def test_a_connection_condemned_with_another_is_made_anew_when_it_is_to_be_lent(postgres_url: str) -> None:
    engine = open_engine(postgres_url, application="test")

    async def pid_of(connection: Connection) -> int:
        return int(await connection.fetchval("SELECT pg_backend_pid()"))

    try:
        async with driver(engine) as first, driver(engine) as second:
            pids = {await pid_of(first), await pid_of(second)}
        with pytest.raises(Unavailable):
            async with driver(engine):
                raise TimeoutError

        async with driver(engine) as first, driver(engine) as second:
            assert pids.isdisjoint({await pid_of(first), await pid_of(second)})
        assert "Current Checked out connections: 0" in engine.pool.status()
    finally:
        await engine.dispose()


async def test_a_driver_that_is_confused_gives_its_connection_up(postgres_url: str) -> None:
    """Regression: where a connection is cut just as it is written to, asyncpg says that an operation is in progress."""
    engine = open_engine(postgres_url, application="test")
    try:
        pids = []
        for _ in range(2):
            with pytest.raises(Unavailable, match="in progress"):
                async with driver(engine) as lent:
                    pids.append(await lent.fetchval("SELECT pg_backend_pid()"))
                    raise asyncpg.InternalClientError("another operation is in progress")
        assert len(set(pids)) == 2
    finally:
        await engine.dispose()


async def test_a_connection_that_was_cut_is_unavailable_and_the_next_is_another(postgres_url: str) -> None:
    engine = open_engine(postgres_url, application="test")
    try:
        with pytest.raises(Unavailable):
            async with driver(engine) as cut:
                pid = await cut.fetchval("SELECT pg_backend_pid()")
                async with transaction(engine) as other:
                    await other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
                await cut.fetch("SELECT 1")

        async with driver(engine) as connection:
            assert await connection.fetchval("SELECT pg_backend_pid()") != pid
    finally:
        await engine.dispose()


async def test_what_says_something_against_the_statement_is_raised_as_the_driver_says_it(postgres_url: str) -> None:
    engine = open_engine(postgres_url, application="test")
    try:
        with pytest.raises(asyncpg.UndefinedColumnError):
            async with driver(engine) as connection:
                await connection.fetch("SELECT nothing")
        await ask_the_driver(engine)
    finally:
        await engine.dispose()


@pytest.mark.parametrize("ask", [ask, ask_the_driver])
@pytest.mark.parametrize(
    "why",
    [
        asyncpg.CannotConnectNowError("the database system is starting up"),
        asyncpg.TooManyConnectionsError("sorry, too many clients already"),
        ConnectionRefusedError(),
    ],
    ids=lambda why: type(why).__name__,
)
async def test_a_postgres_that_takes_no_connection_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, why: Exception, ask: Callable[[AsyncEngine], Awaitable[None]]
) -> None:
    """What is not passing would be parked."""

    async def refuse(*_: Any, **__: Any) -> None:
        raise why

    monkeypatch.setattr(asyncpg, "connect", refuse)
    engine = open_engine("postgresql://nobody@nowhere/nothing", application="test")
    for _ in range(database.POOL_SIZE + 1):
        with pytest.raises(Unavailable):
            await ask(engine)
    assert "Current Checked out connections: 0" in engine.pool.status()


@pytest.mark.parametrize(
    ("why", "told"),
    [
        (asyncpg.UndefinedColumnError("no such column"), asyncpg.UndefinedColumnError),
        (asyncpg.InternalClientError("confused"), Unavailable),
        (TimeoutError(), Unavailable),
        (OSError("cut"), Unavailable),
        (asyncio.CancelledError(), asyncio.CancelledError),
        (ValueError("a defect"), ValueError),
    ],
    ids=lambda each: type(each).__name__,
)
async def test_a_connection_that_was_lent_is_given_back_whatever_becomes_of_it(
    postgres_url: str, why: BaseException, told: type[BaseException]
) -> None:
    engine = open_engine(postgres_url, application="test")
    try:
        for _ in range(database.POOL_SIZE + 1):
            with pytest.raises(told):
                async with driver(engine):
                    raise why
        assert "Current Checked out connections: 0" in engine.pool.status()
        await ask_the_driver(engine)
    finally:
        await engine.dispose()
