"""The schema of session-service, on a real Postgres: made once by replicas that migrate together, changed with its rows."""

import asyncio
import sys
from datetime import timedelta

import pytest
from alembic import command as alembic
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.database import open_engine
from tests.contract.session_talk import (
    NINE,
    Service,
    migrations,
    value,
)

pytestmark = pytest.mark.asyncio


async def test_replicas_that_migrate_at_once_make_the_schema_once(database: str) -> None:
    """Each in a process of its own: Alembic keeps its context in a module."""
    migrate = f"""
from alembic import command
from alembic.config import Config

config = Config()
config.set_main_option("script_location", "session_service:migrations")
config.attributes["url"] = {database!r}
command.upgrade(config, "head")
"""
    replicas = [await asyncio.create_subprocess_exec(sys.executable, "-c", migrate) for _ in range(3)]

    assert [await replica.wait() for replica in replicas] == [0, 0, 0]
    engine = open_engine(database, application="test")
    try:
        assert await value(engine, "SELECT count(*) FROM sessions.alembic_version") == 1
    finally:
        await engine.dispose()


async def test_a_downgrade_takes_everything_away(database: str) -> None:
    await asyncio.to_thread(alembic.upgrade, migrations(database), "head")

    await asyncio.to_thread(alembic.downgrade, migrations(database), "base")

    engine = open_engine(database, application="test")
    try:
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'sessions' AND tablename <> 'alembic_version'"
        assert await value(engine, tables) == 0
    finally:
        await engine.dispose()


STATES = {
    # (status, started, opened, ended, closed): what it awaited before, and what its roll had reported.
    ("scheduled", False, False, False, False): (0, 0),
    ("active", True, False, False, False): (2, 0),
    ("active", True, True, False, False): (2, 2),
    ("completed", True, False, True, False): (3, 0),
    ("completed", True, True, True, False): (3, 2),
    ("completed", True, True, True, True): (3, 3),
    # Its opening was not heard of, its closing was: nothing is awaited.
    ("completed", True, False, True, True): (3, 3),
    ("cancelled", False, False, False, False): (0, 0),
}


async def test_what_awaited_a_report_before_the_second_migration_awaits_it_after_and_nothing_else(database: str) -> None:
    await asyncio.to_thread(alembic.upgrade, migrations(database), "0001")
    engine = open_engine(database, application="test")
    unreported = "SELECT array_agg(id ORDER BY id) FROM sessions.sessions WHERE "
    try:
        await fill(engine)
        before = await value(
            engine,
            unreported + "status = 'active' AND roll_opened_at IS NULL OR status = 'completed' AND roll_closed_at IS NULL",
        )

        await asyncio.to_thread(alembic.upgrade, migrations(database), "0002")

        kept = await value(engine, "SELECT json_object_agg(id, ARRAY[turn_version, roll_version]) FROM sessions.sessions")
        assert kept == {str(n): list(versions) for n, versions in enumerate(STATES.values())}
        assert await value(engine, unreported + "turn_version > roll_version") == before == ["1", "3", "4"]
        service = Service(engine)
        service.now += timedelta(days=1)
        assert sorted((event.source[-1], event.sequence) for event in await service.repeat()) == [
            ("1", 2),
            ("3", 2),
            ("3", 3),
            ("4", 3),
        ]
        service.now += timedelta(days=1)
        assert {event.source[-1] for event in await service.end_due()} == {"1", "2"}
    finally:
        await engine.dispose()


async def test_the_second_migration_can_be_taken_back_and_made_again(database: str) -> None:
    await asyncio.to_thread(alembic.upgrade, migrations(database), "0001")
    engine = open_engine(database, application="test")
    columns = """SELECT array_agg(ARRAY[id, CAST(roll_opened_at AS text), CAST(roll_closed_at AS text)] ORDER BY id)
        FROM sessions.sessions WHERE id <> '6'"""
    try:
        await fill(engine)
        before = await value(engine, columns)
        await asyncio.to_thread(alembic.upgrade, migrations(database), "head")
        await engine.dispose()

        await asyncio.to_thread(alembic.downgrade, migrations(database), "0001")

        assert await value(engine, columns) == before
        await engine.dispose()
        await asyncio.to_thread(alembic.upgrade, migrations(database), "head")
    finally:
        await engine.dispose()


async def fill(engine: AsyncEngine) -> None:
    """Write a session in each state, as the first migration knew them."""
    course = """INSERT INTO sessions.courses
        (id, title, teacher_ids, time_zone, version, roster_version, created_at, updated_at)
        VALUES ('c1', 'Algebra', '{ada}', 'UTC', 1, 0, :at, :at)"""
    session = """INSERT INTO sessions.sessions (id, course_id, title, status, date, start_time, end_time, time_zone,
            starts_at, ends_at, check_in, version, created_by_id, fingerprint, created_at, updated_at,
            started_at, started_version, started_by, started_by_id, ended_at, ended_version, ended_by, ended_by_id,
            ended_cause, roll_opened_at, roll_closed_at)
        VALUES (:id, 'c1', 'Rings', :status, '2026-11-24', '09:00', '10:30', 'UTC', :at, :ends_at, '{}', :version,
            'ada', 'f', :at, :at, :started_at, :started_version, :started_by, :started_by, :ended_at, :ended_version,
            :ended_by, :ended_by, :cause, :opened_at, :closed_at)"""
    async with engine.begin() as connection:
        await connection.execute(text(course), {"at": NINE})
        for number, (status, started, opened, ended, closed) in enumerate(STATES):
            parameters = {
                "id": str(number),
                "status": status,
                "at": NINE,
                "ends_at": NINE + timedelta(minutes=90),
                "version": 1 + started + ended,
                "started_at": NINE if started else None,
                "started_version": 2 if started else None,
                "started_by": "Ada" if started else None,
                "ended_at": NINE + timedelta(hours=1) if ended else None,
                "ended_version": 3 if ended else None,
                "ended_by": "Ada" if ended else None,
                "cause": "ended" if ended else None,
                "opened_at": NINE if opened else None,
                "closed_at": NINE + timedelta(hours=1) if closed else None,
            }
            await connection.execute(text(session), parameters)
