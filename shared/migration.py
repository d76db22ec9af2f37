"""How Alembic reaches one schema: one transaction for all that is to be done, one migrator at a time.

Only migrations import this; a running service never imports Alembic. It runs an event loop of its own: where one is running
already, call it in a thread.
"""

import asyncio

from alembic import context
from sqlalchemy import Connection, MetaData, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool


def migrate(metadata: MetaData) -> None:
    """Bring the metadata's schema to the revision asked for, on the `postgresql://` URL in the config's attribute `url`."""
    if context.is_offline_mode():
        raise NotImplementedError("migrations run on a database, not to a script")
    asyncio.run(_migrate(metadata))


async def _migrate(metadata: MetaData) -> None:
    url = str(context.config.attributes["url"]).replace("postgresql://", "postgresql+asyncpg://", 1)
    # A migration that waits for a busy table gives up, rather than holding up everybody behind it.
    settings = {"lock_timeout": "5s", "application_name": f"rollcall migrate {metadata.schema}"}
    engine = create_async_engine(url, poolclass=NullPool, connect_args={"server_settings": settings})
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade, metadata)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, metadata: MetaData) -> None:
    # Replicas that start together migrate one after the other; the later ones find nothing to do.
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"migrate {metadata.schema}"})
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {metadata.schema}"))
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table_schema=metadata.schema,
        include_schemas=True,
        include_name=lambda name, kind, _: kind != "schema" or name == metadata.schema,
    )
    with context.begin_transaction():
        context.run_migrations()
