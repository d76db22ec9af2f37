"""One way to open Postgres, to ask whether it is well, and to run a transaction on it. Nobody's tables are read here."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg
from sqlalchemy import PoolProxiedConnection, QueuePool, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.event import listen
from sqlalchemy.exc import DBAPIError, EmulatedDBAPIException, MissingGreenlet, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.util.concurrency import greenlet_spawn, in_greenlet

from shared.errors import StartupFailed, Unavailable

POOL_SIZE = 8
CONNECT_SECONDS = 5
# A silent connection (half-open, or its server frozen) costs whoever waits on it this long.
STATEMENT_SECONDS = 10
# A frozen replica must free its rolls: waiters give up after 1 s, the server ends its transaction after 5 s.
_SERVER_SETTINGS = {
    "lock_timeout": "1s",
    "idle_in_transaction_session_timeout": "5s",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    # What follows keeps plans stable on freshly filled tables and skips work no short transaction gains from.
    "jit": "off",
}
# SQLSTATE classes that say nothing against the statement: connection, resources, rollback, lock, shutdown.
_PASSING = ("08", "40", "53", "55P03", "57")

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
"""A connection as the driver has it."""


def open_engine(url: str, *, application: str) -> AsyncEngine:
    """Make an engine for a `postgresql://` URL; connects on first use.

    One connection that stays silent for `STATEMENT_SECONDS` condemns those in the pool with it: they lead the same way, and
    would each cost somebody as long. Last in, first out, because a transaction clears a silent one away for another 2 s.
    """
    engine = create_async_engine(
        url.replace("postgresql://", "postgresql+asyncpg://", 1),
        pool_size=POOL_SIZE,
        # Nor could a connection beyond the pool's be closed where it is given back (`driver`).
        max_overflow=0,
        # Its errors quote what was to be written, otherwise: names, remarks.
        hide_parameters=True,
        pool_timeout=CONNECT_SECONDS,
        pool_use_lifo=True,
        connect_args={
            "timeout": CONNECT_SECONDS,
            "command_timeout": STATEMENT_SECONDS,
            "server_settings": {**_SERVER_SETTINGS, "application_name": application},
            "async_creator_fn": _connect,
        },
    )
    listen(engine.sync_engine, "handle_error", _condemn_silent)
    return engine


def _connect(*where: Any, **options: Any) -> Awaitable[Connection]:
    """Begin to connect, for SQLAlchemy; raise MissingGreenlet where it could not wait for that (`_lend`)."""
    if not in_greenlet():
        raise MissingGreenlet("nobody waits for a connection here")
    return asyncpg.connect(*where, **options)


def _condemn_silent(context: ExceptionContext) -> None:
    # asyncpg gives up on a statement with this; SQLAlchemy by itself would keep the connection, and all others.
    if isinstance(context.original_exception, TimeoutError):
        context.is_disconnect = True


@asynccontextmanager
async def open_database(url: str, *, schema: str, newest: str) -> AsyncIterator[AsyncEngine]:
    """Open the database and check that `schema` is migrated; raise StartupFailed with one line when it is not.

    `newest` is the table or type of it that this code needs and that was made last.
    """
    engine = open_engine(url, application=f"rollcall {schema}")
    parts = urlsplit(url)
    where = f"{parts.hostname}:{parts.port or 5432}{parts.path}"
    try:
        try:
            async with engine.connect() as connection:
                there, migrated = await _has(connection, f"{schema}.outbox"), await _has(connection, f"{schema}.{newest}")
        # TypeError and ValueError: an option in the URL that the driver does not know.
        except (SQLAlchemyError, OSError, TimeoutError, TypeError, ValueError) as error:
            raise StartupFailed(f"ROLLCALL_DATABASE_URL: cannot open {where}: {reason(error)}") from error
        if not there:
            raise StartupFailed(f"ROLLCALL_DATABASE_URL: {where} has no schema {schema}; run `rollcall migrate`")
        if not migrated:
            raise StartupFailed(f"ROLLCALL_DATABASE_URL: {where} has an older schema {schema}; run `rollcall migrate`")
        yield engine
    finally:
        await engine.dispose()


async def _has(connection: AsyncConnection, name: str) -> bool:
    """Say whether there is a type of that name; every table is one, too."""
    return await connection.scalar(text("SELECT to_regtype(:name) IS NOT NULL"), {"name": name}) is True


def reason(error: Exception) -> str:
    """Say in one line what a database error says in many, or in none."""
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_SECONDS} s"
    return next(iter(str(getattr(error, "orig", None) or error).splitlines()), type(error).__name__)


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Run one transaction; commits at the end. Raise Unavailable where trying again may help (also: outcome unknown)."""
    with _passing():
        async with engine.begin() as connection:
            yield connection


@asynccontextmanager
async def driver(engine: AsyncEngine) -> AsyncIterator[Connection]:
    """Lend a connection as the driver has it, where every statement is a transaction of its own; for what must cost little.

    SQLAlchemy's way to execute costs three times the CPU of the driver's. Its pool stays in charge, and so does the rule that
    a silent connection condemns it. Raises Unavailable as `transaction` does, and else what the driver raises.
    """
    with _passing():
        lent = await _lend(engine)
        connection = lent.driver_connection
        assert connection is not None
        try:
            yield connection
        except (TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            # The last of them is the driver's own confusion, over a connection that is cut as it is written to.
            if isinstance(error, TimeoutError | asyncpg.InternalClientError) or connection.is_closed():
                # What SQLAlchemy does where a statement of its own loses the connection.
                await greenlet_spawn(engine.sync_engine.pool._invalidate, lent, error)
            raise
        finally:
            if lent.is_valid:
                # There is nothing to wait for: no transaction was begun, and the pool never overflows.
                lent.close()


async def _lend(engine: AsyncEngine) -> PoolProxiedConnection:
    """Take a connection from the pool: an idle one without a greenlet, whose stack costs system calls and page faults."""
    pool = engine.sync_engine.pool
    assert isinstance(pool, QueuePool)
    if pool.checkedin():
        try:
            return pool.connect()
        except MissingGreenlet:
            # It was condemned with another, and is made anew.
            pass
    return await engine.raw_connection()


class Statement:
    """A statement for the driver, which wants parameters numbered, written with names as for SQLAlchemy's `text`."""

    def __init__(self, written: str) -> None:
        self.written = written
        self._names: list[str] = []
        self._sql = re.sub(r"(?<!:):([a-z_]+)", self._number, written)

    def _number(self, found: re.Match[str]) -> str:
        if found[1] not in self._names:
            self._names.append(found[1])
        return f"${self._names.index(found[1]) + 1}"

    async def fetch(self, connection: Connection, parameters: Mapping[str, Any]) -> list[asyncpg.Record]:
        """Execute it, prepared once for each connection, and return all rows."""
        return await connection.fetch(self._sql, *[parameters[name] for name in self._names])


async def answers(engine: AsyncEngine) -> bool:
    """Say whether Postgres answers now (readiness)."""
    try:
        async with asyncio.timeout(2), transaction(engine) as connection:
            await connection.execute(text("SELECT 1"))
    except (Unavailable, TimeoutError):
        return False
    return True


@contextmanager
def _passing() -> Iterator[None]:
    """Turn what says nothing against the statement into Unavailable."""
    try:
        yield
    except (PoolTimeout, OSError, TimeoutError) as error:
        raise Unavailable(f"Postgres: {error or type(error).__name__}") from error
    except DBAPIError as error:
        if error.connection_invalidated or _state(error.orig).startswith(_PASSING):
            raise Unavailable(f"Postgres: {reason(error)}") from error
        raise
    except asyncpg.InternalClientError as error:
        raise Unavailable(f"Postgres: {reason(error)}") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, EmulatedDBAPIException) as error:
        # The last of them is what refuses a connection, as SQLAlchemy's pool raises it.
        if _state(error).startswith(_PASSING) or "connection is closed" in str(error):
            raise Unavailable(f"Postgres: {reason(error)}") from error
        raise


def _state(error: BaseException | None) -> str:
    return str(getattr(error, "sqlstate", None) or "")
