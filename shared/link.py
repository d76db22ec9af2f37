"""A link keeps one connection up: it connects, watches, and when the connection is lost begins again, for ever.

What a connection is, the owner says with three coroutines; nothing here knows a library. There is one way back from
every kind of trouble: drop the whole connection and make a new one.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger()

CONNECT_TIMEOUT_SECONDS = 5.0
_PROBE_EVERY_SECONDS = 5.0
_PROBE_TIMEOUT_SECONDS = 3.0
_DISCONNECT_TIMEOUT_SECONDS = 3.0
_CANCEL_AGAIN_SECONDS = 0.5
_SHORTEST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0

Lose = Callable[[str], None]
"""Says that the connection made together with it is lost, and why; once that one has been replaced, it does nothing."""


class Link:
    """Supervises one connection.

    `connect` makes it, hands the `Lose` it is given to whoever may notice a loss, and raises when it cannot. `probe`
    raises when the connection no longer answers. `disconnect` clears away what is left of it, in whatever state that is.
    """

    def __init__(
        self,
        name: str,
        *,
        connect: Callable[[Lose], Awaitable[None]],
        probe: Callable[[], Coroutine[Any, Any, None]],
        disconnect: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._name = name
        self._connect = connect
        self._probe = probe
        self._disconnect = disconnect
        self._lost: asyncio.Future[str] | None = None
        self._pause_seconds = _SHORTEST_PAUSE_SECONDS
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        """What was given up, and has not ended yet."""

    @property
    def up(self) -> bool:
        """Whether the connection is there, as far as anybody knows."""
        return self._up.is_set()

    async def wait_up(self) -> None:
        """Return once the connection is there. May wait for ever: bound it."""
        await self._up.wait()

    async def open(self) -> None:
        """Connect, and keep connected from now on; raise what the first attempt raises."""
        await self._bring_up()
        self._keeper = asyncio.create_task(self._keep(), name=f"link {self._name}")

    def begin(self) -> None:
        """Do what `open` does in the background, where a first attempt that fails is one like any other."""
        self._keeper = asyncio.create_task(self._open_and_keep(), name=f"link {self._name}")

    async def close(self) -> None:
        """Disconnect for good. May be called twice, and before `open`."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        while not keeper.done():
            # More than once: in Python 3.11 `wait_for`, which libraries use, may swallow a cancellation.
            keeper.cancel()
            await asyncio.wait({keeper}, timeout=_CANCEL_AGAIN_SECONDS)
        self._up.clear()
        await self._clear_away()
        if self._ending:
            await asyncio.wait(self._ending, timeout=_DISCONNECT_TIMEOUT_SECONDS)

    async def _open_and_keep(self) -> None:
        if not await self._brought_up():
            await self._reconnect()
        await self._keep()

    async def _keep(self) -> None:
        while True:
            reason = await self._watch()
            self._up.clear()
            log.warning("link.lost", link=self._name, reason=reason)
            await self._clear_away()
            await self._reconnect()

    async def _reconnect(self) -> None:
        """Try until it works, more and more slowly, and not in step with other processes."""
        while True:
            await asyncio.sleep(self._pause_seconds * random.uniform(0.5, 1))
            self._pause_seconds = min(self._pause_seconds * 2, _LONGEST_PAUSE_SECONDS)
            if await self._brought_up():
                log.info("link.restored", link=self._name)
                return

    async def _brought_up(self) -> bool:
        try:
            await self._bring_up()
        except Exception as error:
            log.warning("link.not_restored", link=self._name, reason=f"{type(error).__name__}: {error}")
            return False
        return True

    async def _bring_up(self) -> None:
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def lose(reason: str) -> None:
            if not lost.done():
                lost.set_result(reason)

        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await self._connect(lose)
        except BaseException:
            await self._clear_away()
            raise
        self._lost = lost
        self._up.set()

    async def _watch(self) -> str:
        """Return why the connection is lost, when it is: somebody said so, or it does not answer a probe."""
        assert self._lost is not None
        while True:
            await asyncio.wait({self._lost}, timeout=_PROBE_EVERY_SECONDS)
            if self._lost.done():
                return self._lost.result()
            try:
                await self._bounded(self._probe(), _PROBE_TIMEOUT_SECONDS)
                # Only now: a connection that is lost at once, time and again, is made anew more and more slowly too.
                self._pause_seconds = _SHORTEST_PAUSE_SECONDS
            except Exception as error:
                return f"probe failed: {type(error).__name__}: {error}"

    async def _clear_away(self) -> None:
        try:
            await self._bounded(self._disconnect(), _DISCONNECT_TIMEOUT_SECONDS)
        except Exception as error:
            log.debug("link.not_closed_cleanly", link=self._name, reason=f"{type(error).__name__}: {error}")

    async def _bounded(self, doing: Coroutine[Any, Any, None], seconds: float) -> None:
        """Do something that takes no longer than that, whatever it makes of being cancelled; raise TimeoutError then.

        `asyncio.timeout` cancels once, and a library that is writing to a broker which reads no more waits on after that.
        """
        task = asyncio.create_task(doing, name=f"link {self._name}")
        try:
            await asyncio.wait({task}, timeout=seconds)
        finally:
            if not task.done():
                ending = asyncio.create_task(_end(task), name=f"link {self._name} ending")
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)
        if not task.done():
            raise TimeoutError
        await task


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task as often as it takes."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_AGAIN_SECONDS)
    # Nobody is left to ask how it went.
    if not task.cancelled():
        task.exception()
