"""What a gateway has under way beside its jobs: a failure is logged, and nothing outlives the process's end."""

import asyncio

import structlog

from gateway.errands import Errands
from shared.process import guarded


async def test_an_errand_that_fails_is_logged_and_troubles_nobody() -> None:
    errands = Errands()

    async def fail() -> None:
        raise RuntimeError("a defect")

    with structlog.testing.capture_logs() as logs:
        await errands.start(fail())

    assert [entry["event"] for entry in logs] == ["errands.failed"]


async def test_what_is_under_way_ends_with_the_process() -> None:
    errands, begun = Errands(), asyncio.Event()

    async def for_ever() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with guarded(errands.run):
        task = errands.start(for_ever())
        await begun.wait()

    assert task.cancelled()
