"""What the suites of session-service run on: a migrated database of each test's own, and a replica on it."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from alembic import command as alembic
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.database import open_engine
from tests.conftest import NewDatabase
from tests.contract.session_talk import Service, migrations


@pytest.fixture(scope="session")
def migrated(new_database: NewDatabase) -> Iterator[str]:
    """The name of a database with our schema in it, to be copied."""
    with new_database() as url:
        alembic.upgrade(migrations(url), "head")
        yield url.rpartition("/")[2]


@pytest_asyncio.fixture
async def engine(new_database: NewDatabase, migrated: str) -> AsyncIterator[AsyncEngine]:
    """A migrated database of the test's own."""
    with new_database(template=migrated) as url:
        engine = open_engine(url, application="test")
        yield engine
        await engine.dispose()


@pytest_asyncio.fixture
async def service(engine: AsyncEngine) -> Service:
    """A replica on it; a test that wants two makes another on the same engine."""
    return Service(engine)


@pytest_asyncio.fixture
async def patient_engine(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """The same database without a limit on waiting for locks: what fails is a circle, not a slow machine."""
    patient = create_async_engine(engine.url, pool_size=10)
    yield patient
    await patient.dispose()
