"""The load: courses that meet again and again, each meeting taken attendance of by many clients at once."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import aiohttp

from tests.chaos.client import Client
from tests.chaos.journal import Sent, Views
from tests.system.rig import token, unique
from tests.system.talk import Payload, http_once

STATUSES = ("present", "absent", "late", "excused")
TOPICS = ("Sorting", "Graphs", "Parsing", "Queues", "Proofs")
SETTLE_SECONDS = 60.0
NEWEST = 5
"""How many of a client's last rolls are compared at the end; a soak sees hundreds."""

LIFE = frozenset({"startAttendanceSession", "endAttendanceSession", "submitAttendance", "reopenAttendanceSession"})


@dataclass
class Course:
    """One course with those who take part in it."""

    id: str
    teacher: Client
    markers: list[Client]
    students: list[Client]
    session_ids: list[str]

    @property
    def clients(self) -> list[Client]:
        """All of them."""
        return [self.teacher, *self.markers, *self.students]


class Load:
    """Some courses; `run` until it is over, then `settle`."""

    def __init__(self, gateways: Sequence[str], chance: random.Random, *, courses: int, students: int) -> None:
        self._gateways = gateways
        self._chance = chance
        self._students = students
        self._numbers = courses
        self.courses: list[Course] = []
        self.over = asyncio.Event()
        self.unexpected: list[str] = []

    @property
    def clients(self) -> list[Client]:
        """Everybody."""
        return [client for course in self.courses for client in course.clients]

    @property
    def journal(self) -> list[Sent]:
        """Everything sent so far."""
        return [sent for client in self.clients for sent in client.journal]

    @property
    def views(self) -> list[Views]:
        """What everybody sees."""
        return [client.views for client in self.clients]

    async def prepare(self) -> None:
        """Make the courses and their rosters."""
        for _ in range(self._numbers):
            self.courses.append(await self._a_course())

    async def run(self) -> None:
        """Let every course meet until it is over, and every meeting come to its end."""
        listening = [asyncio.create_task(client.listen()) for client in self.clients]
        try:
            async with asyncio.TaskGroup() as group:
                for course in self.courses:
                    group.create_task(self._meet_again_and_again(course))
        finally:
            for task in listening:
                task.cancel()
            ended = await asyncio.gather(*listening, return_exceptions=True)
            self.unexpected += [
                f"a client stopped listening: {error!r}"
                for error in ended
                if isinstance(error, BaseException) and not isinstance(error, asyncio.CancelledError)
            ]

    async def settle(self) -> None:
        """Let every client sync its last rolls once, `SETTLE_SECONDS` for each at most."""
        for client in self.clients:
            views = client.views
            views.copies = dict(list(views.copies.items())[-NEWEST:])

        async def catch_up(client: Client) -> None:
            for session_id in client.views.copies:
                try:
                    async with asyncio.timeout(SETTLE_SECONDS):
                        had = await client.sync(session_id)
                except TimeoutError:
                    self.unexpected.append(f"{client.user_id} could not sync {session_id}")
                    return
                if not had:
                    self.unexpected.append(f"{client.user_id} may not sync {session_id}")

        await asyncio.gather(*map(catch_up, self.clients))

    async def close(self) -> None:
        """Send everybody away."""
        await asyncio.gather(*(client.close() for client in self.clients))

    async def _a_course(self) -> Course:
        course_id, chance = unique("course"), self._chance
        staff = [Client(unique("teacher"), "teacher", self._gateways, random.Random(chance.random())) for _ in range(2)]
        admin = Client(unique("admin"), "admin", self._gateways, random.Random(chance.random()))
        students = [
            Client(unique("student"), "student", self._gateways, random.Random(chance.random())) for _ in range(self._students)
        ]
        said = {"title": "Algorithms", "teacher_ids": [each.user_id for each in staff], "time_zone": "Europe/Berlin"}
        await self._put("PUT", f"/courses/{course_id}", said)
        roster = [{"student_id": each.user_id, "name": each.user_id.title()} for each in students]
        await self._put("PUT", f"/courses/{course_id}/roster", roster)
        return Course(course_id, staff[0], [staff[1], admin], students, [])

    async def _put(self, method: str, path: str, body: object) -> Payload:
        """Ask over HTTP until it is done: on any gateway, under one key."""
        key = {"Idempotency-Key": unique("key")}
        while True:
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                url = self._chance.choice(self._gateways)
                status, answer = await http_once(url, method, path, token("admin", "admin"), json=body, headers=key)
                if status < 300:
                    return answer
                if not answer["error"]["retryable"]:
                    raise AssertionError(f"{method} {path}: {answer}")
            await asyncio.sleep(0.2)

    async def _meet_again_and_again(self, course: Course) -> None:
        while not self.over.is_set():
            await self._meet(course)

    async def _meet(self, course: Course) -> None:
        """Hold one session from its start to its last amendment."""
        session = {"course_id": course.id, "title": self._chance.choice(TOPICS), "date": "2026-11-24"}
        hours = {"start_time": "10:00", "end_time": "11:30", "check_in": {"late_after_minutes": self._chance.choice((0, 10))}}
        session_id = str((await self._put("POST", "/sessions", {**session, **hours}))["id"])
        await course.teacher.do(session_id, "startAttendanceSession")
        course.session_ids.append(session_id)
        closed = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for marker in course.markers:
                group.create_task(self._mark(course, marker, session_id, closed))
            for student in course.students:
                group.create_task(self._attend(student, session_id))
            await course.teacher.follow(session_id)
            await self._pause(1.0, 5.0)
            await self._lead(course.teacher, session_id)
            closed.set()
        for client in course.clients:
            client.leave(session_id)

    async def _lead(self, teacher: Client, session_id: str) -> None:
        """End or submit, sometimes take it back, and leave the roll closed."""
        for turn in range(self._chance.choice((1, 2, 2, 3))):
            if turn:
                await teacher.do(session_id, "reopenAttendanceSession", reason="ended by mistake")
                await self._pause(0.2, 1.5)
            await teacher.do(session_id, self._chance.choice(("endAttendanceSession", "submitAttendance")))
            await self._pause(0.1, 0.5)
        if self._chance.random() < 0.5:
            await teacher.do(session_id, "submitAttendance")

    async def _attend(self, student: Client, session_id: str) -> None:
        await self._pause(0.0, 5.0)
        student.views.following.add(session_id)
        joined = await student.do(session_id, "joinAttendanceSession")
        copy = student.views.copy_of(session_id)
        if joined["ok"]:
            copy.take_join(student.user_id, joined)
        if self._chance.random() < 0.3:
            await student.follow(session_id)
        if self._chance.random() < 0.2:
            await student.do(session_id, "joinAttendanceSession")

    async def _mark(self, course: Course, marker: Client, session_id: str, closed: asyncio.Event) -> None:
        """Mark, clear and mark many, also what is closed and what is submitted (for a reason)."""
        await marker.follow(session_id)
        chance, ids = self._chance, [student.user_id for student in course.students]
        while not closed.is_set():
            about = {"student_id": chance.choice(ids), "reason": "seen in the room"}
            match chance.randrange(6):
                case 0:
                    await marker.do(session_id, "clearStudentMark", **about)
                case 1:
                    named = chance.sample(ids, chance.randint(1, len(ids)))
                    rows = [{"student_id": each, "status": chance.choice(STATUSES)} for each in named]
                    await marker.do(session_id, "bulkUpdateAttendance", attendanceUpdates=rows, reason=about["reason"])
                case 2:
                    await marker.do(session_id, f"markStudent{chance.choice(STATUSES).title()}", **about)
                case 3:
                    seq = marker.views.copy_of(session_id).seq or 1
                    status = chance.choice(STATUSES)
                    await marker.do(session_id, "markStudentAttendance", **about, status=status, expected_seq=seq)
                case _:
                    said = {"status": chance.choice(STATUSES), "remarks": unique("remark")}
                    await marker.do(session_id, "markStudentAttendance", **about, **said)
            await self._pause(0.1, 0.8)

    async def _pause(self, shortest: float, longest: float) -> None:
        """Wait for a while, or until it is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._chance.uniform(shortest, longest)):
                await self.over.wait()
