"""Rollcall as it is measured: a process for each gateway and service, on the stage's servers."""

import asyncio
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

import aiohttp

from bench.meter import Pids
from bench.stage import MIGRATED, Stage
from bench.system import STUDENT, TEACHER
from rollcall import leash
from rollcall.launcher import leashed
from tests.system.rig import SECRET, Process, Rig, process_of, token, unique

MODULES = ("session_service", "attendance_service", "gateway")
TOGETHER = 16
"""How many requests prepare things at once."""


class Ours:
    """A running Rollcall, of so many processes of each kind as were added."""

    name = "rollcall"

    def __init__(self, stage: Stage, database_url: str) -> None:
        self._stage = stage
        environment = {
            "ROLLCALL_AMQP_URL": stage.rabbitmq.url,
            "ROLLCALL_REDIS_URL": stage.valkey.url,
            "ROLLCALL_REDIS_PREFIX": unique("bench"),
            "ROLLCALL_JWT_SECRET": SECRET,
            "ROLLCALL_HOST": "127.0.0.1",
            "ROLLCALL_LOG_LEVEL": "warning",
        }
        self._rig = Rig([], dict.fromkeys(("session_service", "attendance_service"), database_url), environment=environment)
        self._running: dict[str, list[Process]] = {module: [] for module in MODULES}
        self._courses: set[str] = set()
        self._campus = "campus"

    def scale(self, counts: Mapping[str, int]) -> None:
        """Have so many processes of these kinds: stop the youngest, start more all at once, and wait until they are ready."""
        added, gone = list[Process](), list[Process]()
        for module, count in counts.items():
            running = self._running[module]
            gone += running[count:]
            del running[count:]
            added += [self._added(module) for _ in range(count - len(running))]
        stop(gone)
        for process in added:
            process.start()
        for process in added:
            process.wait_ready()

    def _added(self, module: str) -> Process:
        process = process_of(self._rig, module, unique(module), self._stage.folder)
        process.command = leashed([sys.executable, "-m", module], leash.SAME_USER, signal.SIGTERM)
        self._running[module].append(process)
        return process

    def renew(self, module: str) -> None:
        """Start one process of a kind afresh, in place of those that run."""
        self.scale({module: 0})
        self.scale({module: 1})

    def use(self, module: str, database_url: str) -> None:
        """Have one process of a service work on another database. Courses are made anew for it: it does not know the others."""
        self._rig.database_urls = {**self._rig.database_urls, module: database_url}
        self._campus = database_url.rpartition("/")[2]
        self.renew(module)

    def stop(self) -> None:
        """Stop everything."""
        self.scale(dict.fromkeys(MODULES, 0))

    @property
    def urls(self) -> list[str]:
        """The gateways."""
        return [f"http://127.0.0.1:{each.environment['ROLLCALL_PORT']}" for each in self._running["gateway"]]

    def groups(self) -> dict[str, Pids]:
        """The processes of each kind."""
        return {module.partition("_")[0]: partial(self.pids, module) for module in self._running}

    def pids(self, module: str) -> list[int]:
        """The processes of a kind."""
        return [process.popen.pid for process in self._running[module] if process.popen is not None]

    def schedule(self, sessions: int, students: int) -> list[str]:
        """Schedule a session for each teacher, on a course of their own whose roster is the first so many students."""
        return asyncio.run(self._schedule(sessions, students))

    async def _schedule(self, sessions: int, students: int) -> list[str]:
        door = asyncio.Semaphore(TOGETHER)
        async with aiohttp.ClientSession() as client:

            async def put(number: int) -> str:
                async with door:
                    return await self._put(client, number, students)

            return list(await asyncio.gather(*map(put, range(sessions))))

    async def _put(self, client: aiohttp.ClientSession, number: int, students: int) -> str:
        course_id = f"{self._campus}-{students}-{number}"
        # Whoever asks too much is refused: each course has an admin of its own.
        headers = {"Authorization": f"Bearer {token(f'admin-{number}', 'admin')}"}

        async def ask(method: str, path: str, body: object) -> str:
            async with client.request(method, f"{self.urls[0]}/api/v1{path}", json=body, headers=headers) as response:
                response.raise_for_status()
                return str((await response.json()).get("id"))

        if course_id not in self._courses:
            course = {"title": "Algorithms", "teacher_ids": [TEACHER.format(number)], "time_zone": "Europe/Berlin"}
            roster = [{"student_id": STUDENT.format(n), "name": f"Student {n}"} for n in range(students)]
            await ask("PUT", f"/courses/{course_id}", course)
            await ask("PUT", f"/courses/{course_id}/roster", roster)
            self._courses.add(course_id)
        today = datetime.now(UTC).date().isoformat()
        session = {"course_id": course_id, "title": "Sorting", "date": today, "start_time": "10:00", "end_time": "11:30"}
        return await ask("POST", "/sessions", session)


def stop(processes: Sequence[Process]) -> None:
    """Stop processes, all at once."""
    for process in processes:
        if process.popen is not None:
            process.popen.terminate()
    for process in processes:
        process.stop()


@contextmanager
def rollcall(stage: Stage) -> Iterator[Ours]:
    """Run Rollcall, one process of each kind, on a database of its own."""
    ours = Ours(stage, stage.database(unique("rollcall"), template=MIGRATED))
    try:
        ours.scale(dict.fromkeys(MODULES, 1))
        yield ours
    finally:
        ours.stop()
