"""A server that was there and went away: nobody restarts a process of ours, and everything goes on once it is back."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rollcall.launcher import Server
from rollcall.servers import start_postgres, start_valkey
from tests.conftest import thrown_away
from tests.rabbitmq import start_rabbitmq
from tests.system.rig import Rig, running_separately
from tests.system.talk import a_lecture, bearer, calling

PATIENCE_SECONDS = 30


@dataclass
class Servers:
    """The servers under a rig, each of which can be taken away and brought back on its port with its data."""

    rig: Rig
    running: dict[str, Server]
    start: dict[str, Callable[[], Server]]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, rabbitmq: None) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("recovery")
    running = {"Postgres": start_postgres(folder / "postgres"), "Valkey": start_valkey(folder / "valkey")}
    ports = {name: int(server.url.rpartition(":")[2].partition("/")[0]) for name, server in running.items()}
    start: dict[str, Callable[[], Server]] = {
        "Postgres": lambda: start_postgres(folder / "postgres", port=ports["Postgres"]),
        "Valkey": lambda: start_valkey(folder / "valkey", port=ports["Valkey"]),
    }
    databases = dict.fromkeys(("session_service", "attendance_service"), running["Postgres"].url)
    try:
        with (
            thrown_away(start_rabbitmq) as broker,
            running_separately(
                Path(folder), amqp_url=broker.url, redis_url=running["Valkey"].url, database_urls=databases, replicas=1
            ) as rig,
        ):
            yield Servers(rig, running, start)
    finally:
        for server in running.values():
            server.stop()


@pytest.mark.parametrize("name", ["Postgres", "Valkey"])
async def test_everything_goes_on_when_a_server_is_back(servers: Servers, name: str) -> None:
    url = servers.rig.gateways[0]
    lecture = await a_lecture(url)
    first, second, _ = lecture.students
    async with (
        calling(url, bearer(lecture.teacher, "teacher")) as teacher,
        calling(url, bearer(first, "student")) as early,
        calling(url, bearer(second, "student")) as late,
    ):
        assert (await teacher.ask("startAttendanceSession", lecture.about))["ok"]

        servers.running[name].stop()
        meanwhile = await early.ask("joinAttendanceSession", lecture.about)
        # Postgres is the truth, Redis only speed.
        assert meanwhile["ok"] or (name == "Postgres" and meanwhile["error"]["retryable"])
        servers.running[name] = servers.start[name]()

        for student in (early, late):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not (answer := await student.ask("joinAttendanceSession", lecture.about))["ok"]:
                    assert answer["error"]["retryable"], answer
        seen = {(await teacher.heard("studentJoinedAttendance"))["student_id"] for _ in range(2)}
        assert seen == {first, second}
        assert (await teacher.ask("endAttendanceSession", lecture.about))["finalData"]["seq"] == 4
    assert all(process.popen is not None and process.popen.poll() is None for process in servers.rig.processes.values())
