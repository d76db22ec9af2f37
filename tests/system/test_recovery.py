"""A part that was there and went away: callers are told in time, nobody restarts a process of ours, and everything goes on."""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import Protocol

import pytest

from rollcall.launcher import Server
from rollcall.servers import start_postgres, start_valkey
from tests.rabbitmq import RabbitMQ, start_rabbitmq
from tests.system.family import descendants
from tests.system.rig import Process, Rig, running_separately
from tests.system.talk import Caller, Payload, a_lecture, bearer, calling

PATIENCE_SECONDS = 45
ROUNDS = 3
ANSWERED_SECONDS = 2.2
"""Callers are to hear within 2 s of the arrival of what they ask. What they see is longer by the way there and back and by
waiting for a processor: 1 to 90 ms where eleven processes want two of them. The middle of some tries is not late by accident.
"""
ONCE_SECONDS = 3.0
"""A single try may meet a machine that does something else for a second. Who waits 2 s twice, for one part after another, does
not pass.
"""


class Part(Protocol):
    """What may go away."""

    def stop(self) -> object: ...
    def start(self) -> None: ...
    def pid(self) -> int: ...


@dataclass
class OfServer:
    """A server, which comes back on its port with its data."""

    begin: Callable[[int | None], Server | RabbitMQ]
    running: Server | RabbitMQ
    port: int

    @classmethod
    def begun(cls, begin: Callable[[int | None], Server | RabbitMQ]) -> "OfServer":
        running = begin(None)
        return cls(begin, running, int(running.url.rpartition(":")[2].partition("/")[0]))

    def stop(self) -> None:
        self.running.stop()

    def start(self) -> None:
        """Blocks the loop: a server lives as long as the thread that started it."""
        self.running = self.begin(self.port)

    def pid(self) -> int:
        server = self.running.node if isinstance(self.running, RabbitMQ) else self.running
        return server.process.pid


@dataclass
class OfProcess:
    """A process of ours."""

    process: Process

    def stop(self) -> int:
        return self.process.stop()

    def start(self) -> None:
        self.process.start()

    def pid(self) -> int:
        assert self.process.popen is not None
        return self.process.popen.pid


@dataclass
class Parts:
    """A rig, and what under it may go away."""

    rig: Rig
    named: Mapping[str, Part]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, rabbitmq: None) -> Iterator[Parts]:
    folder = tmp_path_factory.mktemp("recovery")
    with ExitStack() as stack:
        servers = {
            "Postgres": OfServer.begun(lambda port: start_postgres(folder / "postgres", port=port)),
            "Redis": OfServer.begun(lambda port: start_valkey(folder / "valkey", port=port)),
            "RabbitMQ": OfServer.begun(lambda port: start_rabbitmq(folder / "rabbitmq", port=port)),
        }
        for server in servers.values():
            stack.callback(server.stop)
        databases = dict.fromkeys(("session_service", "attendance_service"), servers["Postgres"].running.url)
        rig = stack.enter_context(
            running_separately(
                folder,
                amqp_url=servers["RabbitMQ"].running.url,
                redis_url=servers["Redis"].running.url,
                database_urls=databases,
                replicas=1,
            )
        )
        service = OfProcess(rig.processes["attendance_service-1"])
        yield Parts(rig, {**servers, "attendance-service": service})


def stop(part: Part) -> Callable[[], None]:
    """Stop it in good order; what it returns brings it back."""
    part.stop()
    return part.start


def freeze(part: Part) -> Callable[[], None]:
    """Stop it where it is, as a machine does that swaps: connections stay, and nothing answers."""
    pids = [part.pid(), *(process.pid for process in descendants(part.pid()))]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)

    def thaw() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    return thaw


@dataclass
class Question:
    """What one socket asks again and again, and how long it waited for each answer."""

    caller: Caller
    event: str
    payload: Payload
    waits: list[float] = field(default_factory=list)

    async def ask(self) -> Payload:
        """Ask while a part is away: it is done or may be sent again."""
        began = time.monotonic()
        answer = await self.caller.ask_once(self.event, self.payload)
        self.waits.append(time.monotonic() - began)
        assert answer["ok"] or answer["error"]["code"] in ("unavailable", "timeout"), (self.event, answer)
        assert answer["ok"] or answer["error"]["retryable"], self.event
        return answer

    def were_in_time(self) -> bool:
        """Say whether the answers came as soon as promised."""
        return statistics.median(self.waits) < ANSWERED_SECONDS and max(self.waits) < ONCE_SECONDS


async def done(caller: Caller, event: str, payload: Payload) -> Payload:
    """Send a command again, as the contract tells clients, for as long as it may be sent again."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (answer := await caller.ask_once(event, payload))["ok"]:
            assert answer["error"]["retryable"], answer
    return answer


@pytest.mark.parametrize("take_away", [stop, freeze])
@pytest.mark.parametrize("name", ["Postgres", "Redis", "RabbitMQ", "attendance-service"])
async def test_callers_hear_in_time_and_everything_goes_on(
    parts: Parts, name: str, take_away: Callable[[Part], Callable[[], None]]
) -> None:
    url = parts.rig.gateways[0]
    lecture, other = await a_lecture(url), await a_lecture(url)
    first, second, third = lecture.students
    mark = {**lecture.about, "student_id": third, "status": "excused"}
    async with (
        calling(url, bearer(lecture.teacher, "teacher")) as teacher,
        calling(url, bearer(first, "student")) as early,
        calling(url, bearer(second, "student")) as late,
        AsyncExitStack() as stack,
    ):
        assert (await done(teacher, "startAttendanceSession", lecture.about))["ok"]

        about_course = {"course_id": lecture.course_id}
        questions = [Question(early, "joinAttendanceSession", lecture.about), Question(teacher, "markStudentAttendance", mark)]
        for event, payload in {
            "getAttendanceSessionData": lecture.about,
            "syncAttendanceSession": lecture.about,
            "getOnlineStudents": lecture.about,
            "subscribeToCourse": about_course,
            "checkActiveSessions": about_course,
        }.items():
            questions.append(
                Question(await stack.enter_async_context(calling(url, bearer(lecture.teacher, "teacher"))), event, payload)
            )
        starter = await stack.enter_async_context(calling(url, bearer(other.teacher, "teacher")))
        questions.append(Question(starter, "startAttendanceSession", other.about))

        bring_back = await asyncio.to_thread(take_away, parts.named[name])
        try:
            for _ in range(ROUNDS):
                join, marked, *_ = await asyncio.gather(*(question.ask() for question in questions))
                # Postgres is the truth, Redis only speed.
                if name == "Redis":
                    assert [join["ok"], marked["ok"]] == [True, True]
        finally:
            bring_back()
        print({question.event: [round(wait, 3) for wait in question.waits] for question in questions})
        assert [(question.event, question.waits) for question in questions if not question.were_in_time()] == []

        for student in (early, late):
            await done(student, "joinAttendanceSession", lecture.about)
        await done(teacher, "markStudentAttendance", mark)
        seen = {(await teacher.heard("studentJoinedAttendance"))["student_id"] for _ in range(2)}
        assert seen == {first, second}
        ended = await done(teacher, "endAttendanceSession", lecture.about)
        assert ended["finalData"]["seq"] == 5
    assert all(process.popen is not None and process.popen.poll() is None for process in parts.rig.processes.values())
