"""Each service's migrations make exactly the tables that its code knows, on a real Postgres."""

import asyncio
from typing import Any

import pytest
from alembic import command as alembic
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, MetaData, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import CreateSchema, DropSchema

from attendance_service import tables as attendance
from rollcall.migrations import migrate
from session_service import tables as sessions
from shared.database import open_database, open_engine
from shared.errors import StartupFailed


@pytest.mark.parametrize("metadata", [sessions.metadata, attendance.metadata], ids=["sessions", "attendance"])
async def test_the_migrations_make_exactly_the_tables_that_the_code_knows(database: str, metadata: MetaData) -> None:
    """Alembic finds no difference, nor do Postgres' catalogs, which know of checks and predicates too."""
    schema = str(metadata.schema)
    await asyncio.to_thread(migrate, database)

    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table_schema": schema,
                "include_schemas": True,
                "compare_server_default": True,
                "include_name": lambda name, kind, _: kind != "schema" or name == schema,
            },
        )
        return list(compare_metadata(context, metadata))

    engine = open_engine(database, application="test")
    try:
        async with engine.begin() as connection:
            assert await connection.run_sync(differences) == []
            migrated = await catalog(connection, schema)
            assert migrated
            await connection.execute(DropSchema(schema, cascade=True))
            await connection.execute(CreateSchema(schema))
            await connection.run_sync(metadata.create_all)
            assert await catalog(connection, schema) == migrated
    finally:
        await engine.dispose()


async def described(database: str, schema: str) -> list[tuple[Any, ...]]:
    """All of a database's schema that a service needs: its tables and types, and no index but the unique ones."""
    engine = open_engine(database, application="test")
    try:
        async with engine.connect() as connection:
            types = text("SELECT typname FROM pg_type WHERE typnamespace = CAST(:schema AS regnamespace) ORDER BY typname")
            named = [tuple(row) for row in await connection.execute(types, {"schema": schema})]
            return [*named, *await catalog(connection, schema, indexes="CREATE UNIQUE %")]
    finally:
        await engine.dispose()


async def catalog(connection: AsyncConnection, schema: str, *, indexes: str = "%") -> list[tuple[Any, ...]]:
    """All columns, constraints and indexes (those made like this) of the schema, but for Alembic's own table."""
    described: list[tuple[Any, ...]] = []
    for query in (
        """SELECT table_name, column_name, udt_name, is_nullable, column_default, collation_name
        FROM information_schema.columns WHERE table_schema = :schema""",
        """SELECT tablename, indexname, indexdef FROM pg_indexes
        WHERE schemaname = :schema AND indexdef LIKE CAST(:indexes AS text)""",
        """SELECT CAST(CAST(conrelid AS regclass) AS text), CAST(conname AS text), pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = CAST(:schema AS regnamespace)""",
    ):
        rows = await connection.execute(text(query), {"schema": schema, "indexes": indexes})
        described += [tuple(row) for row in rows if "alembic_version" not in row[0]]
    return sorted(described, key=repr)


@pytest.mark.parametrize("tables", [sessions, attendance], ids=["sessions", "attendance"])
async def test_a_service_does_not_start_on_the_schema_before_the_newest(database: str, tables: Any) -> None:
    """It would fail at the first write, and park what it was told."""
    package = {"sessions": "session_service", "attendance": "attendance_service"}[tables.SCHEMA]
    config = Config()
    config.set_main_option("script_location", f"{package}:migrations")
    config.attributes["url"] = database
    await asyncio.to_thread(alembic.upgrade, config, "head")
    newest = await described(database, tables.SCHEMA)
    while await described(database, tables.SCHEMA) == newest:
        # What only says how things lie on the disk, and how they are found there, a service can do without.
        async with open_database(database, schema=tables.SCHEMA, newest=tables.NEWEST):
            pass
        await asyncio.to_thread(alembic.downgrade, config, "-1")
    with pytest.raises(StartupFailed, match=f"has an older schema {tables.SCHEMA}; run `rollcall migrate`"):
        async with open_database(database, schema=tables.SCHEMA, newest=tables.NEWEST):
            pass
