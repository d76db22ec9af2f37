"""Everything in one process, with nothing to install: `rollcall dev`, which is `make run`.

The bus is in memory; Postgres and Valkey are real and private, with their data under `.rollcall/`. A URL given explicitly wins
over a private server.
"""

import os
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import attendance_service.__main__ as attendance
import gateway.__main__ as gateway
import session_service.__main__ as session
from attendance_service import tables as attendance_tables
from rollcall.demo import Demo, prepare
from rollcall.migrations import migrate
from rollcall.servers import ServerFailed, start_postgres, start_valkey
from session_service import tables as session_tables
from shared.clock import utc_now
from shared.database import open_database
from shared.errors import StartupFailed
from shared.live import Names, open_redis
from shared.memory_bus import MemoryBroker, MemoryBus
from shared.process import configure_logging, until_told_to_stop
from shared.settings import JWT_SECRET_BYTES, Settings

ROSTER = Path(__file__).parents[3] / "examples" / "roster.csv"
"""The demo course's roster, beside the code."""


@dataclass(frozen=True, slots=True)
class Place:
    """The folder where a run keeps its things."""

    folder: Path

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Place":
        """Find it: ROLLCALL_DATA_DIR, or `.rollcall/` here."""
        return cls(Path(environ.get("ROLLCALL_DATA_DIR") or ".rollcall"))

    def secret(self) -> str:
        """Read the key for this folder's tokens, making it the first time."""
        path = self.folder / "secret"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(JWT_SECRET_BYTES))
        return path.read_text().strip()


@contextmanager
def private_servers(place: Place, environ: Mapping[str, str]) -> Iterator[Settings]:
    """Start what no URL was given for, and stop it at the end; raise StartupFailed in one line."""
    environ = {**environ, "ROLLCALL_HOST": environ.get("ROLLCALL_HOST") or "127.0.0.1"}
    settings = Settings.from_env(environ)
    if settings.jwt_jwks_url:
        raise StartupFailed(
            "ROLLCALL_JWT_JWKS_URL is for the gateway; `rollcall dev` makes tokens itself, with ROLLCALL_JWT_SECRET"
        )
    with ExitStack() as stack:
        try:
            place.folder.mkdir(parents=True, exist_ok=True)
            if not settings.database_url:
                postgres = start_postgres(place.folder / "postgres")
                stack.callback(postgres.stop)
                settings = replace(settings, database_url=postgres.url)
            if not settings.redis_url:
                valkey = start_valkey(place.folder / "valkey")
                stack.callback(valkey.stop)
                settings = replace(settings, redis_url=valkey.url)
            if not settings.jwt_secret:
                settings = replace(settings, jwt_secret=place.secret())
        except ServerFailed as error:
            raise StartupFailed(str(error)) from error
        except OSError as error:
            raise StartupFailed(f"ROLLCALL_DATA_DIR: cannot use {place.folder}: {error.strerror}") from error
        migrate(settings.database_url)
        yield settings


@asynccontextmanager
async def everything(settings: Settings) -> AsyncIterator[gateway.Gateway]:
    """Run the gateway and both services in this process for the length of the block; yield the gateway."""
    names = Names(settings.redis_prefix)
    broker = MemoryBroker()
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(open_redis(settings.redis_url))
        serve_sessions = partial(session.serve, auto_end=settings.auto_end)
        for serve, tables in ((attendance.serve, attendance_tables), (serve_sessions, session_tables)):
            opened = open_database(settings.database_url, schema=tables.SCHEMA, newest=tables.NEWEST)
            engine = await stack.enter_async_context(opened)
            bus = MemoryBus(broker)
            stack.push_async_callback(bus.close)
            await stack.enter_async_context(serve(bus, engine, redis, names, utc_now))
        bus = MemoryBus(broker)
        stack.push_async_callback(bus.close)
        yield await stack.enter_async_context(gateway.serve(settings, bus, redis, names, utc_now))


async def main(settings: Settings, place: Place, roster: bytes) -> None:
    """Serve until told to stop; say where, and how to try it."""
    configure_logging(settings.log_level if "ROLLCALL_LOG_LEVEL" in os.environ else "warning")
    async with everything(settings) as running:
        url = f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else settings.host}:{settings.port}"
        demo = await prepare(url, settings, roster, utc_now())
        print(_welcome(url, demo, place, _also_needed(os.environ)), flush=True)
        await until_told_to_stop()
        await running.leave()


def _also_needed(environ: Mapping[str, str]) -> str:
    """Say which settings a token is made with here, and so in the terminals of those who try it."""
    names = [name for name in ("ROLLCALL_JWT_SECRET", "ROLLCALL_JWT_AUDIENCE", "ROLLCALL_JWT_ISSUER") if environ.get(name)]
    return f"\nFirst set there, as they are set here: {', '.join(names)}." if names else ""


def _welcome(url: str, demo: Demo, place: Place, also_needed: str) -> str:
    rollcall = ".venv/bin/rollcall"
    folder = "" if str(place.folder) == ".rollcall" else f"ROLLCALL_DATA_DIR={place.folder} "
    return f"""
Rollcall is running at {url}   (Ctrl-C stops it; data stays in {place.folder}/)

  course   {demo.course_id}, {demo.students} students from examples/roster.csv
  session  {demo.session_id}

  a teacher's token ({demo.teacher.name})
  {demo.teacher_token}

  a student's token ({demo.student.name})
  {demo.student_token}

Paste each into a terminal of its own: the first starts the session and watches, the second joins it.{also_needed}

  {folder}{rollcall} try start {demo.session_id} --url {url}
  {folder}{rollcall} try join {demo.session_id} --url {url}
"""
