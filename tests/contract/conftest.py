"""Fixtures that several suites of this folder share."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from tests.contract.bus_talk import Begin


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
