"""How a process starts, says whether it is well, and goes away: one line on a start that fails, health, metrics, signals."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog
import uvloop
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from shared.errors import StartupFailed

log = structlog.get_logger()

_RESTART_SECONDS = 1.0
_CLOSE_SECONDS = 1.0
_CANCEL_SECONDS = 0.5


def configure_logging(level: str) -> None:
    """Log JSON lines to standard error, from `level` on; libraries from warnings on."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(stream=sys.stderr, level=max(number, logging.WARNING), format="%(name)s: %(message)s")


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run a process's main coroutine on uvloop and return its exit status; a StartupFailed is one line and 1."""
    try:
        uvloop.run(main())
    except StartupFailed as error:
        print(f"rollcall: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


async def until_told_to_stop() -> None:
    """Return at SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


@asynccontextmanager
async def guarded(*jobs: Callable[[], Awaitable[None]]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Keep background jobs running for the length of the block: one that dies is logged and begun again after a second.

    Yields their tasks; one that returns is done.
    """
    tasks = [asyncio.create_task(_guard(job), name=getattr(job, "__qualname__", repr(job))) for job in jobs]
    try:
        yield tasks
    finally:
        # Again and again: a library in the middle of connecting may swallow a cancellation.
        while unfinished := [task for task in tasks if not task.done()]:
            for task in unfinished:
                task.cancel()
            await asyncio.wait(unfinished, timeout=_CANCEL_SECONDS)


async def _guard(job: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await job()
            return
        except Exception:
            log.exception("process.job_died", job=getattr(job, "__qualname__", repr(job)))
            await asyncio.sleep(_RESTART_SECONDS)


def health_routes(ready: Callable[[], Awaitable[bool]]) -> list[web.RouteDef]:
    """Make `/health/live` (the loop turns) and `/health/ready` (`ready()` says work can be done; 503 when not)."""

    async def live(_: web.Request) -> web.Response:
        return web.json_response({"status": "live"})

    async def readiness(_: web.Request) -> web.Response:
        well = await ready()
        return web.json_response({"status": "ready" if well else "not ready"}, status=200 if well else 503)

    return [web.get("/health/live", live), web.get("/health/ready", readiness)]


@asynccontextmanager
async def serving_health(host: str, port: int, ready: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
    """Serve health and `/metrics` on a port of their own for the length of the block."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([*health_routes(ready), web.get("/metrics", metrics)])
    async with serving(app, host, port, setting="ROLLCALL_HEALTH_PORT"):
        yield


@asynccontextmanager
async def serving(app: web.Application, host: str, port: int, *, setting: str) -> AsyncIterator[int]:
    """Serve an application; yield the port. Raise StartupFailed naming `setting` when the port cannot be had."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=_CLOSE_SECONDS)
    await runner.setup()
    site = web.TCPSite(runner, host, port, reuse_address=True)
    try:
        try:
            await site.start()
        except OSError as error:
            raise StartupFailed(f"{setting}: cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
