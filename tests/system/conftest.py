"""The two ways Rollcall runs, each started once for all system tests that want it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import NewDatabase, thrown_away
from tests.rabbitmq import start_rabbitmq
from tests.system.rig import Rig, running_in_one, running_separately
from tests.system.surroundings import AS_ROOT, Surroundings, ordinary_user, refused_namespaces


@pytest.fixture(scope="session")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, new_database: NewDatabase, redis_url: str, rabbitmq: None
) -> Iterator[Rig]:
    """Separate processes: two gateways, two of each service, on a broker of their own and a database for each service."""
    with new_database() as sessions, new_database() as attendance, thrown_away(start_rabbitmq) as broker:
        folder = tmp_path_factory.mktemp("cluster")
        databases = {"session_service": sessions, "attendance_service": attendance}
        with running_separately(folder, amqp_url=broker.url, redis_url=redis_url, database_urls=databases) as rig:
            yield rig


@pytest.fixture(scope="session")
def all_in_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """`rollcall dev`."""
    with running_in_one(tmp_path_factory.mktemp("dev")) as rig:
        yield rig


@pytest.fixture(params=["cluster", "all_in_one"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """Each way in turn: what holds for one holds for the other."""
    rig: Rig = request.getfixturevalue(request.param)
    return rig


@pytest.fixture(params=["as we are", pytest.param("ordinary", marks=AS_ROOT), pytest.param("refused", marks=AS_ROOT)])
def surroundings(request: pytest.FixtureRequest, tmp_path: Path) -> Surroundings:
    """Each in turn."""
    match request.param:
        case "ordinary":
            return ordinary_user()
        case "refused":
            return refused_namespaces(tmp_path)
    return Surroundings()
