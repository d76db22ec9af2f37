"""The two ways Rollcall runs, each started once for all system tests that want it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests import rabbitmq
from tests.conftest import NewDatabase
from tests.rabbitmq import RabbitMQ
from tests.system.fixed_scene import FixedScene, a_fixed_scene
from tests.system.rig import OUR_FAULT, Process, Rig, running_in_one, running_separately, token
from tests.system.surroundings import AS_ROOT, Surroundings, ordinary_user, refused_namespaces
from tests.system.talk import Payload, a_lecture, an_admin, calling

LOGGED_BYTES = 8 * 1024
"""What an attack may make a gateway log."""


@pytest.fixture(scope="session")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, new_database: NewDatabase, redis_url: str, private_rabbitmq: RabbitMQ
) -> Iterator[Rig]:
    """Separate processes: two gateways, two of each service, on a virtual host of their own and a database for each service."""
    with new_database() as sessions, new_database() as attendance:
        folder = tmp_path_factory.mktemp("cluster")
        databases = {"session_service": sessions, "attendance_service": attendance}
        with running_separately(
            folder, amqp_url=private_rabbitmq.new_host(), redis_url=redis_url, database_urls=databases
        ) as rig:
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


@pytest.fixture
async def gateway(cluster: Rig) -> AsyncIterator[Process]:
    """The gateway that is attacked. After the test it serves as before, and has logged neither a fault nor much."""
    process = cluster.processes["gateway-1"]
    before = process.log.stat().st_size
    yield process
    logged = process.log.read_bytes()[before:].decode()
    assert not OUR_FAULT.search(logged), logged
    assert len(logged) < LOGGED_BYTES, logged
    lecture = await a_lecture(cluster.gateways[0], students=1)
    async with calling(cluster.gateways[0], an_admin()) as admin:
        await admin.ask("startAttendanceSession", lecture.about)
        async with calling(cluster.gateways[0], token(lecture.students[0], "student")) as student, asyncio.timeout(30):
            while not (await student.ask("joinAttendanceSession", lecture.about))["ok"]:
                pass


@pytest.fixture(scope="module")
def fixed_scenes() -> dict[int, tuple[FixedScene, dict[str, Payload]]]:
    """The scenes set so far, one for each rig, and how each looked last."""
    return {}


@pytest.fixture
async def fixed_scene(rig: Rig, fixed_scenes: dict[int, tuple[FixedScene, dict[str, Payload]]]) -> AsyncIterator[FixedScene]:
    """The scene on this rig. After the test it must be as before, and nobody may have logged a fault of ours."""
    if id(rig) not in fixed_scenes:
        new = await a_fixed_scene(rig)
        fixed_scenes[id(rig)] = new, await new.seen()
    scene, before = fixed_scenes[id(rig)]
    logged = {name: process.log.stat().st_size for name, process in rig.processes.items()}

    yield scene

    after = await scene.seen()
    fixed_scenes[id(rig)] = scene, after
    assert after == before
    for name, process in rig.processes.items():
        lines = process.log.read_bytes()[logged.get(name, 0) :].decode()
        assert not OUR_FAULT.search(lines), f"{name}: {lines}"


@pytest.fixture
def amqp_available(amqp_url: str) -> None:
    """Skip, or fail, like every test that needs a broker; a private node is needed here whatever the URL is."""
    rabbitmq.ensure_rabbitmq()
