"""Nobody can make a session stick: a service dies at the worst moment, and the session still opens and still ends."""

import asyncio
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import NewDatabase, thrown_away
from tests.rabbitmq import start_rabbitmq
from tests.system.dying import POINTS
from tests.system.rig import Rig, process_of, running_separately
from tests.system.talk import Caller, Payload, a_lecture, bearer, calling

PATIENCE_SECONDS = 20


@pytest.fixture(scope="module")
def fragile(
    tmp_path_factory: pytest.TempPathFactory, new_database: NewDatabase, redis_url: str, rabbitmq: None
) -> Iterator[Rig]:
    """One of each process, on a broker of its own."""
    with new_database() as database, thrown_away(start_rabbitmq) as broker:
        folder = tmp_path_factory.mktemp("fragile")
        databases = {"session_service": database, "attendance_service": database}
        with running_separately(
            folder,
            amqp_url=broker.url,
            redis_url=redis_url,
            database_urls=databases,
            replicas=1,
        ) as rig:
            yield rig


async def until_done(caller: Caller, event: str, about: Payload) -> Payload:
    """Send a command again, as the contract tells clients, for as long as it may be sent again."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            answer = await caller.ask(event, about)
            if answer["ok"] or not answer["error"]["retryable"]:
                return answer


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("service", ["session_service", "attendance_service"])
async def test_a_session_opens_and_ends_though_a_service_dies(fragile: Rig, tmp_path: Path, service: str, point: str) -> None:
    """The service is replaced by one that dies at the point; its successor finds what was left and carries on."""
    lecture = await a_lecture(fragile.gateways[0])
    url = fragile.gateways[0]
    sound = fragile.processes[f"{service}-1"]
    async with (
        calling(url, bearer(lecture.teacher, "teacher")) as teacher,
        calling(url, bearer(lecture.students[0], "student")) as student,
    ):
        for event, then in (("startAttendanceSession", "joinAttendanceSession"), ("endAttendanceSession", "")):
            sound.stop()
            dying = process_of(
                fragile,
                service,
                f"dying-{service}",
                tmp_path,
                command=[sys.executable, "-m", "tests.system.dying", service, point],
            )
            dying.environment = {**dying.environment, "PYTHONPATH": str(Path(__file__).parents[2])}
            dying.start()
            dying.wait_ready()
            asking = asyncio.create_task(teacher.ask(event, lecture.about))
            assert dying.popen is not None
            assert await asyncio.to_thread(dying.popen.wait, PATIENCE_SECONDS) == -signal.SIGKILL
            sound.start()
            await asyncio.to_thread(sound.wait_ready)
            first = await asking
            assert first["ok"] or first["error"]["retryable"]
            answer = await until_done(teacher, event, lecture.about)
            assert answer["ok"], answer
            if then:
                joined = await until_done(student, then, lecture.about)
                assert joined["ok"], joined
        assert answer["finalData"]["statistics"]["presentCount"] == 1
        ended = await teacher.heard("attendanceSessionEnded")
        assert ended["finalData"]["seq"] == 3


@pytest.mark.parametrize("service", ["session_service", "attendance_service"])
async def test_a_session_opens_though_nobody_asks_again(fragile: Rig, tmp_path: Path, service: str) -> None:
    """The teacher's phone has gone; the roll opens all the same, and session-service comes to know that it has."""
    url = fragile.gateways[0]
    lecture = await a_lecture(url)
    sound = fragile.processes[f"{service}-1"]
    sound.stop()
    command = [sys.executable, "-m", "tests.system.dying", service, "between commit and event"]
    dying = process_of(fragile, service, f"dying-{service}", tmp_path, command=command)
    dying.environment = {**dying.environment, "PYTHONPATH": str(Path(__file__).parents[2])}
    dying.start()
    dying.wait_ready()
    async with calling(url, bearer(lecture.teacher, "teacher")) as teacher:
        await teacher.client.emit("startAttendanceSession", lecture.about, namespace=teacher.namespace)
        assert dying.popen is not None
        assert await asyncio.to_thread(dying.popen.wait, PATIENCE_SECONDS) == -signal.SIGKILL
    sound.start()
    await asyncio.to_thread(sound.wait_ready)
    async with calling(url, bearer(lecture.students[0], "student")) as student:
        joined = await until_done(student, "joinAttendanceSession", lecture.about)
        assert joined["ok"], joined
    connection = await asyncpg.connect(fragile.database_urls["session_service"])
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            query = "SELECT roll_opened_at FROM sessions.sessions WHERE id = $1"
            while await connection.fetchval(query, lecture.session_id) is None:
                pass
    finally:
        await connection.close()
