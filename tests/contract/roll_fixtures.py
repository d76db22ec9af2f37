"""What the suites of attendance-service run on: a migrated database of each test's own, and replicas of the service on it."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from alembic import command as alembic
from alembic.config import Config
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.database import open_engine
from tests.conftest import NewDatabase
from tests.contract.roll_talk import Service


@pytest.fixture(scope="session")
def rolls_migrated(new_database: NewDatabase) -> Iterator[str]:
    """The name of a database with attendance-service's schema in it, to be copied."""
    config = Config()
    config.set_main_option("script_location", "attendance_service:migrations")
    with new_database() as url:
        config.attributes["url"] = url
        alembic.upgrade(config, "head")
        yield url.rpartition("/")[2]


@pytest_asyncio.fixture
async def rolls_engine(new_database: NewDatabase, rolls_migrated: str) -> AsyncIterator[AsyncEngine]:
    """A migrated database of the test's own."""
    with new_database(template=rolls_migrated) as url:
        engine = open_engine(url, application="test")
        yield engine
        await engine.dispose()


@pytest_asyncio.fixture
async def service(rolls_engine: AsyncEngine) -> Service:
    """One replica."""
    return Service(rolls_engine)


@pytest_asyncio.fixture
async def replicas(rolls_engine: AsyncEngine) -> AsyncIterator[list[Service]]:
    """Two replicas, each with connections of its own and without a limit on waiting: what fails is a circle, not slowness."""
    engines = [create_async_engine(rolls_engine.url, pool_size=4, pool_timeout=60) for _ in range(2)]
    yield [Service(each) for each in engines]
    for each in engines:
        await each.dispose()
