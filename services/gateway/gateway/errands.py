"""Work that begins on the way and goes on by itself: none of it dies silently, and none outlives this process's end."""

import asyncio
from collections.abc import Awaitable

import structlog

log = structlog.get_logger()


class Errands:
    """What this gateway has under way besides its jobs that never end: commands that wait for something, too."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Awaitable[None]) -> asyncio.Task[None]:
        """Begin something; when it fails, that is logged."""
        task = asyncio.create_task(_logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def run(self) -> None:
        """Wait for ever; what is under way when this is cancelled is cancelled with it."""
        try:
            await asyncio.Event().wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


async def _logged(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception:
        log.exception("errands.failed")
