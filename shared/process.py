"""How a process starts, says whether it is well, and goes away: one line on a start that fails, health, metrics, signals."""

import asyncio
import gc
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

from shared.errors import StartupFailed, Unavailable
from shared.traces import WordlessFormatter, without_words

log = structlog.get_logger()

_RESTART_SECONDS = 1.0
_BACKLOG = 1024
# Allocations until the youngest are looked through for circles, and how many such looks until those before are.
_COLLECT_AFTER = 50_000, 10, 20
_CLOSE_SECONDS = 1.0
# Longer than proxies keep a connection that nobody uses (nginx: 60 s), else they send a request just when it is closed.
_KEEPALIVE_SECONDS = 75.0
_CANCEL_SECONDS = 0.5


def configure_logging(level: str) -> None:
    """Log JSON lines to standard error, from `level` on; libraries from warnings on."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            without_words,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(WordlessFormatter("%(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING))


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run a process's main coroutine on uvloop and return its exit status; a start that failed is one line and 1.

    So is a server that was there and went away before everything ran: once it runs, a process waits for its servers.
    """
    try:
        uvloop.run(_logging_what_nobody_awaits(main))
    except (StartupFailed, Unavailable) as error:
        print(f"rollcall: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


async def _logging_what_nobody_awaits(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Have the loop log as we do: by itself it quotes the exceptions of tasks that nobody awaits."""
    asyncio.get_running_loop().set_exception_handler(_log_unawaited)
    await main()


def _log_unawaited(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.error("process.unawaited", about=context.get("message"), exc_info=context.get("exception"))


async def until_told_to_stop() -> None:
    """Return at SIGTERM or SIGINT; a second one ends the process at once, whatever it is doing."""
    _collect_seldom()
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = signal.SIGTERM, signal.SIGINT
    for number in numbers:
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
    for number in numbers:
        loop.remove_signal_handler(number)
        # Not Python's own handler of SIGINT: KeyboardInterrupt would have every task cancelled and waited for.
        signal.signal(number, signal.SIG_DFL)


def _collect_seldom() -> None:
    """Have the garbage collector leave alone what is there for good, and look through everything else seldom.

    With 5,000 sockets one look through everything stalls a gateway's loop for most of a second, and by default it comes just
    when thousands come or go.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


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


def _as_it_is(protocol: web.RequestHandler) -> asyncio.Protocol:
    return protocol


@asynccontextmanager
async def serving(
    app: web.Application,
    host: str,
    port: int,
    *,
    setting: str,
    protocol: Callable[[web.RequestHandler], asyncio.Protocol] = _as_it_is,
) -> AsyncIterator[None]:
    """Serve an application; `protocol` may put another one around that of each connection.

    Raise StartupFailed naming `setting` when the port cannot be had.
    """
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=_CLOSE_SECONDS,
        keepalive_timeout=_KEEPALIVE_SECONDS,
    )
    await runner.setup()
    server: asyncio.Server | None = None
    try:
        try:
            accept = runner.server
            assert accept is not None
            server = await asyncio.get_running_loop().create_server(
                lambda: protocol(accept()), host, port, backlog=_BACKLOG, reuse_address=True
            )
        except OSError as error:
            raise StartupFailed(f"{setting}: cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from error
        yield
    finally:
        if server is not None:
            server.close()
        await runner.cleanup()
