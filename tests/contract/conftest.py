"""Fixtures that several suites of this folder share."""

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

import pytest

from rollcall.servers import Server, start_valkey
from tests.conftest import thrown_away
from tests.contract.bus_talk import Begin
from tests.contract.presence_talk import GRACE
from tests.contract.room_talk import World, a_world


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    """Begins something in the background, returns when it is well on its way, and ends it with the test."""
    tasks: list[asyncio.Task[None]] = []

    async def begin(doing: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        tasks.append(asyncio.create_task(doing))
        # One turn of the loop to begin, one for a first message to leave; no confirm can be back that soon.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return tasks[-1]

    yield begin
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def valkey() -> Iterator[Server]:
    """One that a test may freeze."""
    with thrown_away(start_valkey) as server:
        yield server
        server.process.send_signal(signal.SIGCONT)


@pytest.fixture
async def world(redis_url: str) -> AsyncIterator[World]:
    """One gateway's rooms, watchers and presence."""
    async with a_world(redis_url) as world:
        yield world


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test of who is connected does not take as long as a lecture; the proportions stay."""
    monkeypatch.setattr("gateway.presence.GRACE_SECONDS", GRACE)
    monkeypatch.setattr("gateway.presence.BEAT_SECONDS", 0.1)
    monkeypatch.setattr("gateway.presence.REPEAT_SECONDS", 0.2)
    monkeypatch.setattr("gateway.presence.ALIVE_SECONDS", 1)
    monkeypatch.setattr("gateway.presence._AGAIN_SECONDS", 0.05)
