"""Ways to Postgres that go silent: nobody says so, and they must not be waited on one after the other."""

import asyncio
import time

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared import database
from shared.database import open_engine, transaction
from shared.errors import Unavailable
from tests.proxy import Proxy

SILENCE_SECONDS = 2
CLEARED_AWAY_SECONDS = 2
"""How long SQLAlchemy waits for a connection that it closes."""

MARGIN_SECONDS = 3


async def ask(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        await connection.execute(text("SELECT 1"))


async def test_connections_gone_silent_cost_one_wait_together(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
