"""A service dies at the worst moment: the session still opens and ends, and what was asked for is done, once."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import NewDatabase
from tests.rabbitmq import RabbitMQ
from tests.system.dying import POINTS, command
from tests.system.rig import Process, Rig, process_of, running_separately, unique
from tests.system.talk import Caller, Payload, a_lecture, bearer, calling, http

PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def fragile(
    tmp_path_factory: pytest.TempPathFactory, new_database: NewDatabase, redis_url: str, private_rabbitmq: RabbitMQ
) -> Iterator[Rig]:
    """One of each process, with queues and a database that nobody else has."""
    with new_database() as database:
        folder = tmp_path_factory.mktemp("fragile")
        databases = {"session_service": database, "attendance_service": database}
        with running_separately(
            folder,
            amqp_url=private_rabbitmq.new_host(),
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


@asynccontextmanager
async def one_that_dies(fragile: Rig, service: str, point: str, folder: Path) -> AsyncIterator[Process]:
    """Replace a service for the length of the block by one that dies at the point; its successor finds what was left."""
    sound = fragile.processes[f"{service}-1"]
    await asyncio.to_thread(sound.stop)
    dying = process_of(fragile, service, f"dying-{service}", folder, command=command(service, point))
    dying.environment = {**dying.environment, "PYTHONPATH": str(Path(__file__).parents[2])}
    dying.start()
    try:
        await asyncio.to_thread(dying.wait_ready)
        yield dying
        assert dying.popen is not None
        assert dying.popen.poll() == -signal.SIGKILL
    finally:
        dying.kill()
        sound.start()
        await asyncio.to_thread(sound.wait_ready)


async def its_death(dying: Process) -> None:
    assert dying.popen is not None
    await asyncio.to_thread(dying.popen.wait, PATIENCE_SECONDS)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("service", ["session_service", "attendance_service"])
async def test_a_session_opens_and_ends_though_a_service_dies(fragile: Rig, tmp_path: Path, service: str, point: str) -> None:
    lecture = await a_lecture(fragile.gateways[0])
    url = fragile.gateways[0]
    async with (
        calling(url, bearer(lecture.teacher, "teacher")) as teacher,
        calling(url, bearer(lecture.students[0], "student")) as student,
    ):
        for event, then in (("startAttendanceSession", "joinAttendanceSession"), ("endAttendanceSession", "")):
            async with one_that_dies(fragile, service, point, tmp_path) as dying:
                asking = asyncio.create_task(until_done(teacher, event, lecture.about))
                await its_death(dying)
            answer = await asking
            assert answer["ok"], answer
            if then:
                joined = await until_done(student, then, lecture.about)
                assert joined["ok"], joined
        assert answer["finalData"]["statistics"]["presentCount"] == 1
        ended = await teacher.heard("attendanceSessionEnded")
        assert ended["finalData"]["seq"] == 3


@pytest.mark.parametrize("point", POINTS)
async def test_a_join_and_a_mark_are_done_once_though_the_service_dies(fragile: Rig, tmp_path: Path, point: str) -> None:
    url = fragile.gateways[0]
    lecture = await a_lecture(url)
    ann, ben, _ = lecture.students
    mark = {**lecture.about, "student_id": ben, "status": "late", "remarks": "the bus", "command_id": unique("mark")}
    async with calling(url, bearer(lecture.teacher, "teacher")) as teacher, calling(url, bearer(ann, "student")) as student:
        assert (await until_done(teacher, "startAttendanceSession", lecture.about))["ok"]
        for caller, event, payload in (
            (student, "joinAttendanceSession", lecture.about),
            (teacher, "markStudentAttendance", mark),
        ):
            async with one_that_dies(fragile, "attendance_service", point, tmp_path) as dying:
                asking = asyncio.create_task(until_done(caller, event, payload))
                await its_death(dying)
            assert (await asking)["ok"]
            assert (await until_done(caller, event, payload))["ok"]
        history = await http(url, "GET", f"/sessions/{lecture.session_id}/history", bearer(lecture.teacher, "teacher"))
    kinds = [(item["seq"], item["kind"], item["student_id"]) for item in history[1]["items"]]
    assert kinds == [(1, "opened", None), (2, "joined", ann), (3, "marked", ben)]


async def test_who_was_answered_is_seen_by_staff_though_the_service_dies_before_it_tells_them(
    fragile: Rig, tmp_path: Path
) -> None:
    """The answer is the first that leaves, and nothing brings the command again."""
    url = fragile.gateways[0]
    lecture = await a_lecture(url)
    ann = lecture.students[0]
    async with calling(url, bearer(lecture.teacher, "teacher")) as teacher, calling(url, bearer(ann, "student")) as student:
        assert (await until_done(teacher, "startAttendanceSession", lecture.about))["ok"]
        async with one_that_dies(fragile, "attendance_service", "between answer and event", tmp_path) as dying:
            answer = await student.ask("joinAttendanceSession", lecture.about)
            assert answer["ok"], answer
            await its_death(dying)
        told = await teacher.heard("studentJoinedAttendance")
        assert told["student_id"] == ann


@pytest.mark.parametrize("service", ["session_service", "attendance_service"])
async def test_a_session_opens_though_nobody_asks_again(fragile: Rig, tmp_path: Path, service: str) -> None:
    """The teacher's phone has gone; the roll opens all the same, and session-service comes to know that it has."""
    url = fragile.gateways[0]
    lecture = await a_lecture(url)
    async with (
        one_that_dies(fragile, service, "between commit and event", tmp_path) as dying,
        calling(url, bearer(lecture.teacher, "teacher")) as teacher,
    ):
        await teacher.client.emit("startAttendanceSession", lecture.about, namespace=teacher.namespace)
        await its_death(dying)
    async with calling(url, bearer(lecture.students[0], "student")) as student:
        joined = await until_done(student, "joinAttendanceSession", lecture.about)
        assert joined["ok"], joined
    connection = await asyncpg.connect(fragile.database_urls["session_service"])
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            query = "SELECT 1 FROM sessions.sessions WHERE id = $1 AND roll_version >= turn_version"
            while await connection.fetchval(query, lecture.session_id) is None:
                pass
    finally:
        await connection.close()
